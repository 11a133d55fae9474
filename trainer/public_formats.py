"""The public click logs as they are downloaded, told apart by their first line.

| form         | file                  | session              | clicks kept                |
|--------------|-----------------------|----------------------|----------------------------|
| rsc15        | yoochoose-clicks.dat  | as given             | all                        |
| diginetica   | train-item-views.csv  | as given             | all                        |
| retailrocket | events.csv            | visitor, 1 hour idle | event ``view``             |
| coveo        | browsing_train.csv    | as given             | product_action ``detail``  |
| coveo-2020   | release_10_23_2020.csv| as given             | product_action ``detail``  |
| rees46       | 2019-Oct.csv          | user, 1 hour idle    | event_type ``view``        |
| otto         | *.jsonl               | as given             | type ``clicks``            |

Everything else is a click file of :mod:`trainer.readers`. An event of another known kind is no click and no mistake; an
unknown kind is a bad row.
"""

import csv
import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from trainer.errors import ClickFileError
from trainer.otto import read_otto
from trainer.readers import (
    EXAMPLES,
    ID_COLUMN,
    BadRow,
    ClickLog,
    checked,
    codes,
    id_reason,
    open_text,
    read_clicks,
    texts,
)

Bools = npt.NDArray[np.bool_]
Times = Literal["iso", "utc", "milliseconds", "date-and-milliseconds"]

# Milliseconds of four thousand years at most: sums stay far inside int64.
_PATTERNS: Final = {
    "iso": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{3})?Z$",
    "utc": r"^[0-9]{4}-[0-9]{2}-[0-9]{2} ([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9] UTC$",
    "milliseconds": r"^[0-9]{1,14}$",
    "date": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
}


@dataclass(frozen=True)
class Form:
    """A form of file. Column names are compared without case and underscores: Diginetica's header has two spellings.

    columns           those of the file, where it has no header
    time              the columns of the time: one, or a date and the milliseconds since the session's beginning
    kind, kinds       column that tells events apart, the kinds that it knows, the first of which are the clicks
    idle_gap_minutes  of a form that knows visitors and no sessions
    """

    name: str
    delimiter: str = ","
    columns: tuple[str, ...] = ()
    session: str = ""
    item: str = ""
    time: tuple[str, ...] = ()
    times: Times = "milliseconds"
    kind: str | None = None
    kinds: tuple[str, ...] = ()
    idle_gap_minutes: float | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        return (self.session, self.item, *self.time, *((self.kind,) if self.kind else ()))


CLICK_FILE: Final = Form("click-file")
RSC15: Final = Form(
    "rsc15",
    columns=("session", "time", "item", "category"),
    session="session",
    item="item",
    time=("time",),
    times="iso",
)
DIGINETICA: Final = Form(
    "diginetica",
    delimiter=";",
    session="sessionid",
    item="itemid",
    time=("eventdate", "timeframe"),
    times="date-and-milliseconds",
)
RETAILROCKET: Final = Form(
    "retailrocket",
    session="visitorid",
    item="itemid",
    time=("timestamp",),
    kind="event",
    kinds=("view", "addtocart", "transaction"),
    idle_gap_minutes=60.0,
)
COVEO: Final = Form(
    "coveo",
    session="sessionidhash",
    item="productskuhash",
    time=("servertimestampepochms",),
    kind="productaction",
    kinds=("detail", "add", "purchase", "remove", "click", ""),
)
# The older of the two logs that Coveo published.
COVEO_2020: Final = replace(COVEO, name="coveo-2020", item="productskushash")
REES46: Final = Form(
    "rees46",
    session="userid",
    item="productid",
    time=("eventtime",),
    times="utc",
    kind="eventtype",
    kinds=("view", "cart", "remove_from_cart", "purchase"),
    idle_gap_minutes=60.0,
)
OTTO: Final = Form("otto")
FORMS: Final[Mapping[str, Form]] = MappingProxyType(
    {form.name: form for form in (CLICK_FILE, RSC15, DIGINETICA, RETAILROCKET, COVEO, COVEO_2020, REES46, OTTO)}
)


def form_of(path: Path) -> Form:
    """The form of a file, by its first line. Raises :class:`ClickFileError` when it cannot be read."""
    if not path.is_file() or path.suffix == ".parquet":
        return CLICK_FILE
    try:
        with open_text(path) as lines:
            first = next(lines, "").strip().removeprefix("\ufeff")
    except (OSError, EOFError) as error:
        raise ClickFileError(f"{path}: {error}") from error
    if first.startswith("{"):
        return OTTO
    if re.match(r"[0-9]+,[0-9]{4}-[0-9]{2}-[0-9]{2}T[^,]*,[0-9]+,", first) or path.name.startswith("yoochoose-clicks"):
        return RSC15
    for form in (DIGINETICA, RETAILROCKET, COVEO, COVEO_2020, REES46):
        if set(form.needed) <= set(_names(first.split(form.delimiter))):
            return form
    return CLICK_FILE


def read_public(path: Path, form: Form, *, skip_bad_rows: bool = False) -> ClickLog:
    """The clicks of a file in a form. Raises :class:`ClickFileError` as :func:`trainer.readers.read_clicks` does."""
    if form is CLICK_FILE:
        return read_clicks(path, skip_bad_rows=skip_bad_rows)
    try:
        log, good = read_otto(path) if form is OTTO else _read_table(path, form)
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        raise ClickFileError(f"{path}: {error}") from error
    return checked(path, log, good, skip_bad_rows)


def _names(header: list[str]) -> list[str]:
    return [name.strip().strip('"').replace("_", "").lower() for name in header]


def _read_table(path: Path, form: Form) -> tuple[ClickLog, Bools]:
    names = list(form.columns)
    if not names:
        with open_text(path) as lines:
            names = _names(next(lines).removeprefix("\ufeff").split(form.delimiter))
    malformed = 0

    def skip(_row: Any) -> str:
        nonlocal malformed
        malformed += 1
        return "skip"

    table = pacsv.read_csv(
        path,
        read_options=pacsv.ReadOptions(
            use_threads=False, block_size=1 << 24, column_names=names, skip_rows=0 if form.columns else 1
        ),
        parse_options=pacsv.ParseOptions(delimiter=form.delimiter, invalid_row_handler=skip),
        convert_options=pacsv.ConvertOptions(
            include_columns=form.needed,
            column_types={
                name: ID_COLUMN if name in (form.session, form.item) and not form.kind else pa.binary()
                for name in names
            },
            strings_can_be_null=False,
        ),
    )
    unknown = 0
    if form.kind:
        kind = table[form.kind]
        known = pc.is_in(kind, value_set=pa.array([one.encode() for one in form.kinds]))
        unknown = len(table) - int(pc.sum(known).as_py() or 0)
        table = table.filter(pc.equal(kind, form.kinds[0].encode()))
    session, good_session, session_ids = codes(table[form.session])
    item, good_item, item_ids = codes(table[form.item])
    times = table.select(form.time)
    del table
    timestamp, good_time = _timestamps(times, form)
    good = good_session & good_item & good_time
    bad = malformed + unknown + int(np.count_nonzero(~good))
    examples = tuple(_locate(path, form, names)) if bad else ()
    return ClickLog(session, item, texts(item_ids), timestamp, bad, examples, session_ids), good


def _timestamps(table: Any, form: Form) -> tuple[npt.NDArray[np.int64], Bools]:
    """Milliseconds since the epoch and which rows have them, n each; a bad row has some number."""
    found = [(np.zeros(0, np.int64), np.zeros(0, np.bool_))]
    for batch in table.to_batches():  # what lies between text and number is larger than the text
        found.append(_timestamps_of([pa.chunked_array([batch[name]]) for name in form.time], form.times))
    times, good = zip(*found, strict=True)
    return np.concatenate(times), np.concatenate(good)


def _timestamps_of(columns: list[Any], times: Times) -> tuple[npt.NDArray[np.int64], Bools]:
    if times == "milliseconds":
        return _whole(columns[0], _PATTERNS["milliseconds"])
    if times == "date-and-milliseconds":
        day, good_day = _days(columns[0])
        since, good = _whole(columns[1], _PATTERNS["milliseconds"])
        return day + since, good_day & good
    good = pc.match_substring_regex(columns[0], _PATTERNS[times])
    text = pc.if_else(good, columns[0], b"1970-01-01T00:00:00.000Z").cast(pa.string())
    day, good_day = _days(pc.utf8_slice_codeunits(text, 0, 10))
    time = day
    for start, stop, unit in ((11, 13, 3_600_000), (14, 16, 60_000), (17, 19, 1000), (20, 23, 1)):
        digits = pc.utf8_slice_codeunits(text, start, stop)
        number = pc.if_else(pc.match_substring_regex(digits, "^[0-9]+$"), digits, "0")  # no fraction: whole seconds
        time = time + number.cast(pa.int64()).to_numpy() * unit
    return time, good.to_numpy() & good_day


def _whole(column: Any, pattern: str) -> tuple[npt.NDArray[np.int64], Bools]:
    good = pc.match_substring_regex(column, pattern)
    return pc.if_else(good, column, b"0").cast(pa.string()).cast(pa.int64()).to_numpy(), good.to_numpy()


def _days(column: Any) -> tuple[npt.NDArray[np.int64], Bools]:
    """Midnight of each date, UTC, in milliseconds. A log has few dates: each is parsed once."""
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    days = [
        _day(value if isinstance(value, str) else value.decode("latin-1")) for value in encoded.dictionary.to_pylist()
    ]
    index = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    table = np.array([day or 0 for day in days], dtype=np.int64)
    usable = np.array([day is not None for day in days], dtype=np.bool_)
    return table[index], usable[index]


def _day(text: str) -> int | None:
    if not re.match(_PATTERNS["date"], text):
        return None
    try:
        date = datetime.date.fromisoformat(text)
    except ValueError:  # such as the 30th of February: the row is bad, and its reader says so
        return None
    return (date - datetime.date(1970, 1, 1)).days * 86_400_000


def _locate(path: Path, form: Form, names: list[str]) -> Iterator[BadRow]:
    """The first bad rows with their line numbers. A second, slow pass that only files with bad rows pay for."""
    found = 0
    with open_text(path) as lines:
        reader = csv.reader(lines, delimiter=form.delimiter)
        if not form.columns:
            next(reader)
        for values in reader:
            if values and (reason := _reason(values, form, names)):
                yield BadRow(f"line {reader.line_num}", reason)
                found += 1
            if found == EXAMPLES:
                return


def _reason(values: list[str], form: Form, names: list[str]) -> str | None:
    if len(values) != len(names):
        return f"{len(values)} columns in place of {len(names)}"
    row = dict(zip(names, values, strict=True))
    if form.kind:
        if row[form.kind] not in form.kinds:
            return f"{form.kind} {row[form.kind]!r} is none of {', '.join(one for one in form.kinds if one)}"
        if row[form.kind] != form.kinds[0]:
            return None
    for name in (form.session, form.item):
        if reason := id_reason(row[name].encode("utf-8", errors="surrogateescape")):
            return f"{name} {reason}"
    given = [row[name] for name in form.time]
    columns = [pa.chunked_array([pa.array([text.encode(errors="replace")])]) for text in given]
    if not _timestamps_of(columns, form.times)[1][0]:
        return f"{' and '.join(form.time)} {' '.join(given)!r} is no time"
    return None
