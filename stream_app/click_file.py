"""A click file as clicks in the order of time, to be replayed as if they were live (see `stream_app.pacing`).

Files hold one session after the other while live sessions interleave, so a file is read whole and sorted: a row costs
some 40 bytes besides the distinct ids, and `Click`s are made one at a time while they are iterated. Files of up to
tens of millions of rows fit in a machine's memory; larger ones are to be cut by day.
"""

import csv
import gzip
import io
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from schemas.click import MAX_ID_BYTES, Click

_DELIMITERS = {".tsv": "\t", ".csv": ",", ".txt": "\t"}
_SESSION_COLUMN, _ITEM_COLUMN, _TIME_COLUMN, _EVENT_COLUMN = "session_id", "item_id", "timestamp", "event_id"
# The year 5138 in seconds and 1973 in milliseconds: a larger number of seconds is a number of milliseconds.
_LARGEST_SECONDS = 1e11
_LARGEST_MS = int(_LARGEST_SECONDS * 1000)
_EXAMPLES = 5
_SLICE = 65_536  # clicks taken out of the arrays at once: an element of an array costs more than one of a list


class ClickFileError(ValueError):
    """The file is no click file. The text names the file, the line if there is one, the cause and what to do."""


@dataclass(frozen=True, kw_only=True)
class ClickFileFormat:
    """How to read a click file. The first line holds the names of the columns; other columns are ignored."""

    delimiter: str | None = None
    """None: a tab for .tsv and .txt, a comma for .csv, before an optional .gz. With a tab, quotes mean nothing."""
    session_column: str = _SESSION_COLUMN
    item_column: str = _ITEM_COLUMN
    time_column: str | None = None
    """None: `timestamp`; a file without such a column gets synthetic times. A column that is named must be there."""
    event_column: str | None = None
    """None: `event_id`, if there is one. A click without an event id gets its line number in the file."""
    time_unit: Literal["s", "ms"] = "s"
    """Seconds may have a fraction; it is rounded to milliseconds."""
    skip_bad_rows: bool = False
    """Count bad rows and leave them out, instead of refusing the file."""
    synthetic_session_ms: int = 1000
    """Without times: from the start of one session to the start of the next, in the order of the file."""
    synthetic_click_ms: int = 10_000
    """Without times: from one click of a session to its next."""

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"'):
            raise ValueError(f"delimiter {self.delimiter!r} is not one character that can part columns")
        if self.synthetic_session_ms < 0 or self.synthetic_click_ms < 1:
            raise ValueError("synthetic_session_ms must be at least 0 and synthetic_click_ms at least 1")


@dataclass(frozen=True)
class ClickFile:
    """The clicks of a file in the order of time; clicks of the same time in the order of the file.

    Iterate as often as needed. `n` clicks; ids are held once each and shared.
    """

    path: Path
    session_ids: Sequence[str]  # [n] in file order
    item_ids: Sequence[str]  # [n]
    event_ids: Sequence[str] | None  # [n], or None: the line number is the event id
    lines: NDArray[np.int64]  # [n] line of the file, from 1; the header is line 1
    times_ms: NDArray[np.int64]  # [n]
    order: NDArray[np.int64]  # [n] the clicks in the order of time
    skipped: int  # bad rows left out
    first_skipped: tuple[str, ...]  # what was wrong with the first few of them

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Click]:
        for start in range(0, len(self.order), _SLICE):
            rows = self.order[start : start + _SLICE]
            columns = (rows.tolist(), self.lines[rows].tolist(), self.times_ms[rows].tolist())
            for row, line, time_ms in zip(*columns, strict=True):
                event_id = str(line) if self.event_ids is None else self.event_ids[row]
                yield Click(self.session_ids[row], self.item_ids[row], time_ms, event_id)

    @property
    def first_ms(self) -> int:
        return int(self.times_ms[self.order[0]])

    @property
    def last_ms(self) -> int:
        return int(self.times_ms[self.order[-1]])


@dataclass(frozen=True)
class _Columns:
    """Places of the columns in a row."""

    count: int
    session: int
    item: int
    time: int | None
    event: int | None


class _BadRowError(Exception):
    """What is wrong with a row; its reader knows the line."""


def read_click_file(path: Path, file_format: ClickFileFormat | None = None) -> ClickFile:
    """Read a TSV or CSV file with a header, gzipped (by its content, not its name) or not, UTF-8.

    Raises ClickFileError when the file cannot be read, has no clicks, lacks a column, or has a bad row (unless
    `skip_bad_rows`): another number of fields than the header, an id that is empty, over 256 bytes or not UTF-8, a time
    that is no number, is negative or is in another unit.
    """
    f = file_format or ClickFileFormat()
    sessions, items, events = list[str](), list[str](), list[str]()
    lines, times = array("q"), array("q")
    skipped, first_skipped = 0, list[str]()
    shared: dict[str, str] = {}  # one string for each distinct id
    with _rows(path, f) as rows:
        header = next(rows, None)
        if header is None:
            raise ClickFileError(f"{path} is empty; a click file begins with a line of column names")
        columns = _columns(path, header[1], f)
        for line, row in rows:
            try:
                session, item, event, time_ms = _checked(row, columns, f.time_unit)
            except _BadRowError as problem:
                text = f"{path}, line {line}: {problem}"
                if not f.skip_bad_rows:
                    raise ClickFileError(f"{text}. Mend the row, or skip bad rows") from None
                skipped += 1
                if len(first_skipped) < _EXAMPLES:
                    first_skipped.append(text)
                continue
            sessions.append(shared.setdefault(session, session))
            items.append(shared.setdefault(item, item))
            lines.append(line)
            times.append(time_ms)
            if columns.event is not None:
                events.append(event or str(line))
    if not sessions:
        raise ClickFileError(f"{path} holds no clicks" + (f", only {skipped} bad rows" if skipped else ""))
    times_ms = np.array(times, dtype=np.int64) if columns.time is not None else _synthetic_times(sessions, f)
    return ClickFile(
        path=path,
        session_ids=sessions,
        item_ids=items,
        event_ids=events if columns.event is not None else None,
        lines=np.array(lines, dtype=np.int64),
        times_ms=times_ms,
        order=np.argsort(times_ms, kind="stable"),
        skipped=skipped,
        first_skipped=tuple(first_skipped),
    )


@contextmanager
def _rows(path: Path, f: ClickFileFormat) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """(line, fields) of every row that is not blank, the header first."""
    delimiter = f.delimiter or _delimiter(path)
    try:
        # Bytes that are not UTF-8 come through as lone surrogates, so that the row they stand in can be named.
        with _open(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as text:
            # Strict: a quote that is never closed would swallow the rest of the file as one bad row.
            quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
            reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)
            yield ((reader.line_num, row) for row in reader if row)
    except csv.Error as error:
        raise ClickFileError(f"{path}, line {reader.line_num}: {error}; is {delimiter!r} the delimiter?") from error
    except (OSError, EOFError, zlib.error) as error:
        cause = getattr(error, "strerror", None) or error
        raise ClickFileError(f"{path} cannot be read: {cause}") from error


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if zipped else path.open("rb")


def _delimiter(path: Path) -> str:
    suffix = next((suffix for suffix in reversed(path.suffixes) if suffix.lower() != ".gz"), "").lower()
    if suffix not in _DELIMITERS:
        raise ClickFileError(f"{path}: the name does not tell the delimiter; name it, or use one of .tsv, .csv, .txt")
    return _DELIMITERS[suffix]


def _columns(path: Path, header: Sequence[str], f: ClickFileFormat) -> _Columns:
    if len(set(header)) < len(header):
        raise ClickFileError(f"{path}: two columns have the same name: {_printable(header)}")
    places = {name: place for place, name in enumerate(header)}
    wanted = [f.session_column, f.item_column, *(name for name in (f.time_column, f.event_column) if name is not None)]
    if missing := [name for name in wanted if name not in places]:
        raise ClickFileError(
            f"{path} has no column {' and no column '.join(missing)}; it has {_printable(header)}. "
            "Name the right columns, or the right delimiter"
        )
    return _Columns(
        count=len(header),
        session=places[f.session_column],
        item=places[f.item_column],
        time=places.get(f.time_column or _TIME_COLUMN),
        event=places.get(f.event_column or _EVENT_COLUMN),
    )


def _printable(header: Sequence[str]) -> str:
    # What is read as a header may be anything: another encoding, a picture.
    text = ", ".join(header).encode(errors="backslashreplace").decode()
    return text if len(text) <= 300 else f"{text[:300]}..."


def _checked(row: Sequence[str], columns: _Columns, unit: Literal["s", "ms"]) -> tuple[str, str, str, int]:
    """Session id, item id, event id (may be empty), time in milliseconds (0 without a column)."""
    if len(row) != columns.count:
        raise _BadRowError(f"{len(row)} fields, the header has {columns.count}")
    session, item = row[columns.session], row[columns.item]
    event = "" if columns.event is None else row[columns.event]
    for name, value in (("session", session), ("item", item), ("event", event)):
        if not value and name != "event":
            raise _BadRowError(f"the {name} id is empty")
        if not value.isascii() or len(value) > MAX_ID_BYTES:
            try:
                size = len(value.encode())
            except UnicodeEncodeError:
                raise _BadRowError(f"the {name} id is not UTF-8") from None
            if size > MAX_ID_BYTES:
                raise _BadRowError(f"the {name} id has {size} bytes, the limit is {MAX_ID_BYTES}")
    return session, item, event, 0 if columns.time is None else _milliseconds(row[columns.time], unit)


def _milliseconds(text: str, unit: Literal["s", "ms"]) -> int:
    shown = repr(text[:40])
    try:
        number = float(text) if unit == "s" else int(text)
    except ValueError:
        expected = "a number of seconds" if unit == "s" else "a whole number of milliseconds"
        raise _BadRowError(f"the time {shown} is not {expected}") from None
    if not number >= 0:  # nor is "nan"
        raise _BadRowError(f"the time {shown} is not a time since 1970")
    if number > (_LARGEST_SECONDS if unit == "s" else _LARGEST_MS):
        advice = "; is it in milliseconds?" if unit == "s" else ""
        raise _BadRowError(f"the time {shown} is after the year 5000{advice}")
    return round(number * 1000) if unit == "s" else int(number)


def _synthetic_times(sessions: Sequence[str], f: ClickFileFormat) -> NDArray[np.int64]:
    """Session k starts at k * synthetic_session_ms, its clicks follow at synthetic_click_ms -> `[n]` milliseconds."""
    next_click: dict[str, int] = {}
    times = array("q")
    for session in sessions:
        time_ms = next_click.get(session, len(next_click) * f.synthetic_session_ms)
        next_click[session] = time_ms + f.synthetic_click_ms
        times.append(time_ms)
    return np.array(times, dtype=np.int64)
