"""The sessions table's recovery and its changelog, on a real Kafka and a real RocksDB."""

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import PartitionRecords
from faust.types import TP

from stream_app.core.session import SessionState
from stream_app.core.state_codec import encode_state
from stream_app.errors import StoreError
from tests.conftest import KafkaUnderTest
from tests.integration.workers import AppUnderTest, Group, RecordRefusedError, running, until


@pytest.fixture
def group(kafka: KafkaUnderTest, topic_prefix: str) -> Group:
    return Group(kafka.bootstrap_servers, topic_prefix)


def row(offset: int) -> bytes:
    return encode_state(
        SessionState(model_version="", offset=offset, last_click=0, clicks=1, recent=("item",), hidden=None)
    )


def rows(count: int, start: int = 0) -> list[tuple[bytes | None, bytes | None]]:
    return [(b"s%d" % n, row(n)) for n in range(start, start + count)]


def accepted(group: Group, topic: str, record: tuple[bytes | None, bytes | None]) -> bool:
    try:
        group.put(topic, [record])
    except RecordRefusedError:
        return False
    return True


async def test_restores_whatever_a_changelog_may_look_like(group: Group, tmp_path: Path) -> None:
    """Partition 0: the beginning deleted by retention, a stale row, a record that is not ours. Partition 1: empty."""
    group.put(group.changelog, rows(100))
    group.delete_records(group.changelog, 60)
    group.put(group.changelog, [(b"s70", row(500)), (b"s70", row(400)), (b"s80", None)])
    group.alter(group.changelog, cleanup_policy="delete")  # or the broker refuses a record without a key
    # The alteration is answered before the broker's log has it.
    await until(lambda: accepted(group, group.changelog, (None, b"not ours")), "a record without a key is accepted")
    async with running(group.settings(tmp_path)) as worker:
        await worker.ready()
        table = worker.app.sessions
        found = table.states(0, [f"s{n}" for n in range(100)])
        assert sorted(found) == sorted(f"s{n}" for n in range(60, 100) if n != 80)
        assert found["s70"].offset == 500
        assert table.stale == 1
        assert table.states(1, ["s0"]) == {}

    # The local store ends where retention has deleted since: what lies between is gone, what follows is read.
    group.put(group.changelog, rows(50, start=100))
    group.delete_records(group.changelog, 120)
    async with running(group.settings(tmp_path)) as worker:
        await worker.ready()
        table = worker.app.sessions
        assert len(table.states(0, [f"s{n}" for n in range(150)])) == 39 + 50 - (120 - 104)
        assert table.restored == 154 - 120
    # Everything deleted, and nothing local.
    group.delete_records(group.changelog, 154)
    async with running(group.settings(tmp_path / "elsewhere")) as worker:
        await worker.ready()
        assert worker.app.sessions.restored == 0
        group.produce(10)
        await until(lambda: group.committed() == 10, "it serves")
        assert worker.errors == []


async def test_a_changelog_that_is_behind_the_local_store_is_refused(group: Group, tmp_path: Path) -> None:
    """It was created anew, or brokers lost what they had confirmed."""
    group.put(group.changelog, rows(10))
    async with running(group.settings(tmp_path)) as worker:
        await worker.ready()
    shutil.copytree(tmp_path, tmp_path.with_name("kept"))
    other = Group(group.bootstrap, f"{group.prefix}-anew")
    kept = tmp_path.with_name("kept")
    async with running(other.settings(kept)) as worker:
        await until(lambda: worker.app.crashed, "it is refused")
        assert isinstance(worker.app.crash_reason, StoreError)
        assert "covers the changelog up to offset 9, but the changelog ends at 0" in str(worker.app.crash_reason)
        assert "Delete" in str(worker.app.crash_reason)


async def test_rows_of_ended_sessions_leave_the_changelog(group: Group, kafka: KafkaUnderTest, tmp_path: Path) -> None:
    if kafka.is_named:
        pytest.skip("needs a broker that looks for deletable segments each second, as our local one does")
    # Our changelog's policy, with times that a test can wait for.
    times = ("retention_ms", "segment_ms", "min_compaction_lag_ms", "max_compaction_lag_ms", "delete_retention_ms")
    group.alter(group.changelog, **dict.fromkeys(times, "1000"))
    async with running(group.settings(tmp_path / "a")) as worker:
        await worker.ready()
        for n in range(20):
            group.produce(5, session=f"s{n}")
        await until(lambda: group.committed() == 100, "all acknowledged")
        assert group.marks(group.changelog)[1] >= 20
    await until(lambda: len(set(group.marks(group.changelog))) == 1, "the changelog is empty")

    async with running(group.settings(tmp_path / "b")) as worker:  # another machine: nothing local
        await worker.ready()
        assert worker.app.sessions.restored == 0
        assert worker.app.sessions.states(0, [f"s{n}" for n in range(20)]) == {}
        group.produce(3, session="s0", start=5)
        await until(lambda: group.committed() == 103, "the session that comes back is answered")
        assert worker.app.sessions.states(0, ["s0"])["s0"].clicks == 3
        assert worker.errors == []


async def test_what_a_rebalance_leaves_unread_of_the_changelog_is_freed(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refers to itself, and a worker's collector comes only after tens of thousands of objects."""
    unread: weakref.WeakSet[PartitionRecords] = weakref.WeakSet()

    class Observed(PartitionRecords):
        def __init__(self, *fetched: Any) -> None:
            super().__init__(*fetched)
            unread.add(self)

    monkeypatch.setattr(fetcher, "PartitionRecords", Observed)
    gc.disable()
    try:
        async with running(group.settings(tmp_path)) as worker:
            await worker.ready()
            for n in range(20):
                group.produce(5, session=f"t{n}")
            await until(lambda: group.committed() == 100, "all acknowledged")
            held: list[int] = []
            for _ in range(4):
                await worker.rebalance()
                held.append(len(unread))
            assert held[-1] < len(held), held  # each leaves one at least, and the last one's may still be there
            assert worker.errors == []
    finally:
        gc.enable()


async def test_a_store_covers_its_own_records_and_those_it_restored_and_no_others(group: Group, tmp_path: Path) -> None:
    """Another's record may hold a newer row than the store: a restore must not begin behind it."""
    changelog = TP(group.changelog, 0)

    def covered(worker: AppUnderTest) -> int | None:
        offset: int | None = worker.app.sessions.data.persisted_offset(changelog)
        return offset

    group.put(group.changelog, rows(10))
    group.delete_records(group.changelog, 10)  # by retention: the end is all that there is
    async with running(group.settings(tmp_path, chunk_clicks=7)) as worker:
        await worker.ready()
        assert covered(worker) is None
        for n in range(40):
            group.produce(5, session=f"t{n}")  # several chunks in flight, and some of them joined
        await until(lambda: group.committed() == 200, "all acknowledged")
        begin, end = group.marks(group.changelog)
        assert (begin, covered(worker)) == (10, end - 1)

        group.put(group.changelog, [(b"t3", row(700))])  # a successor's, while this worker was cut off
        for n in range(10):
            group.produce(5, session=f"t{n}", start=5)
        await until(lambda: group.committed() == 250, "all acknowledged")
        assert covered(worker) == end - 1
        assert worker.app.sessions.states(0, ["t3"])["t3"].clicks == 10  # rows are written all the same
        assert worker.errors == []

    async with running(group.settings(tmp_path)) as worker:
        await worker.ready()
        assert worker.app.sessions.states(0, ["t3"])["t3"].offset == 700
        assert covered(worker) == group.marks(group.changelog)[1] - 1
        group.produce(5, session="t0", start=10)
        await until(lambda: group.committed() == 255, "all acknowledged")
        assert covered(worker) == group.marks(group.changelog)[1] - 1
