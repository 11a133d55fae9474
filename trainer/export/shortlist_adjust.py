"""What may not be shown, and boosts, where scores are estimated in integers: in the estimates themselves.

An item's number, in steps, is added to its estimate before the maximum of its block is taken, so the shortlist is one
of adjusted scores. It is off by at most a step more than the estimate alone, and by the rounding of the sums. An item
that may not be shown gets an estimate below that of every other: no list needs to hold it, and one that holds all
others is proven whatever their scores are, however few there are.

What a session memory adds depends on the best of all scores, shown or not. So its item is sought in the estimates
without any of this, and listed beside the others.

To the bound of a tall block in a tail the highest number of its items is added.

All of it stands in branches that ONNX Runtime removes where nothing is adjusted: :mod:`trainer.export.adjust`.
Shapes as in :mod:`trainer.export.shortlist`.
"""

from functools import cached_property
from typing import Final

import onnx_ir as ir
from onnx_ir import DataType
from onnxscript import OpBuilder

from schemas.bundle.adjust import EXCLUDED
from trainer.export.adjust import Adjust, Traced, either
from trainer.export.shortlist_catalogue import Catalogue
from trainer.export.tail import Tail

_LEFT_OUT: Final = -(2**30)
"""Steps; no item that is shown has as few: products are below 2^24, boosts clipped at 2^28."""
_FLOOR: Final = -(2**29)
_MOST_STEPS: Final = 2**28
_SUM_ROUNDING: Final = 2**-22
_HIGH: Final = 3e38


class ListedAdjust:
    """The numbers of one run. ``step`` f32[B, 1]: what a step of each session's estimates is in scores.

    P places are in integers. ``items`` int32 are at the places of a catalogue with a tail, -1 where there is none.
    """

    def __init__(
        self, op: OpBuilder, adjust: Adjust, step: ir.Value, catalogue: Catalogue, items: ir.Value | None
    ) -> None:
        self._op, self._adjust, self._step, self._catalogue, self._items = op, adjust, step, catalogue, items

    @cached_property
    def _prepared(self) -> list[ir.Value]:
        """int32[P] the most that an estimate may be, f32[P] boosts, f32 adjust by place, f32[1] the largest boost."""
        copies = self._catalogue.copies

        def on(op: OpBuilder) -> list[ir.Value]:
            values, by_place = self._adjust.values, None
            if self._items is not None:
                # The 0 at the end is that of places without an item.
                by_place = op.Gather(op.Concat(values, [0.0], axis=0), self._items)
                values = op.Slice(by_place, [0], [self._catalogue.front], [0])
            filled = op.Concat(values, op.Gather(values, copies.tolist()), axis=0) if len(copies) else values
            left_out = op.LessOrEqual(filled, EXCLUDED / 2)
            most = op.Where(left_out, _LEFT_OUT, 2**31 - 1)
            boosts = op.Where(left_out, 0.0, filled)
            if by_place is None:
                empty = len(copies) + self._catalogue.block
                no_items = op.ConstantOfShape([empty], value=ir.tensor([0.0], dtype=DataType.FLOAT))
                by_place = op.Concat(values, no_items, axis=0)
            largest = op.ReduceMax(op.Abs(boosts), keepdims=1)
            return [op.Cast(most, to=DataType.INT32), boosts, by_place, largest]

        def off(op: OpBuilder) -> list[ir.Value]:
            kinds = [DataType.INT32, DataType.FLOAT, DataType.FLOAT, DataType.FLOAT]
            return [op.ConstantOfShape([1], value=ir.tensor([0], dtype=kind)) for kind in kinds]

        kinds = [(DataType.INT32, 1), (DataType.FLOAT, 1), (DataType.FLOAT, 1), (DataType.FLOAT, 1)]
        return either(self._op, self._adjust.counts, "adjust.prepared", on=on, off=off, kinds=kinds)

    def estimates(self, scores: ir.Value, begin: int, size: int) -> ir.Value:
        """Those of ``size`` places from ``begin`` on, int32[B, size], a block's first places before all second ones."""
        most, boosts, _, largest = self._prepared

        def piece(op: OpBuilder, values: ir.Value) -> ir.Value:
            values = op.Slice(values, [begin], [begin + size], [0])
            if (block := self._catalogue.block) > 1:
                values = op.Reshape(op.Transpose(op.Reshape(values, [-1, block]), perm=[1, 0]), [-1])
            return values

        def on(op: OpBuilder) -> ir.Value:
            limit = piece(op, most)

            def boosted(op: OpBuilder) -> list[ir.Value]:
                steps = op.Clip(piece(op, boosts) / self._step, float(-_MOST_STEPS), float(_MOST_STEPS))
                return [op.Min(scores + op.Cast(steps, to=DataType.INT32), limit)]

            any_boost = op.Greater(op.Squeeze(largest, [0]), 0.0)
            name, kinds = f"adjust.boosts{begin}", [(DataType.INT32, 2)]
            [estimates] = either(op, any_boost, name, on=boosted, off=lambda op: [op.Min(scores, limit)], kinds=kinds)
            return estimates

        return self._either(f"adjust.estimates{begin}", on, lambda op: op.Identity(scores), kind=DataType.INT32)

    def error(self, error: ir.Value) -> ir.Value:
        """ε f32[B, 1] of the adjusted estimates; without a limit where a boost is too many steps."""

        def on(op: OpBuilder) -> ir.Value:
            largest = self._prepared[3]  # [1]
            more = op.Where(op.Greater(largest, 0.0), self._step + largest * _SUM_ROUNDING, 0.0)
            too_many = op.Greater(largest, self._step * float(_MOST_STEPS))
            widened: ir.Value = op.Where(too_many, float("inf"), op.Add(error, more))
            return widened

        return self._either("adjust.error", on, lambda op: op.Identity(error))

    def threshold(self, threshold: ir.Value) -> ir.Value:
        """t f32[B, 1], no lower than what every item has that may be shown."""
        return self._either(
            "adjust.threshold",
            lambda op: op.Max(threshold, self._step * float(_FLOOR)),
            lambda op: op.Identity(threshold),
        )

    def bounds(self, bounds: ir.Value, tail: Tail) -> ir.Value:
        """Those of the tall blocks of a tail, [B, T].

        The highest number of its items is added to each. While one of them may be shown, it stays above what an item
        has that may not.
        """
        begin = self._catalogue.padded

        def on(op: OpBuilder) -> ir.Value:
            values = op.Slice(self._prepared[2], [begin], [begin + tail.size * tail.talls], [0])
            highest = op.ReduceMax(op.Reshape(values, [1, tail.talls, tail.size]), axes=[2], keepdims=0)  # [1, T]
            shown = op.Max(bounds + highest, self._step * float(-_MOST_STEPS))
            adjusted: ir.Value = op.Where(op.LessOrEqual(highest, EXCLUDED / 2), EXCLUDED, shown)
            return adjusted

        return self._either("adjust.bounds", on, lambda op: op.Identity(bounds))

    def added(self, sums: ir.Value, place: ir.Value) -> ir.Value:
        """To the scores [B, S] of what is at some places int64[B, S]."""
        return self._either(
            "adjust.added", lambda op: op.Add(sums, op.Gather(self._prepared[2], place)), lambda op: op.Identity(sums)
        )

    def proven(self, reached: ir.Value, bound: ir.Value) -> ir.Value:
        """bool[B, 1]: whether the list's worst score ``reached`` what proves it, or nothing was left to be listed."""

        return self._either(
            "adjust.proven",
            lambda op: op.Or(reached, op.LessOrEqual(bound, self._step * float(_FLOOR))),
            lambda op: op.Identity(reached),
            kind=DataType.BOOL,
        )

    # -- beside a session memory --------------------------------------------------------------------------------------

    def plain_blocks(self, name: str, traced: Traced) -> ir.Value:
        """Estimates int32 [B, J] without any of this, as ``traced``; none at all where nothing is adjusted."""

        none = ir.tensor([0], dtype=DataType.INT32)
        return self._either(name, traced, lambda op: op.ConstantOfShape([0, 0], value=none), kind=DataType.INT32)

    def plain(self, name: str, traced: Traced, adjusted: ir.Value) -> ir.Value:
        """Scores without any of this, as ``traced``; the ``adjusted`` ones where nothing is."""
        return self._either(name, traced, lambda op: op.Identity(adjusted))

    def with_best(self, name: str, values: ir.Value, plain: ir.Value, *, least: Traced, off: Traced) -> ir.Value:
        """``values``, and above all where ``plain``, of the same shape, reaches ``least``: there the best may be."""
        return self._either(name, lambda op: op.Where(op.GreaterOrEqual(plain, least(op)), _HIGH, values), off)

    def holds_best(self, off: Traced) -> ir.Value:
        """bool[B, 1]: whether the best of all is on the list, which it is if nothing was cut off; else ``off``."""
        return self._either("adjust.best", lambda op: op.Equal(self._step, self._step), off, kind=DataType.BOOL)

    def _either(self, name: str, on: Traced, off: Traced, *, kind: DataType = DataType.FLOAT) -> ir.Value:
        return self._adjust.either(self._op, name, on, off, kind=kind)
