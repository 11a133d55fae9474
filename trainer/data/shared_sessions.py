"""How many sessions every two items share, a part of the items at a time, and the strongest of what goes with each.

Pairs grow with the square of a session's length, so whoever counts looks at the newest clicks of a session alone
(:meth:`trainer.data.sessions.SessionSet.newest`); what is held at once is bounded here.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from trainer.data.sessions import SessionSet

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_ENTRIES: Final = 2_000_000
"""Pairs of items held at once; more only where a single item has more."""


def shared_sessions(sessions: SessionSet) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Pairs of different items and the number of sessions with both: item int64[e], other int64[e], count f64[e].

    Each item's pairs are in one part, and the parts go through the items in order.
    """
    size = len(sessions.item_ids)
    ones = np.ones(sessions.clicks, np.float32)
    contains = sparse.csc_array((ones, (sessions.session_of_click(), sessions.items)), shape=(len(sessions), size))
    contains.sum_duplicates()
    contains.data[:] = 1.0  # an item clicked twice is in the session once
    by_session = contains.tocsr()
    # An item has no more pairs than its sessions have items, nor than there are items.
    most = np.minimum(contains.T @ np.diff(by_session.indptr).astype(np.float64), size)
    upto, first = np.cumsum(most), 0
    while first < size:
        done = upto[first - 1] if first else 0.0
        stop = max(first + 1, int(np.searchsorted(upto, done + _ENTRIES, side="right")))
        shared = sparse.coo_array(contains[:, first:stop].T @ by_session)
        item, other = shared.row.astype(np.int64) + first, shared.col.astype(np.int64)
        apart = item != other
        yield item[apart], other[apart], shared.data[apart].astype(np.float64)
        first = stop


def strongest(row: Ints, item: Ints, value: Floats, width: int) -> tuple[Ints, Ints, Floats]:
    """The ``width`` greatest entries of each row, of equal ones those of the lower items; rows in order."""
    order = np.lexsort((item, -value, row))
    row, item, value = row[order], item[order], value[order]
    first = np.flatnonzero(np.diff(row, prepend=-1))  # where each row begins
    place = np.arange(len(row)) - np.repeat(first, np.diff(first, append=len(row)))
    kept = place < width
    return row[kept], item[kept], value[kept]
