"""Clicks from files: the Parquet session log and the public click-file formats, as arrays.

Click files are TSV or CSV with a header, gzipped or not: ``session_id``, ``item_id`` and optionally ``timestamp``
(seconds since the epoch, a fraction allowed). The session log is one Parquet file or a folder of them, with
``timestamp`` in milliseconds.
"""

import csv
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from trainer.errors import ClickFileError

# Ids repeat: an Arrow dictionary has each once for every block that is read.
ID_COLUMN: Final = pa.dictionary(pa.int32(), pa.binary())
ID_BYTES = 256  # the click message's own limit
EXAMPLES = 100  # bad rows that a report names
_SHOWN = 5  # of these in a message
# Nine thousand years in seconds: keeps milliseconds far inside int64.
_SECONDS = r"^[0-9]{1,11}(\.[0-9]+)?$"


@dataclass(frozen=True)
class BadRow:
    """Where a row that is no click stands (1-based line of a click file, 1-based row of a Parquet file), and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class ClickLog:
    """Clicks in file order, ids replaced by codes.

    session    int64[n]  code of the click's session
    item       int64[n]  position of the click's item in ``item_ids``
    timestamp  int64[n]  milliseconds since the epoch, or None where the order of the rows is all there is

    ``session_ids`` are the ids by code, an Arrow array of bytes: another file goes on with these sessions. None once
    nothing is to be joined any more.
    """

    session: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    item_ids: tuple[str, ...]
    timestamp: npt.NDArray[np.int64] | None
    bad_rows: int = 0
    bad_examples: tuple[BadRow, ...] = field(default=())
    session_ids: Any = None

    def __len__(self) -> int:
        return len(self.session)


def read_clicks(path: Path, *, skip_bad_rows: bool = False) -> ClickLog:
    """Read a click file, a Parquet file or a folder of Parquet files.

    Raises :class:`ClickFileError` when there is nothing to read, a column is missing, or a row is bad (unless
    ``skip_bad_rows``, which counts bad rows and leaves them out).
    """
    if not path.exists():
        raise ClickFileError(f"{path}: no such file or folder")
    if path.is_dir() or path.suffix == ".parquet":
        return _read_parquet(path, skip_bad_rows)
    return _read_text(path, skip_bad_rows)


# -- click files ------------------------------------------------------------------------------------------------------


def _read_text(path: Path, skip_bad_rows: bool) -> ClickLog:
    header, delimiter = _header(path)
    if missing := {"session_id", "item_id"} - set(header):
        raise ClickFileError(f"{path}: the header lacks {' and '.join(sorted(missing))}; it has {', '.join(header)}")
    if len(set(header)) < len(header):
        raise ClickFileError(f"{path}: the header names a column twice: {', '.join(header)}")
    columns = [name for name in ("session_id", "item_id", "timestamp") if name in header]
    malformed = 0

    def skip(_row: Any) -> str:
        nonlocal malformed
        malformed += 1
        return "skip"

    try:
        table = pacsv.read_csv(
            path,
            read_options=pacsv.ReadOptions(use_threads=False, block_size=1 << 24),
            parse_options=pacsv.ParseOptions(
                delimiter=delimiter, quote_char='"' if delimiter == "," else False, invalid_row_handler=skip
            ),
            # Bytes, not text: one id with a broken encoding must be a bad row, not a bad file.
            convert_options=pacsv.ConvertOptions(
                include_columns=columns,
                column_types={name: ID_COLUMN if name.endswith("_id") else pa.binary() for name in header},
                strings_can_be_null=False,
            ),
        )
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        raise ClickFileError(f"{path}: {error}") from error
    session, good_session, session_ids = codes(table["session_id"])
    item, good_item, item_ids = codes(table["item_id"])
    good = good_session & good_item
    timestamp = None
    if "timestamp" in columns:
        timestamp, good_time = _milliseconds(table["timestamp"])
        good &= good_time
    bad = malformed + int(np.count_nonzero(~good))
    examples = tuple(_locate(path, header, delimiter)) if bad else ()
    log = ClickLog(session, item, texts(item_ids), timestamp, bad, examples, session_ids)
    return checked(path, log, good, skip_bad_rows)


def _header(path: Path) -> tuple[list[str], str]:
    try:
        with open_text(path) as lines:
            first = next(lines, "").rstrip("\r\n").removeprefix("\ufeff")
    except (OSError, EOFError) as error:
        raise ClickFileError(f"{path}: {error}") from error
    if not first:
        raise ClickFileError(f"{path}: empty; a header line with session_id and item_id is expected")
    delimiter = "\t" if "\t" in first else ","
    return [name.strip('"') if delimiter == "," else name for name in first.split(delimiter)], delimiter


def open_text(path: Path) -> Any:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8", errors="surrogateescape", newline="")


def _locate(path: Path, header: list[str], delimiter: str) -> Iterator[BadRow]:
    """The first bad rows with their line numbers. A second, slow pass that only files with bad rows pay for."""
    found = 0
    with open_text(path) as lines:
        reader = csv.reader(
            lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
        )
        next(reader)
        for values in reader:
            reason = _reason(values, header) if values else None
            if reason:
                yield BadRow(f"line {reader.line_num}", reason)
                found += 1
            if found == EXAMPLES:
                return


def _reason(values: list[str], header: list[str]) -> str | None:
    if len(values) != len(header):
        return f"{len(values)} columns in place of {len(header)}"
    row = dict(zip(header, values, strict=True))
    for name in ("session_id", "item_id"):
        if reason := id_reason(row[name].encode("utf-8", errors="surrogateescape")):
            return f"{name} {reason}"
    if (
        "timestamp" in row
        and not pc.match_substring_regex(pa.scalar(row["timestamp"].encode(errors="replace")), _SECONDS).as_py()
    ):
        return f"timestamp {row['timestamp']!r} is not a number of seconds"
    return None


# -- the Parquet log --------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, skip_bad_rows: bool) -> ClickLog:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ClickFileError(f"{path}: no .parquet files in this folder")
    tables = [_parquet_table(file) for file in files]
    table = pa.concat_tables(tables)
    session, good_session, session_ids = codes(table["session_id"])
    item, good_item, item_ids = codes(table["item_id"])
    good_time = pc.is_valid(table["timestamp"]).to_numpy()
    timestamp = pc.fill_null(table["timestamp"], 0).to_numpy()
    good = good_session & good_item & good_time
    starts = np.cumsum([0, *(len(t) for t in tables)])
    examples = []
    for row in np.flatnonzero(~good)[:EXAMPLES].tolist():
        of = int(np.searchsorted(starts, row, side="right")) - 1
        cause = "timestamp missing"
        for name, ok in (("item_id", good_item), ("session_id", good_session)):
            if not ok[row]:
                cause = f"{name} {id_reason(table[name][row].as_py() or b'')}"
        examples.append(BadRow(f"{files[of].name} row {row - starts[of] + 1}", cause))
    bad = int(np.count_nonzero(~good))
    log = ClickLog(session, item, texts(item_ids), timestamp, bad, tuple(examples), session_ids)
    return checked(path, log, good, skip_bad_rows)


def _parquet_table(path: Path) -> Any:
    wanted = {"session_id": pa.binary(), "item_id": pa.binary(), "timestamp": pa.int64()}
    try:
        if missing := set(wanted) - set(pq.read_schema(path).names):
            raise ClickFileError(f"{path}: lacks the column {' and '.join(sorted(missing))}")
        table = pq.read_table(path, columns=list(wanted), partitioning=None)
        return table.cast(pa.schema([(name, wanted[name]) for name in table.column_names]))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ClickFileError(f"{path}: {error}") from error


# -- columns ----------------------------------------------------------------------------------------------------------


def codes(column: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], Any]:
    """Codes, which rows hold a usable id, and the ids by code: an Arrow array of bytes, bad ones among them."""
    if not pa.types.is_dictionary(column.type):
        column = pc.fill_null(column, b"").dictionary_encode()
    encoded = column.unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    usable = _usable(encoded.dictionary)
    code = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return code, usable[code] if len(usable) else np.zeros(0, np.bool_), encoded.dictionary


def texts(ids: Any) -> tuple[str, ...]:
    """Ids as texts, bad ones as empty ones."""
    return tuple("" if id_reason(value) else value.decode() for value in ids.to_pylist())


def _usable(ids: Any) -> npt.NDArray[np.bool_]:
    """Which ids :func:`id_reason` has nothing against; millions of sessions at once."""
    try:
        ids.cast(pa.string())  # looks at the encoding
    except pa.ArrowInvalid:
        return np.array([id_reason(value) is None for value in ids.to_pylist()], dtype=np.bool_)
    length = pc.binary_length(ids).to_numpy(zero_copy_only=False)
    return np.asarray((length > 0) & (length <= ID_BYTES), dtype=np.bool_)


def id_reason(value: bytes) -> str | None:
    if not value:
        return "is empty"
    if len(value) > ID_BYTES:
        return f"is longer than {ID_BYTES} bytes"
    try:
        value.decode()
    except UnicodeDecodeError:
        return "is not UTF-8"
    return None


def _milliseconds(column: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    times, usable = [np.zeros(0, np.int64)], [np.zeros(0, np.bool_)]
    for chunk in column.chunks:  # what lies between text and number is as large as the text
        good = pc.match_substring_regex(chunk, _SECONDS)
        seconds = pc.if_else(good, chunk, b"0").cast(pa.string()).cast(pa.float64()).to_numpy()
        times.append(np.rint(seconds * 1000.0).astype(np.int64))
        usable.append(good.to_numpy(zero_copy_only=False))
    return np.concatenate(times), np.concatenate(usable)


def bad_rows_told(count: int, examples: Sequence[BadRow]) -> str:
    """How many, and where the first ones stand."""
    where = "; ".join(f"{row.place}: {row.reason}" for row in examples[:_SHOWN])
    return f"{count} bad row{'s' if count > 1 else ''} ({where}{'; ..' if count > _SHOWN else ''})"


def checked(path: Path, log: ClickLog, good: npt.NDArray[np.bool_], skip_bad_rows: bool) -> ClickLog:
    if log.bad_rows and not skip_bad_rows:
        what = bad_rows_told(log.bad_rows, log.bad_examples)
        raise ClickFileError(f"{path}: {what}. Repair them, or leave them out with --skip-bad-rows")
    if not good.any():
        raise ClickFileError(f"{path}: holds no clicks")
    if good.all():
        return log
    timestamp = None if log.timestamp is None else log.timestamp[good]
    return replace(log, session=log.session[good], item=log.item[good], timestamp=timestamp)
