"""A warm start that does not wear out.

Trained weights are a poor place to start from: the next model generalises worse, and a line of models that each start
from the one before gets worse and worse. Ash and Adams (2020, "On Warm-Starting Neural Network Training",
arXiv:1910.08475) shrink the weights and add noise. What that is worth here is in `docs/retraining.md`.
"""

import torch

from trainer.models.base import Network
from trainer.models.settings import LearnedSettings
from trainer.training.networks import initial_network


def shrink_and_perturb(network: Network, settings: LearnedSettings, *, keep: float) -> Network:
    """`keep` of the weights, and 1 - `keep` of freshly drawn ones, of the settings' sizes. A new object."""
    # A seed apart from those of the fit and of the rows of new items.
    generator = torch.Generator().manual_seed(settings.seed ^ 0x5A17)
    fresh = initial_network(len(network.output), settings, generator).tensors()
    return network.with_tensors({name: torch.lerp(fresh[name], old, keep) for name, old in network.tensors().items()})
