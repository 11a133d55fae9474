"""The local store on a real RocksDB: what is atomic, what leaves it, what it refuses. No broker is asked."""

import resource
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from schemas.config.settings import ClickSettings, KafkaConnection
from stream_app.core.session import SessionState
from stream_app.core.state_codec import encode_state
from stream_app.errors import RowError, StoreError
from stream_app.serve.app import create_app
from stream_app.serve.delivery import Delivery, producer_config
from stream_app.serve.hot_swap import LiveModel
from stream_app.serve.metrics import Metrics
from stream_app.settings import StreamSettings, WorkerSettings
from stream_app.state import damage
from stream_app.state.store import SessionStore
from tests.conftest import REPOSITORY


def open_store(data_dir: Path, **worker: int) -> SessionStore:
    """The store of a worker that never starts; its settings speak of a broker that is never asked."""
    kafka = KafkaConnection(bootstrap_servers="127.0.0.1:1")
    clicks = ClickSettings(idle_gap=1)  # below every time to live
    settings = StreamSettings(kafka=kafka, clicks=clicks, worker=WorkerSettings(data_dir=data_dir, **worker))
    config = producer_config(kafka.librdkafka(), client_id="test", linger_ms=2, timeout_ms=1000)
    delivery = Delivery(config | {"log_level": 0}, on_fatal=lambda _: None)
    app = create_app(
        settings, live=LiveModel(), delivery=delivery, metrics=Metrics(), on_fatal=lambda error: pytest.fail(str(error))
    )
    return app.sessions.data


def row(offset: int) -> bytes:
    return encode_state(
        SessionState(model_version="", offset=offset, last_click=0, clicks=1, recent=("item",), hidden=None)
    )


def stored(store: SessionStore, partition: int = 0) -> dict[bytes, bytes]:
    """Everything in a partition, read or not by anybody."""
    return {key: value for key, value in store._db_for_partition(partition).items() if key != store.offset_key}


def persisted(store: SessionStore, partition: int = 0) -> int | None:
    offset = store._db_for_partition(partition).get(store.offset_key)
    return None if offset is None else int(offset)


WRITES_UNTIL_KILLED = """
import sys
from pathlib import Path
from tests.integration.test_store import open_store

store = open_store(Path(sys.argv[1]))
n = int(sys.argv[2])
while True:
    n += 1
    store.write_rows(0, {b"%d" % key: b"%d" % n for key in range(200)}, n)
    print(n, flush=True)
"""


def test_rows_and_their_changelog_offset_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    n = 0
    for _ in range(2):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITES_UNTIL_KILLED, str(tmp_path), str(n)], cwd=REPOSITORY, stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        for _ in range(200):
            written = int(writer.stdout.readline())
        writer.kill()
        writer.communicate()
        store = open_store(tmp_path)
        rows, offset = stored(store), persisted(store)
        assert len(rows) == 200
        assert offset is not None
        assert set(rows.values()) == {b"%d" % offset}
        assert offset >= written > n, "what was written before the kill is there"
        n = offset
        store._db_for_partition(0).close()


def test_nobody_sees_rows_without_their_changelog_offset(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write_rows(0, {b"first": b"0", b"last": b"0"}, 0)
    db = store._db_for_partition(0)
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            store.write_rows(0, {b"first": b"%d" % n, b"last": b"%d" % n}, n)

    writer = threading.Thread(target=write)
    writer.start()
    seen: set[bytes] = set()
    try:
        while len(seen) < 50:
            moment = db.snapshot()
            found = {moment[key] for key in (b"first", b"last", store.offset_key)}
            assert len(found) == 1
            seen |= found
            del moment
    finally:
        stop.set()
        writer.join()
    db.close()


def test_rows_of_ended_sessions_leave_rocksdb(tmp_path: Path) -> None:
    """By themselves, as new rows come in; nothing sweeps them."""
    ttl = 2
    store = open_store(tmp_path, session_ttl=ttl, store_write_buffer_mb=1)
    body = bytes(range(256)) * 8  # 2 KiB
    # At the bottom, in a file that no later row falls into: only its age can bring it to a compaction.
    db = store._db_for_partition(0)
    began = time.monotonic()
    for n in range(2000):
        db[b"old-%d" % n] = body + b"%d" % n
    db.flush()
    db.compact_range(None, None)
    old, new = 2000, 0
    while old and time.monotonic() < began + 60:
        store.write_rows(0, {b"new-%d" % (new + n): body + b"%d" % n for n in range(100)}, 2)
        new += 100
        time.sleep(0.05)
        old = sum(1 for key in stored(store) if key.startswith(b"old"))
        if old < 2000:
            assert time.monotonic() > began + ttl - 1, "no row leaves before its time (RocksDB counts whole seconds)"
    assert old == 0
    # What is left is about what came within the time to live, not all that ever came.
    store._db_for_partition(0).close()
    store._dbs.clear()
    time.sleep(ttl + 1)
    db = store._db_for_partition(0)  # as a worker that comes back after a night
    db.compact_range(None, None)
    assert stored(store) == {}
    assert persisted(store) is None, "an offset without rows would keep a restore from reading them"
    db.close()


def test_a_store_that_is_opened_again_loses_no_row_and_keeps_to_its_options(tmp_path: Path) -> None:
    """rocksdict would open it with the options that it finds there, the filter of expired rows twice over."""
    for n in range(4):
        store = open_store(tmp_path)
        store.write_rows(0, {b"%d" % key: row(n) for key in range(10 * n, 10 * n + 20)}, n)
        store._db_for_partition(0).close()
    store = open_store(tmp_path)
    db = store._db_for_partition(0)
    db.compact_range(None, None)
    assert stored(store) == {b"%d" % key: row(min(key // 10, 3)) for key in range(50)}
    assert persisted(store) == 3
    assert store._cache.get_usage() > 1000, "the blocks are not in the cache that worker.store_cache_mb limits"
    db.close()


def test_a_restored_row_never_goes_back(tmp_path: Path) -> None:
    """A frozen worker may append an older row behind its successor's."""
    store = open_store(tmp_path)
    assert store.apply_changelog(0, [(b"s", row(10), 0), (b"t", row(3), 1), (b"s", row(7), 2)]) == 1
    assert store.apply_changelog(0, [(b"s", row(9), 3), (b"t", row(3), 4), (b"t", row(4), 5)]) == 1
    assert store.rows(0, [b"s", b"t", b"u"]) == [row(10), row(4), None]
    assert persisted(store) == 5
    # A tombstone is an operator's, or an earlier release's: what follows is new.
    assert store.apply_changelog(0, [(b"s", None, 6), (b"t", None, 7), (b"t", row(1), 8)]) == 0
    assert store.rows(0, [b"s", b"t"]) == [None, row(1)]
    assert persisted(store) == 8
    with pytest.raises(RowError, match=r"record 9 of the changelog's partition 0, key b's'"):
        store.apply_changelog(0, [(b"t", row(2), 8), (b"s", b"garbage", 9)])
    assert store.rows(0, [b"t"]) == [row(1)], "a batch is applied whole or not at all"
    assert persisted(store) == 8
    store._db_for_partition(0).close()


def set_aside_of(store: SessionStore) -> Path:
    path: Path = store.partition_path(0)
    return path.with_name(f"{path.name}.damaged")


def test_a_store_that_is_open_elsewhere_is_refused(tmp_path: Path) -> None:
    first, second = open_store(tmp_path), open_store(tmp_path)
    first.write_rows(0, {b"s": row(1)}, 1)
    with pytest.raises(StoreError, match=r"Is another worker using the same worker\.data_dir"):
        second.rows(0, [b"s"])
    assert first.rows(0, [b"s"]) == [row(1)]
    assert not set_aside_of(first).exists()
    first._db_for_partition(0).close()


def test_a_full_disk_is_not_taken_for_another_worker(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # no file may grow, as on a disk without room
    try:
        with pytest.raises(StoreError, match=r"RocksDB does not open .*File too large") as told:
            store.rows(0, [b"s"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "another worker" not in str(told.value)
    assert not set_aside_of(store).exists(), "it would take up as much space again"


def test_a_disk_that_is_full_in_service_is_told_with_the_folder(tmp_path: Path) -> None:
    """Not as damage: nothing is to be set aside, there is to be room."""
    store = open_store(tmp_path)
    store.write_rows(0, {b"s": row(1)}, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(StoreError, match=r"the local store .*sessions-0\.db cannot be used: .*File too large"):
            store.write_rows(0, {b"s": row(2)}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert damage.known_damage(store.partition_path(0)) is None
    with suppress(Exception):  # RocksDB takes nothing more
        store._db_for_partition(0).close()
