"""The training losses, each with its gradient in the same pass.

Scores r are [n, C]: row i is a lane; column i is that lane's target, every other column a negative (the other lanes'
targets first, then the shared samples). A loss returns the sum over the rows and the gradient of that sum.

A negative may equal a row's target: two lanes with the same target, or a sample that hits it. As in the published
method such a column stays a negative. Both losses remain well defined with it. Cross-entropy then spreads a pull of 1
and a push of its probability over several copies of one row, which add up to what one copy would get, only that the
duplicate's own push remains. bpr-max compares the target with itself, σ(0) = 1/2, whose gradient cancels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.settings import TrainingSettings

EPSILON = 1e-24  # inside bpr-max's logarithm, as published

# (scores [n, C]) -> (loss summed over the rows [], gradient [n, C]). May overwrite the scores.
Loss = Callable[[Tensor], tuple[Tensor, Tensor]]


def loss_of(settings: TrainingSettings) -> Loss:
    """The loss that the settings name."""
    if settings.loss == "cross-entropy":
        return cross_entropy
    return lambda r: bpr_max(r, bpreg=settings.bpreg, elu=settings.elu)


def cross_entropy(r: Tensor) -> tuple[Tensor, Tensor]:
    """-Σ_i log softmax(r_i)_i, over the raw scores.

    Written with log-sum-exp it needs no epsilon: the published -log(softmax + 1e-24) is flat, its gradient gone, for
    exactly the rows that are most wrong.
    """
    n = len(r)
    log_p = torch.log_softmax(r, dim=1)
    loss = -log_p.diagonal().sum()
    gradient = log_p.exp_()
    gradient.diagonal().sub_(1.0)
    return loss, gradient[:n]


def bpr_max(r: Tensor, *, bpreg: float, elu: float) -> tuple[Tensor, Tensor]:
    """Σ_i -ln(Σ_j s_ij σ(r_ii - r_ij) + ε) + bpreg Σ_j s_ij r_ij² (Hidasi & Karatzoglou 2018, arXiv:1706.03847).

    j runs over the negatives only, and s is the softmax over the negatives only. With ``elu`` above 0 the scores pass
    through an ELU of that alpha first. A row without negatives (one lane left, no samples) has loss 0.
    """
    if r.shape[1] == 1:
        return r.new_zeros(()), torch.zeros_like(r)
    slope = None
    if elu > 0:
        slope = torch.where(r > 0, 1.0, elu * torch.exp(r.clamp(max=0.0)))  # dELU/dr
        r = torch.where(r > 0, r, slope - elu)
    target = r.diagonal().unsqueeze(1)  # [n, 1]
    masked = r.clone()
    masked.diagonal().fill_(-math.inf)
    s = torch.softmax(masked, dim=1)  # [n, C], 0 at the target
    win = torch.sigmoid(target - r)  # [n, C]
    s_win = s * win
    a = s_win.sum(1, keepdim=True)  # [n, 1]
    s_r = s * r
    b = (s_r * r).sum(1, keepdim=True)  # [n, 1]
    loss = -(a + EPSILON).log().sum() + bpreg * b.sum()
    margin = s_win * (1 - win)  # s_j σ_j (1 - σ_j)
    # through the softmax and directly, for every negative; s = 0 keeps the target's column at 0
    gradient = (s_win - s * a - margin).div_(-(a + EPSILON))
    gradient += bpreg * (s_r * (r + 2) - s * b)
    gradient.diagonal().sub_((margin.sum(1, keepdim=True) / (a + EPSILON)).squeeze(1))
    return loss, gradient if slope is None else gradient * slope


def logq_correction(support: Tensor, settings: TrainingSettings) -> tuple[Tensor, Tensor] | None:
    """What to take off an item's score in training: (as a batch's target [I], as a sample [I]); None for logq 0.

    The logarithm of how often the item is met as a negative, up to a constant: support for the batch's targets,
    support^alpha for the samples.
    """
    if settings.logq == 0:
        return None
    log_support = support.clamp(min=1).log()
    return settings.logq * log_support, settings.logq * settings.sample_alpha * log_support
