"""Losses, optimizers, sampling, and the loop over the epochs."""
