"""Filters that papers apply to a whole log before they split it."""

import numpy as np
import numpy.typing as npt

from trainer.data.sessions import SessionSet, drop_short
from trainer.errors import TooFewSessionsError


def collapse_repeats(sessions: SessionSet) -> SessionSet:
    """Of clicks in a row on the same item the first alone, whatever their types: i, i, j, i becomes i, j, i.

    Then no session of one click.
    """
    kept = np.ones(sessions.clicks, dtype=np.bool_)
    kept[1:] = sessions.items[1:] != sessions.items[:-1]
    kept[sessions.offsets[:-1][sessions.lengths > 0]] = True
    return drop_short(_keep(sessions, kept))


def core(sessions: SessionSet, support: int) -> SessionSet:
    """Sessions of two and more clicks on items with ``support`` clicks and more.

    What one rule drops can break the other, so both repeat until nothing changes. Raises
    :class:`TooFewSessionsError` when nothing is left.
    """
    sessions = drop_short(sessions)
    while True:
        kept = sessions.support()[sessions.items] >= support
        if not kept.any():
            raise TooFewSessionsError(
                f"no items with {support} clicks stay in sessions of two and more: lower the core"
            )
        if kept.all():
            return sessions
        sessions = drop_short(_keep(sessions, kept))


def _keep(sessions: SessionSet, clicks: npt.NDArray[np.bool_]) -> SessionSet:
    """The clicks that the mask bool[n] names; sessions may become empty, and keep the time of their last click."""
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(clicks, dtype=np.int64)])
    return sessions.taken(clicks, before[sessions.offsets])
