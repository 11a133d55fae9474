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
nothing of it but the offset, and that the item was purchased where the rules ask for that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.bundle.runtime import Model
from stream_app.core.offer import Offer
from stream_app.core.plan import Plan, SourcedClick, SourcedForget, plan
from stream_app.core.query import Queries, queries
from stream_app.core.ranked import RankedClick, ranked_of_all
from stream_app.core.ranked_offers import ranked_offers
from stream_app.core.session import SessionRules, SessionState


@dataclass(frozen=True, slots=True)
class Recommended:
    """What a chunk leads to.

    Attributes:
        rows: the new row of every session with at least one new click, or request to forget it.
        requests: to forget a session, those of sessions that have begun anew too, in their order.
        ranked: one ranking for each new click, in the order of the clicks.
        redelivered: clicks that their rows had passed already.
        rebuilt: rows without a state of this model's that were replayed.
        waves: how many ``advance`` calls it took.
        unmoved: clicks that did not move their sessions on.
    """

    rows: dict[str, SessionState]
    requests: list[SourcedForget]
    ranked: list[RankedClick]
    redelivered: int
    rebuilt: int
    waves: int
    unmoved: int = 0


def recommend(
    rows: Mapping[str, SessionState],
    clicks: Sequence[SourcedClick | SourcedForget],
    model: Model,
    rules: SessionRules,
    offers: Mapping[str | None, Offer] | None = None,
) -> Recommended:
    """Apply ``clicks``, in order, to the sessions in ``rows`` and rank the next items after each of them.

    Args:
        rows: the rows of the chunk's sessions, by session id; a session that is missing here is new.
        clicks: all of one partition, ascending offsets, and requests to forget a session among them.
        model: the model that serves; a recurrent one replays the recent items of rows with hidden states of another.
        rules: idle gap and memory of a session, and the types of clicks that move it on.
        offers: what may be shown in each market of the clicks; everything without.
    """
    plans = [plan(rows, clicks, model, rules)]
    [done] = rank(plans, queries(plans, model), model, offers)
    return done


def rank(
    plans: Sequence[Plan], asked: Queries, model: Model, offers: Mapping[str | None, Offer] | None = None
) -> list[Recommended]:
    """Rank for every click, and make the rows."""
    answers = ranked_of_all(plans, asked, model) if offers is None else ranked_offers(plans, asked, model, offers)
    done, chain = [], 0
    for one, ranked in zip(plans, answers, strict=True):
        theirs = slice(chain, chain + len(one.chains))
        rows = _rows(one, asked.hidden[:, theirs], asked.kept[theirs].tolist(), model)
        chain += len(one.chains)
        counts = one.redelivered, one.rebuilt, asked.waves, len(one.unmoved)
        done.append(Recommended(rows, one.requests, ranked, *counts))
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
                purchased=tuple(session.purchased),
            )
    return rows
