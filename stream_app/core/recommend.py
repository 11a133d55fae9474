"""Clicks of a partition in, rows and rankings out. Pure: this is the whole semantics of the worker.

A plan holds clicks of many sessions. Each session's clicks form a *chain* of steps through the GRU: what has to be
replayed because its row is another model's, then its clicks in order. Chains do not depend on each other, so *wave* i
does the i-th step of every chain in one ``advance`` call, and one ``rank`` call serves all hidden states that follow;
plans of several partitions share these calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.bundle.runtime import Model, finite_rows
from schemas.messages.click import Click
from schemas.messages.ranking import RankingReason
from stream_app.core.session import SessionRules, SessionState, is_over, is_redelivered


# Two of each a click: a frozen dataclass takes seven to ten times as long to make as a struct.
class SourcedClick(msgspec.Struct, frozen=True, gc=False):
    """A click and the offset at which its partition holds it."""

    click: Click
    offset: int


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
        ranked: one ranking for each new click, in the order of the clicks.
        redelivered: clicks that their rows had passed already.
        rebuilt: rows of another model's that were replayed.
        waves: how many ``advance`` calls it took.
    """

    rows: dict[str, SessionState]
    ranked: list[RankedClick]
    redelivered: int
    rebuilt: int
    waves: int


class _Chain(msgspec.Struct, gc=False):
    """Steps of one session through the GRU, and after how many of them each of its clicks is ranked."""

    start: NDArray[np.float16] | None  # [L, H]; None is the zero state
    steps: list[int] = []
    ranked_after: list[tuple[int, int]] = []  # (steps done, position among the ranked)


class _Evolving(msgspec.Struct, gc=False):
    """A session while its chunk is being read; becomes a SessionState."""

    row: SessionState | None  # what its chain goes on from
    offset: int
    last_click: int
    clicks: int
    recent: list[str]
    chain: int | None = None  # None until there is a click to rank: nothing is replayed in vain


@dataclass(slots=True)
class Plan:
    """What a partition's clicks ask of the model: the chains of their sessions, and the clicks in order."""

    chains: list[_Chain] = field(default_factory=list)
    sessions: dict[str, _Evolving] = field(default_factory=dict)
    clicks: list[SourcedClick] = field(default_factory=list)  # the new ones
    unknown: list[bool] = field(default_factory=list)  # of each new click: whether the model does not know its item
    recents: list[tuple[list[int], int]] = field(default_factory=list)  # of each: known recent items, session length
    redelivered: int = 0
    rebuilt: int = 0


@dataclass(frozen=True, slots=True)
class Advanced:
    """Hidden states after all clicks of all plans.

    Attributes:
        hidden: float16[L, C, H] at the end of each of C chains, those of the first plan first.
        kept: bool[C] whether there is any state at the end of each chain.
        ranked_hidden: float32[N, H] of the last layer at each of N clicks, rounded to half precision as all states.
        has_state: bool[N] whether there was any state at that click.
        finite: bool[N] whether the last step before that click's ranking gave a finite state.
        waves: how many ``advance`` calls it took.
    """

    hidden: NDArray[np.float16]
    kept: NDArray[np.bool_]
    ranked_hidden: NDArray[np.float32]
    has_state: NDArray[np.bool_]
    finite: NDArray[np.bool_]
    waves: int


def recommend(
    rows: Mapping[str, SessionState], clicks: Sequence[SourcedClick], model: Model, rules: SessionRules
) -> Recommended:
    """Apply ``clicks``, in order, to the sessions in ``rows`` and rank the next items after each of them.

    Args:
        rows: the rows of the chunk's sessions, by session id; a session that is missing here is new.
        clicks: all of one partition, ascending offsets.
        model: the model that serves; rows of any other version are rebuilt by replaying their recent items.
        rules: idle gap and memory of a session.
    """
    plans = [plan(rows, clicks, model, rules)]
    [done] = rank(plans, advance(plans, model), model)
    return done


def plan(rows: Mapping[str, SessionState], clicks: Sequence[SourcedClick], model: Model, rules: SessionRules) -> Plan:
    """What has to be computed for these clicks, without computing it."""
    index_of = model.vocabulary.index
    chunk = Plan()
    chains, sessions = chunk.chains, chunk.sessions

    for sourced in clicks:
        click = sourced.click
        session = sessions.get(click.session_id)
        if session is None:
            session = sessions[click.session_id] = _open(rows.get(click.session_id))
        if is_redelivered(session.offset, sourced.offset):
            chunk.redelivered += 1
            continue
        if session.clicks and is_over(session.last_click, click.timestamp, rules):
            session.row, session.chain = None, None
            session.clicks, session.recent, session.last_click = 0, [], click.timestamp
        if session.chain is None:
            session.chain = len(chains)
            chains.append(_chain(session.row, model))
            chunk.rebuilt += session.row is not None and session.row.model_version not in ("", model.version)

        index = index_of(click.item_id)
        chain = chains[session.chain]
        if index is not None:
            chain.steps.append(index)
        chain.ranked_after.append((len(chain.steps), len(chunk.clicks)))
        session.offset = sourced.offset
        session.last_click = max(session.last_click, click.timestamp)
        session.clicks += 1
        session.recent = [*session.recent, click.item_id][-rules.recent_items :]
        chunk.clicks.append(sourced)
        chunk.unknown.append(index is None)
        # Of the same clicks as in the evaluation, however many more a row keeps.
        recent = session.recent[-model.recent_size :]
        known = [known for item_id in recent if (known := index_of(item_id)) is not None]
        chunk.recents.append((known, session.clicks))
    return chunk


def _open(row: SessionState | None) -> _Evolving:
    """The session as its row has it."""
    if row is None:
        return _Evolving(row=None, offset=-1, last_click=0, clicks=0, recent=[])
    return _Evolving(row=row, offset=row.offset, last_click=row.last_click, clicks=row.clicks, recent=list(row.recent))


def _chain(row: SessionState | None, model: Model) -> _Chain:
    """The steps before the chunk's own: none, unless the row is another model's."""
    if row is None:
        return _Chain(start=None)
    if row.model_version == model.version:
        return _Chain(start=row.hidden)
    # Never feed one model's hidden state to another: replay the clicks instead.
    known = [index for item_id in row.recent if (index := model.vocabulary.index(item_id)) is not None]
    return _Chain(start=None, steps=known)


def advance(plans: Sequence[Plan], model: Model) -> Advanced:
    """Run the network over all sessions, wave by wave: each wave is one click of every session that still has one."""
    chains = [chain for one in plans for chain in one.chains]
    n_ranked, first_click = 0, []  # of each chain: the place of its plan's first click
    for one in plans:
        first_click += [n_ranked] * len(one.chains)
        n_ranked += len(one.clicks)
    # Longest chains first: the chains that are still going are then always a prefix.
    order = sorted(range(len(chains)), key=lambda i: -len(chains[i].steps))
    lengths = np.array([len(chains[i].steps) for i in order], dtype=np.int64)  # [C]
    waves = int(lengths[0]) if order else 0
    steps = np.zeros((waves, len(order)), dtype=np.int64)  # [W, C]
    hidden = model.initial_hidden(len(order))  # [L, C, H]
    alive = np.array([chains[i].start is not None for i in order], dtype=np.bool_)  # [C]
    finite = np.ones(len(order), dtype=np.bool_)  # [C] the last step of each
    ranked_hidden = np.zeros((n_ranked, model.hidden_size), dtype=np.float32)  # [N, H]
    ranked_alive, ranked_finite = np.ones((2, n_ranked), dtype=np.bool_)  # [N]
    captures: list[tuple[list[int], list[int]]] = [([], []) for _ in range(waves + 1)]
    for position, i in enumerate(order):
        chain = chains[i]
        if chain.start is not None:
            hidden[:, position] = chain.start
        steps[: len(chain.steps), position] = chain.steps
        for done, ranked in chain.ranked_after:
            captures[done][0].append(position)
            captures[done][1].append(first_click[i] + ranked)

    for wave in range(waves + 1):
        positions, ranked_positions = captures[wave]
        ranked_hidden[ranked_positions] = hidden[-1, positions]  # [n, H]
        ranked_alive[ranked_positions] = alive[positions]
        ranked_finite[ranked_positions] = finite[positions]
        if wave < waves:
            active = int(np.searchsorted(-lengths, -wave, side="left"))  # chains longer than `wave`
            hidden[:, :active], finite[:active] = model.step(steps[wave, :active], hidden[:, :active])
            alive[:active] |= finite[:active]

    in_order, kept = np.empty(hidden.shape, dtype=np.float16), np.empty(len(order), dtype=np.bool_)
    in_order[:, order], kept[order] = hidden, alive
    return Advanced(in_order, kept, ranked_hidden, ranked_alive, ranked_finite, waves)


def rank(plans: Sequence[Plan], advanced: Advanced, model: Model) -> list[Recommended]:
    """Rank for every click, and make the rows."""
    unknown = np.fromiter((unknown for one in plans for unknown in one.unknown), dtype=np.bool_)  # [N]
    failed = ~advanced.finite & ~unknown  # an unknown item has no step of its own
    by_model = np.flatnonzero(advanced.has_state & ~failed)  # [M]
    row_of = {click: row for row, click in enumerate(by_model.tolist())}
    indices: list[list[int]] = []
    scores: list[list[float]] = []
    if row_of:
        recents = [recent for one in plans for recent in one.recents]
        memory = _memory([recents[click] for click in row_of], model.recent_size)
        top_index, top_score = model.rank(advanced.ranked_hidden[by_model], *memory)  # [M, k] each
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
        rows = _rows(one, advanced.hidden[:, theirs], advanced.kept[theirs].tolist(), model)
        chain += len(one.chains)
        done.append(Recommended(rows, ranked, one.redelivered, one.rebuilt, advanced.waves))
    return done


def _rows(one: Plan, hidden: NDArray[np.float16], kept: Sequence[bool], model: Model) -> dict[str, SessionState]:
    """The new rows of a plan; hidden float16[L, C, H] of its chains, and which of them have any state."""
    return {
        session_id: SessionState(
            model_version=model.version if kept[session.chain] else "",
            offset=session.offset,
            last_click=session.last_click,
            clicks=session.clicks,
            recent=tuple(session.recent),
            # A copy: a view would keep the whole batch's states alive for as long as one row is in flight.
            hidden=hidden[:, session.chain].copy() if kept[session.chain] else None,
        )
        for session_id, session in one.sessions.items()
        if session.chain is not None
    }


def _memory(
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
