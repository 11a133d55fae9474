"""The tail of a large catalogue: items that a bound keeps off nearly every list, so that nobody computes their scores.

Trained weights are far from random: a session's best items score many units above most of the catalogue, whose rows
are short. For those a bound is enough that costs next to nothing. With c the mean row and r = |w - c|, by Cauchy and
Schwarz

    s = h · w + b  =  h · c + h · (w - c) + b  <=  h · c + |h| r + b.

Items are put in order of κ = ρ r + b, the bound for a state of the usual length ρ. The first ones, the front, have
the shortlist by integers; the others are the tail, in tall blocks. As |h| r + b = κ + (|h| - ρ) r, no item of a tall
block exceeds F + h · c, with

    F = max κ + max(|h| - ρ, 0) max r - max(ρ - |h|, 0) min r,

three numbers a tall block in place of rows. A tall block whose bound reaches the threshold t is listed like any other,
and its items have their scores in float32. An item of another one has s < t, which step 5 of
:mod:`trainer.export.shortlist` asks for, whatever order, ρ and front are chosen. They decide what a ranking costs, so
they are chosen by rankings of the network itself: see :func:`tail_of`. Random weights have no tail.

What is added to scores while running must be added to the bounds as well: :mod:`trainer.export.shortlist_memory` and
:mod:`trainer.export.shortlist_adjust` do.

Shapes: B sessions, I items, H units, Q queries to choose by, T tall blocks of the tail, of N items each.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from trainer.export.graph import constant
from trainer.export.sample import Sample

_LEAST_FRONT: Final = 128
"""Tall blocks: one for each of the groups that a threshold is found by."""
_MOST_COST: Final = 0.7
"""Of that of all items in integers; what saves less may save nothing with sessions that are not made up."""
_FLOAT_COST: Final = 50.0
_LISTED_COST: Final = 100.0
"""Of an item's score in float32, in scores by integers: in a product with all items, which are read for the session
alone, and gathered for a list."""
_ROUNDING: Final = 1e-5
_SEED: Final = 1

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tail:
    """``order`` int64[I]: the items, ``front`` of them first, then the tall blocks of ``size`` items.

    ``central`` f32[H] is c, ``usual`` ρ, and for each tall block ``highest`` f32[T] max κ, ``longest`` and
    ``shortest`` max r and min r; all of them in components that were multiplied by the catalogue's evening.
    """

    order: Ints
    front: int
    size: int
    central: Floats
    usual: float
    highest: Floats
    longest: Floats
    shortest: Floats

    @classmethod
    def of(
        cls, order: Ints, front: int, size: int, *, central: Floats, usual: float, kappa: Floats, distance: Floats
    ) -> "Tail":
        """The tail behind ``front`` items, from κ and r of all, f32[I] each."""
        starts = np.arange(front, len(order), size) - front
        highest, longest = (np.maximum.reduceat(x[order[front:]], starts) for x in (kappa, distance))
        shortest = np.minimum.reduceat(distance[order[front:]], starts)
        return cls(order, front, size, central, usual, highest, longest, shortest)

    @property
    def talls(self) -> int:
        """T."""
        return len(self.highest)

    def bounds(self, op: OpBuilder, state: ir.Value) -> ir.Value:
        """What no score of a tall block exceeds: states [B, H], evened -> [B, T]."""
        # In its largest component first: the squares of a small state are 0 in float32.
        largest = op.Max(op.ReduceMax(op.Abs(state), axes=[1], keepdims=1), float(np.finfo(np.float32).tiny))
        length = op.ReduceL2(state / largest, axes=[1], keepdims=1) * largest * (1 + _ROUNDING)  # [B, 1]
        rounding = _ROUNDING * float(np.linalg.norm(self.central) + self.longest.max())
        middle = op.MatMul(state, constant(op, "tail.central", self.central[:, None])) + length * rounding
        usual = self.usual
        inputs = op.Concat(middle, op.Relu(length - usual), op.Relu(op.Neg(length) + usual), axis=1)  # [B, 3]
        weights = np.stack([np.ones_like(self.highest), self.longest, -self.shortest])
        # b itself may be as far below κ as ρ r.
        highest = self.highest + _ROUNDING * (np.abs(self.highest).max() + 2 * usual * self.longest.max())
        bounds: ir.Value = op.Gemm(inputs, constant(op, "tail.lengths", weights), constant(op, "tail.highest", highest))
        return bounds


def tail_of(output: Floats, bias: Floats, evening: Floats, sample: Sample, *, size: int, listed: int) -> Tail | None:
    """The tail in tall blocks of ``size`` items that makes the rankings of a sample cheapest.

    ``listed`` of its tall blocks fit on a list, and a session that more of them reach is computed over the whole
    catalogue. None where the integers of all items are about as cheap.
    """
    rows, states = output * evening, sample.queries / evening
    length = np.linalg.norm(states, axis=1)  # [Q]
    central, usual = rows.mean(axis=0), float(np.median(length))
    distance = np.linalg.norm(rows - central, axis=1)  # [I]
    kappa = distance * np.float32(usual) + bias
    if not np.isfinite(kappa).all():
        return None
    order = np.argsort(-kappa, kind="stable")
    whole = Tail.of(order, 0, size, central=central, usual=usual, kappa=kappa, distance=distance)
    longer, shorter = (np.maximum(x, 0)[:, None] for x in (length - usual, usual - length))
    bounds = (states @ central)[:, None] + whole.highest + longer * whole.longest - shorter * whole.shortest  # [Q, T]
    reached = bounds >= (sample.kth - 2 * _errors(rows, states))[:, None]
    # Of a front of 0, 1, .. tall blocks: how many of the tail are reached.
    beyond = reached[:, ::-1].cumsum(axis=1)[:, ::-1]  # [Q, T]
    fronts = size * np.arange(whole.talls)
    gathered = _LISTED_COST * size * np.minimum(beyond, listed).mean(axis=0)
    again = _FLOAT_COST * len(output) * (beyond > listed).mean(axis=0)
    cost = (fronts + gathered + again)[_LEAST_FRONT:]
    if not len(cost) or cost.min() > _MOST_COST * len(output):
        return None
    front = int(fronts[_LEAST_FRONT + np.argmin(cost)])
    # The best items all over the front: side by side they would leave the highest of most groups far below the k-th.
    order[:front] = np.random.default_rng(_SEED).permutation(order[:front])
    return Tail.of(order, front, size, central=central, usual=usual, kappa=kappa, distance=distance)


def _errors(rows: Floats, states: Floats) -> npt.NDArray[np.float64]:
    """About ε of states [Q, H] with 63 and 127 steps for the rows [I, H], both evened: [Q]."""
    lost = np.abs(rows).max() / 63 * np.linalg.norm(states, axis=1)
    lost += np.abs(states).max(axis=1) / 127 * np.linalg.norm(rows, axis=1).max()
    return np.asarray(lost * np.sqrt(rows.shape[1] / 12), dtype=np.float64)
