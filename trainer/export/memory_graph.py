"""The session memory as ONNX operators: what :func:`trainer.memory.terms.remember` computes, in a rank graph.

A table's rows are stored in blocks of a few entries: ONNX Runtime copies a block in the time of a single entry, and
whole rows would be mostly padding. Only the rows of items that a session has are read, n of them in a batch. All terms
together are one scatter-add onto the scores, laid out as one line of B I numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import DataType
from onnxscript import OpBuilder
from torch import Tensor

from trainer.export.blocks import Blocks
from trainer.export.graph import constant
from trainer.memory.tables import ItemTable
from trainer.memory.terms import PLACES, SCALES, TABLES, RepeatTerm, SessionMemory, TableTerm, place_of


@dataclass(frozen=True)
class Sessions:
    """Distinct recent items int64[B, R], their counts f32[B, R] and the numbers of clicks f32[B]; R."""

    recent: ir.Value
    counts: ir.Value
    clicks: ir.Value
    size: int

    def some(self, op: OpBuilder, sessions: ir.Value) -> "Sessions":
        """Of these alone, int64[F, 1]."""
        recent, counts, clicks = (op.GatherND(x, sessions) for x in (self.recent, self.counts, self.clicks))
        return Sessions(recent, counts, clicks, self.size)


@dataclass(frozen=True)
class Terms:
    """All that is added: where on a line of B `width` scores, int64[E], and what, f32[E].

    The first B R are the repeat term's, where there is one; `real` f32[B, R] is 0 where a session has no item, else 1.
    """

    index: ir.Value
    value: ir.Value
    real: ir.Value


def add_memory(op: OpBuilder, memory: SessionMemory, sessions: Sessions, scores: ir.Value, items: int) -> ir.Value:
    """The terms added to all scores: [B, I] -> [B, I]."""
    if not memory:
        return scores
    own = op.GatherElements(scores, op.Max(sessions.recent, 0), axis=1)  # [B, R]
    best = op.ReduceMax(scores, axes=[1], keepdims=1)  # [B, 1]
    terms = memory_terms(op, memory, sessions, width=items, own=own, best=best)
    sums = op.ScatterElements(op.Reshape(scores, [-1]), terms.index, terms.value, axis=0, reduction="add")  # [B I]
    return op.Reshape(sums, [-1, items])


def memory_terms(
    op: OpBuilder, memory: SessionMemory, sessions: Sessions, *, width: int, own: ir.Value, best: ir.Value
) -> Terms:
    """What a memory adds that is not empty: ``own`` [B, R] are the recent items' scores, ``best`` [B, 1] the best."""
    present = op.GreaterOrEqual(sessions.recent, 0)  # bool[B, R]
    real = op.Cast(present, to=DataType.FLOAT)
    parts = []
    if memory.repeat is not None:
        parts.append(_repeat(op, memory.repeat, sessions, width=width, own=own, best=best, real=real))
    for name, term in memory.tables.items():
        parts.append(_table(op, f"memory.{name}", term, sessions, width=width, present=present))
    index, value = zip(*parts, strict=True)
    return Terms(op.Concat(*index, axis=0), op.Concat(*value, axis=0), real)


def _repeat(
    op: OpBuilder,
    term: RepeatTerm,
    sessions: Sessions,
    *,
    width: int,
    own: ir.Value,
    best: ir.Value,
    real: ir.Value,
) -> tuple[ir.Value, ir.Value]:
    """Where on the line, and what: int64[B R] and f32[B R]; padding adds 0 to its session's first item."""
    value = op.Sum(
        (own - best) * repeat_score(op, term),
        op.Log(op.Max(sessions.counts, 1.0)) * constant(op, "memory.repeat.count", term.count.numpy()),
        op.Unsqueeze(
            op.Log(op.Max(sessions.clicks, 1.0)) * constant(op, "memory.repeat.length", term.length.numpy()), [1]
        ),
        constant(op, "memory.repeat.place", term.place[place_of(sessions.size)].numpy()),
    )  # [B, R]
    # A running count of the sessions, as a column: 0, 1, .. B - 1.
    session = op.CumSum(op.ConstantOfShape(op.Shape(best), value=ir.tensor([1])), 0, exclusive=1)  # [B, 1]
    at = session * width + op.Max(sessions.recent, 0)  # [B, R]
    return op.Reshape(at, [-1]), op.Reshape(value * real, [-1])


def repeat_score(op: OpBuilder, term: RepeatTerm) -> ir.Value:
    """The weight of an item's own score, []."""
    return constant(op, "memory.repeat.score", term.score.numpy())


def _table(
    op: OpBuilder, name: str, term: TableTerm, sessions: Sessions, *, width: int, present: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Where on the line, and what: int64[n W 8] and f32[n W 8] for rows of W blocks; padding adds 0 to an item."""
    blocks = Blocks.of(term.table)
    # The n places of sessions that hold an item: the session, and r - 1.
    found = op.NonZero(op.Slice(present, [0], [len(term.weights)], [1]))  # [2, n]
    session, place = op.Gather(found, 0, axis=0), op.Gather(found, 1, axis=0)
    item = op.GatherND(sessions.recent, op.Transpose(found, perm=[1, 0]))  # [n]
    first = op.Gather(constant(op, f"{name}.first", blocks.first), item)
    count = op.Gather(constant(op, f"{name}.count", blocks.count), item)
    step = constant(op, f"{name}.step", np.arange(blocks.most))  # [W]
    there = op.Less(step, op.Unsqueeze(count, [1]))  # bool[n, W]
    block = op.Where(there, op.Unsqueeze(first, [1]) + step, 0)  # the first block is empty
    other = op.Gather(constant(op, f"{name}.items", blocks.items), block)  # int32[n, W, 8]
    seen = op.Cast(op.Gather(constant(op, f"{name}.counts", blocks.counts), block), to=DataType.FLOAT)
    value = op.Sum(
        *(
            op.Log(seen * (1 / scale) + 1.0)  # [n, W, 8]
            * op.Gather(constant(op, f"{name}.weights{s}", term.weights[:, s, None, None].numpy()), place)  # [n, 1, 1]
            for s, scale in enumerate(SCALES)
        )
    )
    at = op.Cast(other, to=DataType.INT64) + op.Unsqueeze(session * width, [1, 2])
    return op.Reshape(at, [-1]), op.Reshape(value, [-1])


def memory_of_tensors(named: Mapping[str, Tensor], items: int) -> SessionMemory:
    """The memory whose weights a rank graph holds, by their names, over tables without any entry."""
    repeat = None
    if "memory.repeat.place" in named:
        repeat = RepeatTerm(
            place=named["memory.repeat.place"][:PLACES],
            count=named["memory.repeat.count"],
            score=named["memory.repeat.score"],
            length=named["memory.repeat.length"],
        )
    empty = ItemTable(np.zeros(items + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 0)
    terms = {
        name: TableTerm(
            empty, torch.stack([named[f"memory.{name}.weights{s}"][:, 0, 0] for s in range(len(SCALES))], 1)
        )
        for name in TABLES
        if f"memory.{name}.weights0" in named
    }
    return SessionMemory(repeat, **terms)
