"""From clicks to sessions: grouping, idle gaps, vocabulary, temporal holdout."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.click_files.read import ClickLog
from schemas.messages.click import VIEW
from trainer.errors import TooFewSessionsError

Ints = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class SessionSet:
    """Sessions one after another, the one whose last click is oldest first.

    items     int64[n]      position of each click's item in ``item_ids``
    offsets   int64[s + 1]  session i is ``items[offsets[i]:offsets[i + 1]]``
    ends      int64[s]      time of each session's last click in milliseconds; its place in the file without times
    timed     whether ``ends`` are times
    types     int32[n]      position of each click's type in ``type_names``; None where all are views
    """

    items: Ints
    offsets: Ints
    item_ids: tuple[str, ...]
    ends: Ints
    timed: bool
    types: Int32s | None = None
    type_names: tuple[str, ...] = (VIEW,)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)

    @property
    def clicks(self) -> int:
        return len(self.items)

    @property
    def transitions(self) -> int:
        """Pairs of a click and the next one: what is trained on, and what is predicted in evaluation."""
        return int(np.maximum(self.lengths - 1, 0).sum())

    def support(self) -> Ints:
        """Clicks of each item, int64[items]."""
        return np.bincount(self.items, minlength=len(self.item_ids)).astype(np.int64)

    def session_of_click(self) -> Ints:
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def select(self, sessions: npt.NDArray[np.bool_]) -> "SessionSet":
        """The sessions that the mask bool[s] names."""
        keep = np.repeat(sessions, self.lengths)
        return self.taken(keep, _offsets(self.lengths[sessions]), ends=self.ends[sessions])

    def oldest(self, clicks: int) -> "SessionSet":
        """The first ``clicks`` of each session; shorter ones whole. The time stays that of the session's last click."""
        before = np.arange(self.clicks) - np.repeat(self.offsets[:-1], self.lengths)  # clicks since the session's start
        return self.taken(before < clicks, _offsets(np.minimum(self.lengths, clicks)))

    def newest(self, clicks: int) -> "SessionSet":
        """The last ``clicks`` of each session; shorter ones whole."""
        lengths = np.minimum(self.lengths, clicks)
        if lengths.sum() == self.clicks:
            return self
        left = np.repeat(self.offsets[1:], self.lengths) - np.arange(self.clicks)  # clicks to the end of the session
        return self.taken(left <= clicks, _offsets(lengths))

    def taken(self, clicks: Ints | npt.NDArray[np.bool_], offsets: Ints, **changes: Any) -> "SessionSet":
        """Other sessions of the clicks that a mask bool[n] or their positions int64[k] name, where ``offsets`` say."""
        types = None if self.types is None else self.types[clicks]
        return replace(self, items=self.items[clicks], types=types, offsets=offsets, **changes)


def group_sessions(log: ClickLog, *, idle_gap_ms: int | None = None) -> SessionSet:
    """Group clicks by session id; in time order where there are times, ties and timeless logs in file order.

    With ``idle_gap_ms`` a click later than that after its predecessor starts a session of its own, as it does in the
    worker; the log must have times then.
    """
    if idle_gap_ms is not None and log.timestamp is None:
        raise ValueError("an idle gap needs timestamps, and this log has none: leave the idle gap out")
    row = np.arange(len(log), dtype=np.int64)
    time = row if log.timestamp is None else log.timestamp
    order = np.lexsort((time, log.session))  # stable: equal times stay in file order
    session = log.session[order]
    starts = np.ones(len(log), dtype=np.bool_)
    starts[1:] = session[1:] != session[:-1]
    del session  # here and below: a log of many clicks is not to be held more often than it must
    time = time[order]
    if idle_gap_ms is not None:
        starts[1:] |= np.diff(time) > idle_gap_ms
    offsets = np.append(np.flatnonzero(starts), len(log)).astype(np.int64)
    ends = time[offsets[1:] - 1]
    del time, row
    types = None if log.types is None else log.types[order]
    timed = log.timestamp is not None
    grouped = SessionSet(log.item[order], offsets, log.item_ids, ends, timed, types, log.type_names)
    del order
    return _reorder(grouped, np.argsort(ends, kind="stable"))


def drop_short(sessions: SessionSet) -> SessionSet:
    """Without the sessions of one click: there is nothing to predict in them."""
    return sessions.select(sessions.lengths > 1)


def joined(parts: Sequence[SessionSet]) -> SessionSet:
    """Sessions of one vocabulary and one log, part after part, each newer than the one before."""
    return replace(
        parts[0],
        items=np.concatenate([part.items for part in parts]),
        offsets=_offsets(np.concatenate([part.lengths for part in parts])),
        ends=np.concatenate([part.ends for part in parts]),
        types=None if parts[0].types is None else np.concatenate([part.types for part in parts]),
    )


def vocabulary_of(sessions: SessionSet, *, min_support: int = 1) -> tuple[str, ...]:
    """Ids of the items that have ``min_support`` clicks in sessions of two and more; most clicked first, then by id.

    Raises :class:`TooFewSessionsError` when no item has.
    """
    support = drop_short(sessions).support()
    kept = np.flatnonzero(support >= max(1, min_support)).tolist()
    if not kept:
        raise TooFewSessionsError(
            f"no item has {min_support} clicks in sessions of two and more clicks: lower min_support"
        )
    return tuple(sessions.item_ids[i] for i in sorted(kept, key=lambda i: (-support[i], sessions.item_ids[i])))


def encode(sessions: SessionSet, item_ids: Sequence[str]) -> SessionSet:
    """The same sessions in another vocabulary: clicks on items outside it are dropped, then sessions of one click."""
    index = {item: i for i, item in enumerate(item_ids)}
    mapping = np.array([index.get(item, -1) for item in sessions.item_ids], dtype=np.int64)
    numbered = replace(sessions, items=mapping[sessions.items], item_ids=tuple(item_ids))
    known = numbered.items >= 0
    lengths = np.bincount(sessions.session_of_click()[known], minlength=len(sessions)).astype(np.int64)
    return drop_short(numbered.taken(known, _offsets(lengths)))


def temporal_holdout(
    sessions: SessionSet, *, fraction: float | None = None, duration_ms: int | None = None
) -> tuple[SessionSet, SessionSet]:
    """Split by the time of the last click: (older, newest). Never at random: catalogues drift, and a random split lies.

    The newest are the last ``fraction`` of the sessions, or those whose last click lies within ``duration_ms`` of the
    newest click of all. Raises :class:`TooFewSessionsError` when a part would be empty.
    """
    if (fraction is None) == (duration_ms is None):
        raise ValueError("name either a fraction or a duration for the holdout")
    if fraction is not None:
        first = len(sessions) - round(len(sessions) * fraction)
    else:
        if not sessions.timed:
            raise ValueError("a holdout by duration needs timestamps, and these sessions have none: name a fraction")
        newest = int(sessions.ends[-1]) if len(sessions) else 0
        first = int(np.searchsorted(sessions.ends, newest - (duration_ms or 0), side="left"))
    if not 0 < first < len(sessions):
        raise TooFewSessionsError(f"the holdout would leave {first} of {len(sessions)} sessions to train on")
    newer = np.arange(len(sessions)) >= first
    return sessions.select(~newer), sessions.select(newer)


def newest_share(sessions: SessionSet, share: float) -> SessionSet:
    """The newest sessions that hold at most this share of the transitions. Raises :class:`TooFewSessionsError`."""
    transitions = np.maximum(sessions.lengths - 1, 0)
    newer = np.cumsum(transitions[::-1])[::-1]  # of each session: its transitions and those of all newer ones
    kept = newer <= share * transitions.sum()
    if not kept.any():
        raise TooFewSessionsError(f"no session fits into {share:g} of the transitions: take a greater share")
    return sessions.select(kept)


def train_and_test(train: SessionSet, test: SessionSet, *, min_support: int = 1) -> tuple[SessionSet, SessionSet]:
    """Both in the vocabulary of the training part. Raises :class:`TooFewSessionsError` when a part is empty then."""
    item_ids = vocabulary_of(train, min_support=min_support)
    encoded = encode(train, item_ids), encode(test, item_ids)
    for name, part in zip(("training", "test"), encoded, strict=True):
        if not len(part):
            raise TooFewSessionsError(f"no {name} session has two clicks on items of the vocabulary")
    return encoded


def _reorder(sessions: SessionSet, order: Ints) -> SessionSet:
    lengths = sessions.lengths[order]
    offsets = _offsets(lengths)
    # Position of each click in the old array: the old start of its session, plus its distance from the new start.
    source = np.repeat(sessions.offsets[:-1][order] - offsets[:-1], lengths)
    source += np.arange(sessions.clicks)
    return sessions.taken(source, offsets, ends=sessions.ends[order])


def _offsets(lengths: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
