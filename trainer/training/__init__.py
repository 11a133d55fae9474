"""Settings, optimizers, losses, sampling, and the loop over the epochs."""
