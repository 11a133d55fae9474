"""A store of last rankings on a real RocksDB: what it remembers, and when it begins anew."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from stream_app.errors import StoreError
from stream_app.state.database import StoreOptions, block_cache
from stream_app.state.last_rankings import LastRankings

OPTIONS = StoreOptions(cache_mb=1, write_buffer_mb=1)


class Folder:
    """A data folder, and the stores that were opened in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.stores = path / "last", list[LastRankings]()

    def open(self, topic_id: str = "topic") -> LastRankings:
        opened = LastRankings(self.path, topic_id, OPTIONS, block_cache(OPTIONS), setting="api.data_dir")
        self.stores.append(opened)
        return opened

    def again(self, topic_id: str = "topic") -> LastRankings:
        """The next start."""
        self.close()
        return self.open(topic_id)

    def close(self) -> None:
        for store in self.stores:
            with suppress(StoreError):  # a test broke it, or has closed it
                store.close()
        self.stores.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path)
    yield folder
    folder.close()


def broken(text: str) -> Any:
    """A database that says so whatever it is asked."""
    return Mock(**{f"{call}.side_effect": Exception(text) for call in ("get", "write", "close")})


def test_rows_and_how_far_their_partitions_were_read_are_there_after_a_restart(folder: Folder) -> None:
    store = folder.open()
    assert store.positions == {}
    store.write({b"s": b"1", b"t": b"2"}, {0: 10})
    store.write({b"s": None, b"u": b"3"}, {1: 20})
    assert store.positions == {0: 10, 1: 20}
    store = folder.again()
    assert store.positions == {0: 10, 1: 20}
    assert (store.rows([b"s", b"t"]), store.row(b"u")) == ([None, b"2"], b"3")


def test_of_another_topic_nothing_is_known_of_how_far_it_was_read(folder: Folder) -> None:
    folder.open().write({b"s": b"1"}, {0: 10})
    assert folder.again("created anew").positions == {}


def test_what_is_cleared_is_forgotten(folder: Folder) -> None:
    store = folder.open()
    store.write({b"s": b"1"}, {0: 10})
    store.clear()
    assert (store.positions, store.row(b"s")) == ({}, None)
    assert folder.again().positions == {}


@pytest.mark.parametrize("call", ["row", "rows", "write", "close"])
def test_damage_that_shows_in_service_is_told_and_the_next_start_begins_anew(folder: Folder, call: str) -> None:
    store = folder.open()
    store.write({b"s": b"1"}, {0: 10})
    store._db.close()
    store._db = broken("Corruption: block checksum mismatch")
    arguments: dict[str, tuple[Any, ...]] = {"row": (b"s",), "rows": ([b"s"],), "write": ({}, {0: 11}), "close": ()}
    with pytest.raises(StoreError, match="block checksum mismatch"):
        getattr(store, call)(*arguments[call])
    assert store.positions == {0: 10}
    store = folder.again()
    assert (store.positions, store.row(b"s")) == ({}, None)


def test_damage_that_only_rocksdb_finds_when_it_opens_the_store(folder: Folder) -> None:
    folder.open().write({b"s": b"1"}, {0: 10})
    folder.close()
    (folder.path / "CURRENT").write_text("MANIFEST-999999\n")  # a list of files that is not there
    store = folder.open()
    assert (store.positions, store.row(b"s")) == ({}, None)
    store.write({b"s": b"2"}, {0: 11})
    assert folder.again().row(b"s") == b"2"


def test_a_full_disk_is_no_damage(folder: Folder) -> None:
    store = folder.open()
    store.write({b"s": b"1"}, {0: 10})
    store._db.close()
    store._db = broken("IO error: No space left on device")
    with pytest.raises(StoreError, match="No space left"):
        store.write({b"s": b"2"}, {0: 11})
    assert folder.again().row(b"s") == b"1"


def test_a_store_that_cannot_be_closed_is_cleared_all_the_same(folder: Folder) -> None:
    """What it could not flush is to go in any case."""
    store = folder.open()
    store.write({b"s": b"1"}, {0: 10})
    store._db.close()
    store._db = broken("IO error: No space left on device")
    store.clear()
    store.write({b"t": b"2"}, {0: 1})
    assert (store.row(b"s"), store.row(b"t")) == (None, b"2")


def test_a_store_that_another_process_has_names_the_setting(folder: Folder) -> None:
    folder.open().write({b"s": b"1"}, {0: 10})
    with pytest.raises(StoreError, match=r"Is another process using the same api\.data_dir"):
        folder.open()
    assert folder.stores[0].row(b"s") == b"1"
