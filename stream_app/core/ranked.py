"""The ranking that answers a click, from all items there are."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.bundle.runtime import Model, finite_rows
from schemas.messages.click import Click
from schemas.messages.ranking import Diversified, RankingReason
from stream_app.core.offer import Pin
from stream_app.core.plan import Plan
from stream_app.core.query import Queries


class RankedClick(msgspec.Struct, frozen=True, gc=False):
    """The ranking that answers one click.

    Attributes:
        top_index: k item indices in the order of the list; fewer where fewer may be shown.
        top_score: their scores.
        pins: items to be put in between.
        rules: ids of the rules that put an item into the list or raised or lowered one of it.
        diversity: what made it another list than that of the best.
    """

    click: Click
    offset: int
    top_index: Sequence[int]
    top_score: Sequence[float]
    reason: RankingReason
    pins: tuple[Pin, ...] = ()
    rules: tuple[str, ...] = ()
    diversity: tuple[Diversified, ...] = ()


def ranked_of_all(plans: Sequence[Plan], asked: Queries, model: Model) -> list[list[RankedClick]]:
    """Of each plan, from all items there are."""
    failed = ~asked.finite  # [N]
    by_model = np.flatnonzero(asked.has_state & asked.finite)  # [M]
    row_of = {click: row for row, click in enumerate(by_model.tolist())}
    indices: list[list[int]] = []
    scores: list[list[float]] = []
    if row_of:
        recents = [recent for one in plans for recent in one.recents]
        memory = session_inputs([recents[click] for click in row_of], model.recent_size)
        query = None if asked.query is None else asked.query[by_model]  # [M, D]
        top_index, top_score = model.rank(query, *memory)  # [M, k] each
        # At once: from an array a click it took 7.0 µs to encode a ranking, from its list 5.1.
        indices, scores = top_index.tolist(), top_score.tolist()
        finite = finite_rows(top_score)
        for click in by_model[~finite].tolist():
            failed[click] = True
            del row_of[click]
    popular_index, popular_score = (popular.tolist() for popular in model.popular)
    answers, click = [], 0
    for one in plans:
        ranked = []
        for sourced, is_unknown in zip(one.clicks, one.unknown, strict=True):
            row = row_of.get(click)
            if row is None:
                reason = RankingReason.NOT_FINITE if failed[click] else RankingReason.POPULARITY
                top = popular_index, popular_score, reason
            else:
                reason = RankingReason.UNKNOWN_ITEM if is_unknown else RankingReason.MODEL
                top = indices[row], scores[row], reason
            ranked.append(RankedClick(sourced.click, sourced.offset, *top))
            click += 1
        answers.append(ranked)
    return answers


def session_inputs(
    recents: Sequence[tuple[list[int], int]], size: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Sessions as the ``rank`` graph takes them beside their hidden states, one row a ranked click.

    Returns:
        int64[B, R] distinct recent items, most recent first, padded with -1; float32[B, R] how often each was clicked;
        float32[B] clicks of the session.
    """
    lengths, items, counts = [], [], []
    for known, _ in recents:
        times: dict[int, int] = {}  # in order of first meeting: most recent first
        for index in reversed(known):
            times[index] = times.get(index, 0) + 1
        kept = list(times)[:size]
        lengths.append(len(kept))
        items += kept
        counts += [times[index] for index in kept]
    recent = np.full((len(recents), size), -1, dtype=np.int64)
    count = np.zeros((len(recents), size), dtype=np.float32)
    filled = np.arange(size) < np.array(lengths)[:, None]  # [B, R]; a mask takes values in the order of rows
    recent[filled] = items
    count[filled] = counts
    return recent, count, np.array([clicks for _, clicks in recents], dtype=np.float32)
