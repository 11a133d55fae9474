"""What a session memory adds, where scores are estimated in blocks: to the few items that it names, and to no others.

Before the shortlist is made, a block is raised by all that is added to its items, and no block of several items is
lowered: what is not listed stays below the threshold. A block that reaches it before anything is added is listed as
well, for what the repeat term adds depends on the highest score of all, which must be on the list. So far this is known
up to ε only, and the term counts as if it were off to the favourable side. Once the shortlist has its scores in float32
the highest is known, and the right values take their places.

Shapes as in :mod:`trainer.export.shortlist`; E entries are what all terms add in the batch, n tall blocks were found.
"""

from dataclasses import dataclass

from onnx import TensorProto, helper

from trainer.export.memory_graph import Sessions, Terms, add_terms, memory_terms
from trainer.export.onnx_graph import Graph
from trainer.memory.terms import SessionMemory


@dataclass(frozen=True)
class ListedMemory:
    """A memory that is not empty, in a graph that has a shortlist."""

    memory: SessionMemory
    recent_size: int

    def raises(self, graph: Graph, *, own: str, best: str, error: str, block: int, tall: int, talls: int) -> "Raises":
        """``own`` f32[B, R] are the recent items' scores, ``best`` [B, 1] the highest s' of all, ``error`` ε [B, 1].

        A session has ``talls`` tall blocks of ``tall`` blocks of ``block`` items each.
        """
        graph = graph.part("remember")
        terms = memory_terms(graph, self.memory, block * tall * talls, self.recent_size, own=own, best=best)
        most = terms.value
        if self.memory.repeat is not None:
            off = graph.apply("Mul", [error, graph.float(abs(float(self.memory.repeat.score)))], "off")
            most = graph.apply("Add", [most, self._of_repeat(graph, terms, off, "off")], "most")
        return Raises(self, graph, terms, most, best, block, tall, talls)

    def whole(self, graph: Graph, scores: str, items: int, sessions: str) -> str:
        """Scores [F, I] of the sessions int64[F, 1] -> the sums [F, I]."""
        graph = graph.part("remember")
        theirs = Sessions(*(graph.apply("GatherND", [name, sessions], name) for name in ("recent", "counts", "clicks")))
        return add_terms(graph, self.memory, scores, items=items, recent_size=self.recent_size, sessions=theirs)

    def _of_repeat(self, graph: Graph, terms: Terms, column: str, name: str) -> str:
        """[B, 1] for each entry of the repeat term, 0 for the others: [E]."""
        wide = graph.apply("Mul", [terms.real, column], f"{name}_wide")
        line = graph.apply("Reshape", [wide, graph.integers(-1)], f"{name}_line")  # [B R]
        rest = graph.apply("Sub", [_size(graph, terms.value, name), _size(graph, line, f"{name}_line")], f"{name}_rest")
        ends = graph.apply("Concat", [graph.integers(0), rest], f"{name}_ends", axis=0)
        return graph.apply("Pad", [line, ends], f"{name}_entries")


@dataclass(frozen=True)
class Raises:
    """The entries of a batch, by name, and ``raise`` f32[E], the most that each adds."""

    of: ListedMemory
    graph: Graph
    terms: Terms
    most: str
    best: str
    block: int
    tall: int
    talls: int

    def of_talls(self, talls: str) -> str:
        """Tall blocks' maxima [B, T] -> the most that their sums can be."""
        at = self.graph.apply("Div", [self.terms.index, self.graph.integer(self.block * self.tall)], "of_tall")
        line = self.graph.apply("Reshape", [talls, self.graph.integers(-1)], "tall_line")
        raises = self.graph.apply("Relu", [self.most], "raises")
        raised = self.graph.apply("ScatterElements", [line, at, raises], "raised", axis=0, reduction="add")
        return self.graph.apply("Reshape", [raised, self.graph.integers(-1, self.talls)], "raised_talls")

    def of_blocks(self, values: str, found: str, talls: str) -> str:
        """Blocks' maxima [n, tall] of the tall blocks ``found`` int64[n] among ``talls`` [B, T] -> raised."""
        graph, inside = self.graph, self.block * self.tall
        # Where in the n found ones the tall block of an entry is; behind them all if it was not found.
        count = _size(graph, found, "found")
        nowhere = graph.apply("Expand", [count, _size(graph, talls, "talls")], "nowhere")  # [B T]
        ones = graph.apply(
            "ConstantOfShape", [count], "found_ones", value=helper.make_tensor("one", TensorProto.INT64, [1], [1])
        )
        number = graph.apply("CumSum", [ones, graph.integer(0)], "found_number", exclusive=1)
        where = graph.apply("ScatterElements", [nowhere, found, number], "where", axis=0)
        at = graph.apply("Gather", [where, f"{graph.prefix}of_tall"], "entry_tall")  # [E]
        start = graph.apply("Mul", [at, graph.integer(inside)], "entry_start")
        own = graph.apply("Mod", [self.terms.index, graph.integer(inside)], "entry_inside")
        place = graph.apply("Add", [start, own], "place")  # [E]
        block = graph.apply("Div", [place, graph.integer(self.block)], "place_block") if self.block > 1 else place
        # What lowers an item lowers no other of its block.
        most = f"{graph.prefix}raises" if self.block > 1 else self.most
        wide = self._line(block, most, self.tall, "more", each=self.tall)  # [n + 1, tall]
        more = graph.apply("Slice", [wide, graph.integers(0), count, graph.integers(0)], "more_found")
        return graph.apply("Add", [values, more], "raised_blocks")

    def of_items(self, scores: str, place: str) -> str:
        """What is added to the items of the blocks int64[B, S] ``place``, counted through the tall blocks found.

        ``scores`` are theirs [B, C S], and so is the result.
        """
        graph, value, inside = self.graph, self.terms.value, self.tall * self.block
        repeat = self.of.memory.repeat
        if repeat is not None:
            highest = graph.apply("ReduceMax", [scores], "highest", axes=[1], keepdims=1)
            lower = graph.apply(
                "Mul", [graph.apply("Sub", [self.best, highest], "lower"), graph.float(float(repeat.score))], "change"
            )
            value = graph.apply("Add", [value, self.of._of_repeat(graph, self.terms, lower, "change")], "exact")
        items = self._line(f"{graph.prefix}place", value, self.block, "added", each=inside)  # [(n + 1) tall, C]
        rows = graph.apply("Gather", [items, place], "listed_added")  # [B, S, C]
        return graph.apply("Reshape", [rows, graph.integers(0, -1)], "listed_added_line")

    def _line(self, place: str, value: str, width: int, name: str, *, each: int) -> str:
        """The sums at the ``each`` places of each of the tall blocks found, and of one more: [.., width]."""
        graph = self.graph
        one_more = graph.apply("Add", [f"{graph.prefix}found_size", graph.integers(1)], f"{name}_count")
        size = graph.apply("Mul", [one_more, graph.integers(each)], f"{name}_size")
        line = graph.apply("ConstantOfShape", [size], f"{name}_none")
        total = graph.apply("ScatterElements", [line, place, value], f"{name}_line", axis=0, reduction="add")
        return graph.apply("Reshape", [total, graph.integers(-1, width)], f"{name}_sums")


def _size(graph: Graph, name: str, output: str) -> str:
    """int64[1]: how many numbers there are."""
    size = graph.apply("Size", [name], f"{output}_size_scalar")
    return graph.apply("Unsqueeze", [size, graph.integers(0)], f"{output}_size")
