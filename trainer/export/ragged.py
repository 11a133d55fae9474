"""Rows of very different length out of one table, in a graph without loops: one list of entries, and whose they are."""

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir import DataType
from onnxscript import OpBuilder

from trainer.data.sessions import Ints
from trainer.export.graph import constant
from trainer.export.memory_graph import Sessions


@dataclass(frozen=True)
class Rows:
    """Entries of a table's rows one after another, int64[m]: which row of those asked for, and which entry."""

    row: ir.Value
    entry: ir.Value


def table_rows(
    op: OpBuilder, name: str, first: Ints, count: Ints, index: ir.Value, *, present: ir.Value | None = None
) -> Rows:
    """The rows ``index`` int64[n], where ``present`` bool[n]: row j has ``count[j]`` entries, from ``first[j]`` on.

    No row is padded, but for the mask that tells where there is an entry.
    """
    lengths = op.Gather(constant(op, f"{name}.count", count), index)  # [n]
    if present is not None:
        lengths = lengths * op.Cast(present, to=DataType.INT64)
    most = op.ReduceMax(op.Concat([0], lengths, axis=0), keepdims=0)
    there = op.NonZero(op.Less(op.Range(0, most, 1), op.Unsqueeze(lengths, [1])))  # [2, m]
    row, place = op.Gather(there, 0, axis=0), op.Gather(there, 1, axis=0)
    return Rows(row, op.Gather(op.Gather(constant(op, f"{name}.first", first), index), row) + place)


def session_column(op: OpBuilder, sessions: Sessions) -> ir.Value:
    """0, 1, .. B - 1 as int64[B, 1]."""
    batch = op.Squeeze(op.Shape(sessions.recent, start=0, end=1), [0])
    return op.Unsqueeze(op.Range(0, batch, 1), [1])
