"""The exact best k of a large catalogue for less: integers choose a shortlist, float32 ranks it.

The product of hidden states and all items is most of a click's cost. Computed in 8-bit integers it takes a fraction of
the time, and is off by no more than a bound that follows from what the rounding took away. So

1. scores in integers, s' = α β_b (q_i · p_b), where q_i is item i's row in steps of α, and p_b the state in steps of
   β_b, which the state's largest component decides;
2. the highest s' of every few items that lie side by side, a block. Nothing else of s' is kept: the catalogue is gone
   through piece by piece, and each piece's scores are still in the cache when their maxima are taken;
3. a threshold t, a little below what will be the k-th best score. The blocks whose maxima reach it are the shortlist;
4. the scores of its items in float32, s, and the best k of them;
5. proof: with |s - s'| <= ε for every item, none that is not on the list can be among the best k if the k-th of them
   has a score of at least t + ε;
6. the sessions without proof, few, again over the whole catalogue in float32.

ε = max_i |w_i - α q_i| |β_b p_b| + max_i |w_i| |h_b - β_b p_b| by Cauchy and Schwarz, and a little for the rounding of
float32. The bias is part of both vectors: a few more components, equal in every state, so that no pass over the scores
has to add it. Weights take 7 bits of the 8: pairs of products then fit the 16-bit sums of processors that know no
better (AVX2 without VNNI), so the integers are exact everywhere.

For t, the blocks are looked at in groups. The k-th highest of the groups' maxima, m, is a score that k items reach,
about, and seldom much less than the k-th highest of all; t = m - `_MARGIN` ε leaves room for what the rounding moves.
What proves the list is step 5 alone: a threshold that is too high costs time, not correctness.

A session memory adds to the scores of a few items: to what the blocks of these have at most before step 3, and to the
items' scores after step 4; see :mod:`trainer.export.shortlist_memory`. What may not be shown, and boosts, are in the
integers before step 2, and in the items' scores after step 4; see :mod:`trainer.export.shortlist_adjust`.

A very large catalogue may have a tail, items without integers: bounds of their scores stand for maxima from step 3 on.
What is not on the list is below t there as well, so step 5 proves the same; see :mod:`trainer.export.tail`.

Shapes: B sessions, I items, H units, K = k, J blocks of C places, T tall blocks of `TALL` blocks, S blocks on
the longest list of the batch. Block j is the places C j to C j + C - 1; tall block t the next `TALL` blocks. Which item
is at a place: :mod:`trainer.export.shortlist_catalogue`.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir import DataType
from onnxscript import OpBuilder

from trainer.export.graph import constant
from trainer.export.sample import Sample
from trainer.export.shortlist_adjust import ListedAdjust
from trainer.export.shortlist_catalogue import TALL, TINY, Catalogue
from trainer.export.shortlist_memory import FoundRaises, ListedMemory, Raises
from trainer.export.shortlist_scores import (
    NEVER,
    Head,
    completed,
    exact,
    items_at,
    items_by_place,
    places_of,
    scores_at,
    scores_of_blocks,
)
from trainer.export.tail import tail_of

_PIECE: Final = 8192
"""Items whose scores for a run of sessions fit the cache."""
_MARGIN: Final = 1.25
_LONGEST: Final = 256
_LONGEST_WITH_TAIL: Final = 1024
_LONGEST_WITH_MEMORY: Final = 2048
"""Blocks on a list; a session with more has no proof."""
_SCORED_WITH_MEMORY: Final = 96
"""Blocks on the second list: a memory raises many items above a threshold that does not know of it."""
_STATE_STEPS: Final = 127
UNPROVEN: Final = "unproven"
"""The name of the sessions without proof, int64[F, 1], in the graph."""
_ROUNDING: Final = 1e-5


@dataclass(frozen=True)
class _State:
    """Of each session: h evened f32[B, H], steps p u8[B, H + columns], α β [B, 1], ε [B, 1]."""

    evened: ir.Value
    integers: ir.Value
    step: ir.Value
    error: ir.Value


@dataclass(frozen=True)
class _Maxima:
    """Of each block int32[B, J], in steps: adjusted, and `plain`, which is not unless nobody asks."""

    blocks: ir.Value
    plain: ir.Value


@dataclass(frozen=True)
class _Talls:
    """What the items of each tall block have at most, in scores [B, T]: adjusted, and `plain`, which is not. In
    integers it is off by ε; of a tail it is a bound.
    """

    adjusted: ir.Value
    plain: ir.Value


@dataclass(frozen=True)
class _Best:
    """The highest s' of the front, [B, 1], which is off by ε at most, nothing adjusted and nothing added."""

    estimate: ir.Value
    error: ir.Value

    def least(self, op: OpBuilder) -> ir.Value:
        """What the best score's own s' is at least."""
        return self.estimate - self.error * 2.0


@dataclass(frozen=True)
class _Found:
    """All blocks that reach the threshold, session by session, int64[n] and f32[n]: `row` the session, `block`, `place`
    among those of the tall blocks found, and its maximum: `raised` by what a memory adds, and `plain`, not adjusted.
    """

    row: ir.Value
    block: ir.Value
    place: ir.Value
    raised: ir.Value
    plain: ir.Value


@dataclass(frozen=True)
class _Shortlist:
    """The listed blocks int64[B, S], where a list is shorter the one behind the last; bool[B, 1], whether nothing was
    left out that can reach `bound` [B, 1]; `place` int64[B, S], the blocks among those of all the tall blocks found;
    and `slot` int64[n], where on one line of B S each block found is: None where a memory chose among them.
    """

    block: ir.Value
    short: ir.Value
    bound: ir.Value
    place: ir.Value
    slot: ir.Value | None


def with_tail(catalogue: Catalogue, sample: Sample, *, memory: bool) -> Catalogue:
    """The catalogue with a tail, if that makes the rankings of a sample cheaper; with or without a session memory."""
    longest = _SCORED_WITH_MEMORY if memory else _LONGEST_WITH_TAIL
    # The other half of a list is for blocks of the front.
    listed, size = longest // 2 // TALL, catalogue.block * TALL
    tail = tail_of(catalogue.output, catalogue.bias, catalogue.evening, sample, size=size, listed=listed)
    return replace(catalogue, tail=tail)


def best_of_shortlist(
    op: OpBuilder, head: Head, catalogue: Catalogue, memory: ListedMemory | None = None
) -> tuple[ir.Value, ir.Value]:
    """The best k items of each session and their scores, int64[B, K] and f32[B, K]."""
    state = _state(op, catalogue, head.hidden)
    items = None if catalogue.tail is None else items_by_place(op, catalogue)
    adjust = ListedAdjust(op, head.adjust, state.step, catalogue, items)
    state = replace(state, error=adjust.error(state.error))
    maxima = _maxima(op, catalogue, state, adjust, plain=memory is not None)
    front = _tall_maxima(catalogue, state, maxima.blocks, op)  # [B, T] but for those of a tail
    threshold = adjust.threshold(_threshold(op, catalogue, head, front, state))  # [B, 1]
    plain_front = front
    if memory is not None:
        plain_front = adjust.plain("adjust.tall", partial(_tall_maxima, catalogue, state, maxima.plain), front)
    talls = _with_bounds(op, catalogue, state, adjust, _Talls(front, plain_front))
    most, best, raises = talls.adjusted, None, None
    if memory is not None:
        best = _Best(op.ReduceMax(plain_front, axes=[1], keepdims=1), state.error)
        raises = _raises(op, head, catalogue, memory, best)
        raised = raises.of_talls(talls.adjusted)
        most = adjust.with_best(
            "adjust.raised", raised, talls.plain, least=best.least, off=lambda op: op.Identity(raised)
        )
    reaching = op.NonZero(op.Reshape(op.GreaterOrEqual(most, threshold), [-1]))  # [1, n]
    found_tall = op.Squeeze(reaching, [0])
    found_raises = raises.among(found_tall, most) if raises is not None else None
    found = _found(
        op,
        catalogue,
        state,
        maxima,
        talls=talls,
        found=found_tall,
        threshold=threshold,
        raises=found_raises,
        best=best,
        adjust=adjust,
    )
    listed = _lists(op, catalogue, head, found, threshold=threshold, best=best)
    place = places_of(op, catalogue, listed.block)  # int64[B, C S]
    sums, proven = _listed_scores(op, head, catalogue, found, listed, place=place), listed.short
    if found_raises is not None and best is not None:
        sums, held = _remembered(
            op, catalogue, sums, listed, raises=found_raises, best=best, adjust=adjust, threshold=threshold
        )
        proven = op.And(proven, held)
    score, at = op.TopK(adjust.added(sums, place), head.k, axis=1, sorted=1, _outputs=2)
    index = op.GatherElements(place, at, axis=1)
    if catalogue.tail is not None:
        index = items_at(op, catalogue, index)
    worst = op.Gather(score, head.k - 1, axis=1)  # [B, 1]
    # Not `Less`: a NaN proves nothing.
    reached = op.GreaterOrEqual(worst, listed.bound + state.error)
    proven = op.And(proven, adjust.proven(reached, listed.bound))  # bool[B, 1]
    unproven = op.Transpose(op.NonZero(op.Squeeze(op.Not(proven), [1])))  # int64[F, 1]
    unproven.name = UNPROVEN
    return completed(op, head, catalogue, index, score, sessions=unproven, memory=memory)


def _state(op: OpBuilder, catalogue: Catalogue, hidden: ir.Value) -> _State:
    if (catalogue.evening != 1).any():
        hidden = hidden * constant(op, "shortlist.evening", 1 / catalogue.evening)
    evened = hidden
    if catalogue.bias_columns:
        hidden = op.Pad(hidden, [0, 0, 0, catalogue.bias_columns], catalogue.bias_input)
    largest = op.ReduceMax(op.Abs(hidden), axes=[1], keepdims=1)  # [B, 1]
    step = op.Max(largest * (1 / _STATE_STEPS), TINY)  # β
    in_steps = hidden / step
    steps = op.Round(in_steps)  # p
    weights, rounded = catalogue.extended(), catalogue.rounded()
    lost = float(np.linalg.norm(weights - rounded * catalogue.step, axis=1).max())
    longest = float(np.linalg.norm(weights, axis=1).max())
    # In steps first: the squares of a small state are 0 in float32, and an error of 0 would prove anything.
    length, rest = (
        op.ReduceL2(x, axes=[1], keepdims=1) * step for x in (steps, in_steps - steps)
    )  # of β p, of h - β p
    error = length * (lost * (1 + _ROUNDING) + longest * _ROUNDING) + rest * (longest * (1 + _ROUNDING))
    integers = op.Cast(steps + float(_STATE_STEPS + 1), to=DataType.UINT8)
    return _State(evened, integers, step * catalogue.step, error)


def _maxima(op: OpBuilder, catalogue: Catalogue, state: _State, adjust: ListedAdjust, *, plain: bool) -> _Maxima:
    """The highest q · p of each block, adjusted; and without that, where ``plain``."""
    rounded, block = catalogue.rounded(), catalogue.block
    items = catalogue.padded
    # The last blocks are filled up with items from all over the catalogue: copies of one would raise many maxima if it
    # is among the best, and with them the threshold. Their scores in float32 are never the best.
    filled = rounded[np.concatenate([np.arange(catalogue.front), catalogue.copies])]
    zero = constant(op, "shortlist.zero", np.uint8(_STATE_STEPS + 1))
    parts, plains = [], []
    size = _PIECE if block > 1 else items
    for piece, begin in enumerate(range(0, items, size)):
        rows = filled[begin : begin + size]
        # First items of all blocks, then the second ones ..: a maximum over blocks is one of whole vectors.
        columns = rows.reshape(-1, block, rows.shape[1]).swapaxes(0, 1).reshape(rows.shape)
        weights = constant(op, f"shortlist.output{piece}", columns.T)  # [H + columns, items of the piece]
        scores = op.MatMulInteger(state.integers, weights, zero)
        of_blocks = partial(_block_maxima, block, len(rows) // block)
        parts.append(of_blocks(adjust.estimates(scores, begin, len(rows)), op))
        if plain:
            plains.append(adjust.plain_blocks(f"adjust.plain{begin}", partial(of_blocks, scores)))
    return _Maxima(
        _joined(parts, op), adjust.plain_blocks("adjust.plains", partial(_joined, plains)) if plain else parts[0]
    )


def _block_maxima(block: int, blocks: int, scores: ir.Value, op: OpBuilder) -> ir.Value:
    """Of a piece's scores [B, C J] in order of their places in the blocks: [B, J]."""
    return (
        op.Identity(scores)
        if block == 1
        else op.ReduceMax(op.Reshape(scores, [0, block, blocks]), axes=[1], keepdims=0)
    )


def _joined(pieces: list[ir.Value], op: OpBuilder) -> ir.Value:
    return op.Concat(*pieces, axis=1) if len(pieces) > 1 else op.Identity(pieces[0])


def _tall_maxima(catalogue: Catalogue, state: _State, blocks: ir.Value, op: OpBuilder) -> ir.Value:
    """Of the tall blocks in integers, in scores: [B, ..]."""
    by_tall = op.Reshape(blocks, [0, catalogue.tall, TALL])
    return _scaled(op, op.ReduceMax(by_tall, axes=[2], keepdims=0), state.step)


def _scaled(op: OpBuilder, steps: ir.Value, step: ir.Value) -> ir.Value:
    """From int32 in steps to scores."""
    return op.Cast(steps, to=DataType.FLOAT) * step


def _threshold(op: OpBuilder, catalogue: Catalogue, head: Head, tall: ir.Value, state: _State) -> ir.Value:
    """t, [B, 1]."""
    groups = catalogue.tall // catalogue.group
    highest = op.ReduceMax(op.Reshape(tall, [0, catalogue.group, groups]), axes=[1], keepdims=0)
    best, _ = op.TopK(highest, op.Min(head.k, [groups]), axis=1, sorted=0, _outputs=2)
    return op.ReduceMin(best, axes=[1], keepdims=1) - state.error * _MARGIN


def _with_bounds(op: OpBuilder, catalogue: Catalogue, state: _State, adjust: ListedAdjust, front: _Talls) -> _Talls:
    """The tall blocks in integers, and those of a tail."""
    if catalogue.tail is None:
        return front
    bounds = catalogue.tail.bounds(op, state.evened)
    return _Talls(
        op.Concat(front.adjusted, adjust.bounds(bounds, catalogue.tail), axis=1),
        op.Concat(front.plain, bounds, axis=1),
    )


def _raises(op: OpBuilder, head: Head, catalogue: Catalogue, memory: ListedMemory, best: _Best) -> Raises:
    recent = op.Max(memory.sessions.recent, 0)  # padding as any item
    own = exact(op, head, recent, op.Gather(head.bias, recent))
    places = None
    if catalogue.tail is not None:
        place = np.zeros(catalogue.items, np.int32)
        taken = np.flatnonzero(catalogue.at >= 0)
        place[catalogue.at[taken]] = taken
        places = constant(op, "shortlist.places", place)
    return memory.raises(
        op,
        own=own,
        best=best.estimate,
        error=best.error,
        block=catalogue.block,
        tall=TALL,
        talls=catalogue.talls,
        places=places,
    )


def _found(
    op: OpBuilder,
    catalogue: Catalogue,
    state: _State,
    maxima: _Maxima,
    *,
    talls: _Talls,
    found: ir.Value,
    threshold: ir.Value,
    raises: FoundRaises | None,
    best: _Best | None,
    adjust: ListedAdjust,
) -> _Found:
    """Of the tall blocks ``found`` int64[n], the blocks that reach the threshold."""
    session = found / catalogue.talls

    def estimates(op: OpBuilder, blocks: ir.Value, bounds: ir.Value) -> ir.Value:
        by_tall = op.Reshape(blocks, [-1, TALL])
        if catalogue.tail is None:
            return _scaled(op, op.Gather(by_tall, found), op.Gather(state.step, session))  # [n, 16]
        tall, last = found - session * catalogue.talls, catalogue.tall - 1
        value = op.Gather(by_tall, session * catalogue.tall + op.Min(tall, last))
        in_integers = op.Unsqueeze(op.LessOrEqual(tall, last), [1])
        bound = op.Unsqueeze(op.Gather(op.Reshape(bounds, [-1]), found), [1])  # of all its blocks alike
        return op.Where(in_integers, _scaled(op, value, op.Gather(state.step, session)), bound)

    higher = value = plain = estimates(op, maxima.blocks, talls.adjusted)
    if raises is not None and best is not None:
        plain = adjust.plain("adjust.plain", partial(estimates, blocks=maxima.plain, bounds=talls.plain), value)
        value = raised = raises.of_blocks(value)
        # What a memory lowers may still have the best score, on which the repeat term depends.
        higher = adjust.with_best(
            "adjust.higher",
            raised,
            plain,
            least=lambda op: op.Gather(best.least(op), session),
            off=lambda op: op.Max(raised, plain),
        )
    inside = op.NonZero(op.GreaterOrEqual(higher, op.Gather(threshold, session)))  # [2, n']
    number, in_tall = op.Gather(inside, 0), op.Gather(inside, 1)
    flat = op.Gather(found, number) * TALL + in_tall  # [n']
    blocks = TALL * catalogue.talls
    row = flat / blocks  # in order of rows
    place = number * TALL + in_tall
    raised, plain = (op.Gather(op.Reshape(x, [-1]), place) if raises is not None else x for x in (value, plain))
    return _Found(row, flat - row * blocks, place, raised, plain)


def _lists(
    op: OpBuilder,
    catalogue: Catalogue,
    head: Head,
    found: _Found,
    *,
    threshold: ir.Value,
    best: _Best | None,
) -> _Shortlist:
    """The blocks found as lists; with a memory, where there is a ``best``, the highest of them."""
    row = found.row
    # Lists of different length as the rows of a table: block number l of a session's goes to its column l.
    without_memory = _LONGEST if catalogue.tail is None else _LONGEST_WITH_TAIL
    longest = without_memory if best is None else _LONGEST_WITH_MEMORY
    batch = op.Shape(head.hidden, start=0, end=1)
    ones = op.ConstantOfShape(op.Shape(row), value=ir.tensor([1]))
    none = op.ConstantOfShape(batch, value=ir.tensor([0]))
    length = op.ScatterElements(none, row, ones, axis=0, reduction="add")  # [B]
    short = op.Unsqueeze(op.LessOrEqual(length, [longest]), [1])
    before = op.Gather(op.CumSum(length, 0, exclusive=1), row)
    own = op.CumSum(ones, 0, exclusive=1) - before  # [n']: 0, 1, .. in each session
    last = op.Max(op.Min(op.ReduceMax(length, keepdims=1), [longest]), head.k)  # [1]; k items at least
    columns = last + 1  # the last one takes what is too much
    slot = row * columns + op.Min(own, last)
    shape = op.Concat(batch, columns, axis=0)

    def table(values: ir.Value, fill: ir.TensorProtocol) -> ir.Value:
        empty = op.ConstantOfShape(batch * columns, value=fill)
        return op.Reshape(op.ScatterElements(empty, slot, values, axis=0), shape)  # [B, S]

    listed = table(found.block, ir.tensor([TALL * catalogue.talls]))
    if best is None:
        return _Shortlist(listed, short, threshold, listed, slot)
    # What may be the best without the memory counts as the best: what the memory adds depends on its score.
    floor = op.Gather(op.Squeeze(best.least(op), [1]), row)
    value = op.Where(op.GreaterOrEqual(found.plain, floor), -NEVER, found.raised)
    values = table(value, ir.tensor([NEVER], dtype=DataType.FLOAT))
    scored = op.Min(columns, op.Max(head.k, [_SCORED_WITH_MEMORY]))
    highest, at = op.TopK(values, scored, axis=1, sorted=0, _outputs=2)
    # A list that is not full holds all that reaches the threshold.
    bound = op.Max(threshold, op.ReduceMin(highest, axes=[1], keepdims=1))
    listed, places = (op.GatherElements(x, at, axis=1) for x in (listed, table(found.place, ir.tensor([0]))))
    return _Shortlist(listed, short, bound, places, slot=None)


def _listed_scores(
    op: OpBuilder, head: Head, catalogue: Catalogue, found: _Found, listed: _Shortlist, *, place: ir.Value
) -> ir.Value:
    """Scores in float32 of what is at the listed places int64[B, C S], lower than any where a list is shorter."""
    if catalogue.tail is None or listed.slot is None:
        return scores_at(op, head, catalogue, place)
    kept = op.Squeeze(op.NonZero(op.Gather(op.Squeeze(listed.short, [1]), found.row)), [0])
    row, block, slot = (op.Gather(x, kept) for x in (found.row, found.block, listed.slot))
    return scores_of_blocks(op, head, catalogue, row=row, block=block, slot=slot, lists=listed.block)


def _remembered(
    op: OpBuilder,
    catalogue: Catalogue,
    scores: ir.Value,
    listed: _Shortlist,
    *,
    raises: FoundRaises,
    best: _Best,
    adjust: ListedAdjust,
    threshold: ir.Value,
) -> tuple[ir.Value, ir.Value]:
    """Scores [B, C S] with what a memory adds, and whether the list holds the best of all, on which that depends."""
    added = scores + raises.of_items(scores, listed.place)
    # Where a list is shorter there is no item: what is added there is another's.
    sums = op.Where(op.Greater(scores, NEVER / 2), added, scores)
    highest = op.ReduceMax(scores, axes=[1], keepdims=1)
    held = adjust.holds_best(lambda op: op.GreaterOrEqual(highest, threshold + best.error))
    if catalogue.tail is not None:
        # Blocks were raised as if the best of the front were the best of all; an item of the tail may be better.
        held = op.And(held, op.LessOrEqual(highest, best.estimate + best.error))
    return sums, held
