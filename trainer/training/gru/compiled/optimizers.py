"""Adagrad and SGD of :mod:`trainer.training.gru.optimizer`: rows of gradients in, one pass over a row of the table."""

import math
from typing import Any

import numpy as np

from trainer.compilation import compiled
from trainer.training.gru.compiled.arithmetic import ZERO, fetch_row
from trainer.training.gru.optimizer import EPSILON

Table = Any  # float32[rows, k]
Ints = Any  # int64[n]
_EPSILON = np.float32(EPSILON)
_AHEAD = 8  # rows that are asked for before their turn


@compiled
def move_rows(
    items: Ints, first: int, last: int, g: Table, w: Table, accumulator: Table, velocity: Table, options: Any
) -> None:
    """Move the rows ``items[c]`` of w by the gradients ``g[c]``, c of first..last.

    ``accumulator`` is used by Adagrad alone, ``velocity`` with momentum alone.
    """
    # A function each: in one loop with all four the compiler gives up keeping the numbers in vectors.
    if options.adagrad and options.momentum > ZERO:
        _adagrad_with_momentum(items, first, last, g, w, accumulator, velocity, options.learning_rate, options.momentum)
    elif options.adagrad:
        _adagrad(items, first, last, g, w, accumulator, options.learning_rate)
    elif options.momentum > ZERO:
        _sgd_with_momentum(items, first, last, g, w, velocity, options.learning_rate, options.momentum)
    else:
        _sgd(items, first, last, g, w, options.learning_rate)


@compiled
def _adagrad(items: Ints, first: int, last: int, g: Table, w: Table, accumulator: Table, lr: np.float32) -> None:
    for c in range(first, last):
        if c + _AHEAD < last:
            fetch_row(w, items[c + _AHEAD])
            fetch_row(accumulator, items[c + _AHEAD])
        g_row, w_row, a_row = g[c], w[items[c]], accumulator[items[c]]
        for k in range(len(g_row)):
            a = a_row[k] + g_row[k] * g_row[k]
            a_row[k] = a
            w_row[k] -= lr * g_row[k] / math.sqrt(a + _EPSILON)


@compiled
def _adagrad_with_momentum(
    items: Ints,
    first: int,
    last: int,
    g: Table,
    w: Table,
    accumulator: Table,
    velocity: Table,
    lr: np.float32,
    momentum: np.float32,
) -> None:
    for c in range(first, last):
        if c + _AHEAD < last:
            fetch_row(w, items[c + _AHEAD])
            fetch_row(accumulator, items[c + _AHEAD])
            fetch_row(velocity, items[c + _AHEAD])
        g_row, w_row, a_row, v_row = g[c], w[items[c]], accumulator[items[c]], velocity[items[c]]
        for k in range(len(g_row)):
            a = a_row[k] + g_row[k] * g_row[k]
            v = momentum * v_row[k] - lr * g_row[k] / math.sqrt(a + _EPSILON)
            a_row[k] = a
            v_row[k] = v
            w_row[k] += v


@compiled
def _sgd(items: Ints, first: int, last: int, g: Table, w: Table, lr: np.float32) -> None:
    for c in range(first, last):
        if c + _AHEAD < last:
            fetch_row(w, items[c + _AHEAD])
        g_row, w_row = g[c], w[items[c]]
        for k in range(len(g_row)):
            w_row[k] -= lr * g_row[k]


@compiled
def _sgd_with_momentum(
    items: Ints, first: int, last: int, g: Table, w: Table, velocity: Table, lr: np.float32, momentum: np.float32
) -> None:
    for c in range(first, last):
        if c + _AHEAD < last:
            fetch_row(w, items[c + _AHEAD])
            fetch_row(velocity, items[c + _AHEAD])
        g_row, w_row, v_row = g[c], w[items[c]], velocity[items[c]]
        for k in range(len(g_row)):
            v = momentum * v_row[k] - lr * g_row[k]
            v_row[k] = v
            w_row[k] += v
