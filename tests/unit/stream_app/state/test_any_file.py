"""Whatever is in the small files and entries beside the rows: it is read, or taken for damaged, and nothing else."""

import json
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from stream_app.errors import StoreError
from stream_app.state.database import StoreOptions, block_cache, open_database
from stream_app.state.last_rankings import _POSITIONS, LastRankings
from stream_app.state.member import _FILE as MEMBER
from stream_app.state.member import member_id
from stream_app.state.store import SessionStore
from stream_app.state.topic_identity import _FILE as TOPICS
from stream_app.state.topic_identity import check_identity
from tests.unit.odd_bytes import odd_json
from tests.unit.test_decoders import damaged

OPTIONS = StoreOptions(cache_mb=1, write_buffer_mb=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@given(data=st.data())
def test_any_file_of_an_identity_is_read_or_replaced(folder: Path, data: st.DataObject) -> None:
    known = json.dumps({"id": "a" * 32, "folder": folder.stat().st_ino}).encode()
    (folder / MEMBER).write_bytes(data.draw(odd_json(known)))
    found = member_id(folder)
    assert re.fullmatch("[0-9a-f]{32}", found)
    assert member_id(folder) == found


@given(content=odd_json(b'{"clicks": "c-1", "changelog": "s-1"}'))
def test_any_file_of_topics_is_read_or_costs_a_restore(folder: Path, content: bytes) -> None:
    tables = folder / "v1" / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    (folder / TOPICS).write_bytes(content)
    try:
        check_identity(folder, clicks=("clicks", "c-1"), changelog=("sessions", "s-1"), tables=tables)
    except StoreError:
        assert (folder / TOPICS).read_bytes() == content
        assert tables.exists()
        return
    assert json.loads((folder / TOPICS).read_bytes()) == {"clicks": "c-1", "changelog": "s-1"}
    if tables.exists():  # they may serve: nobody doubted it
        assert {"clicks": "c-1", "changelog": "s-1"}.items() <= json.loads(content).items()


def write(path: Path, key: bytes, value: bytes) -> None:
    """Into a closed store."""
    db = open_database(path, OPTIONS, block_cache(OPTIONS))
    db.put(key, value)
    db.close()


@pytest.fixture(scope="module")
def rankings(folder: Path) -> Path:
    path = folder / "last"
    last_rankings(path).close()
    return path


def last_rankings(path: Path) -> LastRankings:
    return LastRankings(path, "topic", OPTIONS, block_cache(OPTIONS), setting="api.data_dir")


@given(positions=odd_json(b'{"0": 10, "1": 20}').map(b"topic ".__add__) | damaged(b'topic {"0": 10}') | st.binary())
def test_any_positions_are_read_or_the_store_is_made_anew(rankings: Path, positions: bytes) -> None:
    write(rankings, b"s", b"row")
    write(rankings, _POSITIONS, positions)
    store = last_rankings(rankings)
    try:
        assert all(type(one) is int and 0 <= one < 1 << 63 for pair in store.positions.items() for one in pair)
        store.write({b"t": b"row"}, {0: 30})
        assert store.positions[0] == 30
    finally:
        store.close()


@pytest.fixture(scope="module")
def sessions(folder: Path) -> SessionStore:
    app = Mock()
    app.conf.tabledir = folder
    return SessionStore("sessions", app, Mock(), table_name="sessions", store_options=OPTIONS)


@given(content=damaged(b"4711") | st.binary(max_size=20) | st.integers().map(lambda offset: b"%d" % offset))
def test_any_covered_offset_is_read_or_the_store_is_set_aside(sessions: SessionStore, content: bytes) -> None:
    path = sessions.partition_path(0)
    write(path, b"s", b"row")
    write(path, sessions.offset_key, content)
    try:
        covered = sessions.persisted_offset(TP("changelog", 0))
        [row] = sessions.rows(0, [b"s"])
    finally:
        for db in sessions._dbs.values():
            db.close()
        sessions._dbs.clear()
    if covered is None:
        assert row is None
        assert path.with_name(f"{path.name}.damaged").exists()
    else:
        assert covered >= 0
        assert row == b"row"
