"""What a partition's clicks ask of the model, found without computing it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.bundle.runtime import Model
from schemas.messages.click import VIEW, Click
from stream_app.core.session import SessionRules, SessionState, forgotten, is_over, is_redelivered, moves_on


# One of each a click: a frozen dataclass takes seven to ten times as long to make as a struct.
class SourcedClick(msgspec.Struct, frozen=True, gc=False):
    """A click and the offset at which its partition holds it."""

    click: Click
    offset: int


class SourcedForget(msgspec.Struct, frozen=True, gc=False):
    """A request to forget a session, and the offset at which its partition holds it."""

    session_id: str
    offset: int


class Chain(msgspec.Struct, gc=False):
    """Steps of one session through a recurrent model, and after how many of them each of its clicks is ranked."""

    start: NDArray[np.float16] | None  # [L, H]; None is the zero state
    steps: list[int] = []
    ranked_after: list[tuple[int, int]] = []  # (steps done, position among the ranked)


class Evolving(msgspec.Struct, gc=False):
    """A session while its chunk is being read; becomes a SessionState."""

    row: SessionState | None  # what its chain goes on from
    offset: int
    last_click: int
    clicks: int
    recent: list[str]
    purchased: list[str]
    chain: int | None = None  # None until there is a click to rank: nothing is replayed in vain
    changed: bool = False  # whether there is a new click, or request to forget it


@dataclass(slots=True)
class Plan:
    """The sessions that a partition's clicks lead to, and the clicks in order.

    Attributes:
        chains: for a recurrent model, the steps of the sessions.
        windows: for a model with a window, of each new click the known items among its session's last ones.
        unknown: of each new click, whether the model does not know its item.
        unmoved: the places, among the new clicks, of those that do not move their session on.
        recents: of each new click, the known items among those that ``rank`` looks at, and the session's length.
        hidden: of each new click, the items that its ranking leaves out; none at all unless the rules hide any.
        requests: to forget a session, those that were not obeyed before.
    """

    chains: list[Chain] = field(default_factory=list)
    windows: list[list[int]] = field(default_factory=list)
    sessions: dict[str, Evolving] = field(default_factory=dict)
    clicks: list[SourcedClick] = field(default_factory=list)  # the new ones
    unknown: list[bool] = field(default_factory=list)
    unmoved: list[int] = field(default_factory=list)
    recents: list[tuple[list[int], int]] = field(default_factory=list)
    hidden: list[list[str]] = field(default_factory=list)
    requests: list[SourcedForget] = field(default_factory=list)
    redelivered: int = 0
    rebuilt: int = 0


def plan(
    rows: Mapping[str, SessionState],
    clicks: Sequence[SourcedClick | SourcedForget],
    model: Model,
    rules: SessionRules,
) -> Plan:
    """What has to be computed for these clicks, without computing it."""
    index_of = model.vocabulary.index
    recurrent = model.encoder == "recurrent"
    chunk = Plan()
    chains, sessions = chunk.chains, chunk.sessions

    for sourced in clicks:
        if isinstance(sourced, SourcedForget):
            _forget(chunk, rows, sourced)
            continue
        click = sourced.click
        session = sessions.get(click.session_id)
        if session is None:
            session = sessions[click.session_id] = _open(rows.get(click.session_id))
        if is_redelivered(session.offset, sourced.offset):
            chunk.redelivered += 1
            continue
        moves = moves_on(click, rules)
        if moves and session.clicks and is_over(session.last_click, click.timestamp, rules):
            session.row, session.chain = None, None
            session.clicks, session.recent, session.purchased, session.last_click = 0, [], [], click.timestamp

        index = index_of(click.item_id)
        if recurrent:
            if session.chain is None:
                session.chain = len(chains)
                chains.append(_chain(session.row, model))
                chunk.rebuilt += bool(chains[-1].steps)
            chain = chains[session.chain]
            if moves and index is not None:
                chain.steps.append(index)
            elif model.own_query:
                # A row does not keep the query, which comes with a step alone: repeat those that the row remembers.
                # So it is the same whichever click of this session the chunk began with.
                chain = Chain(start=None, steps=_known(session.recent, model))
                chains.append(chain)
            chain.ranked_after.append((len(chain.steps), len(chunk.clicks)))
        session.changed = True
        session.offset = sourced.offset
        if moves:
            session.last_click = max(session.last_click, click.timestamp)
            session.clicks += 1
            session.recent = [*session.recent, click.item_id][-rules.recent_items :]
        else:
            chunk.unmoved.append(len(chunk.clicks))
        chunk.clicks.append(sourced)
        chunk.unknown.append(moves and index is None)
        session.purchased = _purchased(session.purchased, click, rules)
        _look_back(chunk, session, model, rules)
    return chunk


def _purchased(before: list[str], click: Click, rules: SessionRules) -> list[str]:
    """What a session has purchased after a click, each item once; nothing where nobody asks."""
    if rules.hide_type is None:
        return []
    if (click.type or VIEW) != rules.hide_type:
        return before
    return [*(item_id for item_id in before if item_id != click.item_id), click.item_id][-rules.recent_items :]


def _look_back(chunk: Plan, session: Evolving, model: Model, rules: SessionRules) -> None:
    """What the ranking after a click needs of the clicks up to it."""
    # Of the same clicks as in the evaluation, however many more a row keeps.
    chunk.recents.append((_known(session.recent[-model.recent_size :], model), session.clicks))
    if rules.hide:
        chunk.hidden.append(session.recent)
    elif rules.hide_type is not None:
        chunk.hidden.append(session.purchased)
    if model.window:
        chunk.windows.append(_known(session.recent[-model.window :], model))


def _forget(chunk: Plan, rows: Mapping[str, SessionState], request: SourcedForget) -> None:
    """The session is as one that never was; what was ranked for it before, in this chunk too, is out all the same."""
    session = chunk.sessions.get(request.session_id) or _open(rows.get(request.session_id))
    if is_redelivered(session.offset, request.offset):
        chunk.redelivered += 1
        return
    chunk.requests.append(request)
    session = chunk.sessions[request.session_id] = _open(forgotten(request.offset))
    session.changed = True


def _open(row: SessionState | None) -> Evolving:
    """The session as its row has it."""
    if row is None:
        return Evolving(row=None, offset=-1, last_click=0, clicks=0, recent=[], purchased=[])
    return Evolving(
        row=row,
        offset=row.offset,
        last_click=row.last_click,
        clicks=row.clicks,
        recent=list(row.recent),
        purchased=list(row.purchased),
    )


def _known(item_ids: Sequence[str], model: Model) -> list[int]:
    """The indices of those that the model knows."""
    index_of = model.vocabulary.index
    return [index for item_id in item_ids if (index := index_of(item_id)) is not None]


def _chain(row: SessionState | None, model: Model) -> Chain:
    """The steps before the chunk's own: none, unless the row has no state of this model's."""
    if row is None:
        return Chain(start=None)
    size = model.layers, model.hidden_size
    # A bundle may name a version whose states are none of its size: then it is another model.
    if row.model_version == model.states_of and row.hidden is not None and row.hidden.shape == size:
        return Chain(start=row.hidden)
    # Never feed one model's hidden state to another: replay the clicks instead.
    return Chain(start=None, steps=_known(row.recent, model))
