"""A trained model as ONNX graphs, and the check that they compute the same."""
