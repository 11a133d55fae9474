"""The rank graph of the counting families: from a session's row alone to the best k items.

Inputs `recent` int64[B, R], `counts` f32[B, R], `clicks` f32[B] and `k` int64[1]; outputs `top_index` int64[B, k] and
`top_score` f32[B, k]. Scores are laid out as one line of B I numbers, onto which what a session adds is scattered;
only rows of tables are read that a session has.

Among equal scores TopK takes the lower index first: the more popular item, where the vocabulary is that of
:func:`trainer.data.sessions.vocabulary_of`. The evaluation of whole catalogues counts a tie against the model.

Shapes: B sessions, I items, R recent items; m entries of the rows that a batch reads.
"""

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import DataType
from onnxscript import OpBuilder

from trainer.data.sessions import Ints
from trainer.export.adjust import Adjust
from trainer.export.blocks import Blocks
from trainer.export.graph import constant, new_graph, serialized
from trainer.export.memory_graph import Sessions, add_memory
from trainer.export.neighbours_graph import votes
from trainer.export.ragged import session_column, table_rows
from trainer.export.shortlist import best_of_shortlist
from trainer.export.shortlist_catalogue import LEAST_ITEMS, Catalogue
from trainer.export.shortlist_memory import ListedMemory
from trainer.export.shortlist_scores import Head
from trainer.memory.terms import NO_MEMORY, RECENT, SessionMemory, remember
from trainer.models.bpr_mf import SessionMean
from trainer.models.counting import CountingModel, Floats, ItemCounts
from trainer.models.neighbours import SessionNeighbours


def recent_size_of(model: CountingModel, memory: SessionMemory = NO_MEMORY) -> int:
    """R of a bundle, for the model and its memory, which look at the same row."""
    return max(model.recent_size, RECENT if memory else 1)


def counting_rank(
    model: CountingModel, *, k: int, memory: SessionMemory = NO_MEMORY, recent_size: int | None = None
) -> bytes:
    """`rank.onnx` of a counting model, with what a session memory adds to its scores; ``k`` is the input's default.

    Raises TypeError for a model of another kind.
    """
    size = recent_size or recent_size_of(model, memory)
    with new_graph("rank") as op:
        # Part of every bundle's interface, whether looked at or not.
        sessions = Sessions(
            op.builder.input("recent", DataType.INT64, ["batch", size]),
            op.builder.input("counts", DataType.FLOAT, ["batch", size]),
            op.builder.input("clicks", DataType.FLOAT, ["batch"]),
            size,
        )
        default_k = ir.tensor([min(k, model.items)], dtype=DataType.INT64, name="k")
        best = op.builder.input("k", DataType.INT64, [1], const_value=default_k)
        adjust = Adjust.input(op)
        if isinstance(model, SessionMean) and model.items >= LEAST_ITEMS:
            index, score = best_of_shortlist(
                op,
                Head(_mean(op, model, sessions), *_factors(op, model), best, adjust),
                Catalogue(model.vectors, model.bias),
                memory=ListedMemory(memory, sessions) if memory else None,
            )
        else:
            scores = add_memory(op, memory, sessions, _scores(op, model, sessions), model.items)
            scores = adjust.added(op, scores)
            score, index = op.TopK(scores, best, axis=1, largest=1, sorted=1, _outputs=2)
        for value in (index, score):
            value.shape = ir.Shape(["batch", "k"])
        return serialized(op, {"top_index": index, "top_score": score})


def counting_ranking(
    model: CountingModel, recent: Ints, counts: Floats, clicks: Floats, *, k: int, memory: SessionMemory = NO_MEMORY
) -> tuple[Ints, Floats]:
    """What that graph must answer, from the model itself: for golden pairs, and for checks."""
    scores = model.scores(recent, counts, clicks)
    if memory:
        scores = remember(memory, *map(torch.from_numpy, (scores, recent, counts, clicks))).numpy()
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return top, np.take_along_axis(scores, top, axis=1)


def _scores(op: OpBuilder, model: CountingModel, sessions: Sessions) -> ir.Value:
    """f32[B, I]"""
    match model:
        case ItemCounts():
            return _item_counts(op, model, sessions)
        case SessionMean():
            output, bias = _factors(op, model)
            return op.Gemm(_mean(op, model, sessions), output, bias, transB=1)
        case SessionNeighbours():
            return on_lines(
                op, sessions, constant(op, "floor", np.zeros(model.items, np.float32)), [votes(op, model, sessions)]
            )
        case _:
            raise TypeError(f"{type(model).__name__} has no rank graph")


def _item_counts(op: OpBuilder, model: ItemCounts, sessions: Sessions) -> ir.Value:
    parts = []
    if model.own:
        session = session_column(op, sessions)  # [B, 1]
        at = session * model.items + op.Max(sessions.recent, 0)  # [B, R]; padding adds 0 to an item
        parts.append((op.Reshape(at, [-1]), op.Reshape(sessions.counts * model.own, [-1])))
    if model.table is not None:
        named = model.tensors()
        blocks = Blocks.of_rows(named["table.starts"], named["table.items"], named["table.values"])
        last = op.Squeeze(op.Slice(sessions.recent, [0], [1], [1]), [1])  # [B]
        rows = table_rows(op, "table", blocks.first, blocks.count, op.Max(last, 0), present=op.GreaterOrEqual(last, 0))
        other = op.Gather(constant(op, "table.items", blocks.items), rows.entry)  # int32[m, 8]
        value = op.Gather(constant(op, "table.values", blocks.counts), rows.entry)  # [m, 8]
        at = op.Cast(other, to=DataType.INT64) + op.Unsqueeze(rows.row * model.items, [1])
        parts.append((op.Reshape(at, [-1]), op.Reshape(value, [-1])))
    return on_lines(op, sessions, constant(op, "floor", model.floor), parts)


def _mean(op: OpBuilder, model: SessionMean, sessions: Sessions) -> ir.Value:
    """f32[B, F]: the mean of the vectors of a session's clicks."""
    rows = op.Gather(_factors(op, model)[0], op.Max(sessions.recent, 0))  # [B, R, F]
    total = op.MatMul(op.Unsqueeze(sessions.counts, [1]), rows)  # [B, 1, F]; counts are 0 where padded
    clicks = op.Max(op.ReduceSum(sessions.counts, [1], keepdims=1), 1.0)  # [B, 1]
    return op.Squeeze(total, [1]) / clicks


def _factors(op: OpBuilder, model: SessionMean) -> tuple[ir.Value, ir.Value]:
    """f32[I, F] and f32[I]"""
    return constant(op, "output", model.vectors), constant(op, "output_bias", model.bias)


def on_lines(op: OpBuilder, sessions: Sessions, floor: ir.Value, parts: list[tuple[ir.Value, ir.Value]]) -> ir.Value:
    """``floor`` f32[I] for each session, and what is added where on the line of B I scores: f32[B, I]."""
    batch, items = op.Shape(sessions.recent, start=0, end=1), op.Shape(floor)
    scores = op.Expand(floor, op.Concat(batch, items, axis=0))  # [B, I]
    if not parts:
        return scores
    index, value = (op.Concat(*column, axis=0) if len(column) > 1 else column[0] for column in zip(*parts, strict=True))
    sums = op.ScatterElements(op.Reshape(scores, [-1]), index, value, axis=0, reduction="add")
    return op.Reshape(sums, op.Concat([-1], items, axis=0))
