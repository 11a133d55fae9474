"""The session memory as ONNX operators: what :func:`trainer.session_memory.remember` computes, in a rank graph.

A row of a table is read as a range of its entries, as wide as the widest and masked behind the row's end, so that no
padding is stored. All terms together are one scatter-add onto the scores.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from trainer.session_memory import SCALES, RepeatTerm, SessionMemory, TableTerm, place_of

_PREFIX = "memory."


@dataclass
class _Graph:
    """Nodes and constants as they come together."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, values: npt.ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), _PREFIX + name))
        return _PREFIX + name

    def apply(self, operator: str, inputs: list[str], output: str, **attributes: int | str | list[int]) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [_PREFIX + output], **attributes))
        return _PREFIX + output


def memory_graph(
    memory: SessionMemory, scores: str, recent_size: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]:
    """Operators that add the terms to the tensor ``scores`` [B, I]; their constants; and the name of the sum [B, I].

    They read the rank graph's inputs ``recent`` int64[B, R], ``counts`` f32[B, R] and ``clicks`` f32[B].
    """
    graph = _Graph()
    graph.constant("zero", 0, np.int64)
    # Padding adds 0 to the first item.
    item = graph.apply("Max", ["recent", f"{_PREFIX}zero"], "item")  # [B, R]
    known = graph.apply("GreaterOrEqual", ["recent", f"{_PREFIX}zero"], "known")  # bool[B, R]
    items, values = [], []
    if memory.repeat is not None:
        items.append(item)
        values.append(_repeat(graph, memory.repeat, scores, item=item, known=known, recent_size=recent_size))
    for name, term in memory.tables.items():
        if len(term.table.items):
            index, value = _table(graph, name, term, item, known)
            items.append(index)
            values.append(value)
    if not items:
        return [], [], scores
    index = graph.apply("Concat", items, "index", axis=1) if len(items) > 1 else items[0]  # [B, R + Σ D M]
    value = graph.apply("Concat", values, "value", axis=1) if len(values) > 1 else values[0]
    total = graph.apply("ScatterElements", [scores, index, value], "scores", axis=1, reduction="add")  # [B, I]
    return graph.nodes, graph.initializers, total


def _repeat(graph: _Graph, term: RepeatTerm, scores: str, *, item: str, known: str, recent_size: int) -> str:
    """The values of the recent items, 0 where padded: [B, R]."""
    one = graph.constant("one", 1)
    best = graph.apply("ReduceMax", [scores], "best", axes=[1], keepdims=1)  # [B, 1]
    own = graph.apply("GatherElements", [scores, item], "own", axis=1)  # [B, R]
    relative = graph.apply("Sub", [own, best], "relative")
    of_score = graph.apply("Mul", [relative, graph.constant("repeat.score", term.score)], "of_score")
    log_count = graph.apply("Log", [graph.apply("Max", ["counts", one], "count")], "log_count")
    of_count = graph.apply("Mul", [log_count, graph.constant("repeat.count", term.count)], "of_count")
    log_length = graph.apply("Log", [graph.apply("Max", ["clicks", one], "length")], "log_length")  # [B]
    of_length = graph.apply("Mul", [log_length, graph.constant("repeat.length", term.length)], "of_length")
    column = graph.apply("Unsqueeze", [of_length, graph.constant("last", [1], np.int64)], "of_length_column")  # [B, 1]
    places = graph.constant("repeat.place", term.place[place_of(recent_size)])  # [R]
    value = graph.apply("Sum", [of_score, of_count, column, places], "repeat")  # [B, R]
    mask = graph.apply("Cast", [known], "known_f", to=TensorProto.FLOAT)
    return graph.apply("Mul", [value, mask], "repeat_value")


def _table(graph: _Graph, name: str, term: TableTerm, item: str, known: str) -> tuple[str, str]:
    """The items of a table's rows, the first item where there are no more, and their values or 0: [B, D M] each."""
    table, depth = term.table, len(term.weights)

    def constant(part: str, values: npt.ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        return graph.constant(f"{name}.{part}", values, dtype)

    def apply(operator: str, inputs: list[str], output: str, **attributes: int | str | list[int]) -> str:
        return graph.apply(operator, inputs, f"{name}.{output}", **attributes)

    begin, end, columns = (constant(n, [v], np.int64) for n, v in (("first", 0), ("depth", depth), ("columns", 1)))
    last = constant("entry", [2], np.int64)  # the axis of a row's entries
    of = apply("Slice", [item, begin, end, columns], "of")  # [B, D]
    real = apply("Slice", [known, begin, end, columns], "real")  # bool[B, D]
    start = apply("Gather", [constant("starts", table.starts[:-1], np.int64), of], "start")  # [B, D]
    length = apply("Gather", [constant("lengths", np.diff(table.starts), np.int64), of], "length")  # [B, D]
    place = constant("places", np.arange(table.width), np.int64)  # [M]
    inside = apply("Less", [place, apply("Unsqueeze", [length, last], "length_column")], "inside")  # bool[B, D, M]
    there = apply("And", [inside, apply("Unsqueeze", [real, last], "real_column")], "there")  # bool[B, D, M]
    entry = apply("Add", [apply("Unsqueeze", [start, last], "start_column"), place], "entry_of")  # [B, D, M]
    entry = apply("Where", [there, entry, f"{_PREFIX}zero"], "entry_or_first")
    index = apply("Gather", [constant("items", table.items, np.int32), entry], "index32")  # int32[B, D, M]
    index = apply("Cast", [index], "index", to=TensorProto.INT64)
    count = apply("Gather", [constant("counts", table.counts), entry], "count")  # f32[B, D, M]
    one, parts = constant("one", 1), []
    for s, scale in enumerate(SCALES):
        scaled = apply("Mul", [count, constant(f"scale{s}", 1 / scale)], f"scaled{s}")
        logarithm = apply("Log", [apply("Add", [scaled, one], f"plus_one{s}")], f"log{s}")
        weight = constant(f"weights{s}", term.weights[:, s, None])  # [D, 1]
        parts.append(apply("Mul", [logarithm, weight], f"weighted{s}"))
    value = apply("Sum", parts, "sum")  # [B, D, M]
    value = apply("Mul", [value, apply("Cast", [there], "mask", to=TensorProto.FLOAT)], "value")
    shape = constant("shape", [-1, depth * table.width], np.int64)
    # The first item stands for no item; it gets 0.
    return apply("Reshape", [index, shape], "flat_index"), apply("Reshape", [value, shape], "flat_value")
