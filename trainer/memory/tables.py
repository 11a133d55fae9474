"""What goes with what: item-to-item counts of the training sessions, the strongest of each item.

Two tables feed the session memory (:mod:`trainer.memory.terms`): items that share sessions, and items that follow
each other. Only what was seen together takes room, so a table grows with the clicks, not with items squared.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.data.sessions import SessionSet
from trainer.data.shared_sessions import Floats, Ints, shared_sessions, strongest

_MOST = 65_504.0  # the greatest float16; greater counts are told apart no more


@dataclass(frozen=True)
class ItemTable:
    """Items of each of I items, greatest count first: E entries, at most ``width`` a row.

    starts  int64[I + 1]  row j has the entries from ``starts[j]`` to ``starts[j + 1]``
    items   int32[E]
    counts  f32[E]        above 0, each a number that float16 holds, as which it is stored in a bundle
    """

    starts: Ints
    items: npt.NDArray[np.int32]
    counts: npt.NDArray[np.float32]
    width: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, item: int) -> npt.NDArray[np.int32]:
        """The items that go with an item."""
        return self.items[self.starts[item] : self.starts[item + 1]]


def transitions(sessions: SessionSet, *, width: int) -> ItemTable:
    """How often each item came right after another; an item may follow itself."""
    inside = np.ones(sessions.clicks, np.bool_)
    inside[sessions.offsets[1:] - 1] = False  # a session's last click is followed by nothing
    before = np.flatnonzero(inside)
    size = len(sessions.item_ids)
    pair, count = np.unique(sessions.items[before] * size + sessions.items[before + 1], return_counts=True)
    return _table(size, [strongest(pair // size, pair % size, count.astype(np.float64), width)], width)


def cooccurrence(sessions: SessionSet, *, width: int, longest: int) -> ItemTable:
    """How many sessions each two different items share, looking at the last ``longest`` clicks of a session.

    The bound keeps one session of thousands of clicks, a robot's, from adding millions of pairs.
    """
    pairs = shared_sessions(sessions.newest(longest))
    return _table(len(sessions.item_ids), (strongest(*part, width) for part in pairs), width)


def _table(size: int, parts: Iterable[tuple[Ints, Ints, Floats]], width: int) -> ItemTable:
    """Parts are ascending ranges of rows."""
    lengths = np.zeros(size, np.int64)
    items, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for row, item, count in parts:
        lengths += np.bincount(row, minlength=size)
        items.append(item.astype(np.int32))
        counts.append(np.minimum(count, _MOST).astype(np.float16).astype(np.float32))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return ItemTable(starts, np.concatenate(items), np.concatenate(counts), width)
