"""What a cycle trains on: the sessions of the click log's newest part, and which of them which model has seen."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.click_files.read import ClickLog
from schemas.manifest import Manifest
from trainer.click_log import ClickLogFolder, LogFile
from trainer.errors import TooFewSessionsError
from trainer.sessions import SessionSet, group_sessions

Flags = npt.NDArray[np.bool_]
Positions = Mapping[int, int]
"""For each partition of the clicks topic, the offset after the last that a model was trained on."""


@dataclass(frozen=True)
class Seen:
    """Which clicks a model was trained on: those below its positions where it was made from this log, else those up to
    a time. Nothing, without a model."""

    positions: Positions = field(default_factory=dict)
    topic_id: str | None = None
    """Of the clicks topic that the positions belong to."""
    until: int | None = None
    """Event time in milliseconds, itself included."""

    @classmethod
    def by(cls, manifest: Manifest) -> "Seen":
        """What the manifest tells: of a model of `trainer fit` only the end of its window, or its own time."""
        training = manifest.training
        until = training.get("window", {}).get("to")
        return cls(
            {int(number): int(offset) for number, offset in training.get("positions", {}).items()},
            training.get("topic_id"),
            manifest.created_at if until is None else int(until),
        )


@dataclass(frozen=True)
class Window:
    """Sessions of two and more clicks, oldest first."""

    sessions: SessionSet
    new: Flags  # [s] with clicks that the last model was not trained on
    unseen: Flags  # [s] without any click that the champion was trained on
    positions: dict[int, int]
    """The log's next offsets: what a model trained on this window has seen."""
    topic_id: str
    """Of the clicks topic that the log was collected from."""


def read_window(
    folder: ClickLogFolder, *, window_ms: int, idle_gap_ms: int, last: Seen, champion: Seen
) -> Window | None:
    """The sessions whose last click lies within `window_ms` of the log's newest click (0: all); None without clicks.

    `last` and `champion` are what the last model trained and the champion have seen. Raises ClickLogError.
    """
    state = folder.scan()
    newest = {file: folder.newest_timestamp(file) for file in state.files}
    limit = max((time for time in newest.values() if time is not None), default=0) - window_ms if window_ms else 0
    files = [file for file in state.files if (time := newest[file]) is not None and time >= limit]
    if not files:
        return None
    topic_id = folder.topic_of(state.files[-1]).topic_id
    clicks, after_last, after_champion = _read(folder, files, topic_id, last, champion)
    sessions = group_sessions(clicks, idle_gap_ms=idle_gap_ms)
    kept = (sessions.ends >= limit) & (sessions.lengths > 1)
    return Window(
        sessions.select(kept),
        new=_by_session(clicks, after_last, idle_gap_ms, np.logical_or)[kept],
        unseen=_by_session(clicks, after_champion, idle_gap_ms, np.logical_and)[kept],
        positions=state.next_offsets,
        topic_id=topic_id,
    )


def hold_out(window: Window, *, share: float, most: int) -> tuple[SessionSet, SessionSet]:
    """(older, held out): the newest sessions, none of which the champion has seen, against all that ended before them.

    At most `share` of the window, `most` sessions, and half of what the champion has not seen: the other half is what
    a challenger learns from. A champion judged on sessions that it was trained on would look better than it is. Raises
    TooFewSessionsError.
    """
    unseen = np.flatnonzero(window.unseen)
    total = len(window.sessions)
    size = min(round(total * share), most, max(1, len(unseen) // 2))
    if not 0 < size < total or not len(unseen):
        raise TooFewSessionsError(f"nothing to hold out: {len(unseen)} of {total} sessions are new to the champion")
    held = unseen[-size:]
    chosen = np.zeros(total, np.bool_)
    chosen[held] = True
    older = np.arange(total) < held[0]
    if not older.any():
        raise TooFewSessionsError(f"the holdout would leave 0 of {total} sessions to train on")
    return window.sessions.select(older), window.sessions.select(chosen)


def _by_session(clicks: ClickLog, flags: Flags, idle_gap_ms: int, combine: np.ufunc) -> Flags:
    """Combine a flag of the clicks for each session, in the order in which `group_sessions` puts them."""
    grouped = group_sessions(
        replace(clicks, item=flags.astype(np.int64), item_ids=("false", "true")), idle_gap_ms=idle_gap_ms
    )
    combined: Flags = combine.reduceat(grouped.items.astype(np.bool_), grouped.offsets[:-1])
    return combined


def _read(
    folder: ClickLogFolder, files: Sequence[LogFile], topic_id: str, *models: Seen
) -> tuple[ClickLog, Flags, Flags]:
    """The clicks of the files, and which of them each of two models has not seen."""
    tables = [folder.rows(file) for file in files]

    def new_to(seen: Seen, file: LogFile, table: Any) -> Flags:
        if seen.topic_id == topic_id:
            new: Flags = table["offset"].to_numpy() >= seen.positions.get(file.partition, 0)
        elif seen.until is not None:
            new = table["timestamp"].to_numpy() > seen.until
        else:
            new = np.ones(len(table), np.bool_)
        return new

    # In the order of partitions and offsets: clicks of the same millisecond stay in the order of their arrival.
    table = pa.concat_tables(tables)
    session, _ = _codes(table["session_id"])
    item, item_ids = _codes(table["item_id"])
    clicks = ClickLog(session, item, tuple(item_ids), table["timestamp"].to_numpy())
    last, champion = (np.concatenate([new_to(seen, *of) for of in zip(files, tables, strict=True)]) for seen in models)
    return clicks, last, champion


def _codes(column: Any) -> tuple[npt.NDArray[np.int64], Iterable[str]]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()
