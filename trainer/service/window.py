"""What a cycle trains on: the sessions of the click log's newest part, and which of them which model has seen."""

import itertools
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from schemas.bundle.manifest import Manifest
from schemas.click_files.read import ClickLog
from schemas.messages.click import VIEW
from trainer.data.sessions import SessionSet, group_sessions
from trainer.errors import TooFewSessionsError
from trainer.service.click_log import ClickLogFolder, LogFile, LogState
from trainer.service.settings import TrainerRoot

log = structlog.get_logger(__name__)

Flags = npt.NDArray[np.bool_]
Times = npt.NDArray[np.int64]
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
        return cls.of(manifest.training, manifest.created_at)

    @classmethod
    def of(cls, record: Mapping[str, Any], created_at: int) -> "Seen":
        """The same from a manifest's record of a training or of a refresh."""
        try:
            until = record.get("window", {}).get("to")
            return cls(
                {int(number): int(offset) for number, offset in record.get("positions", {}).items()},
                record.get("topic_id"),
                created_at if until is None else int(until),
            )
        except (AttributeError, TypeError, ValueError):  # a bundle by other hands: that part of a manifest is free
            return cls(until=created_at)

    def not_yet(self, table: Any, partition: int, topic_id: str) -> Flags:
        """Which clicks of a partition, rows of a table of the click log, the model has not seen: bool[rows]."""
        if self.topic_id == topic_id:
            new: Flags = table["offset"].to_numpy() >= self.positions.get(partition, 0)
        elif self.until is not None:
            new = table["timestamp"].to_numpy() > self.until
        else:
            new = np.ones(len(table), np.bool_)
        return new


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
    left_out: int = 0
    """Clicks within the window's time that were too many to be read."""


def window_of(
    root: TrainerRoot, folder: ClickLogFolder, collected: LogState, *, last: Seen, champion: Seen
) -> Window | None:
    """The window that the settings name, of what was found in the folder; see :func:`read_window`."""
    settings = root.trainer
    window = read_window(
        folder,
        collected,
        window_ms=round(settings.window * 1000),
        idle_gap_ms=root.clicks.idle_gap_ms,
        moving=root.clicks.moving,
        window_clicks=settings.window_clicks,
        session_clicks=settings.session_clicks,
        last=last,
        champion=champion,
    )
    if window is not None and window.left_out:
        log.warning(
            "the window holds more clicks than fit: the oldest are left out (trainer.window_clicks)",
            clicks=settings.window_clicks, left_out=window.left_out,
        )  # fmt: skip
    return window


def read_window(
    folder: ClickLogFolder,
    state: LogState,
    *,
    window_ms: int,
    idle_gap_ms: int,
    last: Seen,
    champion: Seen,
    window_clicks: int | None = None,
    session_clicks: int | None = None,
    moving: Set[str] | None = None,
) -> Window | None:
    """The sessions whose last click lies within `window_ms` of the log's newest click (0: all); None without clicks.

    `state` is what was found in the folder: files that came since are not looked at.

    Of more than `window_clicks` the newest are read; a session that begins before them loses its first ones. Of each
    session the newest `session_clicks` count. Clicks of types that are not `moving` (None: all are) are no part of a
    session, as in a worker. `last` and `champion` are what the last model trained and the champion have seen. Raises
    ClickLogError.
    """
    newest = {file: time for file in state.files if (time := folder.newest_timestamp(file)) is not None}
    if not newest:
        return None
    limit = max(newest.values()) - window_ms if window_ms else 0
    newest = {file: time for file, time in newest.items() if time >= limit}
    counts = {file: folder.count(file) for file in newest}
    taken = _newest_clicks(folder, newest, counts, window_clicks)
    topic_id = folder.topic_of(state.files[-1]).topic_id
    clicks, after_last, after_champion = _read(folder, taken, topic_id, last, champion)
    left_out = sum(counts.values()) - len(clicks)
    if moving is not None:
        moved = clicks.are_of(moving)
        clicks, after_last, after_champion = clicks.where(moved), after_last[moved], after_champion[moved]
    # The clicks' numbers in place of their items: what is known of a click finds its session by them.
    grouped = group_sessions(replace(clicks, item=np.arange(len(clicks))), idle_gap_ms=idle_gap_ms)
    click, starts = grouped.items, grouped.offsets[:-1]
    sessions = replace(grouped, items=clicks.item[click])
    kept = (sessions.ends >= limit) & (sessions.lengths > 1)
    chosen = sessions.select(kept)
    return Window(
        chosen if session_clicks is None else chosen.newest(session_clicks),
        new=np.logical_or.reduceat(after_last[click], starts)[kept],
        unseen=np.logical_and.reduceat(after_champion[click], starts)[kept],
        positions=state.next_offsets,
        topic_id=topic_id,
        left_out=left_out,
    )


def hold_out(window: Window, *, share: float, most: int) -> tuple[SessionSet, SessionSet]:
    """(older, held out): the newest sessions, none of which the champion has seen, against all that ended before them.

    At most `share` of the window, `most` sessions, and half of what the champion has not seen: the other half is what
    a challenger learns from. A champion judged on sessions that it was trained on would look better than it is. Raises
    TooFewSessionsError.
    """
    unseen = np.flatnonzero(window.unseen)
    total = len(window.sessions)
    size = min(max(1, round(total * share)), most, max(1, len(unseen) // 2))
    if not 0 < size < total or not len(unseen):
        raise TooFewSessionsError(f"nothing to hold out: {len(unseen)} of {total} sessions are new to the champion")
    held = unseen[-size:]
    chosen = np.zeros(total, np.bool_)
    chosen[held] = True
    older = np.arange(total) < held[0]
    if not older.any():
        raise TooFewSessionsError(f"the holdout would leave 0 of {total} sessions to train on")
    return window.sessions.select(older), window.sessions.select(chosen)


def _newest_clicks(
    folder: ClickLogFolder, newest: Mapping[LogFile, int], counts: Mapping[LogFile, int], most: int | None
) -> dict[LogFile, int]:
    """How many clicks to read of which files, in the files' order: of too many the newest, in whichever files.

    A file may span weeks, as files are joined, and another partition's the same weeks.
    """
    if most is None or sum(counts.values()) <= most:
        return {file: counts[file] for file in sorted(counts) if counts[file]}
    oldest = _time_of_newest(folder, newest, most)
    later: dict[LogFile, int] = {}
    as_old: dict[LogFile, int] = {}
    for file in sorted(file for file in newest if newest[file] >= oldest):
        times = folder.times(file)
        later[file], as_old[file] = int((times > oldest).sum()), int((times == oldest).sum())
    room = most - sum(later.values())
    taken: dict[LogFile, int] = {}
    for file, count in later.items():
        same = min(as_old[file], room)
        taken[file] = count + same
        room -= same
    return {file: count for file, count in taken.items() if count}


def _time_of_newest(folder: ClickLogFolder, newest: Mapping[LogFile, int], most: int) -> int:
    """The time of the `most`-th newest click. About twice as many times are held at once, and not the log's."""
    kept: Times = np.empty(0, np.int64)
    more: list[Times] = []
    oldest: int | None = None  # of those kept, once they are enough
    for file in sorted(newest, key=lambda file: newest[file], reverse=True):
        if oldest is not None and newest[file] <= oldest:
            break  # and so are all files from here on
        more.append(folder.times(file))
        if sum(map(len, more)) >= most:
            kept, more = _latest(np.concatenate([kept, *more]), most), []
            oldest = int(kept.min())
    return int(_latest(np.concatenate([kept, *more]), most).min())


def _latest(times: Times, most: int) -> Times:
    if len(times) > most:
        times.partition(len(times) - most)
    return times[-most:].copy()


def _read(
    folder: ClickLogFolder, taken: Mapping[LogFile, int], topic_id: str, last: Seen, champion: Seen
) -> tuple[ClickLog, Flags, Flags]:
    """The newest clicks of the files, as many as named, and which of them each of the two models has not seen.

    In the order of partitions and offsets: clicks of the same millisecond stay in the order of their arrival.
    """
    count = sum(taken.values())
    session, time = np.empty(count, np.int64), np.empty(count, np.int64)
    after_last, after_champion = np.empty(count, np.bool_), np.empty(count, np.bool_)
    items: list[Any] = []
    types, type_names = np.zeros(count, np.int32), {VIEW: 0}
    at = known = 0
    for partition, files in itertools.groupby(taken, key=lambda file: file.partition):
        ids: list[Any] = []
        begin = at
        for file in files:
            table = _newest_rows(folder.rows(file, encoded=True), taken[file])
            part = slice(at, at := at + len(table))
            time[part] = table["timestamp"].to_numpy()
            after_last[part] = last.not_yet(table, partition, topic_id)
            after_champion[part] = champion.not_yet(table, partition, topic_id)
            ids += table["session_id"].chunks
            items += table["item_id"].chunks
            if table["type"].null_count < len(table):
                kinds = pc.fill_null(table["type"], VIEW).combine_chunks().dictionary_encode()
                numbers = [type_names.setdefault(name, len(type_names)) for name in kinds.dictionary.to_pylist()]
                types[part] = np.array(numbers, np.int32)[kinds.indices.to_numpy()]
            del table
        # A session lies in one partition, so its text is not needed beyond it.
        names = _codes(ids, session[begin:at])
        session[begin:at] += known
        known += len(names)
        del ids, names
    item = np.empty(at, np.int64)  # fewer than there were, where a session was forgotten meanwhile
    item_ids = _codes(items, item).to_pylist()
    clicks = ClickLog(session[:at], item, tuple(item_ids), time[:at])
    if len(type_names) > 1:
        clicks = replace(clicks, types=types[:at], type_names=tuple(type_names))
    return clicks, after_last[:at], after_champion[:at]


def _newest_rows(table: Any, count: int) -> Any:
    if count >= len(table):
        return table
    newest = np.argpartition(table["timestamp"].to_numpy(), -count)[-count:]
    return table.take(np.sort(newest))


def _codes(chunks: list[Any], out: npt.NDArray[np.int64]) -> Any:
    """Write the indices of dictionary arrays into `out`, int64[rows]; returns their texts, as pyarrow has them."""
    at, unified = 0, pa.chunked_array(chunks).unify_dictionaries()
    for chunk in unified.chunks:
        out[at : (at := at + len(chunk))] = chunk.indices.to_numpy()
    return unified.chunk(0).dictionary
