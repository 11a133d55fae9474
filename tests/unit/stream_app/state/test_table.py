"""Up to where a store covers its changelog, by the offsets of what this worker wrote and restored."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from faust.types import TP
from structlog.testing import capture_logs

from stream_app.errors import RowError
from stream_app.kafka.click_reader import Record
from stream_app.kafka.transport import Chunk
from stream_app.state.table import SessionTable


def table_of(seen: dict[int, int]) -> Any:
    """A table whose store notes what it is told."""
    table: Any = SessionTable.__new__(SessionTable)
    table._seen, table._data, table.restored, table.stale = seen, Mock(), 0, 0
    table.data.apply_changelog.return_value = 0
    table.fatal = []
    table._on_fatal = table.fatal.append
    return table


def restored(*offsets: int, key: bytes | None = b"s") -> Any:
    records = [Record(offset, timestamp=0, timestamp_type=0, key=key, value=b"row") for offset in offsets]
    return SimpleNamespace(message=SimpleNamespace(value=Chunk(TP("changelog", 2), records, generation=1)))


def test_deletions_before_rows_are_this_workers_own_and_what_else_lies_between_is_others() -> None:
    table, rows = table_of({2: 9}), {b"s": b"1"}
    with capture_logs() as told:
        table.write(2, rows, 12, deleted=2)
        table.write(2, rows, 13)
    assert told == []
    with capture_logs() as told:
        table.write(2, rows, 15)
        table.write(2, rows, 16)  # told once: until the next restore nothing is covered any more
    assert [(line["covered"], line["written"]) for line in told] == [(13, 15)]
    assert [call.args for call in table.data.write_rows.call_args_list] == [
        (2, rows, covered) for covered in (12, 13, None, None)
    ]


def test_what_is_restored_counts_as_seen_to_its_last_record_whosever_that_is() -> None:
    table = table_of({2: -1})
    with capture_logs() as told:
        table.apply_changelog_batch([restored(3, 4), restored(6, key=None)])
    assert [line["offset"] for line in told] == [6]
    [call] = table.data.apply_changelog.call_args_list
    assert call.args == (2, [(b"s", b"row", 3), (b"s", b"row", 4)])
    assert (table._seen, table.restored) == ({2: 6}, 2)
    table.apply_changelog_batch([restored(5)])  # read once more after a rebalance
    assert table._seen == {2: 6}


def test_a_row_that_cannot_be_restored_ends_the_worker() -> None:
    """Faust would log it, and wait for the rest for ever."""
    table = table_of({})
    table.data.apply_changelog.side_effect = error = RowError("record 3 is no row")
    with pytest.raises(RowError):
        table.apply_changelog_batch([restored(3)])
    assert table.fatal == [error]
