"""Whatever a file of the click log holds, it is read, or refused in one message that names it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import ClickLogError
from trainer.service.click_log import SCHEMA, ClickLogFolder, LogFile, Rows, TopicIdentity
from trainer.service.window import Seen, read_window

TOPIC = TopicIdentity("clicks", "id")
CLICKS = 40


def written(folder: ClickLogFolder, first: int) -> Path:
    offsets = list(range(first, first + CLICKS))
    rows = Rows(
        [f"s{n % 7}" for n in offsets],
        [f"item-{n % 11}" for n in offsets],
        [1_767_225_600_000 + n for n in offsets],
        offsets,
        [("cart" if n % 3 == 0 else None) for n in offsets],
    )
    return folder.write(0, first, first + CLICKS - 1, rows, topic=TOPIC, expected=first)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ClickLogFolder:
    folder = ClickLogFolder(tmp_path_factory.mktemp("click-log"))
    for first in (0, CLICKS):
        written(folder, first)
    return folder


def alone(folder: ClickLogFolder) -> None:
    """Leave the first file."""
    for path in folder.folder.glob("*.parquet"):
        if LogFile.of_name(path.name) != LogFile(0, 0, CLICKS - 1):
            path.unlink()


def check(folder: ClickLogFolder) -> None:
    """All that a trainer does with its files."""
    try:
        state = folder.scan()
        window = read_window(
            folder, state, window_ms=0, idle_gap_ms=1_800_000, last=Seen(), champion=Seen(), moving=frozenset({"view"})
        )
        if window is not None:
            "".join(window.sessions.item_ids).encode()
        for file in state.files:
            folder.topic_of(file)
    except ClickLogError as error:
        str(error).encode()


@given(data=st.data())
def test_any_bytes_in_a_file_are_read_or_refused(folder: ClickLogFolder, data: st.DataObject) -> None:
    alone(folder)
    path = written(folder, CLICKS)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    check(folder)


def test_a_column_whose_name_is_no_utf_8_is_refused(folder: ClickLogFolder) -> None:
    alone(folder)
    path = written(folder, CLICKS)
    path.write_bytes(path.read_bytes().replace(b"session_id", b"sess\x80on_id"))
    with pytest.raises(ClickLogError, match="cannot be read: 'utf-8' codec"):
        folder.newest_timestamp(LogFile.of_name(path.name))  # type: ignore[arg-type]


COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "text": st.lists(st.none() | st.text(max_size=4), max_size=5).map(lambda some: pa.array(some, pa.string())),
    "bytes": st.lists(st.binary(max_size=3), max_size=5).map(
        lambda some: pa.Array.from_buffers(
            pa.string(), len(some), [None, *pa.array(some, pa.binary()).buffers()[1:]]
        )  # no UTF-8
    ),
    "numbers": st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=5).map(
        lambda some: pa.array(some, pa.int64())
    ),
    "floats": st.lists(st.none() | st.floats(), max_size=5).map(lambda some: pa.array(some, pa.float64())),
    "lists": st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=5).map(
        lambda some: pa.array(some, pa.list_(pa.int64()))
    ),
}
RIGHT = {name: COLUMNS["numbers" if name in ("timestamp", "offset") else "text"] for name in SCHEMA.names}
metadata = st.dictionaries(
    st.sampled_from([b"nextclick.topic", b"nextclick.topic_id", b"nextclick.expected_first"]),
    st.sampled_from([b"", b"clicks", b"id", b"0", b"41", b"\xff", b"x", b"9" * 5000]),
)


@given(data=st.data())
def test_any_table_in_a_file_is_read_or_refused(folder: ClickLogFolder, data: st.DataObject) -> None:
    names = data.draw(st.sampled_from([SCHEMA.names, SCHEMA.names[:-1]]) | st.permutations(SCHEMA.names))
    columns = [data.draw(st.one_of(RIGHT[name], RIGHT[name], *COLUMNS.values())) for name in names]
    rows = min(map(len, columns), default=0)
    table = pa.table([column[:rows] for column in columns], names=list(names)).replace_schema_metadata(
        data.draw(metadata)
    )
    alone(folder)
    # Behind a gap its metadata tell why there is one.
    first = data.draw(st.sampled_from([CLICKS, CLICKS + 1]))
    pq.write_table(table, folder.folder / LogFile(0, first, first + CLICKS - 1).name)
    check(folder)


def test_what_was_written_is_read(folder: ClickLogFolder) -> None:
    alone(folder)
    written(folder, CLICKS)
    window = read_window(folder, folder.scan(), window_ms=0, idle_gap_ms=1_800_000, last=Seen(), champion=Seen())
    assert window is not None
    assert sorted(window.sessions.item_ids) == sorted(f"item-{n}" for n in range(11))
    assert window.sessions.lengths.sum() == 2 * CLICKS
