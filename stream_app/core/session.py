"""A session's state and the rules that change it. Pure: no clock, no I/O; time comes from the clicks."""

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.messages.click import VIEW, Click


class SessionState(msgspec.Struct, frozen=True, gc=False):
    """The row that the sessions table keeps for one evolving session.

    The clicks are the truth, the hidden state is a cache of them: ``recent`` is what another model replays. Only a
    recurrent model has a hidden state; a row that another kind of model wrote has none and names no model.

    Attributes:
        model_version: the model whose hidden states ``hidden`` is one of; empty where there is none. Of a refreshed
            model that is the one that was trained (``states_of`` in the manifest).
        offset: source offset of the last click that was applied; clicks at or before it are redelivered ones.
        last_click: newest click time of the session, milliseconds since the epoch; 0 while no click has moved it on.
        clicks: number of clicks of the session so far, those older than ``recent`` included.
        recent: the most recent item ids, oldest first, repeats and unknown items included.
        hidden: float16[L, H], or None when no click so far was on an item that the model knows, or the model has no
            hidden state. Half precision is what a row keeps; every click leaves the state rounded to it, so a session's
            rankings are the same whichever of its clicks shared a chunk, and whether a restart lay between them.
        purchased: the most recent item ids that the session purchased, oldest first, each once; none where the rules do
            not ask for them.
    """

    model_version: str
    offset: int
    last_click: int
    clicks: int
    recent: tuple[str, ...]
    hidden: NDArray[np.float16] | None
    purchased: tuple[str, ...] = ()


def forgotten(offset: int) -> SessionState:
    """The row of a session that was forgotten by the request at this source offset: nothing of it but that.

    Without a row, clicks before the request that are delivered again would count as new, and a row that a worker had
    appended when it was cut off as the newest.
    """
    return SessionState(model_version="", offset=offset, last_click=0, clicks=0, recent=(), hidden=None)


@dataclass(frozen=True, slots=True)
class SessionRules:
    """What ends a session and how much of it is remembered.

    Attributes:
        idle_gap_ms: a click later than this after the session's newest one starts the session anew.
        recent_items: how many item ids a row remembers.
        advance_on: the types of clicks that move a session on; None for all. Of others a row keeps the offset alone.
        hide: whether a ranking leaves out the items that its row remembers.
        hide_type: the type of clicks whose items a row remembers, apart from others, and a ranking leaves out; clicks
            that do not move the session on count as well.
    """

    idle_gap_ms: int = 30 * 60 * 1000
    recent_items: int = 30
    advance_on: frozenset[str] | None = None
    hide: bool = False
    hide_type: str | None = None


def is_redelivered(applied: int, offset: int) -> bool:
    """Whether the click at ``offset`` is in a row whose last applied click was at offset ``applied``.

    If so its ranking is known to be out, and it must not count twice.
    """
    return offset <= applied


def is_over(last_click: int, timestamp: int, rules: SessionRules) -> bool:
    """Whether a click at ``timestamp`` (ms) starts anew a session whose newest click was at ``last_click`` (ms).

    A late click (older than the newest one) belongs to the session: producers' clocks differ.
    """
    return timestamp - last_click > rules.idle_gap_ms


def moves_on(click: Click, rules: SessionRules) -> bool:
    """Whether a click becomes part of its session.

    One that does not leaves no trace but its offset. Its time counts neither: it is often no doing of the visitor's (a
    payment that a back end confirms an hour later), and must neither end a session nor hold it open.
    """
    return rules.advance_on is None or (click.type or VIEW) in rules.advance_on
