"""Clicks of a chunk in, rows and rankings out. Pure: this is the whole semantics of the worker.

A chunk holds clicks of many sessions. Each session's clicks form a *chain* of steps through the GRU: what has to be
replayed because its row is another model's, then its clicks in order. Chains do not depend on each other, so *wave* i
does the i-th step of every chain in one ``advance`` call, and one ``rank`` call serves all hidden states that follow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from schemas.click import Click
from schemas.model import Model
from schemas.ranking import RankingReason
from stream_app.session import SessionRules, SessionState, is_over, is_redelivered


@dataclass(frozen=True, slots=True)
class SourcedClick:
    """A click and the offset at which its partition holds it."""

    click: Click
    offset: int


@dataclass(frozen=True, slots=True)
class RankedClick:
    """The ranking that answers one click.

    Attributes:
        top_index: int64[k] item indices, best first.
        top_score: float32[k] their scores.
    """

    click: Click
    offset: int
    top_index: NDArray[np.int64]
    top_score: NDArray[np.float32]
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


@dataclass(slots=True)
class _Chain:
    """Steps of one session through the GRU, and after how many of them each of its clicks is ranked."""

    start: NDArray[np.float32] | None  # [L, H]; None is the zero state
    steps: list[int] = field(default_factory=list)
    ranked_after: list[tuple[int, int]] = field(default_factory=list)  # (steps done, position among the ranked)

    @property
    def has_state(self) -> bool:
        return self.start is not None or bool(self.steps)


@dataclass(slots=True)
class _Evolving:
    """A session while its chunk is being read; becomes a SessionState."""

    row: SessionState | None  # what its chain goes on from
    offset: int
    last_click: int
    clicks: int
    recent: list[str]
    chain: int | None = None  # None until there is a click to rank: nothing is replayed in vain


@dataclass(slots=True)
class _Memory:
    """The session's distinct recent items as the ``rank`` graph takes them, one row a ranked click."""

    recent: NDArray[np.int64]  # [B, R], most recent first, padded with -1
    counts: NDArray[np.float32]  # [B, R]
    clicks: NDArray[np.float32]  # [B]


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
    index_of = model.vocabulary.index
    chains: list[_Chain] = []
    sessions: dict[str, _Evolving] = {}
    new_clicks: list[SourcedClick] = []
    unknown: list[bool] = []
    recents: list[tuple[list[str], int]] = []
    redelivered = rebuilt = 0

    for sourced in clicks:
        click = sourced.click
        session = sessions.get(click.session_id)
        if session is None:
            session = sessions[click.session_id] = _open(rows.get(click.session_id))
        if is_redelivered(session.offset, sourced.offset):
            redelivered += 1
            continue
        if session.clicks and is_over(session.last_click, click.timestamp, rules):
            session.row, session.chain = None, None
            session.clicks, session.recent, session.last_click = 0, [], click.timestamp
        if session.chain is None:
            session.chain = len(chains)
            chains.append(_chain(session.row, model))
            rebuilt += session.row is not None and session.row.model_version != model.version

        index = index_of(click.item_id)
        chain = chains[session.chain]
        if index is not None:
            chain.steps.append(index)
        chain.ranked_after.append((len(chain.steps), len(new_clicks)))
        session.offset = sourced.offset
        session.last_click = max(session.last_click, click.timestamp)
        session.clicks += 1
        session.recent = [*session.recent, click.item_id][-rules.recent_items :]
        new_clicks.append(sourced)
        unknown.append(index is None)
        recents.append((session.recent, session.clicks))

    hidden, ranked_hidden, has_state, waves = _advance(chains, len(new_clicks), model)
    ranked = _rank(new_clicks, unknown, recents, ranked_hidden, has_state, model)
    out = {
        session_id: SessionState(
            model_version=model.version if chains[session.chain].has_state else "",
            offset=session.offset,
            last_click=session.last_click,
            clicks=session.clicks,
            recent=tuple(session.recent),
            # A copy: a view would keep the whole chunk's states alive for as long as one row is in flight.
            hidden=hidden[:, session.chain].copy() if chains[session.chain].has_state else None,
        )
        for session_id, session in sessions.items()
        if session.chain is not None
    }
    return Recommended(rows=out, ranked=ranked, redelivered=redelivered, rebuilt=rebuilt, waves=waves)


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


def _advance(
    chains: Sequence[_Chain], n_ranked: int, model: Model
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], int]:
    """Run all chains wave by wave.

    Returns:
        hidden float32[L, C, H] at the end of each chain; hidden float32[N, H] of the last layer at each ranked click;
        bool[N] whether there was any state at that click; the number of waves.
    """
    # Longest chains first: the chains that are still going are then always a prefix.
    order = sorted(range(len(chains)), key=lambda i: -len(chains[i].steps))
    lengths = np.array([len(chains[i].steps) for i in order], dtype=np.int64)  # [C]
    waves = int(lengths[0]) if order else 0
    steps = np.zeros((waves, len(order)), dtype=np.int64)  # [W, C]
    hidden = model.initial_hidden(len(order))  # [L, C, H]
    ranked_hidden = np.zeros((n_ranked, model.hidden_size), dtype=np.float32)  # [N, H]
    has_state = np.ones(n_ranked, dtype=np.bool_)  # [N]
    captures: list[tuple[list[int], list[int]]] = [([], []) for _ in range(waves + 1)]
    for position, i in enumerate(order):
        chain = chains[i]
        if chain.start is not None:
            hidden[:, position] = chain.start
        steps[: len(chain.steps), position] = chain.steps
        for done, ranked in chain.ranked_after:
            captures[done][0].append(position)
            captures[done][1].append(ranked)
            has_state[ranked] = done > 0 or chain.start is not None

    for wave in range(waves + 1):
        positions, ranked_positions = captures[wave]
        ranked_hidden[ranked_positions] = hidden[-1, positions]  # [n, H]
        if wave < waves:
            active = int(np.searchsorted(-lengths, -wave, side="left"))  # chains longer than `wave`
            hidden[:, :active] = model.advance(steps[wave, :active], hidden[:, :active])

    in_order = np.empty_like(hidden)
    in_order[:, order] = hidden
    return in_order, ranked_hidden, has_state, waves


def _rank(  # noqa: PLR0917
    clicks: Sequence[SourcedClick],
    unknown: Sequence[bool],
    recents: Sequence[tuple[list[str], int]],
    hidden: NDArray[np.float32],
    has_state: NDArray[np.bool_],
    model: Model,
) -> list[RankedClick]:
    by_model = np.flatnonzero(has_state)  # [M]
    memory = _memory([recents[i] for i in by_model.tolist()], model)
    if len(by_model):
        top_index, top_score = model.rank(hidden[by_model], memory.recent, memory.counts, memory.clicks)  # [M, k] each
    row_of = {int(i): row for row, i in enumerate(by_model)}
    popular_index, popular_score = model.popular
    ranked = []
    for i, sourced in enumerate(clicks):
        row = row_of.get(i)
        if row is None:
            top = popular_index, popular_score, RankingReason.POPULARITY
        else:
            reason = RankingReason.UNKNOWN_ITEM if unknown[i] else RankingReason.MODEL
            top = top_index[row], top_score[row], reason
        ranked.append(RankedClick(sourced.click, sourced.offset, *top))
    return ranked


def _memory(recents: Sequence[tuple[list[str], int]], model: Model) -> _Memory:
    size, index_of = model.recent_size, model.vocabulary.index
    recent = np.full((len(recents), size), -1, dtype=np.int64)
    counts = np.zeros((len(recents), size), dtype=np.float32)
    clicks = np.array([n for _, n in recents], dtype=np.float32)
    for row, (items, _) in enumerate(recents):
        times: dict[int, int] = {}  # in order of first meeting: most recent first
        for item_id in reversed(items):
            index = index_of(item_id)
            if index is not None:
                times[index] = times.get(index, 0) + 1
        for column, (index, count) in enumerate(list(times.items())[:size]):
            recent[row, column] = index
            counts[row, column] = count
    return _Memory(recent, counts, clicks)
