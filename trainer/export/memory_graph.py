"""The session memory as ONNX operators: what :func:`trainer.memory.terms.remember` computes, in a rank graph.

A table's rows are stored in blocks of a few entries: ONNX Runtime copies a block in the time of a single entry, and
whole rows would be mostly padding. Only the rows of items that a session has are read, n of them in a batch. All terms
together are one scatter-add onto the scores, laid out as one line of B I numbers.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from trainer.export.onnx_graph import Graph
from trainer.memory.tables import ItemTable
from trainer.memory.terms import SCALES, RepeatTerm, SessionMemory, TableTerm, place_of

BLOCK = 8  # entries: a row wastes half of them on average, and a row of 100 is 13 reads


@dataclass(frozen=True)
class Sessions:
    """The names of int64[B, R], f32[B, R] and f32[B]: the rank graph's inputs, or those of some of its sessions."""

    recent: str = "recent"
    counts: str = "counts"
    clicks: str = "clicks"


@dataclass(frozen=True)
class Terms:
    """All that is added, by name: where on a line of B `width` scores, int64[E], and what, f32[E].

    The first B R are the repeat term's, where there is one; `real` f32[B, R] is 0 where a session has no item, else 1.
    """

    index: str
    value: str
    real: str


def add_memory(graph: Graph, memory: SessionMemory, scores: str, items: int, recent_size: int) -> str:
    """The terms added to all scores [B, I]: the name of the sums [B, I]."""
    return add_terms(graph, memory, scores, items=items, recent_size=recent_size, sessions=Sessions())


def add_terms(
    graph: Graph, memory: SessionMemory, scores: str, *, items: int, recent_size: int, sessions: Sessions
) -> str:
    """As :func:`add_memory`, for these sessions."""
    if not memory:
        return scores
    first = graph.apply("Max", [sessions.recent, graph.integer(0)], "item")  # [B, R]
    own = graph.apply("GatherElements", [scores, first], "own", axis=1)  # [B, R]
    best = graph.apply("ReduceMax", [scores], "best", axes=[1], keepdims=1)  # [B, 1]
    terms = memory_terms(graph, memory, items, recent_size, own=own, best=best, sessions=sessions)
    line = graph.apply("Reshape", [scores, graph.integers(-1)], "line_of_scores")  # [B I]
    total = graph.apply("ScatterElements", [line, terms.index, terms.value], "line_of_sums", axis=0, reduction="add")
    return graph.apply("Reshape", [total, graph.integers(-1, items)], "sums")


def memory_terms(
    graph: Graph,
    memory: SessionMemory,
    width: int,
    recent_size: int,
    *,
    own: str,
    best: str,
    sessions: Sessions = Sessions(),
) -> Terms:
    """What a memory that is not empty adds, where ``own`` [B, R] are the scores of the recent items and ``best`` [B, 1]
    the highest of all.
    """
    present = graph.apply("GreaterOrEqual", [sessions.recent, graph.integer(0)], "present")  # bool[B, R]
    real = graph.apply("Cast", [present], "real", to=TensorProto.FLOAT)
    index, value = [], []
    if memory.repeat is not None:
        parts = _repeat(
            graph.part("repeat"),
            memory.repeat,
            width=width,
            recent_size=recent_size,
            own=own,
            best=best,
            real=real,
            sessions=sessions,
        )
        index.append(parts[0])
        value.append(parts[1])
    for name, term in memory.tables.items():
        parts = _table(graph.part(name), f"memory.{name}.", term, width=width, present=present, sessions=sessions)
        index.append(parts[0])
        value.append(parts[1])
    at = graph.apply("Concat", index, "index", axis=0)
    return Terms(at, graph.apply("Concat", value, "value", axis=0), real)


def _repeat(
    graph: Graph,
    term: RepeatTerm,
    *,
    width: int,
    recent_size: int,
    own: str,
    best: str,
    real: str,
    sessions: Sessions,
) -> tuple[str, str]:
    """Where on the line, and what: int64[B R] and f32[B R]; padding adds 0 to its session's first item."""
    apply, line = graph.apply, graph.integers(-1)

    def constant(part: str, values: npt.ArrayLike) -> str:
        return graph.shared(f"memory.repeat.{part}", values, np.float32)

    one = graph.float(1)
    item = apply("Max", [sessions.recent, graph.integer(0)], "item")  # [B, R]
    of_score = apply("Mul", [apply("Sub", [own, best], "relative"), constant("score", term.score)], "of_score")
    log_count = apply("Log", [apply("Max", [sessions.counts, one], "count")], "log_count")  # [B, R]
    of_count = apply("Mul", [log_count, constant("count", term.count)], "of_count")
    log_length = apply("Log", [apply("Max", [sessions.clicks, one], "length")], "log_length")  # [B]
    of_length = apply("Mul", [log_length, constant("length", term.length)], "of_length")
    column = apply("Unsqueeze", [of_length, graph.integers(1)], "of_length_column")  # [B, 1]
    places = constant("place", term.place[place_of(recent_size)])  # [R]
    value = apply("Sum", [of_score, of_count, column, places], "value")  # [B, R]
    value = apply("Mul", [value, real], "value_or_0")
    # A running count of the sessions, as a column: 0, 1, .. B - 1.
    ones = apply("Cast", [apply("GreaterOrEqual", [best, best], "each")], "ones", to=TensorProto.INT64)  # [B, 1]
    session = apply("CumSum", [ones, graph.integer(0)], "session", exclusive=1)  # [B, 1]
    start = apply("Mul", [session, graph.integer(width)], "start")
    at = apply("Reshape", [apply("Add", [start, item], "at"), line], "index")
    return at, apply("Reshape", [value, line], "value_line")


def _table(
    graph: Graph, prefix: str, term: TableTerm, *, width: int, present: str, sessions: Sessions
) -> tuple[str, str]:
    """Where on the line, and what: int64[n W 8] and f32[n W 8] for rows of W blocks; padding adds 0 to an item."""
    apply = graph.apply

    def constant(part: str, values: npt.ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        return graph.shared(prefix + part, values, dtype)

    blocks = Blocks.of(term.table)
    zero, axis = graph.integer(0), graph.integers(1)
    # The n places of sessions that hold an item: place[0] is the session, place[1] its r - 1.
    near = apply("Slice", [present, graph.integers(0), graph.integers(len(term.weights)), axis], "near")
    found = apply("NonZero", [near], "found")  # [2, n]
    item = apply("GatherND", [sessions.recent, apply("Transpose", [found], "pairs", perm=[1, 0])], "item")  # [n]
    session = apply("Gather", [found, zero], "session", axis=0)  # [n]
    place = apply("Gather", [found, graph.integer(1)], "place", axis=0)  # [n]
    first = apply("Gather", [constant("first", blocks.first, np.int64), item], "first_of")
    count = apply("Gather", [constant("count", blocks.count, np.int64), item], "count_of")
    first, count = (apply("Unsqueeze", [of, axis], f"{of.rsplit('.', 1)[1]}_column") for of in (first, count))
    step = constant("step", np.arange(blocks.most), np.int64)  # [W]
    there = apply("Less", [step, count], "there")  # bool[n, W]
    block = apply("Where", [there, apply("Add", [first, step], "block"), zero], "block_or_empty")  # [n, W]
    other = apply("Gather", [constant("items", blocks.items, np.int32), block], "other32")  # int32[n, W, 8]
    seen = apply("Gather", [constant("counts", blocks.counts, np.float16), block], "seen16")  # f16[n, W, 8]
    seen = apply("Cast", [seen], "seen", to=TensorProto.FLOAT)
    parts = []
    for s, scale in enumerate(SCALES):
        scaled = apply("Mul", [seen, graph.float(1 / scale)], f"scaled{s}")
        weight = apply("Gather", [constant(f"weights{s}", term.weights[:, s, None, None]), place], f"weight{s}")
        log = apply("Log", [apply("Add", [scaled, graph.float(1)], f"plus{s}")], f"log{s}")
        parts.append(apply("Mul", [log, weight], f"part{s}"))  # [n, W, 8] * [n, 1, 1]
    value = apply("Sum", parts, "sum")
    start = apply("Mul", [session, graph.integer(width)], "start")  # [n]
    start = apply("Unsqueeze", [start, graph.integers(1, 2)], "start_column")  # [n, 1, 1]
    at = apply("Add", [apply("Cast", [other], "other", to=TensorProto.INT64), start], "at")  # [n, W, 8]
    line = graph.integers(-1)
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
        count = -(-lengths // BLOCK)
        first = 1 + np.cumsum(count) - count
        at = np.repeat(first * BLOCK - table.starts[:-1], lengths) + np.arange(len(table.items))
        size = (1 + int(count.sum())) * BLOCK
        items, counts = np.zeros(size, np.int32), np.zeros(size, np.float16)
        items[at], counts[at] = table.items, table.counts
        most = max(1, int(count.max(initial=0)))
        return cls(first, count, items.reshape(-1, BLOCK), counts.reshape(-1, BLOCK), most)
