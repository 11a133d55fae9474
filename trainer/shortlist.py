"""The exact best k of a large catalogue for less: integers choose a shortlist, float32 ranks it.

The product of hidden states and all items is most of a click's cost. Computed in 8-bit integers it takes a quarter of
the time, and is off by little: by no more than a bound that follows from what the rounding took away. So

1. scores in integers, s' = α_i β (q_i · p) + c_i, where q_i is item i's row in steps of α_i, and p the state in steps
   of β, which the largest component of the states at hand decides;
2. a shortlist of the S items with the highest s';
3. their scores in float32, s, and the best k of them;
4. proof: with |s - s'| <= ε for every item, none that is not on the list can be among the best k if the k-th of them
   has a score of at least ε more than the lowest s' on the list;
5. the sessions without proof, few, again over the whole catalogue in float32.

ε = max_i |w_i - α_i q_i| |β p| + max_i |w_i| |h - β p| by Cauchy and Schwarz, and a little for the rounding of float32.
Weights take 7 bits of the 8: pairs of products then fit the 16-bit sums of processors that know no better
(AVX2 without VNNI), so the integers are exact everywhere.

A head may add to the scores of single items (the session memory): what it adds follows from float32 scores, and is the
same for s and s', so ε holds for the sums as well.

Shapes: B sessions, I items, H units, R recent items, K = k, S items of the shortlist, F sessions without proof. The
catalogue is looked at in J blocks of C items, block j holding the items j, j + J, j + 2 J ...: the best S items lie in
the S blocks whose maxima are highest, and a maximum over blocks that lie side by side is taken by whole vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

LEAST_ITEMS: Final = 20_000
"""Below, the float32 product is as fast; `make bench BENCH=rank`."""
_BLOCK: Final = 16
_SHORTLIST: Final = ((100_000, 80), (10**9, 112))
"""Catalogues up to a size, and the shortlist with which nearly all of their sessions find proof: the larger, the more
items lie close to the k-th."""
_BEST: Final = 16
_STEPS: Final = 63
_STATE_STEPS: Final = 127
_NEVER: Final = -3e38
_ROUNDING: Final = 1e-5

Floats = npt.NDArray[np.float32]

Head = Callable[[str, int, str, str], tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]]
"""From the names of scores f32[B, C J], their width C J, the recent items' own scores f32[B, R], padding as any item's,
and the best score of all f32[B, 1]: operators, constants, and the name of the sums f32[B, C J]."""


@dataclass
class _Graph:
    """Nodes and constants as they come together, under names that begin with `prefix`."""

    prefix: str = "shortlist."
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def part(self, name: str) -> "_Graph":
        """The same graph with longer names."""
        return _Graph(f"{self.prefix}{name}.", self.nodes, self.initializers)

    def constant(self, name: str, values: npt.ArrayLike, dtype: type[np.generic]) -> str:
        array = np.ascontiguousarray(np.asarray(values, dtype=dtype)).reshape(np.shape(values))
        self.initializers.append(numpy_helper.from_array(array, self.prefix + name))
        return self.prefix + name

    def integers(self, name: str, values: npt.ArrayLike) -> str:
        return self.constant(name, values, np.int64)

    def floats(self, name: str, values: npt.ArrayLike) -> str:
        return self.constant(name, values, np.float32)

    def apply(self, operator: str, inputs: list[str], output: str, *, domain: str = "", **attributes: object) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [self.prefix + output], domain=domain, **attributes))
        return self.prefix + output

    def top(self, values: str, k: str, output: str, *, in_order: bool) -> tuple[str, str]:
        """The k highest values of each row and their places."""
        names = [f"{self.prefix}{output}", f"{self.prefix}{output}_place"]
        self.nodes.append(helper.make_node("TopK", [values, k], names, axis=1, sorted=int(in_order)))
        return names[0], names[1]


@dataclass(frozen=True)
class _Catalogue:
    """The rank graph's initializers `output` f32[I, H] and `output_bias` f32[I]."""

    output: Floats
    bias: Floats

    @property
    def items(self) -> int:
        return len(self.output)

    @property
    def blocks(self) -> int:
        return -(-self.items // _BLOCK)

    def rounded(self) -> tuple[Floats, npt.NDArray[np.int8]]:
        """The step α_i of each item, f32[I], and its row in steps, int8[I, H]."""
        steps = np.maximum(np.abs(self.output).max(axis=1) / _STEPS, np.finfo(np.float32).tiny).astype(np.float32)
        return steps, np.clip(np.rint(self.output / steps[:, None]), -_STEPS, _STEPS).astype(np.int8)


def shortlist_graph(
    output: Floats, bias: Floats, k: int, head: Head | None = None
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Operators from `hidden` f32[B, H] (a head: `recent` int64[B, R]) to `top_index` and `top_score`; their constants.

    They use the initializers `output`, `output_bias` and `k` int64[1] of the rank graph.
    """
    graph, catalogue = _Graph(), _Catalogue(output, bias)
    listed = max(2 * k, next(listed for size, listed in _SHORTLIST if catalogue.items <= size))
    state, scores = _integer_scores(graph, catalogue)  # f32[B, H], f32[B, C J]
    error = _error(graph, catalogue, state)  # f32[B]
    sums = scores
    if head is not None:
        recent = graph.apply("Max", ["recent", graph.integers("first_item", 0)], "recent")
        own = _exact(graph.part("own"), recent)  # f32[B, R]
        nodes, constants, sums = head(
            scores, _BLOCK * catalogue.blocks, own, _best(graph.part("best"), catalogue, scores, error)
        )
        graph.nodes += nodes
        graph.initializers += constants
    index, lowest, added = _shortlist(graph, catalogue, sums, listed, added_to=scores if head else None)
    exact = _exact(graph, index)  # f32[B, S]
    if added is not None:
        exact = graph.apply("Add", [exact, added], "exact_sum")
    best_score, place = graph.top(exact, "k", "best", in_order=True)  # [B, K]
    best_index = graph.apply("GatherElements", [index, place], "best_index", axis=1)  # [B, K]
    worst = graph.apply("Gather", [best_score, graph.integers("last", k - 1)], "worst", axis=1)  # [B]
    unproven = _unproven(graph, worst, lowest, error)  # int64[F, 1]
    again = _whole(graph, catalogue, unproven)  # f32[F, I]
    if head is not None:
        theirs = [graph.apply("GatherND", [name, unproven], f"their_{n}") for n, name in enumerate((sums, scores))]
        of_items = [graph.integers(name, [value]) for name, value in (("from", 0), ("to", catalogue.items), ("of", 1))]
        more = graph.apply("Slice", [graph.apply("Sub", theirs, "their_more_wide"), *of_items], "their_more")
        again = graph.apply("Add", [again, more], "again_sum")
    score, item = graph.top(again, "k", "again", in_order=True)
    graph.nodes += [
        helper.make_node("ScatterND", [best_index, unproven, item], ["top_index"]),
        helper.make_node("ScatterND", [best_score, unproven, score], ["top_score"]),
    ]
    return graph.nodes, graph.initializers


def _integer_scores(graph: _Graph, catalogue: _Catalogue) -> tuple[str, str]:
    """The state as the integers have it, and the scores s' of all items and of those that fill up the last blocks."""
    padded = _BLOCK * catalogue.blocks
    steps, rounded = catalogue.rounded()
    whole = np.zeros((padded, rounded.shape[1]), dtype=np.int8)
    whole[: catalogue.items] = rounded
    scales, biases = np.zeros(padded, dtype=np.float32), np.full(padded, _NEVER, dtype=np.float32)
    scales[: catalogue.items], biases[: catalogue.items] = steps, catalogue.bias
    weights = graph.constant("output", np.ascontiguousarray(whole.T), np.int8)  # [H, C J]
    largest = graph.apply("ReduceMax", [graph.apply("Abs", ["hidden"], "sizes")], "largest", keepdims=0)
    step = graph.apply("Mul", [largest, graph.floats("of_a_step", 1 / _STATE_STEPS)], "step_or_0")
    scale = graph.apply("Max", [step, graph.floats("least_step", np.finfo(np.float32).tiny)], "state_step")
    zero = graph.constant("zero", 128, np.uint8)
    integers = graph.apply("QuantizeLinear", ["hidden", scale, zero], "integers")  # u8[B, H]
    state = graph.apply("DequantizeLinear", [integers, scale, zero], "state")  # f32[B, H]
    # ONNX Runtime's own operator: the scales and the bias are applied while the sums are in the cache.
    scores = graph.apply(
        "MatMulIntegerToFloat",
        [integers, weights, scale, graph.floats("steps", scales), zero, "", graph.floats("bias", biases)],
        "scores",
        domain="com.microsoft",
    )
    return state, scores


def _error(graph: _Graph, catalogue: _Catalogue, state: str) -> str:
    """ε of each session, [B]."""
    steps, rounded = catalogue.rounded()
    weights = catalogue.output.astype(np.float64)
    lost = np.linalg.norm(weights - rounded * steps.astype(np.float64)[:, None], axis=1).max()
    longest = np.linalg.norm(weights, axis=1).max()
    length = graph.apply("ReduceL2", [state], "state_length", axes=[1], keepdims=0)  # [B]
    rest = graph.apply("Sub", ["hidden", state], "rest")
    rest_length = graph.apply("ReduceL2", [rest], "rest_length", axes=[1], keepdims=0)
    lost_and_rounding = graph.floats("lost", lost * (1 + _ROUNDING) + longest * _ROUNDING)
    of_weights = graph.apply("Mul", [length, lost_and_rounding], "of_weights")
    of_state = graph.apply("Mul", [rest_length, graph.floats("longest", longest * (1 + _ROUNDING))], "of_state")
    of_bias = graph.floats("of_bias", np.abs(catalogue.bias).max(initial=0.0) * _ROUNDING)
    return graph.apply("Sum", [of_weights, of_state, of_bias], "error")


def _shortlist(
    graph: _Graph, catalogue: _Catalogue, sums: str, listed: int, *, added_to: str | None = None
) -> tuple[str, str, str | None]:
    """The items with the highest sums, int64[B, S]; the lowest of these sums, [B]; what was added to scores, [B, S]."""
    blocks, flat = catalogue.blocks, graph.integers("flat", [0, -1])
    listed = min(listed, catalogue.items)
    shape = graph.integers("blocks", [-1, _BLOCK, blocks])
    by_block = graph.apply("Reshape", [sums, shape], "by_block")  # [B, C, J]
    highest = graph.apply("ReduceMax", [by_block], "highest", axes=[1], keepdims=0)  # [B, J]
    _, block = graph.top(highest, graph.integers("most_blocks", [min(listed, blocks)]), "block", in_order=False)
    row = graph.apply("Unsqueeze", [block, graph.integers("one", [1])], "block_row")  # int64[B, 1, S]
    rows = graph.apply("Expand", [row, graph.integers("rows", [1, _BLOCK, 1])], "block_rows")  # [B, C, S]

    def inside(values: str, name: str) -> str:
        """Of the items of these blocks: [B, C S]."""
        gathered = graph.apply("GatherElements", [values, rows], f"{name}_by_block", axis=2)
        return graph.apply("Reshape", [gathered, flat], name)

    first = graph.integers("first", (np.arange(_BLOCK) * blocks).reshape(1, _BLOCK, 1))
    item = graph.apply("Reshape", [graph.apply("Add", [rows, first], "item_by_block"), flat], "item")  # int64[B, C S]
    highest_sums, place = graph.top(inside(by_block, "inside"), graph.integers("most", [listed]), "in", in_order=False)
    index = graph.apply("GatherElements", [item, place], "index", axis=1)
    lowest = graph.apply("ReduceMin", [highest_sums], "lowest", axes=[1], keepdims=0)
    if added_to is None:
        return index, lowest, None
    scores = inside(graph.apply("Reshape", [added_to, shape], "scores_by_block"), "inside_scores")
    before = graph.apply("GatherElements", [scores, place], "before", axis=1)
    return index, lowest, graph.apply("Sub", [highest_sums, before], "added")


def _exact(graph: _Graph, index: str) -> str:
    """Scores of some items of each session in float32, [B, S]."""
    two = graph.integers("two", [2])
    rows = graph.apply("Gather", ["output", index], "output_rows")  # [B, S, H]
    column = graph.apply("Unsqueeze", ["hidden", two], "hidden_column")  # [B, H, 1]
    product = graph.apply("Squeeze", [graph.apply("MatMul", [rows, column], "product"), two], "products")
    return graph.apply("Add", [product, graph.apply("Gather", ["output_bias", index], "bias_rows")], "exact")


def _best(graph: _Graph, catalogue: _Catalogue, scores: str, error: str) -> str:
    """The highest score of all items in float32, [B, 1], proven as the best k are."""
    index, lowest, _ = _shortlist(graph, catalogue, scores, _BEST)
    best = graph.apply("ReduceMax", [_exact(graph, index)], "of_list", axes=[1], keepdims=1)
    flat = graph.apply("Squeeze", [best, graph.integers("column", [1])], "of_list_flat")  # [B]
    unproven = _unproven(graph, flat, lowest, error)
    again = graph.apply("ReduceMax", [_whole(graph, catalogue, unproven)], "again", axes=[1], keepdims=1)  # [F, 1]
    return graph.apply("ScatterND", [best, unproven, again], "score")


def _unproven(graph: _Graph, worst: str, lowest: str, error: str) -> str:
    """The sessions whose worst score on the list does not prove what is not listed beaten, int64[F, 1]."""
    bound = graph.apply("Add", [lowest, error], "bound")
    proven = graph.apply("GreaterOrEqual", [worst, bound], "proven")  # not `Less`: a NaN proves nothing
    rows = graph.apply("NonZero", [graph.apply("Not", [proven], "not_proven")], "unproven_row")  # int64[1, F]
    return graph.apply("Transpose", [rows], "unproven")


def _whole(graph: _Graph, catalogue: _Catalogue, sessions: str) -> str:
    """Scores of the whole catalogue in float32 for some sessions, int64[F, 1] -> [F, I]."""
    hidden = graph.apply("GatherND", ["hidden", sessions], "their_hidden")  # [F, H]
    # The same weights under a shape that is only known while running: ONNX Runtime packs the weights of a product that
    # it takes for constant, which would be a second copy of the catalogue, for an operator that hardly ever has a row.
    batch = graph.apply("Shape", ["hidden"], "hidden_shape", start=0, end=1)
    nothing = graph.apply("Mul", [batch, graph.integers("nothing", [0])], "nothing_more")
    height = graph.apply("Add", [nothing, graph.integers("items", [catalogue.items])], "height")
    shape = graph.apply("Concat", [height, graph.integers("units", [catalogue.output.shape[1]])], "shape", axis=0)
    weights = graph.apply("Reshape", ["output", shape], "output_again")  # [I, H]
    return graph.apply("Gemm", [hidden, weights, "output_bias"], "whole", transB=1)  # [F, I]
