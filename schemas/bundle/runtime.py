"""Model: the ONNX graphs of a bundle, ready to run. The one place where ONNX Runtime is used.

A model's encoder says how a session becomes a query: `advance` click by click through a hidden state (recurrent),
`encode` from its last clicks at once (window), or not at all (none). `rank` answers with the best next items.
The same runtime serves a model online and evaluates a candidate offline, so the gate scores what is shipped.
Notation: B sessions at once, L layers, H hidden size, D query size, T clicks, R recent items, k ranked items, N items
of the catalogue.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from schemas.bundle.adjust import ADJUST, ADJUSTS, ITEM_ROWS
from schemas.bundle.manifest import ADVANCE, ENCODE, GRAPHS, MANIFEST, POPULARITY, RANK, Encoder, Manifest
from schemas.bundle.onnx_file import float_tensor, turned_on
from schemas.bundle.vocabulary import Vocabulary
from schemas.errors import BundleError, NoAnswerError

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
Truths = NDArray[np.bool_]

_K: Final = "k"
_HIDDEN_OUT: Final = "hidden_out"
_QUERY: Final = "query"
_INT64: Final = "tensor(int64)"
_FLOAT32: Final = "tensor(float)"
_FATAL_ONLY: Final = 4  # ONNX Runtime's log severity: what fails is raised, and was printed beside a JSON log as well

# Scores are written and read again: so many rows at a time that they stay in the cache, but enough rows to read the
# weights for. 37,000 items: 32 rows a run take 0.97 of the time of 16.
_SCORES_A_RUN: Final = 600_000
_LARGE_CATALOGUE: Final = 100_000
_ROWS_A_RUN: Final = 32
_ROWS_A_RUN_OF_LARGE: Final = 64

# What lies between the layers of an encoder grows with a window's square: so many of these pairs of clicks at a time.
_PAIRS_A_RUN: Final = 2_000_000

_LENGTHS: Final = np.array([1, 2, 3, 4, *(base << n for n in range(1, 9) for base in (3, 4))])
"""The longest session of each bucket of `encode_all`: 1, 2, 3, 4, 6, 8, 12, 16, 24, ... 1024."""

Shape = tuple[int | str, ...]  # a name: any size, and for an input: it must be dynamic


class Model:
    """A verified model. Safe to call from several threads; nothing in it changes after `open_bundle`."""

    def __init__(
        self,
        manifest: Manifest,
        vocabulary: Vocabulary,
        popularity: Indices,
        graphs: Mapping[str, ort.InferenceSession],
        *,
        k: int | None = None,
        adjusts: bool = False,
        rows: Floats | None = None,
    ) -> None:
        self.manifest: Final = manifest
        self.vocabulary: Final = vocabulary
        self.popularity: Final = popularity  # int64[N], clicks in the training window
        self.k: Final = manifest.k if k is None else k  # length of the lists of `rank` and `popular`
        self.popular: Final = most_popular(popularity, self.k)
        self.rows: Final = rows  # f32[N, D], of length 1 each: where it was opened with them
        for shared in (popularity, *self.popular):
            shared.setflags(write=False)
        self._graphs = graphs
        self.own_query: Final = manifest.encoder == "recurrent" and _answers_with_query(graphs[ADVANCE])
        self._query_name = _query_name(manifest)
        # A graph that was exported before `k` became an input ranks as many as it was exported for.
        self._chosen: dict[str, NDArray[Any]] = {_K: np.array([self.k])} if _K in _optional(graphs[RANK]) else {}
        self.adjusts: Final = adjusts  # whether `rank` takes `adjust`
        self._unadjusted: Floats | None = np.zeros(len(vocabulary), dtype=np.float32) if adjusts else None

    def ranking(self, k: int) -> "Model":
        """The same model with lists of `k` items, or of as many as there are: what is ranked beyond costs time."""
        k = min(k, self.manifest.k)
        return Model(
            self.manifest, self.vocabulary, self.popularity, self._graphs, k=k, adjusts=self.adjusts, rows=self.rows
        )

    def with_rank(self, rank: ort.InferenceSession, *, k: int) -> "Model":
        """The same model with another rank graph, and lists of `k` items, which may be more than the manifest's."""
        return Model(self.manifest, self.vocabulary, self.popularity, {**self._graphs, RANK: rank}, k=k)

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def states_of(self) -> str:
        """The version whose hidden states these are: a row that names it is continued, not rebuilt."""
        return self.manifest.states_of or self.manifest.version

    @property
    def encoder(self) -> Encoder:
        return self.manifest.encoder

    @property
    def layers(self) -> int:
        return self.manifest.layers

    @property
    def hidden_size(self) -> int:
        return self.manifest.hidden_size

    @property
    def query_size(self) -> int:
        return self.manifest.query_size

    @property
    def window(self) -> int:
        return self.manifest.window

    @property
    def recent_size(self) -> int:
        return self.manifest.recent_size

    def initial_hidden(self, batch: int) -> Floats:
        """f32[L, B, H]: the hidden state before a session's first click."""
        return np.zeros((self.layers, batch, self.hidden_size), dtype=np.float32)

    def step(self, item_index: Indices, hidden: Floats) -> tuple[Floats, Floats, Truths]:
        """One click of each of B sessions, as it counts: (int64[B], f32[L, B, H]) -> f32[L, B, H], f32[B, D], bool[B].

        The state is rounded to half precision, which is what a session's row keeps: so a session's rankings are the
        same in the evaluation and in a worker, whatever shared a batch or was read back in between. So is the query
        where it is the state's last layer; one of the graph's own is not. A session whose state would not be finite (or
        is beyond half precision) keeps the one that it had; false says so, and its query is none.

        Unknown items have no step: raises ValueError for an index outside the catalogue; and NoAnswerError.
        """
        out, query = self.advance(item_index, hidden)
        with np.errstate(over="ignore"):  # to an infinity, which is looked for
            after = out.astype(np.float16).astype(np.float32)
        finite: Truths = np.ones(len(item_index), dtype=np.bool_)
        if not np.isfinite(after).all():
            finite = np.asarray(np.isfinite(after).all(axis=(0, 2)))
            after = np.where(finite[:, None], after, hidden)
        return after, query if self.own_query else after[-1], finite

    def advance(self, item_index: Indices, hidden: Floats) -> tuple[Floats, Floats]:
        """What the graph alone answers to one click: (int64[B], f32[L, B, H]) -> f32[L, B, H], f32[B, D].

        The second is the query, the last layer unless the graph has one of its own. Neither rounded nor checked: `step`
        is for sessions that go on. Unknown items have no step: raises ValueError for an index outside the catalogue,
        and NoAnswerError.
        """
        if item_index.size and not 0 <= item_index.min() <= item_index.max() < len(self.vocabulary):
            raise ValueError(f"item indices outside 0..{len(self.vocabulary) - 1}; unknown items have no step")
        shapes: dict[str, Shape] = {_HIDDEN_OUT: hidden.shape}
        if self.own_query:
            shapes[_QUERY] = len(item_index), self.query_size
        found = self._ask(ADVANCE, {"item_index": item_index, "hidden": hidden}, shapes)
        return found[0], found[1] if self.own_query else found[0][-1]

    def encode(self, items: Indices, length: Indices) -> Floats:
        """The queries of B sessions from their last clicks: (int64[B, T], int64[B]) -> f32[B, D].

        `items` are oldest first, left-aligned and padded with -1, of which a session has `length`, 1 or more; T is at
        most the model's window. Unknown items are no clicks: raises ValueError for what is not so, and NoAnswerError.
        """
        clicks = items.shape[1]
        if clicks > self.window or ((items >= 0) != (np.arange(clicks) < length[:, None])).any():
            raise ValueError(f"sessions must be left-aligned, padded with -1, and of at most {self.window} clicks")
        some = len(items) > 0
        if some and not (0 < length.min() <= length.max() <= clicks and items.max() < len(self.vocabulary)):
            raise ValueError(f"a session of no clicks, or item indices above {len(self.vocabulary) - 1}")
        rows = max(_PAIRS_A_RUN // max(clicks, 1) ** 2, 1)
        queries = []
        for at in range(0, max(len(items), 1), rows):
            some_items, some_lengths = items[at : at + rows], length[at : at + rows]
            shapes: dict[str, Shape] = {_QUERY: (len(some_lengths), self.query_size)}
            queries += self._ask(ENCODE, {"items": some_items, "length": some_lengths}, shapes)
        return queries[0] if len(queries) == 1 else np.concatenate(queries)

    def encode_all(self, items: Indices, length: Indices) -> Floats:
        """As `encode`, of sessions of any lengths at once, by as many calls as there are kinds of length; 0 for none.

        (int64[N, T], int64[N]) -> f32[N, D]: zeros where a session has no click.
        """
        query = np.zeros((len(length), self.query_size), dtype=np.float32)
        buckets = np.where(length > 0, np.searchsorted(_LENGTHS, length), -1)
        for bucket in np.unique(buckets[buckets >= 0]).tolist():
            some = np.flatnonzero(buckets == bucket)
            query[some] = self.encode(np.ascontiguousarray(items[some, : length[some].max()]), length[some])
        return query

    def rank(
        self,
        query: Floats | None,
        recent: Indices,
        counts: Floats,
        clicks: Floats,
        *,
        adjust: Floats | None = None,
        k: int | None = None,
    ) -> tuple[Indices, Floats]:
        """The k best next items of B sessions, best first: int64[B, k] indices and f32[B, k] scores.

        query f32[B, D], None without an encoder; recent int64[B, R] the sessions' distinct items, most recent first,
        padded with -1; counts f32[B, R] how often each was clicked; clicks f32[B] the sessions' lengths.

        A model that `adjusts` adds `adjust` f32[N] to all scores: where it is EXCLUDED, an item can only fill a list
        that would be too short, with a score of EXCLUDED / 2 or less. It ranks any number `k` of items there are.

        Raises NoAnswerError where the graph fails, or names an item outside the catalogue. Scores may not be finite.
        """
        chosen, k = self._chosen, self.k if k is None else min(k, len(self.vocabulary))
        if self._unadjusted is not None:
            chosen = {_K: np.array([k]), ADJUST: self._unadjusted if adjust is None else adjust}
        elif adjust is not None or k != self.k:
            raise ValueError(f"{self.version} was not opened to adjust scores: it ranks its {self.k} best items")
        least = _ROWS_A_RUN if len(self.vocabulary) < _LARGE_CATALOGUE else _ROWS_A_RUN_OF_LARGE
        rows = max(_SCORES_A_RUN // len(self.vocabulary), least)
        # Runs of the same size: one of a single row takes nearly as long as one of sixteen.
        runs = max(-(-len(clicks) // rows), 1)
        rows = max(-(-len(clicks) // runs), 1)
        inputs: dict[str, NDArray[Any]] = {"recent": recent, "counts": counts, "clicks": clicks}
        if query is not None:
            inputs[self._query_name] = query
        listed = int(chosen[_K][0]) if _K in chosen else self.manifest.k
        parts = []
        for at in range(0, max(len(clicks), 1), rows):
            shape = len(clicks[at : at + rows]), listed
            asked = {name: rows_of[at : at + rows] for name, rows_of in inputs.items()} | chosen
            parts.append(self._ask(RANK, asked, {"top_index": shape, "top_score": shape}))
        index, score = (column[0] if runs == 1 else np.concatenate(column) for column in zip(*parts, strict=True))
        # Without its sign an index below 0 is above all others. Of one list it takes 2 µs, by `max` 4.
        if index.size and np.maximum.reduce(index.view(np.uint64), axis=None) >= len(self.vocabulary):
            raise NoAnswerError(f"{RANK}: returns items outside the catalogue of {len(self.vocabulary)}")
        return index[:, :k], score[:, :k]

    def _ask(self, graph: str, inputs: Mapping[str, NDArray[Any]], shapes: Mapping[str, Shape]) -> list[NDArray[Any]]:
        """What a graph returns, in the order of `shapes`. Raises NoAnswerError where it has not these."""
        try:
            found: list[NDArray[Any]] = self._graphs[graph].run(list(shapes), inputs)
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            raise NoAnswerError(f"{graph}: ONNX Runtime cannot run it: {error}") from error
        for (name, expected), returned in zip(shapes.items(), found, strict=True):
            if returned.shape != expected:
                raise NoAnswerError(f"{graph}: returns {name} of the shape {returned.shape}, expected {expected}")
        return found

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Run the graphs once at each batch size, so that no click pays for the first allocation."""
        for batch in batch_sizes:
            query = None
            if self.encoder == "recurrent":
                _, query = self.advance(np.zeros(batch, dtype=np.int64), self.initial_hidden(batch))
            elif self.encoder == "window":
                for clicks in {1, self.window}:
                    query = self.encode(np.zeros((batch, clicks), dtype=np.int64), np.full(batch, clicks))
            padding = (batch, self.recent_size)
            self.rank(
                query,
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
    manifest: Manifest, data: Mapping[str, bytes], *, threads: int, adjusts: bool = False
) -> dict[str, ort.InferenceSession]:
    """The graphs of a bundle as ONNX Runtime sessions by file name, inputs and outputs checked. Raises BundleError.

    advance: `item_index` int64[B], `hidden` f32[L, B, H] -> `hidden_out` f32[L, B, H], perhaps `query` f32[B, D].
    encode: `items` int64[B, T], `length` int64[B] -> `query` f32[B, D]. rank: `query` f32[B, D] if there is an encoder
    (`hidden` in format 1), `recent` int64[B, R], `counts` f32[B, R], `clicks` f32[B] -> `top_index` int64[B, k],
    `top_score` f32[B, k]. It may have an input `k` int64[1] with the manifest's as its default, for shorter lists, and
    an input `adjust` f32[N], which it looks at if its constant `adjusts` is true: as `adjusts` tells.
    """
    if adjusts:
        data = {**data, RANK: _adjusting(data[RANK])}
    graphs = {name: open_graph(name, data[name], threads=threads) for name in GRAPHS[manifest.encoder]}
    if adjusts and not {_K, ADJUST} <= _optional(graphs[RANK]):
        raise BundleError(f"{RANK}: has the constant {ADJUSTS}, but not both of the inputs {_K} and {ADJUST}")
    state = (_FLOAT32, (manifest.layers, "batch", manifest.hidden_size))
    query = (_FLOAT32, ("batch", manifest.query_size))
    recent, k = manifest.recent_size, manifest.k
    if manifest.encoder == "recurrent":
        own_query = manifest.format_version > 1 and _answers_with_query(graphs[ADVANCE])
        if not own_query and manifest.query_size != manifest.hidden_size:
            raise BundleError(
                f"{ADVANCE}: has no output {_QUERY}, so a query is its last layer of {manifest.hidden_size}; "
                f"{MANIFEST} says that query_size is {manifest.query_size}"
            )
        _check_io(
            ADVANCE,
            graphs[ADVANCE],
            inputs={"item_index": (_INT64, ("batch",)), "hidden": state},
            outputs={_HIDDEN_OUT: state} | ({_QUERY: query} if own_query else {}),
        )
    elif manifest.encoder == "window":
        _check_io(
            ENCODE,
            graphs[ENCODE],
            inputs={"items": (_INT64, ("batch", "clicks")), "length": (_INT64, ("batch",))},
            outputs={_QUERY: query},
        )
    of_session = {
        "recent": (_INT64, ("batch", recent)),
        "counts": (_FLOAT32, ("batch", recent)),
        "clicks": (_FLOAT32, ("batch",)),
    }
    _check_io(
        RANK,
        graphs[RANK],
        inputs=of_session if manifest.encoder == "none" else {_query_name(manifest): query} | of_session,
        outputs={"top_index": (_INT64, ("batch", k)), "top_score": (_FLOAT32, ("batch", k))},
    )
    return graphs


def _query_name(manifest: Manifest) -> str:
    """What the rank graph calls its query."""
    return "hidden" if manifest.format_version == 1 else _QUERY


def _answers_with_query(advance: ort.InferenceSession) -> bool:
    return _QUERY in (output.name for output in advance.get_outputs())


def check_popularity(popularity: Any, catalogue_size: int) -> Indices:
    """The popularity counts, int64[N], or BundleError."""
    if not isinstance(popularity, np.ndarray) or popularity.dtype != np.int64 or popularity.shape != (catalogue_size,):
        found = f"{getattr(popularity, 'dtype', type(popularity).__name__)}{list(getattr(popularity, 'shape', ()))}"
        raise BundleError(f"{POPULARITY}: holds {found}, expected int64[{catalogue_size}]")
    if popularity.min() < 0:
        raise BundleError(f"{POPULARITY}: holds a negative count")
    return popularity


def _optional(graph: ort.InferenceSession) -> set[str]:
    """The names of the inputs that have a default."""
    return {given.name for given in graph.get_overridable_initializers()}


def _adjusting(rank: bytes) -> bytes:
    """The graph that looks at its input `adjust`."""
    turned = turned_on(RANK, rank, ADJUSTS)
    if turned is None:
        raise BundleError(
            f"{RANK}: cannot leave items out, boost them or rank more than it lists, as worker.items, worker.rules, "
            "worker.hide, worker.max_per_category and worker.mmr_lambda ask for: it was exported by an older release. "
            "Train the model again, or turn these settings off"
        )
    return turned


def item_rows(manifest: Manifest, rank: bytes) -> Floats:
    """f32[N, D] of a rank graph: each item's row made as long as 1, so that a product of two is their cosine.

    A row of zeros stays one. Raises BundleError.
    """
    rows = float_tensor(RANK, rank, ITEM_ROWS)
    if rows is None or rows.ndim != 2 or len(rows) != manifest.catalogue_size:
        raise BundleError(
            f"{RANK}: has no rows of items (a float32 tensor {ITEM_ROWS!r} with a row for each), by which "
            f"worker.mmr_lambda compares them: models that count have none, and this one is of the family "
            f"{manifest.family}. Set worker.mmr_lambda to 1, or train a family that learns"
        )
    # In float64: the squares of a row that training made small, or large, are 0 or infinite in float32.
    length = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return np.asarray(rows / np.maximum(length, np.finfo(np.float32).tiny).astype(np.float32)[:, None])


def zeros(shape: tuple[int, ...]) -> ort.OrtValue:
    """float32 zeros for `open_graph`."""
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))


def open_graph(
    name: str, graph: bytes, *, threads: int = 1, weights: Mapping[str, ort.OrtValue] | None = None
) -> ort.InferenceSession:
    """A graph as ONNX Runtime's session, with the options that all of them have. Raises BundleError.

    `weights` take the place of the graph's own of these names, and have to live as long as the session.
    """
    options = ort.SessionOptions()
    for weight, value in (weights or {}).items():
        options.add_initializer(weight, value)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL_ONLY
    # Chunks come in every size; memory patterns are planned and kept for each new one.
    options.enable_mem_pattern = False
    if threads == 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(graph, sess_options=options, providers=["CPUExecutionProvider"])
        for end in (*session.get_inputs(), *session.get_outputs(), *session.get_overridable_initializers()):
            _ = end.name, end.type, end.shape  # bytes that are no text show only now
        return session
    except Exception as error:  # ONNX Runtime's errors share no base class of their own
        raise BundleError(f"{name}: ONNX Runtime cannot load it: {error}") from error


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
                raise BundleError(f"{name}: {kind} {io_name} has the shape {node.shape}, expected {list(shape)}")


def _fits(kind: str, size: int | str | None, wanted: int | str) -> bool:
    if isinstance(wanted, str):
        return not isinstance(size, int)  # a fixed batch would serve one chunk size only
    # Shape inference may not know the size of an output; the golden pair checks it.
    return size == wanted or (kind == "output" and not isinstance(size, int))
