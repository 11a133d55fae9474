"""The training losses, each with its gradient in the same pass.

Scores r are [n, C]: row i is a lane; column i is that lane's target, every other column a negative (the other lanes'
targets first, then the shared samples). A loss returns the sum over the rows and the gradient of that sum. Where a
formula has a mean or a softmax over j, it is over the C - 1 negatives: the target never competes with itself, and
TOP1's regulariser never pulls the target's own score to 0. A row without negatives (one lane left, no samples) has
loss 0.

A negative may equal a row's target: two lanes with the same target, or a sample that hits it. As in the published
method such a column stays a negative. The losses remain well defined with it. Cross-entropy then spreads a pull of 1
and a push of its probability over several copies of one row, which add up to what one copy would get, only that the
duplicate's own push remains. The others compare the target with itself, where the two gradients cancel.

BPR and TOP1 as in Hidasi et al. 2016 (arXiv:1511.06939), their -max forms as in Hidasi & Karatzoglou 2018
(arXiv:1706.03847).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from trainer.models.settings import NetworkSettings
from trainer.training.activations import activation_of

EPSILON = 1e-24  # inside bpr-max's logarithm, as published


class Loss(Protocol):
    """Scores [n, C] -> the loss summed over the rows [], its gradient [n, C]. May overwrite the scores.

    With ``weights`` [n] each row's loss counts so many times.
    """

    def __call__(self, r: Tensor, weights: Tensor | None = None, /) -> tuple[Tensor, Tensor]: ...


def loss_of(settings: NetworkSettings) -> Loss:
    """The loss that the settings name, of scores that have not passed their activation."""
    if settings.loss == "cross-entropy":
        return cross_entropy
    loss: Callable[..., tuple[Tensor, Tensor]]
    match settings.loss:
        case "bpr":
            loss = bpr
        case "top1":
            loss = top1
        case "top1-max":
            loss = top1_max
        case "bpr-max":
            loss = partial(bpr_max, bpreg=settings.bpreg)
    activation = activation_of(settings)

    def of_scores(r: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        activated, slope = activation(r)
        value, gradient = loss(activated, weights)
        return value, gradient if slope is None else gradient.mul_(slope)

    return of_scores


def cross_entropy(r: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """-Σ_i log softmax(r_i)_i, over the raw scores.

    Written with log-sum-exp it needs no epsilon: the published -log(softmax + 1e-24) is flat, its gradient gone, for
    exactly the rows that are most wrong.
    """
    log_p = torch.log_softmax(r, dim=1)
    loss = -log_p.diagonal()  # [n]
    gradient = log_p.exp_()
    gradient.diagonal().sub_(1.0)
    return _weighed(loss, gradient, weights)


def bpr(r: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """-Σ_i mean_j ln σ(r_ii - r_ij)."""
    if r.shape[1] == 1:
        return _nothing(r)
    difference = r - r.diagonal().unsqueeze(1)  # [n, C], 0 at the target
    share = 1.0 / (r.shape[1] - 1)
    value = torch.nn.functional.softplus(difference)  # -ln σ(-x), without an overflow
    value.diagonal().zero_()
    gradient = torch.sigmoid(difference).mul_(share)
    return _weighed(share * value.sum(1), _towards_target(gradient), weights)


def top1(r: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Σ_i mean_j [σ(r_ij - r_ii) + σ(r_ij²)]."""
    if r.shape[1] == 1:
        return _nothing(r)
    share = 1.0 / (r.shape[1] - 1)
    above, square = torch.sigmoid(r - r.diagonal().unsqueeze(1)), torch.sigmoid(r * r)  # [n, C]
    value = above + square
    value.diagonal().zero_()
    gradient = _towards_target((above * (1 - above)).mul_(share))
    shrink = (2 * share) * r * square * (1 - square)
    shrink.diagonal().zero_()
    return _weighed(share * value.sum(1), gradient.add_(shrink), weights)


def top1_max(r: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Σ_i Σ_j s_ij [σ(r_ij - r_ii) + σ(r_ij²)], s the softmax over the negatives only."""
    if r.shape[1] == 1:
        return _nothing(r)
    s = _negative_softmax(r)  # [n, C], 0 at the target
    above, square = torch.sigmoid(r - r.diagonal().unsqueeze(1)), torch.sigmoid(r * r)
    value = above + square
    row = (s * value).sum(1, keepdim=True)  # [n, 1]
    gradient = _towards_target(s * above * (1 - above))
    # through the softmax, and through the regulariser
    gradient += s * (value - row + 2 * r * square * (1 - square))
    return _weighed(row.squeeze(1), gradient, weights)


def bpr_max(r: Tensor, weights: Tensor | None = None, *, bpreg: float) -> tuple[Tensor, Tensor]:
    """Σ_i -ln(Σ_j s_ij σ(r_ii - r_ij) + ε) + bpreg Σ_j s_ij r_ij², s the softmax over the negatives only."""
    if r.shape[1] == 1:
        return _nothing(r)
    s = _negative_softmax(r)  # [n, C], 0 at the target
    win = torch.sigmoid(r.diagonal().unsqueeze(1) - r)  # [n, C]
    s_win = s * win
    a = s_win.sum(1, keepdim=True)  # [n, 1]
    s_r = s * r
    b = (s_r * r).sum(1, keepdim=True)  # [n, 1]
    loss = bpreg * b - (a + EPSILON).log()  # [n, 1]
    margin = s_win * (1 - win)  # s_j σ_j (1 - σ_j)
    # through the softmax and directly, for every negative; s = 0 keeps the target's column at 0
    gradient = (s_win - s * a - margin).div_(-(a + EPSILON))
    gradient += bpreg * (s_r * (r + 2) - s * b)
    gradient.diagonal().sub_((margin.sum(1, keepdim=True) / (a + EPSILON)).squeeze(1))
    return _weighed(loss.squeeze(1), gradient, weights)


def _weighed(loss: Tensor, gradient: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sum of the rows' losses [n] and its gradient, from the gradient [n, C] of their plain sum, overwritten."""
    if weights is None:
        return loss.sum(), gradient
    return loss @ weights, gradient.mul_(weights[:, None])


def _nothing(r: Tensor) -> tuple[Tensor, Tensor]:
    return r.new_zeros(()), torch.zeros_like(r)


def _negative_softmax(r: Tensor) -> Tensor:
    """Softmax of each row [n, C] over all columns but the target's, which gets 0."""
    masked = r.clone()
    masked.diagonal().fill_(-math.inf)
    return torch.softmax(masked, dim=1)


def _towards_target(gradient: Tensor) -> Tensor:
    """The gradient [n, C] of a function of r_j - r_target, from its part in r_j: the target gets minus the row's sum.

    Overwrites its argument; the target's own column may hold anything.
    """
    gradient.diagonal().zero_()
    gradient.diagonal().sub_(gradient.sum(1))
    return gradient


def logq_correction(support: Tensor, settings: NetworkSettings) -> tuple[Tensor, Tensor] | None:
    """What to take off an item's score in training: (as a batch's target [I], as a sample [I]); None for logq 0.

    The logarithm of how often the item is met as a negative, up to a constant: support for the batch's targets,
    support^alpha for the samples.
    """
    if settings.logq == 0:
        return None
    log_support = support.clamp(min=1).log()
    return settings.logq * log_support, settings.logq * settings.sample_alpha * log_support
