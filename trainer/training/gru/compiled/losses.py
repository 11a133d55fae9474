"""The losses of :mod:`trainer.training.losses`, a row at a time, where a column may stand for several equal ones.

A row r [C] has the scores of the distinct items among the batch's targets and the samples; column t is the row's own
target. Column j stands for ``count[j]`` columns of the plain formula. Of the target's column one of these is the target
itself, the others are negatives as every column is. Each function leaves the gradient in r, times ``scale``, and
returns the row's loss.

This is the plain loss exactly: equal columns have equal scores, so whatever the formula sums over columns is count
times one of them, and their gradients are summed in any case, because they belong to one row of the output table.
"""

import math
from typing import Any

import numpy as np

from trainer.compilation import compiled
from trainer.training.gru.compiled.arithmetic import ONE, TWO, ZERO, exp, sigmoid, softplus, tanh
from trainer.training.losses import EPSILON

CROSS_ENTROPY, BPR, TOP1, BPR_MAX, TOP1_MAX = range(5)
LINEAR, ELU, TANH, RELU = range(4)

_LARGE = np.float32(1e30)  # a sum of exponentials this side of it has no member that was cut off

Row = Any  # float32[C]


@compiled
def add_and_find_greatest(r: Row, more: Row) -> np.float32:
    """r becomes r + more; its greatest number, of those that are numbers."""
    # The compiler does not take a maximum side by side by itself: so 64 of them, each of every 64th number.
    lanes, whole = np.empty(64, np.float32), len(r) - len(r) % 64
    lanes[:] = np.float32(-np.inf)
    for j in range(0, whole, 64):
        some, others = r[j : j + 64], more[j : j + 64]
        for k in range(64):
            x = some[k] + others[k]
            some[k] = x
            lanes[k] = x if x > lanes[k] else lanes[k]
    for j in range(whole, len(r)):
        r[j] += more[j]
        lanes[0] = r[j] if r[j] > lanes[0] else lanes[0]
    top = lanes[0]
    for k in range(64):
        top = lanes[k] if lanes[k] > top else top
    return top  # type: ignore[no-any-return]


@compiled
def exponentials(r: Row, bias: Row, off: np.float32, e: Row) -> np.float32:
    """e becomes exp(r + bias - off); its sum."""
    total = ZERO
    for j in range(len(r)):
        x = exp(r[j] + bias[j] - off)
        e[j] = x
        total += x
    return total


@compiled
def cross_entropy(r: Row, bias: Row, d_bias: Row, target: int, shift: np.float32, scale: np.float32, e: Row) -> float:
    """-log softmax(r + bias)_t; the gradient is added to ``d_bias`` as well. ``e`` float32[C] is room.

    A column's count is in its bias, as a logarithm: ``shift`` is the target's share of that.
    """
    own = r[target] + bias[target]
    off = own  # the greatest score would do for any row; the target's is at hand, and does for almost all
    total = exponentials(r, bias, off, e)
    if not total < _LARGE:
        for j in range(len(r)):
            e[j] = r[j]
        off = add_and_find_greatest(e, bias)
        total = exponentials(r, bias, off, e)
    factor = scale / total
    e[target] -= total  # (e - total) / total = p - 1
    for j in range(len(r)):
        g = e[j] * factor
        r[j] = g
        d_bias[j] += g
    return float(off - own + shift) + math.log(total)


@compiled
def activate(r: Row, slope: Row, activation: int, alpha: np.float32) -> None:
    """r becomes what the loss compares, slope its derivative."""
    if activation == ELU:
        for j in range(len(r)):
            e = alpha * exp(ZERO if r[j] > ZERO else r[j])  # NaN stays NaN, here as below
            slope[j] = ONE if r[j] > ZERO else e
            r[j] = r[j] if r[j] > ZERO else e - alpha
    elif activation == TANH:
        for j in range(len(r)):
            y = tanh(r[j])
            r[j] = y
            slope[j] = ONE - y * y
    elif activation == RELU:
        for j in range(len(r)):
            slope[j] = ONE if r[j] > ZERO else ZERO
            r[j] = ZERO if r[j] < ZERO else r[j]
    else:
        for j in range(len(r)):
            slope[j] = ONE


@compiled
def bpr(r: Row, target: int, count: Row, negatives: np.float32) -> float:
    """-mean_j ln σ(r_t - r_j)."""
    own, share, loss, pull = r[target], ONE / negatives, ZERO, ZERO
    for j in range(len(r)):
        loss += count[j] * softplus(r[j] - own)
        g = share * count[j] * sigmoid(r[j] - own)
        r[j] = g
        pull += g
    r[target] -= pull
    return float(share * loss)


@compiled
def top1(r: Row, target: int, count: Row, negatives: np.float32) -> float:
    """mean_j [σ(r_j - r_t) + σ(r_j²)]."""
    own, share, loss, pull = r[target], ONE / negatives, ZERO, ZERO
    for j in range(len(r)):
        above, square, weight = sigmoid(r[j] - own), sigmoid(r[j] * r[j]), share * count[j]
        loss += weight * (above + square)
        g = weight * above * (ONE - above)
        pull += g
        r[j] = g + TWO * weight * r[j] * square * (ONE - square)
    r[target] -= pull
    return float(loss)


@compiled
def negative_softmax(r: Row, count: Row, s: Row) -> None:
    """s becomes the softmax over the negatives: where the target towers over them, among themselves still."""
    for j in range(len(r)):
        s[j] = ZERO if count[j] > ZERO else np.float32(-np.inf)
    top, total = add_and_find_greatest(s, r), ZERO
    for j in range(len(r)):
        e = count[j] * exp(s[j] - top)
        s[j] = e
        total += e
    factor = ONE / total
    for j in range(len(r)):
        s[j] *= factor


@compiled
def top1_max(r: Row, target: int, s: Row) -> float:
    """Σ_j s_j [σ(r_j - r_t) + σ(r_j²)]."""
    own, loss, pull = r[target], ZERO, ZERO
    for j in range(len(r)):
        loss += s[j] * (sigmoid(r[j] - own) + sigmoid(r[j] * r[j]))
    for j in range(len(r)):
        above, square = sigmoid(r[j] - own), sigmoid(r[j] * r[j])
        g = s[j] * above * (ONE - above)
        pull += g
        r[j] = g + s[j] * (above + square - loss + TWO * r[j] * square * (ONE - square))
    r[target] -= pull
    return float(loss)


@compiled
def bpr_max(r: Row, target: int, s: Row, bpreg: np.float32) -> float:
    """-ln(Σ_j s_j σ(r_t - r_j) + ε) + bpreg Σ_j s_j r_j²."""
    own, won, norm, pull = r[target], ZERO, ZERO, ZERO
    for j in range(len(r)):
        won += s[j] * sigmoid(own - r[j])
        norm += s[j] * r[j] * r[j]
    won += np.float32(EPSILON)
    for j in range(len(r)):
        win = sigmoid(own - r[j])
        margin = s[j] * win * (ONE - win)
        pull += margin
        r[j] = (margin - s[j] * (win - won)) / won + bpreg * s[j] * (r[j] * (r[j] + TWO) - norm)
    r[target] -= pull / won
    return -math.log(won) + float(bpreg * norm)


@compiled
def ranking_loss(
    r: Row,
    bias: Row,
    d_bias: Row,
    target: int,
    count: Row,
    negatives: int,
    scale: np.float32,
    temporary: Any,
    options: Any,
) -> float:
    """A loss of r + bias that compares the target with the negatives; the gradient is added to ``d_bias`` as well.

    ``temporary`` float32[2, C] or wider.
    """
    if negatives == 0:
        for j in range(len(r)):
            r[j] = ZERO
        return 0.0
    for j in range(len(r)):
        r[j] += bias[j]
    slope, s = temporary[0, : len(r)], temporary[1, : len(r)]
    activate(r, slope, options.activation, options.elu)
    count[target] -= ONE
    if options.loss == BPR:
        value = bpr(r, target, count, np.float32(negatives))
    elif options.loss == TOP1:
        value = top1(r, target, count, np.float32(negatives))
    else:
        negative_softmax(r, count, s)
        value = bpr_max(r, target, s, options.bpreg) if options.loss == BPR_MAX else top1_max(r, target, s)
    count[target] += ONE
    for j in range(len(r)):
        g = r[j] * scale * slope[j]
        r[j] = g
        d_bias[j] += g
    return value
