"""What a session memory adds, where scores are estimated in blocks: to the few items that it names, and to no others.

Before the shortlist is made, a block is raised by all that is added to its items, and no block of several items is
lowered: what is not listed stays below the threshold. A block that reaches it before anything is added is listed as
well, for what the repeat term adds depends on the highest score of all, which must be on the list. So far this is known
up to ε only, and the term counts as if it were off to the favourable side. Once the shortlist has its scores in float32
the highest is known, and the right values take their places.

Shapes as in :mod:`trainer.export.shortlist`; E entries are what all terms add in the batch, n tall blocks were found.
"""

from dataclasses import dataclass, replace

import onnx_ir as ir
from onnxscript import OpBuilder

from trainer.export.memory_graph import Sessions, Terms, add_memory, memory_terms, repeat_score
from trainer.memory.terms import SessionMemory


@dataclass(frozen=True)
class ListedMemory:
    """A memory that is not empty, in a graph that has a shortlist."""

    memory: SessionMemory
    sessions: Sessions

    def of_score(self, op: OpBuilder) -> ir.Value | None:
        """What the repeat term adds for each unit of an item's own score: []."""
        repeat = self.memory.repeat
        return None if repeat is None or not float(repeat.score) else repeat_score(op, repeat)

    def raises(
        self,
        op: OpBuilder,
        *,
        own: ir.Value,
        best: ir.Value,
        error: ir.Value,
        block: int,
        tall: int,
        talls: int,
        places: ir.Value | None,
    ) -> "Raises":
        """``own`` f32[B, R] are the recent items' scores, ``best`` [B, 1] the highest s' of all, ``error`` ε [B, 1].

        A session has ``talls`` tall blocks of ``tall`` blocks of ``block`` places each. Item i is at ``places`` [I], or
        at place i without.
        """
        width = block * tall * talls
        terms = memory_terms(op, self.memory, self.sessions, width=width, own=own, best=best)
        if places is not None:
            line = terms.index / width * width
            place = op.Cast(op.Gather(places, terms.index - line), to=ir.DataType.INT64)
            terms = replace(terms, index=line + place)
        weight = self.of_score(op)
        most = terms.value if weight is None else terms.value + self.of_repeat(op, terms, error * op.Abs(weight))
        return Raises(op, self, terms, most, best, block, tall, talls)

    def whole(self, op: OpBuilder, scores: ir.Value, items: int, sessions: ir.Value) -> ir.Value:
        """Scores [F, I] of the sessions int64[F, 1] -> the sums [F, I]."""
        return add_memory(op, self.memory, self.sessions.some(op, sessions), scores, items)

    def of_repeat(self, op: OpBuilder, terms: Terms, column: ir.Value) -> ir.Value:
        """[B, 1] for each entry of the repeat term, 0 for the others: [E]."""
        line = op.Reshape(terms.real * column, [-1])  # [B R]
        return op.Pad(line, op.Concat([0], _size(op, terms.value) - _size(op, line), axis=0))


@dataclass(frozen=True)
class Raises:
    """The entries of a batch, and ``most`` f32[E], the most that each adds."""

    op: OpBuilder
    of: ListedMemory
    terms: Terms
    most: ir.Value
    best: ir.Value
    block: int
    tall: int
    talls: int

    def of_talls(self, talls: ir.Value) -> ir.Value:
        """Tall blocks' maxima [B, T] -> the most that their sums can be."""
        op = self.op
        at = self.terms.index / (self.block * self.tall)
        raised = op.ScatterElements(op.Reshape(talls, [-1]), at, op.Relu(self.most), axis=0, reduction="add")
        return op.Reshape(raised, [-1, self.talls])

    def among(self, found: ir.Value, talls: ir.Value) -> "FoundRaises":
        """For the tall blocks ``found`` int64[n] among ``talls`` [B, T]."""
        op, inside = self.op, self.block * self.tall
        # Where among the n found ones the tall block of an entry is; behind them all if it was not found.
        count = _size(op, found)
        number = op.CumSum(op.ConstantOfShape(count, value=ir.tensor([1])), 0, exclusive=1)
        nowhere = op.Expand(count, _size(op, talls))  # [B T]
        where = op.ScatterElements(nowhere, found, number, axis=0)
        start = op.Gather(where, self.terms.index / inside) * inside  # [E]
        return FoundRaises(self, count, start + op.Mod(self.terms.index, inside))


@dataclass(frozen=True)
class FoundRaises:
    """``count`` int64[1] tall blocks were found; ``place`` int64[E] is where on a line of their items an entry adds."""

    raises: Raises
    count: ir.Value
    place: ir.Value

    def of_blocks(self, values: ir.Value) -> ir.Value:
        """Blocks' maxima [n, tall] -> the most that their sums can be."""
        of, op = self.raises, self.raises.op
        # What lowers an item lowers no other of its block.
        block, most = (self.place / of.block, op.Relu(of.most)) if of.block > 1 else (self.place, of.most)
        wide = self._sums(block, most, of.tall, each=of.tall)  # [n + 1, tall]
        return values + op.Slice(wide, [0], self.count, [0])

    def of_items(self, scores: ir.Value, place: ir.Value) -> ir.Value:
        """What is added to the items of the blocks int64[B, S] ``place``, counted through the tall blocks found.

        ``scores`` are theirs [B, C S], and so is the result.
        """
        of, op = self.raises, self.raises.op
        value, weight = of.terms.value, of.of.of_score(op)
        if weight is not None:
            lower = (of.best - op.ReduceMax(scores, axes=[1], keepdims=1)) * weight  # [B, 1]
            value = value + of.of.of_repeat(op, of.terms, lower)
        items = self._sums(self.place, value, of.block, each=of.tall * of.block)  # [(n + 1) tall, C]
        return op.Reshape(op.Gather(items, place), [0, -1])  # [B, S, C] before

    def _sums(self, place: ir.Value, value: ir.Value, width: int, *, each: int) -> ir.Value:
        """The sums at the ``each`` places of each of the tall blocks found, and of one more: [.., width]."""
        op = self.raises.op
        line = op.ConstantOfShape((self.count + 1) * each, value=ir.tensor([0.0], dtype=ir.DataType.FLOAT))
        return op.Reshape(op.ScatterElements(line, place, value, axis=0, reduction="add"), [-1, width])


def _size(op: OpBuilder, value: ir.Value) -> ir.Value:
    """int64[1]: how many numbers there are."""
    return op.Unsqueeze(op.Size(value), [0])
