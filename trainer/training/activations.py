"""What the scores pass through before a pairwise or listwise loss, each with its slope.

All are monotone, so the ranking by the scores themselves is that by the activated ones, only with fewer ties (relu
makes one of everything below 0): evaluation and bundles rank by the scores and know no activation. Softmax is missing
here because it is no function of one score: it belongs to cross-entropy, which takes it inside its logarithm.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.models.settings import NetworkSettings

# scores [n, C] -> (activated [n, C], slope at each score [n, C]; None for 1 everywhere)
Activation = Callable[[Tensor], tuple[Tensor, Tensor | None]]


def activation_of(settings: NetworkSettings) -> Activation:
    """The activation that the settings name; an ELU of alpha 0 leaves the scores as they are."""
    match settings.activation:
        case "elu" if settings.elu > 0:
            return lambda r: elu(r, settings.elu)
        case "tanh":
            return tanh
        case "relu":
            return relu
        case _:
            return linear


def linear(r: Tensor) -> tuple[Tensor, None]:
    return r, None


def elu(r: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """r above 0, alpha (e^r - 1) below."""
    slope = torch.where(r > 0, 1.0, alpha * torch.exp(r.clamp(max=0.0)))
    return torch.where(r > 0, r, slope - alpha), slope


def tanh(r: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.tanh(r)
    return y, 1 - y * y


def relu(r: Tensor) -> tuple[Tensor, Tensor]:
    """r above 0, 0 below: a pair of scores below 0 has no gradient."""
    return r.clamp(min=0.0), (r > 0).to(r.dtype)
