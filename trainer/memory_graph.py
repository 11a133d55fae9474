"""The session memory as ONNX operators: what :func:`trainer.session_memory.remember` computes, in a rank graph.

A table's rows are stored in blocks of a few entries: ONNX Runtime copies a block in the time of a single entry, and
whole rows would be mostly padding. Only the rows of items that a session has are read, n of them in a batch. All terms
together are one scatter-add onto the scores, laid out as one line of B I numbers.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from trainer.memory_tables import ItemTable
from trainer.session_memory import SCALES, RepeatTerm, SessionMemory, TableTerm, place_of

_PREFIX = "memory."
_BLOCK = 8  # entries: a row wastes half of them on average, and a row of 100 is 13 reads


@dataclass
class _Graph:
    """Nodes and constants as they come together."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, values: npt.ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), _PREFIX + name))
        return _PREFIX + name

    def shape(self, *sizes: int) -> str:
        return self.constant("shape", sizes, np.int64)

    def apply(self, operator: str, inputs: list[str], output: str, **attributes: int | str | list[int]) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [_PREFIX + output], **attributes))
        return _PREFIX + output


def memory_graph(
    memory: SessionMemory, scores: str, items: int, recent_size: int, *, own: str | None = None, best: str | None = None
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]:
    """Operators that add the terms to the tensor ``scores`` [B, I]; their constants; and the name of the sum [B, I].

    They read the rank graph's inputs ``recent`` int64[B, R], ``counts`` f32[B, R] and ``clicks`` f32[B]. Where
    ``scores`` are estimates, ``own`` [B, R] and ``best`` [B, 1] are the true ones of the recent items and the highest.
    ``items`` is the width of ``scores``, I or more.
    """
    if not memory:
        return [], [], scores
    graph = _Graph()
    zero = graph.constant("zero", 0, np.int64)
    graph.constant("items", items, np.int64)
    graph.constant("line", [-1], np.int64)
    real = graph.apply("GreaterOrEqual", ["recent", zero], "real")  # bool[B, R]
    index, value = [], []
    if memory.repeat is not None:
        parts = _repeat(graph, memory.repeat, scores, recent_size, own=own, best=best)
        index.append(parts[0])
        value.append(parts[1])
    for name, term in memory.tables.items():
        parts = _table(graph, name, term, real)
        index.append(parts[0])
        value.append(parts[1])
    at = graph.apply("Concat", index, "index", axis=0)
    added = graph.apply("Concat", value, "value", axis=0)
    line = graph.apply("Reshape", [scores, f"{_PREFIX}line"], "line_of_scores")  # [B I]
    total = graph.apply("ScatterElements", [line, at, added], "line_of_sums", axis=0, reduction="add")
    return graph.nodes, graph.initializers, graph.apply("Reshape", [total, graph.shape(-1, items)], "scores")


def _repeat(
    graph: _Graph, term: RepeatTerm, scores: str, recent_size: int, *, own: str | None, best: str | None
) -> tuple[str, str]:
    """Where on the line, and what: int64[B R] and f32[B R]; padding adds 0 to its session's first item."""
    apply, constant = graph.apply, graph.constant
    one = constant("one", 1)
    item = apply("Max", ["recent", f"{_PREFIX}zero"], "item")  # [B, R]
    best = best or apply("ReduceMax", [scores], "best", axes=[1], keepdims=1)  # [B, 1]
    own = own or apply("GatherElements", [scores, item], "own", axis=1)  # [B, R]
    of_score = apply("Mul", [apply("Sub", [own, best], "relative"), constant("repeat.score", term.score)], "of_score")
    log_count = apply("Log", [apply("Max", ["counts", one], "count")], "log_count")  # [B, R]
    of_count = apply("Mul", [log_count, constant("repeat.count", term.count)], "of_count")
    log_length = apply("Log", [apply("Max", ["clicks", one], "length")], "log_length")  # [B]
    of_length = apply("Mul", [log_length, constant("repeat.length", term.length)], "of_length")
    column = apply("Unsqueeze", [of_length, constant("last", [1], np.int64)], "of_length_column")  # [B, 1]
    places = constant("repeat.place", term.place[place_of(recent_size)])  # [R]
    value = apply("Sum", [of_score, of_count, column, places], "repeat")  # [B, R]
    value = apply("Mul", [value, apply("Cast", [f"{_PREFIX}real"], "mask", to=TensorProto.FLOAT)], "repeat_or_0")
    # A running count of the sessions, as a column: 0, 1, .. B - 1.
    ones = apply("Cast", [apply("GreaterOrEqual", [best, best], "each")], "ones", to=TensorProto.INT64)  # [B, 1]
    session = apply("CumSum", [ones, f"{_PREFIX}zero"], "session", exclusive=1)  # [B, 1]
    start = apply("Mul", [session, f"{_PREFIX}items"], "start")
    at = apply("Reshape", [apply("Add", [start, item], "at"), f"{_PREFIX}line"], "repeat_index")
    return at, apply("Reshape", [value, f"{_PREFIX}line"], "repeat_value")


def _table(graph: _Graph, name: str, term: TableTerm, real: str) -> tuple[str, str]:
    """Where on the line, and what: int64[n W 8] and f32[n W 8] for rows of W blocks; padding adds 0 to an item."""

    def constant(part: str, values: npt.ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        return graph.constant(f"{name}.{part}", values, dtype)

    def apply(operator: str, inputs: list[str], output: str, **attributes: int | str | list[int]) -> str:
        return graph.apply(operator, inputs, f"{name}.{output}", **attributes)

    blocks = Blocks.of(term.table)
    begin, end, axis = (constant(n, [v], np.int64) for n, v in (("begin", 0), ("end", len(term.weights)), ("axis", 1)))
    # The n places of sessions that hold an item: place[0] is the session, place[1] its r - 1.
    found = apply("NonZero", [apply("Slice", [real, begin, end, axis], "real")], "found")  # [2, n]
    item = apply("GatherND", ["recent", apply("Transpose", [found], "pairs", perm=[1, 0])], "item")  # [n]
    session = apply("Gather", [found, constant("of_session", 0, np.int64)], "session", axis=0)  # [n]
    place = apply("Gather", [found, constant("of_place", 1, np.int64)], "place", axis=0)  # [n]
    first = apply(
        "Unsqueeze", [apply("Gather", [constant("first", blocks.first, np.int64), item], "first_of"), axis], "a"
    )
    count = apply(
        "Unsqueeze", [apply("Gather", [constant("count", blocks.count, np.int64), item], "count_of"), axis], "b"
    )
    step = constant("step", np.arange(blocks.most), np.int64)  # [W]
    there = apply("Less", [step, count], "there")  # bool[n, W]
    block = apply("Where", [there, apply("Add", [first, step], "block"), f"{_PREFIX}zero"], "block_or_empty")  # [n, W]
    other = apply("Gather", [constant("items", blocks.items, np.int32), block], "other32")  # int32[n, W, 8]
    seen = apply("Gather", [constant("counts", blocks.counts, np.float16), block], "seen16")  # f16[n, W, 8]
    seen = apply("Cast", [seen], "seen", to=TensorProto.FLOAT)
    one, parts = constant("one", 1), []
    for s, scale in enumerate(SCALES):
        scaled = apply("Add", [apply("Mul", [seen, constant(f"scale{s}", 1 / scale)], f"scaled{s}"), one], f"plus{s}")
        weight = apply("Gather", [constant(f"weights{s}", term.weights[:, s, None, None]), place], f"weight{s}")
        parts.append(apply("Mul", [apply("Log", [scaled], f"log{s}"), weight], f"part{s}"))  # [n, W, 8] * [n, 1, 1]
    value = apply("Sum", parts, "sum")
    start = apply("Mul", [session, f"{_PREFIX}items"], "start")  # [n]
    start = apply("Unsqueeze", [start, constant("two", [1, 2], np.int64)], "start_column")  # [n, 1, 1]
    at = apply("Add", [apply("Cast", [other], "other", to=TensorProto.INT64), start], "at")  # [n, W, 8]
    line = f"{_PREFIX}line"
    return apply("Reshape", [at, line], "index"), apply("Reshape", [value, line], "value")


@dataclass(frozen=True)
class Blocks:
    """A table in blocks of 8 entries, the first block empty; Q blocks, at most ``most`` a row.

    first, count  int64[I]  row j has the blocks ``first[j]`` to ``first[j] + count[j]``
    items         int32[Q, 8], counts f16[Q, 8]: 0 where a row has no more entries
    """

    first: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]
    counts: npt.NDArray[np.float16]
    most: int

    @classmethod
    def of(cls, table: ItemTable) -> "Blocks":
        lengths = np.diff(table.starts)
        count = -(-lengths // _BLOCK)
        first = 1 + np.cumsum(count) - count
        at = np.repeat(first * _BLOCK - table.starts[:-1], lengths) + np.arange(len(table.items))
        size = (1 + int(count.sum())) * _BLOCK
        items, counts = np.zeros(size, np.int32), np.zeros(size, np.float16)
        items[at], counts[at] = table.items, table.counts
        most = max(1, int(count.max(initial=0)))
        return cls(first, count, items.reshape(-1, _BLOCK), counts.reshape(-1, _BLOCK), most)
