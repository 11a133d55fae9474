"""Paths in, clicks out: the one reader of click files, of `stream-app replay` and of the trainer."""

import csv
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from schemas.click_files import json_lines
from schemas.click_files.clock import DAY_MS, Clock
from schemas.click_files.columns import Bools, Int32s, Ints, looked_up, where
from schemas.click_files.container import BLOCK, DAMAGED, Content, cause, opened
from schemas.click_files.delimited import Delimited, delimiter_of, fields_of, quotes_mean, whole_lines
from schemas.click_files.forms import Form, Layout, layout_of
from schemas.click_files.ids import Ids, id_reason
from schemas.click_files.options import ReadOptions, TimeUnit
from schemas.click_files.parquet import opened_parquet
from schemas.click_files.rows import BadRow, Rows
from schemas.click_files.types import UNKNOWN, TypeNumbers, wrong_type
from schemas.errors import ClickFileError
from schemas.messages.click import VIEW

EXAMPLES: Final = 100  # bad rows that a report names
_SHOWN: Final = 5  # of these in a message
_LONELY_DAYS: Final = 30
_FIRST: Final = 100  # lines by which a file of JSON is recognised: the very first may be torn
_DELIMITERS: Final = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}


@dataclass
class FileRead:
    """What was found in a file.

    described     what it was taken for, in words
    bad_rows      rows that are no clicks and were left out, and the first of them
    warnings      what may be wrong with it
    """

    path: Path
    layout: Layout
    described: str
    bad_rows: int = 0
    bad_examples: list[BadRow] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def bad(self, row: BadRow, count: int = 1) -> None:
        """Count a bad row."""
        self.bad_rows += count
        if len(self.bad_examples) < EXAMPLES:
            self.bad_examples.append(row)

    def told(self) -> str:
        """What was found where there are no clicks."""
        return f"{'only ' + self.bad_rows_told() if self.bad_rows else 'not one row'}. Read as {self.described}"

    def bad_rows_told(self) -> str:
        """How many, and where the first ones stand."""
        where = "; ".join(f"{row.place}: {row.reason}" for row in self.bad_examples[:_SHOWN])
        more = "; .." if self.bad_rows > _SHOWN else ""
        return f"{self.bad_rows} bad row{'s' if self.bad_rows > 1 else ''} ({where}{more})"


@dataclass(frozen=True)
class ClickLog:
    """Clicks in the order of the files, ids replaced by numbers.

    session    int64[n]  number of the click's session
    item       int64[n]  position of the click's item in `item_ids`
    timestamp  int64[n]  milliseconds since the epoch, or None where the order of the rows is all there is
    types      int32[n]  position of the click's type in `type_names`, or None where all are views

    For those who ask for events, else None:

    session_ids          id of each session, by number
    line       int64[n]  line of the click, or its row in a Parquet file
    event_ids  [n]       the producer's own, "" where there is none; None without such a column
    """

    session: Ints
    item: Ints
    item_ids: tuple[str, ...]
    timestamp: Ints | None
    session_ids: tuple[str, ...] | None = None
    line: Ints | None = None
    event_ids: tuple[str, ...] | None = None
    files: tuple[FileRead, ...] = ()
    types: Int32s | None = None
    type_names: tuple[str, ...] = (VIEW,)

    def __len__(self) -> int:
        return len(self.session)

    def are_of(self, types: Set[str]) -> Bools:
        """Which clicks are of one of these types, `[n]`."""
        of_type = np.array([name in types for name in self.type_names])
        return np.full(len(self), of_type[0]) if self.types is None else of_type[self.types]

    def where(self, keep: Bools) -> "ClickLog":
        """The clicks that the mask `[n]` names."""
        return replace(
            self,
            session=self.session[keep],
            item=self.item[keep],
            timestamp=None if self.timestamp is None else self.timestamp[keep],
            line=None if self.line is None else self.line[keep],
            event_ids=None if self.event_ids is None else tuple(where(self.event_ids, keep)),
            types=None if self.types is None else self.types[keep],
        )


def read_log(
    paths: Sequence[Path], options: ReadOptions | None = None, *, now_ms: int | None = None, events: bool = False
) -> ClickLog:
    """The clicks of one file, or of several of one form as if they stood one after the other in one.

    A folder stands for the Parquet files in it. A session id is the same session in all files. `events`: the lines and
    the producer's ids as well. `now_ms` is the clock by which a click is from the future; by default this machine's.

    Raises ClickFileError when a file cannot be read, lacks a column, ends inside a record, has no clicks or has a bad
    row (unless `skip_bad_rows`), and for files that are no one log.
    """
    options = options or ReadOptions()
    collected = _Collected(options, time.time_ns() // 1_000_000 if now_ms is None else now_ms, events)
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise ClickFileError(f"{path}: is named twice, and its clicks would count twice: name it once")
        clicks = len(collected)
        for file in _files(path):
            collected.add(file)
        if len(collected) == clicks:
            raise ClickFileError(f"{path}: holds no clicks, {collected.last.told()}")
    return collected.log()


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ClickFileError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [path]
    if not (files := sorted(path.glob("*.parquet"))):
        raise ClickFileError(f"{path}: no .parquet files in this folder: name the files themselves")
    return files


class _Collected:
    """What was read so far."""

    def __init__(self, options: ReadOptions, now_ms: int, events: bool) -> None:
        self._options = options
        self._now_ms = now_ms
        self._events = events
        self._sessions, self._items = Ids(), Ids()
        self._parts: dict[str, list[Ints]] = {name: [] for name in ("session", "item", "timestamp", "line")}
        self._event_ids: list[bytes] = []
        self._type_numbers = {VIEW: 0}
        self._types: list[tuple[int, Int32s | None]] = []  # clicks, and the types of each; None where all are views
        self._files: list[FileRead] = []

    def __len__(self) -> int:
        return sum(map(len, self._parts["session"]))

    @property
    def last(self) -> FileRead:
        """The file that was read last."""
        return self._files[-1]

    def add(self, path: Path) -> None:
        """Read a file. Whatever is wrong with it is told with its name."""
        try:
            with ExitStack() as stack:
                content = stack.enter_context(opened(path))
                if content.is_parquet:
                    layout, typed, rows = stack.enter_context(opened_parquet(path, self._options))
                    unit = TimeUnit.MILLISECONDS if typed else self._options.timestamps
                    clock = Clock(self._now_ms, unit, TimeUnit.MILLISECONDS)
                    self._take(FileRead(path, layout, "Parquet"), rows, clock)
                else:
                    self._add_text(path, content)
        except ClickFileError as error:
            known = str(error).startswith(str(path))
            raise error if known else ClickFileError(f"{path}: {error}") from error

    def _add_text(self, path: Path, content: Content) -> None:
        blocks = whole_lines(iter(_Counted(content)))
        lines, skipped, blocks = _first_lines(blocks)
        if objects := json_lines.objects_of(lines):
            layout = json_lines.layout_of_json(objects, self._options)
            clock = Clock(self._now_ms, self._options.timestamps, TimeUnit.MILLISECONDS)
            file = FileRead(path, layout, "JSON lines")
            source: Iterable[Rows] = json_lines.read_json(blocks, layout)
        else:
            _refuse_no_text(lines[0], skipped + 1)
            text = lines[0].decode("utf-8", "surrogateescape")
            try:
                delimiter = self._options.delimiter or delimiter_of(text)
                names = fields_of(text, delimiter)
            except csv.Error as error:
                raise ClickFileError(f"line {skipped + 1}: {error}") from error
            layout = layout_of(names, self._options, first_line=text, file_name=path.name)
            counted = TimeUnit.SECONDS if layout.form.may_count_seconds else TimeUnit.MILLISECONDS
            clock = Clock(self._now_ms, self._options.timestamps, counted)
            delimiter = delimiter if layout.header else self._options.delimiter or ","
            file = FileRead(path, layout, f"text with {_DELIMITERS.get(delimiter, repr(delimiter))}")
            if layout.header:
                blocks = _after(blocks, skipped + 1)
            first_line = skipped + 2 if layout.header else 1
            source = Delimited(blocks, layout, delimiter, quotes=quotes_mean(text, delimiter), first=first_line)
        if content.wrapped:
            file.described += f", {content.wrapped}"
        self._take(file, source, clock)
        if isinstance(source, Delimited) and source.spanning:
            file.warnings.append(
                f"records over several lines: {source.spanning} (first: lines {source.first_spanning}): is a quote "
                "missing?"
            )

    def _take(self, file: FileRead, source: Iterable[Rows], clock: Clock) -> None:
        self._compare(file)
        numbers = TypeNumbers(form := file.layout.form, self._wanted_of(form), self._type_numbers)
        for rows in source:
            self._add_rows(file, *_clicks_of(file, rows, numbers), clock)
        times = f" in {clock.described()}" if file.layout.time is not None and clock.dates is not None else ""
        file.described = f"{form.name}: {file.described}; {file.layout.described()}{times}"
        if clock.relative:
            file.warnings.append(
                f"its times are no dates, and are taken as {clock.unit or clock.counted} since a beginning"
            )
        if file.bad_rows and not self._options.skip_bad_rows:
            raise ClickFileError(
                f"{file.bad_rows_told()}. Repair them, or leave them out with --skip-bad-rows. Read as {file.described}"
            )

    def _wanted_of(self, form: Form) -> Set[str] | None:
        """The types that are read of a file of this form; None for all. Of public logs views alone, unless asked."""
        if self._options.types is None:
            return {VIEW} if form.kinds else None
        wanted, known = self._options.wanted, set(form.kinds.values()) if form.kinds else None
        if wanted and known and (unknown := sorted(wanted - known)):
            raise ClickFileError(
                f"--types: a log of the form {form.name} has no clicks of the type {', '.join(unknown)}; it has "
                f"{', '.join(sorted(name for name in known if name))}"
            )
        return wanted

    def _compare(self, file: FileRead) -> None:
        """Files of one log are of one form."""
        if self._files:
            first, form = self._files[0], file.layout.form
            if form is not first.layout.form:
                raise ClickFileError(
                    f"is of the form {form.name}, and {first.path} of the form {first.layout.form.name}: files of one "
                    "log are of one form; leave one out, or name the --format"
                )
            if (file.layout.time is None) != (first.layout.time is None):
                without, having = (file, first) if file.layout.time is None else (first, file)
                raise ClickFileError(
                    f"{without.path}: has no timestamps, and {having.path} has some: give each file the column, or none"
                )
        self._files.append(file)

    def _add_rows(self, file: FileRead, rows: Rows, types: Int32s | None, clock: Clock) -> None:
        if not len(rows.numbers):
            return
        session, good_session = self._sessions.numbers(rows.session)
        item, good_item = self._items.numbers(rows.item)
        good = good_session & good_item
        times = None
        if rows.time is not None:
            times, good_time = clock.milliseconds(rows.time, rows.since)
            good &= good_time
        if self._events and rows.event is not None:
            good &= np.array([not value or id_reason(value) is None for value in rows.event])
        if not good.all():
            bad = np.flatnonzero(~good)
            for place in bad[: EXAMPLES - len(file.bad_examples)].tolist():
                file.bad(BadRow(_place(file, rows, place), _reason(file.layout, rows, place, clock)), 0)
            file.bad_rows += len(bad)
        for name, values in (("session", session), ("item", item), ("timestamp", times)):
            if values is not None:
                self._parts[name].append(values if good.all() else values[good])
        self._types.append((int(good.sum()), None if types is None else types[good]))
        if self._events:
            self._parts["line"].append(rows.numbers[good])
            if rows.event is not None:
                self._event_ids += where(rows.event, good)

    def log(self) -> ClickLog:
        """All of it."""

        def joined(name: str) -> Ints | None:
            parts = self._parts.pop(name)
            return np.concatenate(parts) if parts else None

        session, item, timestamp = joined("session"), joined("item"), joined("timestamp")
        if session is None or item is None:
            raise ClickFileError("no file is named")
        types = None
        if len(self._type_numbers) > 1:
            types = np.concatenate([np.zeros(count, np.int32) if of is None else of for count, of in self._types])
        has_events = self._events and all(file.layout.event is not None for file in self._files)
        log = ClickLog(
            session,
            item,
            self._items.texts(),
            timestamp,
            self._sessions.texts() if self._events else None,
            joined("line"),
            tuple(value.decode() for value in self._event_ids) if has_events else None,
            tuple(self._files),
            types,
            tuple(self._type_numbers),
        )
        if timestamp is not None and (told := _lonely(timestamp, lambda place: self._sessions.text(session[place]))):
            self._files[-1].warnings.append(told)
        return log


def _clicks_of(file: FileRead, rows: Rows, numbers: TypeNumbers) -> tuple[Rows, Int32s | None]:
    """The rows that are clicks of types that are read, and the number of each one's type, None for views alone.

    Unknown types and broken rows are bad.
    """
    for broken in rows.broken:
        file.bad(broken)
    if not len(rows.numbers):
        return rows, None
    if rows.kind is None:
        types = np.full(len(rows.numbers), numbers[b""], np.int32)
    else:
        types = looked_up(rows.kind, numbers).astype(np.int32)
        for place in np.flatnonzero(types == UNKNOWN).tolist():
            file.bad(BadRow(_place(file, rows, place), wrong_type(file.layout.form, rows.kind[place])))
    keep = types >= 0
    if keep.all():
        return rows, types if types.any() else None
    types = types[keep]
    clicks = replace(
        rows,
        numbers=rows.numbers[keep],
        session=where(rows.session, keep),
        item=where(rows.item, keep),
        time=None if rows.time is None else where(rows.time, keep),
        since=None if rows.since is None else where(rows.since, keep),
        event=None if rows.event is None else where(rows.event, keep),
    )
    return clicks, types if types.any() else None


def _place(file: FileRead, rows: Rows, place: int) -> str:
    number = rows.numbers[place]
    return f"row {number}" if file.described.startswith("Parquet") else f"line {number}"


def _reason(layout: Layout, rows: Rows, place: int, clock: Clock) -> str:
    names = layout.names
    for column, at in ((rows.session, layout.session), (rows.item, layout.item), (rows.event, layout.event)):
        if column is None or at is None or (column is rows.event and not column[place]):
            continue
        if reason := id_reason(column[place]):
            return f"{names[at]} {reason}"
    if layout.time is None or rows.time is None:
        return "is no click"
    reason = clock.reason(rows.time[place])
    if layout.since is not None and rows.since is not None:
        return f"{names[layout.time]} {reason}, or {names[layout.since]} is no number of milliseconds"
    return f"{names[layout.time]} {reason}"


def _lonely(timestamp: Ints, session_of: Callable[[int], str]) -> str | None:
    """A warning when a few clicks lie far from all others: day by day, as sorting would take longer."""
    day = timestamp // DAY_MS
    first = int(day.min())
    days = np.flatnonzero(np.bincount(day - first)) + first
    gaps = np.diff(days)
    if not len(gaps) or gaps.max() <= _LONELY_DAYS:
        return None
    widest = int(gaps.argmax())
    late = day > days[widest]
    few = late if 2 * np.count_nonzero(late) <= len(day) else ~late
    session = session_of(int(np.flatnonzero(few)[0]))
    side = "after" if few is late else "before"
    return (
        f"{np.count_nonzero(few):,} of {len(day):,} clicks lie {gaps[widest]:,} days {side} all others (first: "
        f"session {session!r}): a wrong clock?"
    )


class _Counted:
    """The blocks of a file; whatever is wrong with its bytes is told with the line until which all was well."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._lines = 0

    def __iter__(self) -> Iterator[bytes]:
        while block := self._read():
            self._lines += block.count(b"\n")
            yield block

    def _read(self) -> bytes:
        try:
            return self._content.read(BLOCK)
        except DAMAGED as error:
            raise ClickFileError(
                f"is damaged or ends too early, after line {self._lines}: {cause(error)}: fetch or write it again"
            ) from error


def _first_lines(blocks: Iterator[bytes]) -> tuple[list[bytes], int, Iterator[bytes]]:
    """The first lines that are not blank, how many are before them, and the blocks from the beginning."""
    block = next(blocks, b"")
    if block.count(b"\n") < _FIRST:
        block += next(blocks, b"")  # a last line without an end is a block of its own
    lines = block.split(b"\n")
    skipped = next((number for number, line in enumerate(lines) if line.strip()), None)
    if skipped is None:
        raise ClickFileError("is empty; clicks, or a first line with the names of the columns, are expected")
    return [line for line in lines[skipped : skipped + _FIRST] if line.strip()], skipped, chain([block], blocks)


def _refuse_no_text(line: bytes, number: int) -> None:
    """Raise ClickFileError for a first line that cannot be one of text with a delimiter."""
    if b"\0" in line:
        raise ClickFileError("is no text, or UTF-16 without a mark: save it as UTF-8")
    if b"\r" in line.rstrip(b"\r"):
        raise ClickFileError("its lines end with \\r alone: save it with the line ends of Unix or Windows")
    if line.lstrip().startswith((b"{", b"[")):
        raise ClickFileError(
            f"line {number}: is no JSON object: {json_lines.why_no_object(line)}: one object a line is expected"
        )


def _after(blocks: Iterator[bytes], lines: int) -> Iterator[bytes]:
    """The blocks without their first lines, all of which are in the first block."""
    first = next(blocks).split(b"\n", lines)[lines]
    return chain([first] if first else [], blocks)
