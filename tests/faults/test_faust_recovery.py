"""Why a plain Faust worker hangs in recovery or ends with a ConsistencyError; docs/faust-recovery.md tells it in words.

These tests hold what our worker is built around. One that fails after an upgrade of Faust is good news: read the page,
then see what the worker no longer needs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import NewTopic

from deploy.kafka import LocalKafka
from schemas.kafka.watermarks import watermarks
from tests.admin import create_topics, delete_records, delete_topics
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.patience import PATIENCE

pytestmark = pytest.mark.fault

PARTITIONS = 2


@dataclass
class PlainFaust:
    """One process of tests/faults/plain_faust.py after the other, with the same settings and data folder."""

    app_id: str
    bootstrap_servers: str
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None
    _log: Path = Path()

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log = self.folder / f"{len(list(self.folder.glob('*.log')))}.log"
        environment = {
            **os.environ,
            "APP_ID": self.app_id,
            "BOOTSTRAP": self.bootstrap_servers,
            "DATA_DIR": str(self.folder / "data"),
            **self.settings,
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.plain_faust"],
                cwd=REPOSITORY,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def end(self, how: signal.Signals) -> int:
        """Send the signal and wait for the end."""
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def told(self) -> list[dict[str, Any]]:
        """What it printed so far, in whole lines."""
        lines = self.log().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]

    def wait(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first thing it told that meets the condition."""
        seen = 0
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            told = self.told()
            for status in told[seen:]:
                if condition(status):
                    return status
            seen = len(told)
            assert self.process is not None
            assert self.process.poll() is None, f"it ended:\n{self.log()[-3000:]}"
            time.sleep(0.05)
        pytest.fail(f"it never came to that:\n{self.log()[-3000:]}")

    def wait_until_ready(self) -> dict[str, Any]:
        return self.wait(lambda status: bool(status.get("ready")))

    def stored_offsets(self) -> dict[int, int]:
        """Partition -> the changelog offset that its RocksDB says it covers. Only while no process has it open."""
        import rocksdict

        offsets = {}
        for partition in range(PARTITIONS):
            path = self.folder / "data" / "v1" / "tables" / f"counts-{partition}.db"
            raw, read = rocksdict.Options(raw_mode=True), rocksdict.AccessType.read_only()
            db = rocksdict.Rdict(str(path), options=raw, access_type=read)
            if (offset := db.get(b"__faust\0offset__")) is not None:
                offsets[partition] = int(offset)
            db.close()
        return offsets


@dataclass
class Topics:
    """The clicks and changelog topics of a plain Faust app."""

    app_id: str
    bootstrap_servers: str

    @property
    def clicks(self) -> str:
        return f"{self.app_id}-clicks"

    @property
    def changelog(self) -> str:
        return f"{self.app_id}-counts-changelog"

    @property
    def connection(self) -> dict[str, Any]:
        return {"bootstrap.servers": self.bootstrap_servers}

    def create(self, name: str) -> None:
        create_topics(self.connection, NewTopic(name, PARTITIONS, 1))

    def delete(self, name: str) -> None:
        delete_topics(self.connection, name)

    def truncate(self, before: dict[int, int]) -> None:
        """Delete the changelog's records before these offsets, as retention does."""
        delete_records(self.connection, self.changelog, before)

    def produce(self, topic: str, count: int, *, keys: int = 20, transactional: bool = False) -> None:
        """`count` records into each partition."""
        producer = Producer(self.connection | ({"transactional.id": self.app_id} if transactional else {}))
        if transactional:
            producer.init_transactions(PATIENCE)
            producer.begin_transaction()
        for partition in range(PARTITIONS):
            for i in range(count):
                producer.produce(topic, key=b"%d-%d" % (partition, i % keys), value=b"1", partition=partition)
        if transactional:
            producer.commit_transaction(PATIENCE)
        assert producer.flush(PATIENCE) == 0

    @contextmanager
    def coming_clicks(self) -> Iterator[None]:
        """Some hundred clicks a second in every partition, for as long as the block takes."""
        producer, enough = Producer(self.connection), threading.Event()

        def produce() -> None:
            while not enough.wait(0.05):
                for n in range(10 * PARTITIONS):
                    partition = n % PARTITIONS
                    producer.produce(self.clicks, key=b"%d-%d" % (partition, n), value=b"1", partition=partition)
                producer.poll(0)

        thread = threading.Thread(target=produce, name="clicks")
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()
            assert producer.flush(PATIENCE) == 0

    def ends(self) -> dict[int, int]:
        """Partition -> the offset that the changelog's next record will get."""
        consumer = Consumer(self.connection | {"group.id": "ends"})
        try:
            return {
                p: watermarks(consumer, TopicPartition(self.changelog, p), timeout=PATIENCE)[1]
                for p in range(PARTITIONS)
            }
        finally:
            consumer.close()


@pytest.fixture
def topics(kafka: KafkaUnderTest, topic_prefix: str) -> Topics:
    made = Topics(topic_prefix, kafka.bootstrap_servers)
    made.create(made.clicks)
    made.create(made.changelog)
    return made


@pytest.fixture
def worker(topics: Topics, tmp_path: Path) -> Iterator[PlainFaust]:
    made = PlainFaust(topics.app_id, topics.bootstrap_servers, tmp_path / "worker")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.end(signal.SIGKILL)


def test_a_killed_worker_rejoins_and_never_stores_an_offset_above_the_changelog(
    topics: Topics, worker: PlainFaust
) -> None:
    worker.settings = {"SESSION_TIMEOUT": "3"}
    # A plain worker may lose the clicks that wait for it (the next test): what it counts must come while it runs.
    with topics.coming_clicks():
        for _ in range(3):
            worker.start()
            worker.wait(lambda status: status.get("counted", 0) > 50)
            worker.end(signal.SIGKILL)
            ends = topics.ends()
            assert all(offset < ends[partition] for partition, offset in worker.stored_offsets().items())
        assert set(worker.stored_offsets()) == set(range(PARTITIONS))
        worker.start()
        worker.wait(lambda status: status.get("counted", 0) > 50)
    assert "ConsistencyError" not in worker.log()


def test_a_fetch_under_way_when_recovery_ends_takes_clicks_that_nobody_ever_sees(
    kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path
) -> None:
    """Ready, with all partitions, and nothing processed of what was waiting; the next commit makes it final."""
    # Such a fetch lasts a second at most, which a slow machine may miss.
    assert any(_loses_what_waits(Topics(f"{topic_prefix}-{n}", kafka.bootstrap_servers), tmp_path) for n in range(5))


def _loses_what_waits(topics: Topics, folder: Path) -> bool:
    topics.create(topics.clicks)
    topics.create(topics.changelog)
    topics.produce(topics.clicks, 100)
    topics.produce(topics.changelog, 20)
    gate = folder / f"{topics.app_id}.gate"
    worker = PlainFaust(topics.app_id, topics.bootstrap_servers, folder / topics.app_id, {"GATE": str(gate)})
    worker.start()
    try:
        worker.wait(lambda status: "recovered" in status)
        # Recovery has paused every partition, and is not yet done. Any record ends the fetch that is under way.
        topics.produce(topics.changelog, 1)
        time.sleep(1)  # until it has ended, one way or the other
        gate.touch()
        worker.wait_until_ready()
        topics.produce(topics.clicks, 10)

        def counted() -> set[int]:
            return {status.get("counted", 0) for status in worker.told()[-4:]}

        worker.wait(lambda _: len(counted()) == 1 and min(counted()) >= 10 * PARTITIONS)
        return counted() == {10 * PARTITIONS}
    finally:
        worker.end(signal.SIGKILL)


def test_a_recreated_changelog_is_a_consistency_error_while_it_is_shorter(topics: Topics, worker: PlainFaust) -> None:
    topics.produce(topics.clicks, 100)
    worker.start()
    worker.wait(lambda status: status.get("counted") == 100 * PARTITIONS)
    assert worker.end(signal.SIGTERM) == 0
    stored = worker.stored_offsets()
    assert set(stored.values()) == {99}

    topics.delete(topics.changelog)
    topics.create(topics.changelog)
    worker.start()
    assert worker.process is not None
    assert worker.process.wait(PATIENCE) == 1
    assert "ConsistencyError" in worker.log()

    # Longer than the stored offset, it is taken for the old one: the first 100 records are never read.
    topics.produce(topics.changelog, 110, keys=110)
    worker.start()
    status = worker.wait_until_ready()
    assert status["rows"] == (20 + 10) * PARTITIONS


def test_a_changelog_without_its_beginning_is_restored_from_earliest_only(
    topics: Topics, worker: PlainFaust, tmp_path: Path
) -> None:
    topics.produce(topics.changelog, 100, keys=100)
    topics.truncate(dict.fromkeys(range(PARTITIONS), 60))
    worker.start()
    assert worker.wait_until_ready()["rows"] == 40 * PARTITIONS
    worker.end(signal.SIGTERM)

    # What the local store covers has left the changelog meanwhile.
    topics.produce(topics.changelog, 100, keys=100)
    topics.truncate(dict.fromkeys(range(PARTITIONS), 150))
    worker.start()
    worker.wait_until_ready()
    worker.end(signal.SIGTERM)
    assert set(worker.stored_offsets().values()) == {199}

    shutil.rmtree(tmp_path / "worker" / "data")
    worker.settings = {"AUTO_OFFSET_RESET": "latest"}
    worker.start()
    worker.wait(lambda _: worker.log().count("is out of range") >= PARTITIONS)
    # Recovery now waits for records that lie before its position.
    assert worker.told()[-1]["remaining"] == 50 * PARTITIONS
    assert not worker.told()[-1]["ready"]


def test_recovery_waits_forever_for_a_last_offset_that_is_no_record(topics: Topics, worker: PlainFaust) -> None:
    topics.produce(topics.changelog, 5, transactional=True)
    worker.start()
    # The commit marker of the transaction has the last offset: it is in no fetch, and recovery counts on it.
    worker.wait(lambda _: [status["remaining"] for status in worker.told()[-8:]] == [PARTITIONS] * 8)
    assert not worker.told()[-1]["ready"]
    topics.produce(topics.changelog, 1)
    worker.wait_until_ready()


def test_recovery_swallows_what_the_table_raises_and_waits_forever(topics: Topics, worker: PlainFaust) -> None:
    producer = Producer({"bootstrap.servers": topics.bootstrap_servers})
    producer.produce(topics.changelog, key=None, value=b"1", partition=0)
    assert producer.flush(PATIENCE) == 0
    worker.start()
    worker.wait(lambda _: worker.log().count("Error in recovery") >= 2)
    assert not worker.told()[-1]["ready"]
    assert worker.told()[-1]["remaining"] == 0


def test_a_recovery_step_that_takes_too_long_ends_recovery_for_good(tmp_path: Path) -> None:
    """The hanging rejoin: Faust takes a timeout for 'the service was stopped', and says nothing."""
    with LocalKafka(log_dir=tmp_path / "kafka-logs") as kafka:
        topics = Topics("hang", kafka.bootstrap_servers)
        topics.create(topics.clicks)
        topics.create(topics.changelog)
        topics.produce(topics.changelog, 10)
        gate = tmp_path / "gate"
        settings = {"REQUEST_TIMEOUT": "6", "SESSION_TIMEOUT": "3", "GATE": str(gate)}
        worker = PlainFaust(topics.app_id, topics.bootstrap_servers, tmp_path / "worker", settings)
        successor = PlainFaust(topics.app_id, topics.bootstrap_servers, tmp_path / "successor")
        try:
            worker.start()
            worker.wait(lambda status: "recovered" in status)
            kafka.kill_broker(0)
            gate.touch()  # what follows is the last step of recovery, reading the committed offsets
            worker.wait(lambda status: status.get("recovery_task_runs") is False and status["recovery_started"])
            kafka.start_broker(0)

            # At the next rebalance it keeps its share of the partitions, and nobody ever recovers them.
            successor.start()
            generation = successor.wait_until_ready()["generation"]
            status = worker.wait(
                lambda status: status.get("generation", 0) >= generation and len(status["changelog_partitions"]) == 1
            )
            assert not status["recovery_task_runs"]
            assert not status["ready"]
            assert worker.end(signal.SIGTERM) == 0, "it even leaves as if all had been well"
        finally:
            for process in (worker.process, successor.process):
                if process is not None and process.poll() is None:
                    process.kill()
                    process.wait()
