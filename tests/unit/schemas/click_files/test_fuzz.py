"""Whatever the bytes and the options are, a reader reads, or refuses in one message that names the file."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.click_files.options import Format, ReadOptions, TimeUnit
from schemas.click_files.read import ClickLog, read_log
from schemas.errors import ClickFileError
from schemas.messages.click import MAX_ID_BYTES
from tests.unit.schemas.click_files.test_forms import EXPECTED
from trainer.data.sessions import group_sessions

NOW = 1_767_225_600_000
MANY = settings(suppress_health_check=list(HealthCheck))

_NAMES = (
    "session_id",
    "item_id",
    "timestamp",
    "event_id",
    "SessionId",
    "Time",
    "visitorid",
    "event",
    "itemid",
    "userid",
)
_VALUES = st.one_of(
    st.sampled_from(["a", "x", "", "0", "-1", "1700000000", "1700000000.5", "1700000000000", "1e400", "nan", "inf"]),
    st.sampled_from(["2024-01-01", "2024-02-30T00:00:00Z", "2024-01-01 00:00:00 UTC", "view", '"', '"x"', "9" * 400]),
    st.text(max_size=12),
    st.integers().map(str),
)
options = st.builds(
    ReadOptions,
    format=st.none() | st.sampled_from(Format),
    delimiter=st.none() | st.sampled_from(["tab", ",", ";", "|", " "]),
    session_column=st.none() | st.sampled_from(_NAMES),
    item_column=st.none() | st.sampled_from(_NAMES),
    time_column=st.none() | st.sampled_from(_NAMES),
    event_column=st.none() | st.sampled_from(_NAMES),
    timestamps=st.none() | st.sampled_from(TimeUnit),
    skip_bad_rows=st.booleans(),
)


def table_of(delimiter: str, rows: list[list[str]]) -> bytes:
    return "".join(delimiter.join(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")


tables = st.builds(
    table_of,
    st.sampled_from("\t,;|"),
    st.integers(1, 6).flatmap(
        lambda width: st.tuples(
            st.lists(st.sampled_from(_NAMES), min_size=width, max_size=width),
            st.lists(st.lists(_VALUES, max_size=width), max_size=12),
        ).map(lambda parts: [parts[0], *parts[1]])
    ),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=3),
    max_leaves=5,
)
objects = st.lists(st.dictionaries(st.sampled_from([*_NAMES, "session", "events", "topic", "payload"]), anything)).map(
    lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode()
)
public = st.sampled_from([text.encode() for text, _ in EXPECTED.values()])


@st.composite
def damaged(draw: st.DrawFn, contents: st.SearchStrategy[bytes]) -> bytes:
    """A file with some of its bytes changed, taken out or repeated, or cut off."""
    content = bytearray(draw(contents))
    for _ in range(draw(st.integers(0, 3))):
        if content:
            at = draw(st.integers(0, len(content) - 1))
            content[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4) | st.just(b'"') | st.just(b"\n"))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clicks.csv", content)
    return file.getvalue()


def utf_16(content: bytes) -> bytes:
    return content.decode("utf-8", "replace").encode("utf-16")


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zip": zipped,
    "utf-16": utf_16,
}


def read_or_refuse(path: Path, how: ReadOptions) -> ClickLog | None:
    """A sound log, or None where the file is refused in one message."""
    try:
        log = read_log([path], how, now_ms=NOW, events=True)
    except ClickFileError as error:
        refusal = str(error)
    else:
        refusal = ""
    refusal.encode()  # can be printed
    if refusal:
        assert refusal.startswith(str(path))
        return None
    assert all(file.described.encode() for file in log.files)
    assert log.session_ids is not None
    assert log.line is not None
    assert len(log) == len(log.item) == len(log.line) > 0
    used = {log.session_ids[n] for n in log.session.tolist()} | {log.item_ids[n] for n in log.item.tolist()}
    assert all(0 < len(one.encode()) <= MAX_ID_BYTES for one in used)
    if log.timestamp is not None:
        assert len(log.timestamp) == len(log)
        assert log.timestamp.min() >= 0
        assert log.timestamp.max() <= NOW + 86_400_000
    assert how.skip_bad_rows or not any(file.bad_rows for file in log.files)
    assert group_sessions(log).clicks == len(log)
    return log


@pytest.mark.parametrize("packed", PACKED)
def test_damaged_texts(tmp_path: Path, packed: str) -> None:
    path = tmp_path / "clicks"

    @MANY
    @given(damaged(tables | objects | public), options)
    def check(content: bytes, how: ReadOptions) -> None:
        path.write_bytes(PACKED[packed](content))
        read_or_refuse(path, how)

    check()


@pytest.mark.parametrize("packed", PACKED)
def test_damaged_archives(tmp_path: Path, packed: str) -> None:
    path = tmp_path / "clicks"

    @MANY
    @given(damaged(public.map(PACKED[packed])), st.booleans())
    def check(content: bytes, skip: bool) -> None:
        path.write_bytes(content)
        read_or_refuse(path, ReadOptions(skip_bad_rows=skip))

    check()


def parquet_of(columns: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


_TYPES = st.sampled_from(
    [
        pa.int64(),
        pa.int32(),
        pa.float64(),
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.binary_view(),
        pa.bool_(),
        pa.date32(),
        pa.null(),
    ]
    + [pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")]
    + [pa.timestamp("us", "Europe/Berlin"), pa.decimal128(20, 3), pa.dictionary(pa.int32(), pa.string())]
    + [pa.list_(pa.int64()), pa.time64("us"), pa.struct([("a", pa.int64())])]
)


@st.composite
def parquets(draw: st.DrawFn) -> bytes:
    count = draw(st.integers(0, 4))
    columns = {}
    for name in draw(st.lists(st.sampled_from(_NAMES), unique=True, min_size=1)):
        kind = draw(_TYPES)
        numbers = draw(st.lists(st.none() | st.integers(-5, 2_000_000_000), min_size=count, max_size=count))
        try:
            columns[name] = pa.array(numbers).cast(pa.int64()).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            columns[name] = pa.nulls(count, kind)
    return parquet_of(columns)


def test_parquet_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "clicks"

    @MANY
    @given(damaged(parquets()) | parquets(), options)
    def check(content: bytes, how: ReadOptions) -> None:
        path.write_bytes(content)
        read_or_refuse(path, how)

    check()


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_what_is_written_is_read(tmp_path: Path, delimiter: str) -> None:
    """The quick way through regular lines, the one through quotes and the one of lines that are broken agree."""
    path = tmp_path / "clicks"
    ids = st.text(st.characters(codec="utf-8", exclude_characters='\t\r\n,"\0'), min_size=1, max_size=40)

    @MANY
    @given(
        st.lists(st.tuples(ids, ids, st.integers(10**12, NOW)), min_size=1, max_size=30), st.booleans(), st.booleans()
    )
    def check(rows: list[tuple[str, str, int]], quoted: bool, broken: bool) -> None:
        sign = '"' if quoted and delimiter == "," else ""
        lines = [["session_id", "item_id", "timestamp", "more"]]
        lines += [[f"{sign}{session}{sign}", item, f"{time / 1000:.3f}", ""] for session, item, time in rows]
        lines += [["broken"]] if broken else []
        path.write_bytes(table_of(delimiter, lines))
        log = read_or_refuse(path, ReadOptions(skip_bad_rows=True))
        assert log is not None
        assert log.timestamp is not None
        assert log.session_ids is not None
        read = zip(log.session.tolist(), log.item.tolist(), log.timestamp.tolist(), strict=True)
        assert [(log.session_ids[session], log.item_ids[item], time) for session, item, time in read] == rows
        assert log.files[0].bad_rows == broken

    check()
