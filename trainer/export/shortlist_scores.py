"""Scores in float32 beside a shortlist: of the listed items, and of whole catalogues for sessions without proof.

Steps 4 and 6 of :mod:`trainer.export.shortlist`; shapes as there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType
from onnxscript import OpBuilder

from trainer.export.adjust import Adjust
from trainer.export.graph import arithmetic, constant
from trainer.export.shortlist_catalogue import Catalogue
from trainer.export.shortlist_memory import ListedMemory

NEVER: Final = -3e38
"""Lower than any score."""


@dataclass(frozen=True)
class Head:
    """What is ranked in a graph: `hidden` f32[B, H] by `output` f32[I, H] and `bias` f32[I]; the best `k` int64[1].

    `adjust` is added to the scores.
    """

    hidden: ir.Value
    output: ir.Value
    bias: ir.Value
    k: ir.Value
    adjust: Adjust


def places_of(op: OpBuilder, catalogue: Catalogue, blocks: ir.Value) -> ir.Value:
    """Of the blocks int64[B, S]: int64[B, C S]."""
    place = blocks
    if catalogue.block > 1:
        place = op.Unsqueeze(blocks * catalogue.block, [2]) + list(range(catalogue.block))
    return op.Reshape(place, [0, -1])


def items_at(op: OpBuilder, catalogue: Catalogue, place: ir.Value) -> ir.Value:
    """The items at places, int64 of any shape; any item where there is none."""
    if catalogue.tail is None:
        return op.Min(place, catalogue.items - 1)
    return op.Max(op.Cast(op.Gather(items_by_place(op, catalogue), place), to=DataType.INT64), 0)


def items_by_place(op: OpBuilder, catalogue: Catalogue) -> ir.Value:
    """Of a catalogue with a tail, int32; -1 where there is none."""
    return constant(op, "shortlist.items", catalogue.at)


def scores_at(op: OpBuilder, head: Head, catalogue: Catalogue, place: ir.Value) -> ir.Value:
    """Scores in float32 of what is at the places int64[B, S] of each session, lower than any where there is nothing."""
    return exact(op, head, items_at(op, catalogue, place), _bias_at(op, catalogue, place))


def scores_of_blocks(
    op: OpBuilder, head: Head, catalogue: Catalogue, *, row: ir.Value, block: ir.Value, slot: ir.Value, lists: ir.Value
) -> ir.Value:
    """The same for the blocks int64[n] of sessions ``row``: at ``slot`` of the ``lists`` int64[B, S], on one line.

    One session's long list lengthens no other's: that takes half the time where a few sessions reach far into a tail.
    """
    # There may be none, of states that are not finite, so no shape is left to be inferred.
    place = op.Unsqueeze(block * catalogue.block, [1]) + list(range(catalogue.block))  # [n, C]
    rows = op.Gather(head.output, items_at(op, catalogue, place))  # [n, C, H]
    product = op.MatMul(rows, op.Unsqueeze(op.Gather(head.hidden, row), [2]))  # [n, C, 1]
    lines = op.Concat(op.Unsqueeze(op.Size(lists), [0]), [catalogue.block], axis=0)
    nothing = op.ConstantOfShape(lines, value=ir.tensor([NEVER], dtype=DataType.FLOAT))
    scores = op.Squeeze(product, [2]) + _bias_at(op, catalogue, place)
    table = op.ScatterND(nothing, op.Unsqueeze(slot, [1]), scores)  # [B S, C]
    return op.Reshape(table, op.Shape(lists) * [1, catalogue.block])


def _bias_at(op: OpBuilder, catalogue: Catalogue, place: ir.Value) -> ir.Value:
    """A place without an item has a score that is lower than any."""
    bias = np.where(catalogue.at < 0, np.float32(NEVER), catalogue.bias[catalogue.at])
    return op.Gather(constant(op, "shortlist.padded_bias", bias), place)


def exact(op: OpBuilder, head: Head, item: ir.Value, bias: ir.Value) -> ir.Value:
    """Scores in float32 of some items of each session, int64[B, S], with their bias [B, S]: [B, S]."""
    product = op.MatMul(op.Gather(head.output, item), op.Unsqueeze(head.hidden, [2]))  # [B, S, H] [B, H, 1]
    return op.Squeeze(product, [2]) + bias


def completed(
    op: OpBuilder,
    head: Head,
    catalogue: Catalogue,
    index: ir.Value,
    score: ir.Value,
    *,
    sessions: ir.Value,
    memory: ListedMemory | None,
) -> tuple[ir.Value, ir.Value]:
    """What is proven, and the sessions int64[F, 1] over the whole catalogue in float32."""

    def again(op: OpBuilder) -> tuple[ir.Value, ir.Value]:
        op.builder.push_module("again")
        with arithmetic(op):
            scores = _whole(op, head, catalogue, sessions)
            if memory is not None:
                scores = memory.whole(op, scores, catalogue.items, sessions)
            scores = head.adjust.added(op, scores)
            best, item = op.TopK(scores, head.k, axis=1, sorted=1, _outputs=2)
            return op.ScatterND(index, sessions, item), op.ScatterND(score, sessions, best)

    def proven(op: OpBuilder) -> tuple[ir.Value, ir.Value]:
        op.builder.push_module("proven")
        return op.Identity(index), op.Identity(score)

    def branch(trace: Callable[[OpBuilder], tuple[ir.Value, ir.Value]]) -> ir.Graph:
        kinds = (("index", DataType.INT64), ("score", DataType.FLOAT))
        outputs = [ir.val(f"{trace.__name__}_{name}", kind, ["batch", None]) for name, kind in kinds]
        return op.builder.subgraph(trace, [], outputs, name=trace.__name__)

    any_unproven = op.Greater(op.Size(sessions), 0)
    return op.If(any_unproven, then_branch=branch(again), else_branch=branch(proven), _outputs=2)


def _whole(op: OpBuilder, head: Head, catalogue: Catalogue, sessions: ir.Value) -> ir.Value:
    """Scores of the whole catalogue in float32 for some sessions, int64[F, 1] -> [F, I]."""
    # The same weights under a shape that is only known while running: ONNX Runtime packs the weights of a product that
    # it takes for constant, which would be a second copy of the catalogue, for an operator that hardly ever runs.
    height = op.Shape(head.hidden, start=0, end=1) * 0 + catalogue.items
    weights = op.Reshape(head.output, op.Concat(height, [catalogue.output.shape[1]], axis=0))  # [I, H]
    return op.Gemm(op.GatherND(head.hidden, sessions), weights, head.bias, transB=1)  # [F, I]
