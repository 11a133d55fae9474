"""What a model must answer before it may serve: its golden pair, alone and in a batch, and items of every index."""

from typing import Any, Final

import numpy as np

from schemas.bundle.adjust import ADJUST, EXCLUDED
from schemas.bundle.golden import ABSOLUTE, RELATIVE, Golden, close, same_ranking
from schemas.bundle.manifest import ADVANCE, ENCODE, GOLDEN, RANK
from schemas.bundle.runtime import Floats, Indices, Model, Truths, finite_rows
from schemas.errors import BundleError

# Looked at all over the catalogue: a few milliseconds at 37,000 items.
_ITEMS_TRIED: Final = 4096
_TRIED_TIMES_WEIGHTS: Final = 400_000_000  # half a second for the largest states
_ITEMS_RANKED: Final = 64
_LARGEST_STATE: Final = float(np.finfo(np.float16).max)


def check_answers(model: Model, golden: Golden) -> None:
    """Run the golden pair click by click, all its sessions at once and the first alone, and items of all the catalogue.

    Raises BundleError when the answers are not finite, not those of the golden pair, or change with the batch or with
    the padding.
    """
    for sessions in (slice(None), slice(0, 1)):
        if model.encoder == "recurrent":
            _check_advance(model, golden, sessions)
        elif model.encoder == "window":
            _check_encode(model, golden, sessions)
        _check_rank(model, golden, sessions)
    # The golden pair knows a few dozen items; weights too large for float32's sums may belong to any.
    of_a_step = max(model.layers, 1) * max(model.hidden_size, model.query_size, 1) ** 2
    n_tried = max(min(_ITEMS_TRIED, _TRIED_TIMES_WEIGHTS // of_a_step), _ITEMS_RANKED)
    tried = np.unique(np.linspace(0, len(model.vocabulary) - 1, n_tried).astype(np.int64))
    query = None
    if model.encoder == "recurrent":
        query = _first_steps(model, tried)
    elif model.encoder == "window":
        query = _first_windows(model, tried)
    place = np.linspace(0, len(tried) - 1, min(len(tried), _ITEMS_RANKED)).astype(np.int64)
    place = np.append(place, [0, len(tried) - 1])  # two sessions more: as long as the graph sees, from both ends
    recent = np.full((len(place), model.recent_size), -1, dtype=np.int64)
    recent[:, 0] = tried[place]
    longest = tried[: model.recent_size], tried[::-1][: model.recent_size]
    recent[-2:, : len(longest[0])] = np.stack(longest)
    counts = (recent >= 0).astype(np.float32)
    asked = None if query is None else np.ascontiguousarray(query[place])
    inputs = (asked, recent, counts, counts.sum(axis=1))
    found = model.rank(*inputs)
    _check_ranking(found)
    if model.adjusts:
        _check_adjust(model, inputs, found)


def _check_advance(model: Model, golden: Golden, sessions: slice) -> None:
    steps = golden.item_index[:, sessions]  # [T, B]
    hidden = model.initial_hidden(steps.shape[1])
    for click, item_index in enumerate(steps):
        hidden, query = model.advance(np.ascontiguousarray(item_index), hidden)
        if golden.query is not None:
            _check_close(ADVANCE, golden.query[click, sessions], query)
    assert golden.hidden is not None
    _check_close(ADVANCE, golden.hidden[:, sessions], hidden)


def _check_encode(model: Model, golden: Golden, sessions: slice) -> None:
    """Every prefix of every session: padded to the longest, to the window, and not at all."""
    assert golden.query is not None
    items, length = _prefixes(golden.item_index[:, sessions], model.window)
    expected = golden.query[:, sessions].reshape(len(items), -1)  # [T B, D]
    for clicks in (int(length.max()), model.window):
        query = model.encode(np.ascontiguousarray(items[:, :clicks]), length)
        _check_close(ENCODE, expected, query, f" with its {clicks} places")
    if len(items) == len(golden.item_index):  # one session
        for one, clicks in enumerate(length.tolist()):
            query = model.encode(np.ascontiguousarray(items[one : one + 1, :clicks]), length[one : one + 1])
            _check_close(ENCODE, expected[one : one + 1], query, f" with its {clicks} places, alone")


def _prefixes(item_index: Indices, window: int) -> tuple[Indices, Indices]:
    """int64[T B, window], int64[T B]: the last clicks at each click of sessions int64[T, B]."""
    clicks, lanes = item_index.shape
    items = np.full((clicks, lanes, window), -1, dtype=np.int64)
    length = np.minimum(np.arange(1, clicks + 1), window)
    for click, kept in enumerate(length.tolist()):
        items[click, :, :kept] = item_index[click + 1 - kept : click + 1].T
    return items.reshape(clicks * lanes, window), np.repeat(length, lanes)


def _check_rank(model: Model, golden: Golden, sessions: slice) -> None:
    # From the expected query, so that each graph answers for itself.
    expected = golden.last_query
    found = model.rank(
        None if expected is None else np.ascontiguousarray(expected[sessions]),
        golden.recent[sessions],
        golden.counts[sessions],
        golden.clicks[sessions],
    )
    _check_ranking(found)
    if not same_ranking((golden.top_index[sessions], golden.top_score[sessions]), found):
        raise BundleError(
            f"{RANK}: its answer to {GOLDEN} differs, scores by "
            f"{_largest_difference(golden.top_score[sessions], found[1])}; the graph is damaged, or this machine "
            "computes it otherwise: export it again"
        )


def _check_adjust(model: Model, inputs: tuple[Any, ...], found: tuple[Indices, Floats]) -> None:
    """What is left out must not come, and what is boosted must come with its boost."""
    first, last = (int(found[0][0, place]) for place in (0, -1))
    adjust = np.zeros(len(model.vocabulary), dtype=np.float32)
    adjust[last], adjust[first] = 1.0, EXCLUDED  # of a list of one, left out
    index, score = model.rank(*inputs, adjust=adjust)
    boosted = score[0, index[0] == last]
    right = np.allclose(boosted, found[1][0, -1] + 1.0, rtol=RELATIVE, atol=ABSOLUTE) and len(boosted) == 1
    if ((index == first) & (score > EXCLUDED / 2)).any() or not (first == last or right):
        raise BundleError(
            f"{RANK}: does not leave out or boost the items that its input {ADJUST} says: export it again"
        )


def _first_steps(model: Model, tried: Indices) -> Floats:
    """The queries after one click on each of these items."""
    hidden, query = model.advance(tried, model.initial_hidden(len(tried)))
    bad: Truths = ~(np.abs(hidden) <= _LARGEST_STATE).all(axis=(0, 2)) | ~finite_rows(query)
    if bad.any():
        raise BundleError(
            f"{ADVANCE}: a click on {model.vocabulary.item(int(tried[bad][0]))!r} leads to a state that is not finite, "
            "or too large for the half precision that rows keep: train the model again"
        )
    return query


def _first_windows(model: Model, tried: Indices) -> Floats:
    """The queries of sessions with one click on each of these items; longer ones of them are looked at too."""
    query = model.encode(tried[:, None], np.ones(len(tried), dtype=np.int64))
    bad = ~finite_rows(query)
    if bad.any():
        raise BundleError(
            f"{ENCODE}: a click on {model.vocabulary.item(int(tried[bad][0]))!r} leads to a query that is not finite: "
            "train the model again"
        )
    full = np.stack([np.resize(tried, model.window), np.resize(tried[::-1], model.window)])  # from both ends
    if not finite_rows(model.encode(full, np.full(2, model.window))).all():
        raise BundleError(f"{ENCODE}: a session of {model.window} clicks leads to a query that is not finite")
    return query


def _check_ranking(found: tuple[Indices, Floats]) -> None:
    _, score = found
    if not finite_rows(score).all():
        raise BundleError(f"{RANK}: returns scores that are not finite")
    if (np.diff(score, axis=1) > 0).any():
        raise BundleError(f"{RANK}: does not return the best item first")


def _check_close(name: str, expected: Floats, found: Floats, where: str = "") -> None:
    if not close(expected, found):
        raise BundleError(
            f"{name}: its answer to {GOLDEN}{where} is off by {_largest_difference(expected, found)}; "
            "the graph is damaged, or this machine computes it otherwise: export it again"
        )


def _largest_difference(expected: Floats, found: Floats) -> str:
    if expected.shape != found.shape:
        return f"its shape ({found.shape}, expected {expected.shape})"
    return f"{float(np.max(np.abs(expected - found))):.3g}"
