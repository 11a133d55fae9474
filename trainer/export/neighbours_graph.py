"""Session neighbours as ONNX operators: what :class:`trainer.models.neighbours.SessionNeighbours` computes.

All sessions of a batch go through one sorted list: of every item that one has, the training sessions with it. The
sums that decide which of them are neighbours are of whole numbers, so both sides choose the same. Work grows with these
lists (``newest`` a recent item at most), not with the number of training sessions.

Shapes: B sessions, R recent items, I items, S training sessions; n entries of the list, u different training sessions
of each session, v neighbours, m blocks of their items.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType
from onnxscript import OpBuilder

from trainer.export.blocks import Blocks
from trainer.export.graph import constant
from trainer.export.memory_graph import Sessions
from trainer.export.ragged import table_rows
from trainer.models.neighbours import SessionIndex, SessionNeighbours


@dataclass(frozen=True)
class _Shared:
    """Training sessions that share an item with a session of the batch, by session, then the newest first.

    row      int64[n]  the session of the batch
    session  int64[n]  the training session
    place    int64[n]  the shared item's place in the session of the batch, the most recent first
    anchor   int64[n]  the entry of the postings, which knows its place in the training session
    which    int64[n]  the number of the pair of row and session, 0 to u - 1
    first    int64[u]  where such a pair begins
    """

    row: ir.Value
    session: ir.Value
    place: ir.Value
    entry: ir.Value
    which: ir.Value
    first: ir.Value


@dataclass(frozen=True)
class _Voters:
    """The neighbours: the number of the pair, int64[v], and their similarity, f64[v]."""

    pair: ir.Value
    similar: ir.Value


def votes(op: OpBuilder, model: SessionNeighbours, sessions: Sessions) -> tuple[ir.Value, ir.Value]:
    """Where on the line of B I scores the neighbours vote, int64[8 m], and with what, f32[8 m]."""
    size = model.recent_size
    if sessions.size > size:  # a session memory looks further back
        recent, counts = (op.Slice(x, [0], [size], [1]) for x in (sessions.recent, sessions.counts))
        sessions = Sessions(recent, counts, sessions.clicks, size)
    present = op.GreaterOrEqual(sessions.recent, 0)  # bool[B, R]
    length = op.ReduceSum(op.Cast(present, to=DataType.INT64), [1], keepdims=0)  # [B]
    shared = _shared(op, model.index, sessions, present)
    voters = _voters(op, model, sessions, shared, length)
    leading = op.Gather(shared.first, voters.pair)  # [v] of the n: the most recent shared item's entry
    row, session = op.Gather(shared.row, leading), op.Gather(shared.session, leading)
    by_place = constant(op, "vote", model.vote * model.unit[:, None])
    vote = op.GatherND(by_place, _pairs(op, op.Gather(length, row), op.Gather(shared.place, leading)))
    strength = op.Cast(voters.similar * vote, to=DataType.FLOAT)  # [v]
    seen_at = constant(op, "postings.seen_at", model.index.seen_at.astype(np.int16))
    anchor = op.Cast(op.Gather(seen_at, op.Gather(shared.entry, leading)), to=DataType.INT32)  # [v]
    return _of_items(op, model, row, session, strength=strength, anchor=anchor)


def _shared(op: OpBuilder, index: SessionIndex, sessions: Sessions, present: ir.Value) -> _Shared:
    where = op.NonZero(present)  # [2, k] the items of all sessions
    row, place = op.Gather(where, 0, axis=0), op.Gather(where, 1, axis=0)
    item = op.GatherND(sessions.recent, op.Transpose(where, perm=[1, 0]))
    found = table_rows(op, "postings", index.postings[:-1], np.diff(index.postings), item)
    number = op.Gather(constant(op, "postings.sessions", index.sessions.astype(np.int32)), found.entry)
    # One number an entry, the greatest first: by row, counted from behind, by session and by place, from behind again.
    batch, count, size = op.Shape(sessions.recent, start=0, end=1), max(len(index.lengths), 1), sessions.size
    group = (batch - 1 - op.Gather(row, found.row)) * count + op.Cast(number, to=DataType.INT64)
    key = group * size + (size - 1 - op.Gather(place, found.row))
    key, order = op.TopK(key, op.Shape(key), axis=0, largest=1, sorted=1, _outputs=2)
    group = key / size
    downward = group / count
    before = op.Slice(op.Concat([-1], group, axis=0), [0], [-1], [0])
    new = op.Not(op.Equal(group, before))  # bool[n]
    return _Shared(
        row=batch - 1 - downward,
        session=group - downward * count,
        place=size - 1 - (key - group * size),
        entry=op.Gather(found.entry, order),
        which=op.CumSum(op.Cast(new, to=DataType.INT64), 0) - 1,
        first=op.Squeeze(op.NonZero(new), [0]),
    )


def _voters(op: OpBuilder, model: SessionNeighbours, sessions: Sessions, shared: _Shared, length: ir.Value) -> _Voters:
    row = op.Gather(shared.row, shared.first)  # [u]
    weights = _pairs(op, op.Gather(length, shared.row), shared.place)  # [n, 2]
    weight = op.GatherND(constant(op, "weight", model.weight), weights)
    none = op.ConstantOfShape(op.Shape(row), value=ir.tensor([0]))
    overlap = op.ScatterElements(none, shared.which, weight, axis=0, reduction="add")  # int64[u]
    factor = op.Gather(constant(op, "factor", model.factor), op.Gather(shared.session, shared.first))
    similar = op.Cast(overlap, to=DataType.DOUBLE) * factor  # [u]
    # The newest of each row as a table, a row's pairs from its column 0 on.
    batch = op.Shape(sessions.recent, start=0, end=1)
    ones = op.ConstantOfShape(op.Shape(row), value=ir.tensor([1]))
    pairs = op.ScatterElements(
        op.ConstantOfShape(batch, value=ir.tensor([0])), row, ones, axis=0, reduction="add"
    )  # [B]
    begins = op.CumSum(pairs, 0, exclusive=1)  # [B]
    column = op.CumSum(ones, 0, exclusive=1) - op.Gather(begins, row)  # [u]
    newest = op.Squeeze(op.NonZero(op.Less(column, model.newest)), [0])
    at = _pairs(op, op.Gather(row, newest), op.Gather(column, newest))
    width = op.Min(op.ReduceMax(op.Concat([1], pairs, axis=0), keepdims=1), [model.newest])  # [1]
    empty = op.ConstantOfShape(op.Concat(batch, width, axis=0), value=ir.tensor(np.array([-1.0])))
    table = op.ScatterND(empty, at, op.Gather(similar, newest))  # f64[B, width]
    # Of equally similar ones the first, which are newer.
    best, place = op.TopK(table, op.Min(width, [model.neighbours]), axis=1, largest=1, sorted=1, _outputs=2)
    there = op.NonZero(op.Not(op.Less(best, constant(op, "nothing", np.float64(0)))))  # [2, v]
    at = op.Transpose(there, perm=[1, 0])
    return _Voters(op.Gather(begins, op.Gather(there, 0, axis=0)) + op.GatherND(place, at), op.GatherND(best, at))


def _of_items(
    op: OpBuilder,
    model: SessionNeighbours,
    row: ir.Value,
    session: ir.Value,
    *,
    strength: ir.Value,
    anchor: ir.Value,
) -> tuple[ir.Value, ir.Value]:
    """Neighbours ``session`` int64[v] of the sessions ``row`` int64[v] -> places on the line and votes."""
    index = model.index
    # Item i is i + 1 here, and 0, which fills up the blocks, gains nothing.
    blocks = Blocks.of_rows(index.offsets, (index.items + 1).astype(np.int32), index.places.astype(np.int16))
    gain = np.concatenate([[0], model.gain]).astype(np.float32)
    rows = table_rows(op, "sessions", blocks.first, blocks.count, session)
    item = op.Gather(constant(op, "sessions.items", blocks.items), rows.entry)  # int32[m, 8]
    place = op.Cast(op.Gather(constant(op, "sessions.places", blocks.counts), rows.entry), to=DataType.INT32)
    value = op.Unsqueeze(op.Gather(strength, rows.row), [1]) * op.Gather(constant(op, "gain", gain), item)  # [m, 8]
    if (model.near != 1).any():
        distance = op.Abs(place - op.Unsqueeze(op.Gather(anchor, rows.row), [1]))  # [m, 8]
        value = value * op.Gather(constant(op, "near", model.near.astype(np.float32)), distance)
    line = op.Unsqueeze(op.Gather(row, rows.row) * model.items, [1])  # [m, 1]
    at = op.Max(op.Cast(item, to=DataType.INT64) - 1, 0) + line
    return op.Reshape(at, [-1]), op.Reshape(value, [-1])


def _pairs(op: OpBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    """int64[n] and int64[n] -> int64[n, 2]."""
    return op.Concat(op.Unsqueeze(first, [1]), op.Unsqueeze(second, [1]), axis=1)
