"""The mean of the weights after several epochs, which generalises better than any of them.

With a constant learning rate the weights never settle, they move around a better place than where they stop. The mean
is taken with polynomial decay (Shamir and Zhang 2013, arXiv:1212.1824, section 4): after epoch t

    m_t = (1 - (η + 1) / (t + η)) m_{t-1} + (η + 1) / (t + η) w_t

so that epoch e weighs about e^η, the first ones next to nothing, and one more set of weights is all it takes, whenever
the training stops. What that is worth here is in `docs/training.md`.
"""

import torch

from trainer.models.base import N


def averaged(mean: N | None, weights: N, epoch: int, eta: float) -> N:
    """The mean with the weights after the epoch (from 1) in it: a new object. ``mean`` is None before the first."""
    if mean is None:
        return weights.clone()
    before, now = mean.tensors(), weights.tensors()
    share = (eta + 1) / (epoch + eta)
    return weights.with_tensors({name: torch.lerp(before[name], now[name], share) for name in now})
