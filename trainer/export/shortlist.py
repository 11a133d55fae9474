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
items' scores after step 4; see :mod:`trainer.export.shortlist_memory`.

Shapes: B sessions, I items, H units, K = k, J blocks of C items, T tall blocks of `_TALL` blocks, S blocks on
the longest list of the batch. Block j is the items C j to C j + C - 1; tall block t the next `_TALL` blocks.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from trainer.export.onnx_graph import Graph
from trainer.export.shortlist_memory import ListedMemory, Raises

LEAST_ITEMS: Final = 20_000
"""Below, the float32 product is as fast; `make bench BENCH=rank`."""
_LARGE: Final = 100_000
"""Up to so many items all scores of a run of sessions are kept, block = item; beyond, maxima of blocks of 8."""
_BLOCK_OF_LARGE: Final = 8
_TALL: Final = 16
_GROUPS: Final = 128
_PIECE: Final = 8192
"""Items whose scores for a run of sessions fit the cache."""
_MARGIN: Final = 1.25
_LONGEST: Final = 256
_LONGEST_WITH_MEMORY: Final = 2048
"""Blocks on a list; a session with more has no proof."""
_SCORED_WITH_MEMORY: Final = 96
"""Blocks on the second list: a memory raises many items above a threshold that does not know of it."""
_STEPS: Final = 63
_STATE_STEPS: Final = 127
_BIAS_INPUT: Final = 1 / 8
MOST_BIAS_COLUMNS: Final = 28
"""The bias takes so many more components that the states' own there are no larger than this, and do not make the steps
of a state coarser: a GRU's largest is near 1. Products may come in 64s, so 128 components are no slower than 100."""
_TINY: Final = float(np.finfo(np.float32).tiny)
_NEVER: Final = -3e38
_ROUNDING: Final = 1e-5

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Shortlist:
    """By name: the listed blocks int64[B, S], J where a list is shorter; bool[B, 1], whether nothing was left out that
    can reach `bound` [B, 1]; and `place` int64[B, S], the blocks among those of all the tall blocks found.
    """

    block: str
    short: str
    bound: str
    place: str


@dataclass(frozen=True)
class _Catalogue:
    """The rank graph's initializers `output` f32[I, H] and `output_bias` f32[I], in integers."""

    output: Floats
    bias: Floats

    @property
    def items(self) -> int:
        return len(self.output)

    @property
    def block(self) -> int:
        """C."""
        return 1 if self.items <= _LARGE else _BLOCK_OF_LARGE

    @property
    def group(self) -> int:
        """Tall blocks in a group."""
        return max(1, -(-self.items // (self.block * _TALL)) // _GROUPS)

    @property
    def tall(self) -> int:
        """T, which groups divide without rest."""
        return self.group * -(-self.items // (self.block * _TALL * self.group))

    @property
    def blocks(self) -> int:
        return _TALL * self.tall

    @property
    def _bias_size(self) -> float:
        """The largest bias, in largest weights."""
        return float(np.abs(self.bias).max(initial=0)) / max(float(np.abs(self.output).max()), _TINY)

    @property
    def bias_columns(self) -> int:
        """Components that carry the bias, none larger than a weight."""
        return min(MOST_BIAS_COLUMNS, int(np.ceil(self._bias_size / _BIAS_INPUT)))

    @property
    def bias_input(self) -> float:
        """What every state has there."""
        return self._bias_size / self.bias_columns

    def extended(self) -> npt.NDArray[np.float64]:
        """Weights with the bias, [I, H + columns]."""
        columns = self.bias_columns
        if not columns:
            return self.output.astype(np.float64)
        share = self.bias.astype(np.float64) / (columns * self.bias_input)
        return np.hstack([self.output, np.repeat(share[:, None], columns, axis=1)])

    @property
    def step(self) -> float:
        """α."""
        return max(float(np.abs(self.extended()).max()) / _STEPS, _TINY)

    def rounded(self) -> npt.NDArray[np.int8]:
        """int8[I, H + columns] in steps of α."""
        return np.rint(self.extended() / self.step).astype(np.int8)


def padded_items(items: int) -> int:
    """How many items a shortlist's integers are of, once the last blocks are filled up."""
    catalogue = _Catalogue(np.broadcast_to(np.float32(0), (items, 1)), np.zeros(0, np.float32))
    return catalogue.block * catalogue.blocks


@dataclass(frozen=True)
class _State:
    """Of each session, by name: steps p u8[B, H + columns], α β [B, 1], ε [B, 1]."""

    integers: str
    step: str
    error: str


def shortlist_graph(
    output: Floats, bias: Floats, k: int, memory: ListedMemory | None = None
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Operators from `hidden` f32[B, H] (a memory: from more) to `top_index` and `top_score`, and their constants.

    They use the initializers `output` and `output_bias` and the input `k` int64[1] of the rank graph, which is `k` at
    most.
    """
    graph, catalogue = Graph("shortlist."), _Catalogue(output, bias)
    state = _state(graph, catalogue)
    blocks = _maxima(graph, catalogue, state)  # int32[B, J], in steps
    tall = _tall(graph, catalogue, blocks, state)  # [B, T]
    threshold = _threshold(graph, catalogue, tall, state)  # [B, 1]
    raises = None
    if memory is not None:
        best = graph.apply("ReduceMax", [tall], "best", axes=[1], keepdims=1)
        recent = graph.apply("Max", ["recent", graph.integer(0)], "recent")  # padding as any item
        own = _exact(graph.part("own"), recent, graph.apply("Gather", ["output_bias", recent], "own_bias"))
        raises = memory.raises(
            graph, own=own, best=best, error=state.error, block=catalogue.block, tall=_TALL, talls=catalogue.tall
        )
        tall = raises.of_talls(tall)
    found = _found(graph, catalogue, state, blocks, tall=tall, threshold=threshold, raises=raises)
    shortlist = _shortlist(graph, catalogue, state, found, threshold=threshold, k=k, raises=raises)
    sums = scores = _of_items(graph, catalogue, shortlist.block)  # [B, C S]
    enough = graph.apply("Add", [shortlist.bound, state.error], "enough")  # [B, 1]
    proven = shortlist.short
    if raises is not None:
        added = graph.apply("Add", [scores, raises.of_items(scores, shortlist.place)], "with_memory")
        # Where a list is shorter there is no item: what is added there is another's.
        item = graph.apply("Greater", [scores, graph.float(_NEVER / 2)], "is_item")
        sums = graph.apply("Where", [item, added, scores], "sums")
        # What is added depends on the best score of all, which the list must hold as well.
        highest = graph.apply("ReduceMax", [scores], "highest_score", axes=[1], keepdims=1)
        above = graph.apply("Add", [threshold, state.error], "above_threshold")
        best_proven = graph.apply("GreaterOrEqual", [highest, above], "best_proven")
        proven = graph.apply("And", [proven, best_proven], "short_and_best_proven")
    score, place = graph.top(sums, "k", "score", in_order=True)
    index = graph.apply("GatherElements", [f"{graph.prefix}item", place], "index", axis=1)
    worst = graph.apply(
        "Gather", [score, graph.apply("Sub", ["k", graph.integer(1)], "k_th")], "worst", axis=1
    )  # [B, 1]
    reached = graph.apply("GreaterOrEqual", [worst, enough], "worst_proven")  # not `Less`: a NaN proves nothing
    proven = graph.apply("And", [proven, reached], "proven")  # bool[B, 1]
    unsure = graph.apply("Squeeze", [graph.apply("Not", [proven], "not_proven"), graph.integers(1)], "not_proven_line")
    rows = graph.apply("NonZero", [unsure], "unproven_row")  # int64[1, F]
    sessions = graph.apply("Transpose", [rows], "unproven")
    _again(graph, catalogue, index, score, sessions=sessions, memory=memory)
    return graph.nodes, list(graph.constants.values())


def _state(graph: Graph, catalogue: _Catalogue) -> _State:
    hidden = "hidden"
    if catalogue.bias_columns:
        value = graph.float(catalogue.bias_input)
        hidden = graph.apply("Pad", [hidden, graph.integers(0, 0, 0, catalogue.bias_columns), value], "with_bias")
    sizes = graph.apply("Abs", [hidden], "sizes")
    largest = graph.apply("ReduceMax", [sizes], "largest", axes=[1], keepdims=1)  # [B, 1]
    step_or_0 = graph.apply("Mul", [largest, graph.float(1 / _STATE_STEPS)], "step_or_0")
    step = graph.apply("Max", [step_or_0, graph.float(_TINY)], "step")
    in_steps = graph.apply("Div", [hidden, step], "in_steps")
    steps = graph.apply("Round", [in_steps], "steps")  # p
    shifted = graph.apply("Add", [steps, graph.float(_STATE_STEPS + 1)], "shifted")
    integers = graph.apply("Cast", [shifted], "integers", to=TensorProto.UINT8)
    weights, rounded = catalogue.extended(), catalogue.rounded()
    lost = np.linalg.norm(weights - rounded * catalogue.step, axis=1).max()
    longest = np.linalg.norm(weights, axis=1).max()

    def length_of(values: str, name: str) -> str:
        """In steps first: the squares of a small state are 0 in float32, and an error of 0 would prove anything."""
        in_steps = graph.apply("ReduceL2", [values], f"{name}_in_steps", axes=[1], keepdims=1)
        return graph.apply("Mul", [in_steps, step], name)

    length = length_of(steps, "state_length")  # of β p
    rest_length = length_of(graph.apply("Sub", [in_steps, steps], "rest"), "rest_length")
    of_weights = graph.apply("Mul", [length, graph.float(lost * (1 + _ROUNDING) + longest * _ROUNDING)], "of_weights")
    of_state = graph.apply("Mul", [rest_length, graph.float(longest * (1 + _ROUNDING))], "of_state")
    error = graph.apply("Add", [of_weights, of_state], "error")
    return _State(integers, graph.apply("Mul", [step, graph.float(catalogue.step)], "score_step"), error)


def _maxima(graph: Graph, catalogue: _Catalogue, state: _State) -> str:
    """The highest q · p of each block, int32[B, J]."""
    rounded, block = catalogue.rounded(), catalogue.block
    items = block * catalogue.blocks
    # The last blocks are filled up with items from all over the catalogue: copies of one would raise many maxima if it
    # is among the best, and with them the threshold. Their scores in float32 are never the best.
    copies = np.linspace(0, catalogue.items - 1, items - catalogue.items).astype(np.int64)
    filled = rounded[np.concatenate([np.arange(catalogue.items), copies])]
    zero = graph.shared("shortlist.zero", _STATE_STEPS + 1, np.uint8)
    parts = []
    size = _PIECE if block > 1 else items
    for piece, begin in enumerate(range(0, items, size)):
        rows = filled[begin : begin + size]
        # First items of all blocks, then the second ones ..: a maximum over blocks is one of whole vectors.
        columns = rows.reshape(-1, block, rows.shape[1]).swapaxes(0, 1).reshape(rows.shape)
        weights = graph.shared(f"shortlist.output{piece}", columns.T, np.int8)  # [H + columns, items of the piece]
        scores = graph.apply("MatMulInteger", [state.integers, weights, zero], f"scores{piece}")
        if block > 1:
            by_block = graph.apply(
                "Reshape", [scores, graph.integers(0, block, len(rows) // block)], f"by_block{piece}"
            )
            scores = graph.apply("ReduceMax", [by_block], f"maxima{piece}", axes=[1], keepdims=0)
        parts.append(scores)
    return graph.apply("Concat", parts, "maxima", axis=1) if len(parts) > 1 else parts[0]


def _scaled(graph: Graph, steps: str, step: str, name: str) -> str:
    """From int32 in steps to scores."""
    return graph.apply("Mul", [graph.apply("Cast", [steps], f"{name}_float", to=TensorProto.FLOAT), step], name)


def _tall(graph: Graph, catalogue: _Catalogue, blocks: str, state: _State) -> str:
    """The highest scores of tall blocks, [B, T]."""
    by_tall = graph.apply("Reshape", [blocks, graph.integers(0, catalogue.tall, _TALL)], "by_tall")
    return _scaled(graph, graph.apply("ReduceMax", [by_tall], "tall_maxima", axes=[2], keepdims=0), state.step, "tall")


def _threshold(graph: Graph, catalogue: _Catalogue, tall: str, state: _State) -> str:
    """t, [B, 1]."""
    groups, group = catalogue.tall // catalogue.group, catalogue.group
    by_group = graph.apply("Reshape", [tall, graph.integers(0, group, groups)], "by_group")
    highest = graph.apply("ReduceMax", [by_group], "groups", axes=[1], keepdims=0)
    as_many = graph.apply("Min", ["k", graph.integers(groups)], "as_many")
    best, _ = graph.top(highest, as_many, "best_groups", in_order=False)
    reached = graph.apply("ReduceMin", [best], "reached", axes=[1], keepdims=1)
    room = graph.apply("Mul", [state.error, graph.float(_MARGIN)], "room")
    return graph.apply("Sub", [reached, room], "threshold")


@dataclass(frozen=True)
class _Found:
    """All blocks that reach the threshold, session by session, by name, int64[n] and f32[n]: `row` the session,
    `block`, `place` among those of the tall blocks found, and its maximum, raised by what a memory adds and not.
    """

    row: str
    block: str
    place: str
    raised: str
    unraised: str


def _found(
    graph: Graph, catalogue: _Catalogue, state: _State, blocks: str, *, tall: str, threshold: str, raises: Raises | None
) -> _Found:
    """Tall blocks that reach the threshold, and of these the blocks that do."""
    line, first, last = graph.integers(-1), graph.integer(0), graph.integer(1)
    reaching = graph.apply("GreaterOrEqual", [tall, threshold], "tall_reaching")  # bool[B, T]
    found = graph.apply("NonZero", [graph.apply("Reshape", [reaching, line], "tall_line")], "tall_found")  # [1, n]
    found = graph.apply("Squeeze", [found, graph.integers(0)], "tall_flat")
    session = graph.apply("Div", [found, graph.integer(catalogue.tall)], "tall_session")
    value = graph.apply(
        "Gather", [graph.apply("Reshape", [blocks, graph.integers(-1, _TALL)], "lines"), found], "value"
    )
    value = _scaled(graph, value, graph.apply("Gather", [state.step, session], "their_step"), "scaled_value")  # [n, 16]
    unraised = value
    if raises is not None:
        value = raises.of_blocks(unraised, found, tall)
    # What a memory lowers may still have the best score, on which the repeat term depends.
    higher = value if raises is None else graph.apply("Max", [value, unraised], "higher")
    theirs = graph.apply("Gather", [threshold, session], "theirs")  # [n, 1]
    inside = graph.apply("NonZero", [graph.apply("GreaterOrEqual", [higher, theirs], "reaching")], "inside")  # [2, n']
    tall_number, in_tall = (graph.apply("Gather", [inside, n], f"inside{i}") for i, n in enumerate((first, last)))
    start = graph.apply("Mul", [graph.apply("Gather", [found, tall_number], "of_tall"), graph.integer(_TALL)], "start")
    flat = graph.apply("Add", [start, in_tall], "flat")  # [n']
    width = graph.integer(catalogue.blocks)
    row = graph.apply("Div", [flat, width], "row")  # [n], in order of rows
    block = graph.apply("Sub", [flat, graph.apply("Mul", [row, width], "row_start")], "block")  # [n]
    start = graph.apply("Mul", [tall_number, graph.integer(_TALL)], "place_start")
    place = graph.apply("Add", [start, in_tall], "place")

    def of_blocks(values: str, name: str) -> str:
        return graph.apply("Gather", [graph.apply("Reshape", [values, line], f"{name}_line"), place], name)

    if raises is None:
        return _Found(row, block, place, "", "")
    return _Found(row, block, place, of_blocks(value, "raised"), of_blocks(unraised, "unraised"))


def _shortlist(
    graph: Graph, catalogue: _Catalogue, state: _State, found: _Found, *, threshold: str, k: int, raises: Raises | None
) -> _Shortlist:
    """The blocks found as lists; with a memory, the highest of them."""
    first, row = graph.integer(0), found.row
    # Lists of different length as the rows of a table: block number l of a session's goes to its column l.
    longest = _LONGEST if raises is None else _LONGEST_WITH_MEMORY
    batch = graph.apply("Shape", ["hidden"], "batch", start=0, end=1)
    none = graph.apply("ConstantOfShape", [batch], "none", value=_tensor(0))
    ones = graph.apply("ConstantOfShape", [graph.apply("Shape", [row], "listed_shape")], "ones", value=_tensor(1))
    length = graph.apply("ScatterElements", [none, row, ones], "length", axis=0, reduction="add")  # [B]
    short = graph.apply("LessOrEqual", [length, graph.integers(longest)], "short_line")
    short = graph.apply("Unsqueeze", [short, graph.integers(1)], "short")
    before = graph.apply("Gather", [graph.apply("CumSum", [length, first], "before", exclusive=1), row], "before_row")
    number = graph.apply("CumSum", [ones, first], "number", exclusive=1)  # [n']: 0, 1, ..
    own = graph.apply("Sub", [number, before], "own")
    most = graph.apply("Min", [graph.apply("ReduceMax", [length], "most", keepdims=1), graph.integers(longest)], "cut")
    most = graph.apply("Max", [most, graph.integers(-(-k // catalogue.block))], "columns_of_blocks")  # [1]
    columns = graph.apply("Add", [most, graph.integers(1)], "columns")  # the last one takes what is too much
    slot = graph.apply("Mul", [row, columns], "slot_start")
    slot = graph.apply("Add", [slot, graph.apply("Min", [own, most], "own_or_last")], "slot")
    shape = graph.apply("Concat", [batch, columns], "shape", axis=0)

    def table(values: str, fill: onnx.TensorProto, name: str) -> str:
        empty = graph.apply(
            "ConstantOfShape", [graph.apply("Mul", [batch, columns], f"{name}_size")], f"{name}_empty", value=fill
        )
        line = graph.apply("ScatterElements", [empty, slot, values], f"{name}_line", axis=0)
        return graph.apply("Reshape", [line, shape], name)  # [B, S]

    listed = table(found.block, _tensor(catalogue.blocks), "listed")
    if raises is None:
        return _Shortlist(listed, short, threshold, "")
    # What may be the best without the memory counts as the best: what the memory adds depends on its score.
    lowest_best = graph.apply(
        "Sub", [raises.best, graph.apply("Mul", [state.error, graph.float(2)], "twice")], "lowest_best"
    )
    floor = graph.apply(
        "Gather", [graph.apply("Squeeze", [lowest_best, graph.integers(1)], "floor_line"), row], "floor"
    )
    maybe_best = graph.apply("GreaterOrEqual", [found.unraised, floor], "maybe_best")
    value_line = graph.apply("Where", [maybe_best, graph.float(-_NEVER), found.raised], "rank_value")
    values = table(value_line, helper.make_tensor("value", TensorProto.FLOAT, [1], [_NEVER]), "values")
    scored = max(_SCORED_WITH_MEMORY, -(-k // catalogue.block))
    scored_here = graph.apply("Min", [columns, graph.integers(scored)], "scored")
    best, at = graph.top(values, scored_here, "highest", in_order=False)
    lowest = graph.apply("ReduceMin", [best], "lowest", axes=[1], keepdims=1)
    # A list that is not full holds all that reaches the threshold.
    bound = graph.apply("Max", [threshold, lowest], "bound")
    places = table(found.place, _tensor(0), "places")
    listed, places = (
        graph.apply("GatherElements", [name, at], f"{name.rsplit('.', 1)[1]}_scored", axis=1)
        for name in (listed, places)
    )
    return _Shortlist(listed, short, bound, places)


def _of_items(graph: Graph, catalogue: _Catalogue, blocks: str) -> str:
    """Scores in float32 of the items of int64[B, S]; those of places without an item are lower than any: [B, C S]."""
    item = blocks
    if catalogue.block > 1:
        first_item = graph.apply("Mul", [blocks, graph.integer(catalogue.block)], "first_item")
        column = graph.apply("Unsqueeze", [first_item, graph.integers(2)], "first_item_column")
        steps = graph.shared("shortlist.in_block", np.arange(catalogue.block), np.int64)
        item = graph.apply("Add", [column, steps], "item_by_block")
    item = graph.apply("Reshape", [item, graph.integers(0, -1)], "item")
    bias = np.full(catalogue.block * (catalogue.blocks + 1), _NEVER, dtype=np.float32)
    bias[: catalogue.items] = catalogue.bias
    there = graph.apply("Min", [item, graph.integer(catalogue.items - 1)], "there")
    return _exact(
        graph, there, graph.apply("Gather", [graph.shared("shortlist.padded_bias", bias, np.float32), item], "bias")
    )


def _exact(graph: Graph, item: str, bias: str) -> str:
    """Scores in float32 of some items of each session, int64[B, S], with their bias [B, S]: [B, S]."""
    rows = graph.apply("Gather", ["output", item], "output_rows")  # [B, S, H]
    column = graph.apply("Unsqueeze", ["hidden", graph.integers(2)], "hidden_column")  # [B, H, 1]
    product = graph.apply("Squeeze", [graph.apply("MatMul", [rows, column], "product"), graph.integers(2)], "products")
    return graph.apply("Add", [product, bias], "exact")


def _again(
    graph: Graph, catalogue: _Catalogue, index: str, score: str, *, sessions: str, memory: ListedMemory | None
) -> None:
    """`top_index` and `top_score`: what is proven, and the sessions int64[F, 1] over the whole catalogue in float32."""
    there = graph.branch("again")
    scores = _whole(there, catalogue, sessions)
    if memory is not None:
        scores = memory.whole(there, scores, catalogue.items, sessions)
    best, item = there.top(scores, "k", "best", in_order=True)
    again_index = there.apply("ScatterND", [index, sessions, item], "index")
    again_score = there.apply("ScatterND", [score, sessions, best], "score")
    here = graph.branch("proven")
    same_index, same_score = (here.apply("Identity", [name], f"same{n}") for n, name in enumerate((index, score)))
    count = graph.apply("Size", [sessions], "unproven_count")
    graph.nodes.append(
        helper.make_node(
            "If",
            [graph.apply("Greater", [count, graph.integer(0)], "any_unproven")],
            ["top_index", "top_score"],
            then_branch=_branch(there, again_index, again_score),
            else_branch=_branch(here, same_index, same_score),
        )
    )


def _whole(graph: Graph, catalogue: _Catalogue, sessions: str) -> str:
    """Scores of the whole catalogue in float32 for some sessions, int64[F, 1] -> [F, I]."""
    hidden = graph.apply("GatherND", ["hidden", sessions], "their_hidden")  # [F, H]
    # The same weights under a shape that is only known while running: ONNX Runtime packs the weights of a product that
    # it takes for constant, which would be a second copy of the catalogue, for an operator that hardly ever runs.
    batch = graph.apply("Shape", ["hidden"], "hidden_shape", start=0, end=1)
    nothing = graph.apply("Mul", [batch, graph.integers(0)], "nothing_more")
    height = graph.apply("Add", [nothing, graph.integers(catalogue.items)], "height")
    shape = graph.apply("Concat", [height, graph.integers(catalogue.output.shape[1])], "weights_shape", axis=0)
    weights = graph.apply("Reshape", ["output", shape], "output_again")  # [I, H]
    return graph.apply("Gemm", [hidden, weights, "output_bias"], "whole", transB=1)  # [F, I]


def _branch(graph: Graph, index: str, score: str) -> onnx.GraphProto:
    outputs = [
        helper.make_tensor_value_info(index, TensorProto.INT64, ["batch", None]),
        helper.make_tensor_value_info(score, TensorProto.FLOAT, ["batch", None]),
    ]
    return helper.make_graph(graph.nodes, graph.prefix.strip("."), [], outputs)


def _tensor(value: int) -> onnx.TensorProto:
    return helper.make_tensor("value", TensorProto.INT64, [1], [value])
