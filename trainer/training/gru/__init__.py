"""GRU4Rec's training step, with the gradient by hand."""
