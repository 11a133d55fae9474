"""Clicks of a partition in, rows and rankings out. Pure: this is the whole semantics of the worker.

A plan (``plan.py``) holds clicks of many sessions. There are two ways from it to the queries of a ranking
(``query.py``), and the model's encoder says which:

* recurrent: each session's clicks form a *chain* of steps: what has to be replayed because its row has no state of
  this model's, then its clicks in order. Chains do not depend on each other, so *wave* i does the i-th step of every
  chain in one ``advance`` call.
* window: the known items among a click's session's last ones are all that its query needs. One ``encode`` call serves
  all clicks whose sessions are of about one length. A row keeps no hidden state.

A model with the encoder none needs no query. One ``rank`` call answers all clicks; plans of several partitions share
these calls.

A click of a type that does not move its session on is ranked from what the session is without it, and its row keeps
nothing of it but the offset.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.bundle.runtime import Model, finite_rows
from schemas.messages.click import Click
from schemas.messages.ranking import RankingReason
from stream_app.core.plan import Plan, SourcedClick, SourcedForget, plan
from stream_app.core.query import Queries, queries
from stream_app.core.session import Forgotten, Row, SessionRules, SessionState


class RankedClick(msgspec.Struct, frozen=True, gc=False):
    """The ranking that answers one click.

    Attributes:
        top_index: k item indices, best first.
        top_score: their scores.
    """

    click: Click
    offset: int
    top_index: Sequence[int]
    top_score: Sequence[float]
    reason: RankingReason


@dataclass(frozen=True, slots=True)
class Recommended:
    """What a chunk leads to.

    Attributes:
        rows: the new row of every session with at least one new click.
        forgotten: the sessions that were forgotten, and have not begun anew.
        ranked: one ranking for each new click, in the order of the clicks.
        redelivered: clicks that their rows had passed already.
        rebuilt: rows without a state of this model's that were replayed.
        waves: how many ``advance`` calls it took.
        unmoved: clicks that did not move their sessions on.
    """

    rows: dict[str, SessionState]
    forgotten: dict[str, Forgotten]
    ranked: list[RankedClick]
    redelivered: int
    rebuilt: int
    waves: int
    unmoved: int = 0


def recommend(
    rows: Mapping[str, Row],
    clicks: Sequence[SourcedClick | SourcedForget],
    model: Model,
    rules: SessionRules,
) -> Recommended:
    """Apply ``clicks``, in order, to the sessions in ``rows`` and rank the next items after each of them.

    Args:
        rows: the rows of the chunk's sessions, by session id; a session that is missing here is new.
        clicks: all of one partition, ascending offsets, and requests to forget a session among them.
        model: the model that serves; a recurrent one replays the recent items of rows with hidden states of another.
        rules: idle gap and memory of a session, and the types of clicks that move it on.
    """
    plans = [plan(rows, clicks, model, rules)]
    [done] = rank(plans, queries(plans, model), model)
    return done


def rank(plans: Sequence[Plan], asked: Queries, model: Model) -> list[Recommended]:
    """Rank for every click, and make the rows."""
    failed = ~asked.finite  # [N]
    by_model = np.flatnonzero(asked.has_state & asked.finite)  # [M]
    row_of = {click: row for row, click in enumerate(by_model.tolist())}
    indices: list[list[int]] = []
    scores: list[list[float]] = []
    if row_of:
        recents = [recent for one in plans for recent in one.recents]
        memory = memory_inputs([recents[click] for click in row_of], model.recent_size)
        query = None if asked.query is None else asked.query[by_model]  # [M, D]
        top_index, top_score = model.rank(query, *memory)  # [M, k] each
        # At once: from an array a click it took 7.0 µs to encode a ranking, from its list 5.1.
        indices, scores = top_index.tolist(), top_score.tolist()
        finite = finite_rows(top_score)
        for click in by_model[~finite].tolist():
            failed[click] = True
            del row_of[click]
    popular_index, popular_score = (popular.tolist() for popular in model.popular)
    done, click, chain = [], 0, 0
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
        theirs = slice(chain, chain + len(one.chains))
        rows = _rows(one, asked.hidden[:, theirs], asked.kept[theirs].tolist(), model)
        chain += len(one.chains)
        forgotten = {name: one.forgotten for name, one in one.sessions.items() if one.forgotten is not None}
        done.append(Recommended(rows, forgotten, ranked, one.redelivered, one.rebuilt, asked.waves, len(one.unmoved)))
    return done


def _rows(one: Plan, hidden: NDArray[np.float16], kept: Sequence[bool], model: Model) -> dict[str, SessionState]:
    """The new rows of a plan; hidden float16[L, C, H] of its chains, and which of them have any state.

    Without a state, as after a model that is not recurrent, a row names no model.
    """
    rows = {}
    for session_id, session in one.sessions.items():
        if session.changed:
            chain = session.chain
            has_state = chain is not None and kept[chain]
            rows[session_id] = SessionState(
                model_version=model.states_of if has_state else "",
                offset=session.offset,
                last_click=session.last_click,
                clicks=session.clicks,
                recent=tuple(session.recent),
                # A copy: a view would keep the whole batch's states alive for as long as one row is in flight.
                hidden=hidden[:, chain].copy() if has_state else None,
            )
    return rows


def memory_inputs(
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
