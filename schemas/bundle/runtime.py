"""Model: the two ONNX graphs of a bundle, ready to run. The one place where ONNX Runtime is used.

The same runtime serves a model online and evaluates a candidate offline, so the gate scores what is shipped.
Notation: B sessions at once, L layers, H hidden size, R recent items, k ranked items, N items of the catalogue.
"""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from schemas.bundle.golden import Golden, close, same_ranking
from schemas.bundle.manifest import ADVANCE, GOLDEN, POPULARITY, RANK, Manifest
from schemas.bundle.vocabulary import Vocabulary
from schemas.errors import BundleError

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
Truths = NDArray[np.bool_]

_K: Final = "k"
_INT64: Final = "tensor(int64)"
_FLOAT32: Final = "tensor(float)"
_ERRORS_ONLY: Final = 3  # ONNX Runtime's log severity

# Scores are written and read again: so many rows at a time that they stay in the cache, but enough rows to read the
# weights for. 37,000 items: 32 rows a run take 0.97 of the time of 16.
_SCORES_A_RUN: Final = 600_000
_LARGE_CATALOGUE: Final = 100_000
_ROWS_A_RUN: Final = 32
_ROWS_A_RUN_OF_LARGE: Final = 64

# Looked at when a bundle is opened, all over the catalogue: a few milliseconds at 37,000 items.
_ITEMS_TRIED: Final = 4096
_TRIED_TIMES_WEIGHTS: Final = 400_000_000  # half a second for the largest states
_ITEMS_RANKED: Final = 64
_LARGEST_STATE: Final = float(np.finfo(np.float16).max)

Shape = tuple[int | None, ...]  # None: any size, and for an input: it must be dynamic


class Model:
    """A verified model. Safe to call from several threads; nothing in it changes after `open_bundle`."""

    def __init__(
        self,
        manifest: Manifest,
        vocabulary: Vocabulary,
        popularity: Indices,
        advance: ort.InferenceSession,
        rank: ort.InferenceSession,
        *,
        k: int | None = None,
    ) -> None:
        self.manifest: Final = manifest
        self.vocabulary: Final = vocabulary
        self.popularity: Final = popularity  # int64[N], clicks in the training window
        self.k: Final = manifest.k if k is None else k  # length of the lists of `rank` and `popular`
        self.popular: Final = most_popular(popularity, self.k)
        for shared in (popularity, *self.popular):
            shared.setflags(write=False)
        self._advance = advance
        self._rank = rank
        # A graph that was exported before `k` became an input ranks as many as it was exported for.
        chooses_k = _K in (given.name for given in rank.get_overridable_initializers())
        self._chosen: dict[str, Indices] = {_K: np.array([self.k])} if chooses_k else {}

    def ranking(self, k: int) -> "Model":
        """The same model with lists of `k` items, or of as many as there are: what is ranked beyond costs time."""
        return Model(
            self.manifest, self.vocabulary, self.popularity, self._advance, self._rank, k=min(k, self.manifest.k)
        )

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def layers(self) -> int:
        return self.manifest.layers

    @property
    def hidden_size(self) -> int:
        return self.manifest.hidden_size

    @property
    def recent_size(self) -> int:
        return self.manifest.recent_size

    def initial_hidden(self, batch: int) -> Floats:
        """f32[L, B, H]: the hidden state before a session's first click."""
        return np.zeros((self.layers, batch, self.hidden_size), dtype=np.float32)

    def step(self, item_index: Indices, hidden: Floats) -> tuple[Floats, Truths]:
        """One click of each of B sessions, as it counts: (int64[B], f32[L, B, H]) -> f32[L, B, H], bool[B].

        The state is rounded to half precision, which is what a session's row keeps: so a session's rankings are the
        same in the evaluation and in a worker, whatever shared a batch or was read back in between. A session whose
        state would not be finite (or is beyond half precision) keeps the one that it had; false says so.

        Unknown items have no step: raises ValueError for an index outside the catalogue.
        """
        with np.errstate(over="ignore"):  # to an infinity, which is looked for
            after = self.advance(item_index, hidden).astype(np.float16).astype(np.float32)
        if np.isfinite(after).all():
            return after, np.ones(len(item_index), dtype=np.bool_)
        finite: Truths = np.asarray(np.isfinite(after).all(axis=(0, 2)))
        return np.where(finite[:, None], after, hidden), finite

    def advance(self, item_index: Indices, hidden: Floats) -> Floats:
        """What the graph alone answers to one click of each of B sessions: (int64[B], f32[L, B, H]) -> f32[L, B, H].

        Neither rounded nor checked: `step` is for sessions that go on. Unknown items have no step: raises ValueError
        for an index outside the catalogue.
        """
        if item_index.size and not 0 <= item_index.min() <= item_index.max() < len(self.vocabulary):
            raise ValueError(f"item indices outside 0..{len(self.vocabulary) - 1}; unknown items have no step")
        (hidden_out,) = self._advance.run(["hidden_out"], {"item_index": item_index, "hidden": hidden})
        return hidden_out  # type: ignore[no-any-return]

    def rank(self, hidden: Floats, recent: Indices, counts: Floats, clicks: Floats) -> tuple[Indices, Floats]:
        """The k best next items of B sessions, best first: int64[B, k] indices and f32[B, k] scores.

        hidden f32[B, H] of the last layer; recent int64[B, R] the sessions' distinct items, most recent first, padded
        with -1; counts f32[B, R] how often each was clicked; clicks f32[B] the sessions' lengths.
        """
        least = _ROWS_A_RUN if len(self.vocabulary) < _LARGE_CATALOGUE else _ROWS_A_RUN_OF_LARGE
        rows = max(_SCORES_A_RUN // len(self.vocabulary), least)
        # Runs of the same size: one of a single row takes nearly as long as one of sixteen.
        runs = max(-(-len(hidden) // rows), 1)
        rows = max(-(-len(hidden) // runs), 1)
        inputs: dict[str, NDArray[Any]] = {"hidden": hidden, "recent": recent, "counts": counts, "clicks": clicks}
        parts = [
            self._rank.run(
                ["top_index", "top_score"],
                {name: rows_of[at : at + rows] for name, rows_of in inputs.items()} | self._chosen,
            )
            for at in range(0, max(len(hidden), 1), rows)
        ]
        index, score = (column[0] if runs == 1 else np.concatenate(column) for column in zip(*parts, strict=True))
        return index[:, : self.k], score[:, : self.k]

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Run both graphs once at each batch size, so that no click pays for the first allocation."""
        for batch in batch_sizes:
            hidden = self.advance(np.zeros(batch, dtype=np.int64), self.initial_hidden(batch))
            padding = (batch, self.recent_size)
            self.rank(
                hidden[-1],
                np.full(padding, -1, dtype=np.int64),
                np.zeros(padding, dtype=np.float32),
                np.ones(batch, dtype=np.float32),
            )


def finite_rows(score: Floats) -> Truths:
    """bool[B]: which lists of f32[B, k] scores are finite. The others are no ranking; `popular` takes their place."""
    return np.asarray(np.isfinite(score).all(axis=1))


def most_popular(popularity: Indices, k: int) -> tuple[Indices, Floats]:
    """The k most clicked items of int64[N] counts: int64[k] indices, ties by index, and f32[k] shares of all clicks."""
    index = np.argsort(-popularity, kind="stable")[:k]
    total = max(int(popularity.sum()), 1)
    return index.astype(np.int64), (popularity[index] / total).astype(np.float32)


def open_graphs(
    manifest: Manifest, advance: bytes, rank: bytes, *, threads: int
) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    """Both graphs of a bundle as ONNX Runtime sessions, their inputs and outputs checked. Raises BundleError.

    advance: `item_index` int64[B], `hidden` f32[L, B, H] -> `hidden_out` f32[L, B, H]. rank: `hidden` f32[B, H],
    `recent` int64[B, R], `counts` f32[B, R], `clicks` f32[B] -> `top_index` int64[B, k], `top_score` f32[B, k]. It may
    have an input `k` int64[1] with the manifest's as its default, for shorter lists.
    """
    layers, hidden_size, recent, k = manifest.layers, manifest.hidden_size, manifest.recent_size, manifest.k
    advance_session = _session(ADVANCE, advance, threads)
    _check_io(
        ADVANCE,
        advance_session,
        inputs={"item_index": (_INT64, (None,)), "hidden": (_FLOAT32, (layers, None, hidden_size))},
        outputs={"hidden_out": (_FLOAT32, (layers, None, hidden_size))},
    )
    rank_session = _session(RANK, rank, threads)
    _check_io(
        RANK,
        rank_session,
        inputs={
            "hidden": (_FLOAT32, (None, hidden_size)),
            "recent": (_INT64, (None, recent)),
            "counts": (_FLOAT32, (None, recent)),
            "clicks": (_FLOAT32, (None,)),
        },
        outputs={"top_index": (_INT64, (None, k)), "top_score": (_FLOAT32, (None, k))},
    )
    return advance_session, rank_session


def check_answers(model: Model, golden: Golden) -> None:
    """Run the golden pair, all its sessions at once and the first alone, and a click on items all over the catalogue.

    Raises BundleError when the answers are not finite, not those of the golden pair, or change with the batch.
    """
    for sessions in (slice(None), slice(0, 1)):
        steps = golden.item_index[:, sessions]  # [T, B]
        hidden = model.initial_hidden(steps.shape[1])
        for item_index in steps:
            hidden = _run(ADVANCE, model.advance, np.ascontiguousarray(item_index), hidden)
        expected = golden.hidden[:, sessions]
        if not close(expected, hidden):
            raise BundleError(
                f"{ADVANCE}: its answer to {GOLDEN} is off by {_largest_difference(expected, hidden)}; "
                "the graph is damaged, or this machine computes it otherwise: export it again"
            )
        # From the expected hidden state, so that each graph answers for itself.
        found = _run(
            RANK,
            model.rank,
            np.ascontiguousarray(expected[-1]),
            golden.recent[sessions],
            golden.counts[sessions],
            golden.clicks[sessions],
        )
        _check_ranking(model, found)
        if not same_ranking((golden.top_index[sessions], golden.top_score[sessions]), found):
            raise BundleError(
                f"{RANK}: its answer to {GOLDEN} differs, scores by "
                f"{_largest_difference(golden.top_score[sessions], found[1])}; the graph is damaged, or this machine "
                "computes it otherwise: export it again"
            )
    # The golden pair knows a few dozen items; weights too large for float32's sums may belong to any.
    of_a_step = model.layers * model.hidden_size**2
    n_tried = max(min(_ITEMS_TRIED, _TRIED_TIMES_WEIGHTS // of_a_step), _ITEMS_RANKED)
    tried = np.unique(np.linspace(0, len(model.vocabulary) - 1, n_tried).astype(np.int64))
    hidden = _run(ADVANCE, model.advance, tried, model.initial_hidden(len(tried)))
    if hidden.shape != (model.layers, len(tried), model.hidden_size):
        raise BundleError(f"{ADVANCE}: returns hidden states of the shape {hidden.shape}")
    bad = ~(np.abs(hidden) <= _LARGEST_STATE).all(axis=(0, 2))
    if bad.any():
        raise BundleError(
            f"{ADVANCE}: a click on {model.vocabulary.item(int(tried[bad][0]))!r} leads to a state that is not finite, "
            "or too large for the half precision that rows keep: train the model again"
        )
    ranked = tried[np.linspace(0, len(tried) - 1, min(len(tried), _ITEMS_RANKED)).astype(np.int64)]
    recent = np.full((len(ranked), model.recent_size), -1, dtype=np.int64)
    recent[:, 0] = ranked
    counts = (recent >= 0).astype(np.float32)
    states = np.ascontiguousarray(hidden[-1, np.searchsorted(tried, ranked)])
    _check_ranking(model, _run(RANK, model.rank, states, recent, counts, np.ones(len(ranked), dtype=np.float32)))


def _check_ranking(model: Model, found: tuple[Indices, Floats]) -> None:
    index, score = found
    if index.shape[1:] != (model.k,) or score.shape != index.shape:
        raise BundleError(f"{RANK}: returns {index.shape} items and {score.shape} scores, expected lists of {model.k}")
    if not finite_rows(score).all():
        raise BundleError(f"{RANK}: returns scores that are not finite")
    if index.min() < 0 or index.max() >= len(model.vocabulary):
        raise BundleError(f"{RANK}: returns items outside the catalogue of {len(model.vocabulary)}")
    if (np.diff(score, axis=1) > 0).any():
        raise BundleError(f"{RANK}: does not return the best item first")


def check_popularity(popularity: Any, catalogue_size: int) -> Indices:
    """The popularity counts, int64[N], or BundleError."""
    if not isinstance(popularity, np.ndarray) or popularity.dtype != np.int64 or popularity.shape != (catalogue_size,):
        found = f"{getattr(popularity, 'dtype', type(popularity).__name__)}{list(getattr(popularity, 'shape', ()))}"
        raise BundleError(f"{POPULARITY}: holds {found}, expected int64[{catalogue_size}]")
    if popularity.min() < 0:
        raise BundleError(f"{POPULARITY}: holds a negative count")
    return popularity


def _session(name: str, graph: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    # Chunks come in every size; memory patterns are planned and kept for each new one.
    options.enable_mem_pattern = False
    if threads == 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(graph, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class of their own
        raise BundleError(f"{name}: ONNX Runtime cannot load it: {error}") from error


def _run(name: str, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        raise BundleError(f"{name}: ONNX Runtime cannot run it: {error}") from error


def _check_io(
    name: str,
    session: ort.InferenceSession,
    *,
    inputs: dict[str, tuple[str, Shape]],
    outputs: dict[str, tuple[str, Shape]],
) -> None:
    for kind, expected, found in (("input", inputs, session.get_inputs()), ("output", outputs, session.get_outputs())):
        by_name = {node.name: node for node in found}
        if by_name.keys() != expected.keys():
            raise BundleError(f"{name}: has the {kind}s {sorted(by_name)}, expected {sorted(expected)}")
        for io_name, (dtype, shape) in expected.items():
            node = by_name[io_name]
            if node.type != dtype:
                raise BundleError(f"{name}: {kind} {io_name} is {node.type}, expected {dtype}")
            if len(node.shape) != len(shape) or not all(
                _fits(kind, size, wanted) for size, wanted in zip(node.shape, shape, strict=True)
            ):
                wanted_shape = ["batch" if size is None else size for size in shape]
                raise BundleError(f"{name}: {kind} {io_name} has the shape {node.shape}, expected {wanted_shape}")


def _fits(kind: str, size: int | str | None, wanted: int | None) -> bool:
    if wanted is None:
        return not isinstance(size, int)  # a fixed batch would serve one chunk size only
    # Shape inference may not know the size of an output; the golden pair checks it.
    return size == wanted or (kind == "output" and not isinstance(size, int))


def _largest_difference(expected: Floats, found: Floats) -> str:
    if expected.shape != found.shape:
        return f"its shape ({found.shape}, expected {expected.shape})"
    return f"{float(np.max(np.abs(expected - found))):.3g}"
