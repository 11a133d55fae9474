"""The network (GRU4Rec), and all settings of a training run."""
