"""Click files as clicks in the order of time, to be replayed as if they were live (see `stream_app.tools.pacing`).

Files hold one session after the other while live sessions interleave, so a file is read whole and sorted: a row costs
some 40 bytes besides the distinct ids, and `Click`s are made one at a time while they are iterated. Files of up to
tens of millions of rows fit in a machine's memory; larger ones are to be cut by day.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.click_files.options import ReadOptions
from schemas.click_files.read import ClickLog, FileRead, read_log
from schemas.messages.click import Click

_SLICE: Final = 65_536  # clicks taken out of the arrays at once: an element of an array costs more than one of a list
_SESSION_MS: Final = 1000  # without times: from the start of one session to the start of the next
_CLICK_MS: Final = 10_000  # and from one click of a session to its next


@dataclass(frozen=True)
class ClickFile:
    """The clicks of a file in the order of time; clicks of the same time in the order of the file.

    Iterate as often as needed. `times_ms` int64[n] are those of the file, or made up where it has none; `order`
    int64[n] are the clicks in the order of time.
    """

    log: ClickLog
    session_ids: tuple[str, ...]
    times_ms: NDArray[np.int64]
    order: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Click]:
        log = self.log
        names = (None, *log.type_names[1:])  # a view needs no name
        for start in range(0, len(self.order), _SLICE):
            rows = self.order[start : start + _SLICE]
            events = None if log.event_ids is None else [log.event_ids[row] for row in rows.tolist()]
            lines = rows if log.line is None else log.line[rows]
            types = None if log.types is None else [names[number] for number in log.types[rows].tolist()]
            columns = (log.session[rows].tolist(), log.item[rows].tolist(), self.times_ms[rows].tolist())
            for place, (session, item, time_ms) in enumerate(zip(*columns, strict=True)):
                event_id = (events[place] if events else "") or str(lines[place])
                type_name = types[place] if types else None
                yield Click(self.session_ids[session], log.item_ids[item], time_ms, event_id, type_name)

    @property
    def files(self) -> tuple[FileRead, ...]:
        """What was found in the file, or in each of a folder."""
        return self.log.files

    @property
    def skipped(self) -> int:
        """Bad rows that were left out."""
        return sum(file.bad_rows for file in self.files)

    def gaps_ms(self) -> NDArray[np.int64]:
        """How long each click comes after the one before, int64[n] in the order of time; 0 for the first one."""
        return np.diff(self.times_ms[self.order], prepend=self.times_ms[self.order[:1]])

    def shortened(self, max_gap_ms: int) -> "ClickFile":
        """The same clicks without longer gaps: where there is one, all clicks after it come earlier."""
        times_ms = np.empty_like(self.times_ms)
        times_ms[self.order] = self.first_ms + np.cumsum(np.minimum(self.gaps_ms(), max_gap_ms))
        return replace(self, times_ms=times_ms)

    @property
    def first_ms(self) -> int:
        return int(self.times_ms[self.order[0]])

    @property
    def last_ms(self) -> int:
        return int(self.times_ms[self.order[-1]])


def read_click_file(path: Path, options: ReadOptions | None = None) -> ClickFile:
    """Read a click file, or a folder of Parquet files.

    A click without an event id of its own gets the number of its line. Raises ClickFileError as `read_log` does.
    """
    log = read_log([path], options, events=True)
    times_ms = _synthetic_times(log.session) if log.timestamp is None else log.timestamp
    return ClickFile(log, log.session_ids or (), times_ms, np.argsort(times_ms, kind="stable"))


def _synthetic_times(session: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sessions start one after the other, in the order of the file, and overlap -> `[n]` milliseconds."""
    order = np.argsort(session, kind="stable")
    first = np.searchsorted(session[order], session)  # of the session's clicks, in that order
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return session * _SESSION_MS + (place - first) * _CLICK_MS
