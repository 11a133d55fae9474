"""`trainer collect` on a real Kafka: every offset once, whatever happens to the collector or the topic."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer

from schemas.errors import SchemaRegistryError
from schemas.formats.codec import Formats, formats_by
from schemas.messages.click import Click, encode_click
from schemas.messages.forget import Forget, encode_forget
from tests.admin import delete_records, delete_topics
from tests.conftest import KafkaUnderTest
from tests.integration.trainer_deployment import PARTITIONS, Deployment
from tests.patience import PATIENCE
from tests.unit.registry import SETTINGS, Registry
from trainer.errors import ClickLogError, CollectError
from trainer.service.assembly import collect, collector_of
from trainer.service.click_log import ClickLogFolder
from trainer.service.collect import Collector

NOW = 1_767_225_600_000


@pytest.fixture
def deployment(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> Deployment:
    deployment = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path)
    deployment.create_topics()
    return deployment


def clicks(count: int, *, first: int = 0) -> Iterator[Click]:
    for number in range(first, first + count):
        kind = (None, "cart", "purchase")[number % 3]
        yield Click(f"s{number % 50}", f"i{number % 7}", NOW + number, type=kind)


def logged(deployment: Deployment, folder: str = ".") -> list[tuple[str, str, int, str | None]]:
    """Every row of the log, by time."""
    rows = [
        row
        for path in (deployment.log_dir / folder).glob("*.parquet")
        for row in pq.ParquetFile(path).read().to_pylist()
    ]
    names = ("session_id", "item_id", "timestamp", "type")
    return sorted((tuple(row[name] for name in names) for row in rows), key=lambda row: row[2])


def as_rows(sent: Iterator[Click]) -> list[tuple[str, str, int, str | None]]:
    return [(click.session_id, click.item_id, click.timestamp, click.type) for click in sent]


def collect_once(deployment: Deployment) -> int:
    return collect(deployment.root(), once=True, stopping=lambda: False).clicks


def test_each_call_goes_on_where_the_files_end(deployment: Deployment) -> None:
    deployment.produce(clicks(500))
    assert collect_once(deployment) == 500
    assert collect_once(deployment) == 0
    deployment.produce(clicks(300, first=500))
    assert collect_once(deployment) == 300
    assert logged(deployment) == as_rows(clicks(800))


def test_clicks_wait_for_a_schema_registry_that_is_away(deployment: Deployment) -> None:
    registry, root = Registry(timeout=0.0), deployment.root()

    def formats() -> Formats:
        return formats_by(registry, SETTINGS, deployment.topics, deployment.topics.rankings)

    shop = formats().clicks
    deployment.produce_raw((click.session_id.encode(), shop.to_wire(encode_click(click))) for click in clicks(60))
    folder = ClickLogFolder(deployment.log_dir)
    options: dict[str, Any] = {"group": root.group, "limits": root.clicks.limits}
    options |= {"flush_clicks": 1000, "flush_seconds": 60.0}
    with (
        folder.locked(),
        Collector(root.kafka, deployment.topics.clicks, folder, formats=formats(), **options) as collector,
    ):
        registry.away = [ConnectionError("refused")]
        with pytest.raises(SchemaRegistryError, match="does not answer"):
            collector.collect_to_end()
        assert collector.collect_to_end().clicks == 60
    assert logged(deployment) == as_rows(clicks(60))


def test_collectors_share_the_partitions(deployment: Deployment) -> None:
    deployment.produce(clicks(500))
    shares = {"one": (0, 2), "two": (1,)}
    for name, numbers in shares.items():
        root = deployment.root(log_dir=deployment.log_dir / name, collect_partitions=numbers)
        assert collect(root, once=True, stopping=lambda: False).clicks > 0
        assert set(ClickLogFolder(deployment.log_dir / name).scan().next_offsets) == set(numbers)
    rows = [row for name in shares for row in logged(deployment, name)]
    assert sorted(rows, key=lambda row: row[2]) == as_rows(clicks(500))
    with pytest.raises(ClickLogError, match=r"holds partitions \[1\], which .* trainer.collect_partitions leaves out"):
        collect(deployment.root(log_dir=deployment.log_dir / "two", collect_partitions=(0,)), once=True, stopping=bool)
    with pytest.raises(CollectError, match=r"names \[7\], the topic .* has 0 to 2"):
        collect(deployment.root(collect_partitions=(1, 7)), once=True, stopping=bool)


def test_records_that_are_no_clicks_are_counted_and_passed(deployment: Deployment) -> None:
    good = [(click.session_id.encode(), encode_click(click)) for click in clicks(10)]
    bad: list[tuple[bytes | None, bytes | None]] = [
        (b"s1", b"not json"),
        (b"other", encode_click(Click("s1", "i1", NOW))),
        (b"s1", None),
        (b"s1", encode_click(Click("s1", "", NOW))),
        (b"s1", encode_click(Click("s1", "i1", 10**15))),
    ]
    deployment.produce_raw([*good[:5], *bad, *good[5:]])
    collected = collect(deployment.root(), once=True, stopping=lambda: False)
    assert collected.clicks == 10
    assert collected.rejected == {
        "not-json": 1, "key-mismatch": 1, "no-value": 1, "bad-id": 1, "future-timestamp": 1,
    }  # fmt: skip
    assert logged(deployment) == as_rows(clicks(10))
    assert sum(ClickLogFolder(deployment.log_dir).scan().next_offsets.values()) == 15


def test_aborted_clicks_are_not_collected_and_the_log_goes_on_behind_them(deployment: Deployment) -> None:
    producer = Producer(
        {"bootstrap.servers": deployment.bootstrap_servers, "transactional.id": deployment.topics.clicks}
    )
    producer.init_transactions(PATIENCE)
    for first, committed in ((0, True), (100, False), (200, True), (300, False)):
        producer.begin_transaction()
        for click in clicks(100, first=first):
            producer.produce(deployment.topics.clicks, encode_click(click), click.session_id.encode(), 0)
        assert producer.flush(PATIENCE) == 0
        (producer.commit_transaction if committed else producer.abort_transaction)(PATIENCE)
    assert collect_once(deployment) == 200
    assert collect_once(deployment) == 0
    assert logged(deployment) == [*as_rows(clicks(100)), *as_rows(clicks(100, first=200))]
    assert ClickLogFolder(deployment.log_dir).scan().next_offsets[0] == 404


def test_clicks_that_lay_there_for_long_are_judged_by_their_time_of_arrival(deployment: Deployment) -> None:
    """What the worker rejected for being in the future is not accepted later, when that future has come."""
    soon = time.time_ns() // 1_000_000 + 3000
    deployment.produce([Click("s1", "i1", soon)])
    while time.time_ns() // 1_000_000 < soon:
        time.sleep(0.1)
    collected = collect(deployment.root(**{"clicks.max_future": 0.5}), once=True, stopping=lambda: False)
    assert collected.rejected == {"future-timestamp": 1}


def test_small_flushes_leave_the_same_log(deployment: Deployment) -> None:
    deployment.produce(clicks(2000))
    collected = collect(deployment.root(flush_clicks=1), once=True, stopping=lambda: False)
    assert collected.clicks == 2000
    assert collected.files >= PARTITIONS
    assert logged(deployment) == as_rows(clicks(2000))


def delete_before(deployment: Deployment, offsets: dict[int, int]) -> None:
    """What retention does, at once."""
    delete_records({"bootstrap.servers": deployment.bootstrap_servers}, deployment.topics.clicks, offsets)


def test_clicks_that_retention_took_are_counted_now_and_later(deployment: Deployment) -> None:
    deployment.produce(clicks(600))
    collect_once(deployment)
    ends = ClickLogFolder(deployment.log_dir).scan().next_offsets
    deployment.produce(clicks(600, first=600))
    delete_before(deployment, {number: offset + 20 for number, offset in ends.items()})
    collected = collect(deployment.root(), once=True, stopping=lambda: False)
    assert collected.lost == 20 * PARTITIONS
    assert collected.clicks == 600 - 20 * PARTITIONS
    lost = ClickLogFolder(deployment.log_dir).scan().lost
    assert {gap.partition: (gap.first, gap.last) for gap in lost} == {
        number: (offset, offset + 19) for number, offset in ends.items()
    }
    assert collect_once(deployment) == 0


def test_retention_may_overtake_a_running_collector(deployment: Deployment) -> None:
    deployment.produce(clicks(300))
    folder = ClickLogFolder(deployment.log_dir)
    with folder.locked(), collector_of(deployment.root(), folder) as collector:
        first = collector.collect_to_end()
        assert first.clicks == 300
        ends = folder.scan().next_offsets
        # Paused, for librdkafka would fetch the next records before retention can take them.
        partitions = collector._consumer.assignment()
        collector._consumer.pause(partitions)
        deployment.produce(clicks(300, first=300))
        delete_before(deployment, {number: offset + 10 for number, offset in ends.items()})
        collector._consumer.resume(partitions)
        second = collector.collect_to_end()
    assert second.lost == 10 * PARTITIONS
    assert second.clicks == 300 - 10 * PARTITIONS


def test_a_topic_made_anew_is_not_mixed_with_the_old_one(deployment: Deployment) -> None:
    deployment.produce(clicks(100))
    collect_once(deployment)
    delete_topics({"bootstrap.servers": deployment.bootstrap_servers}, deployment.topics.clicks)
    deployment.create_topics()
    deployment.produce(clicks(200))  # longer than what was collected: offsets alone would not tell
    with pytest.raises(ClickLogError, match=r"comes from the topic .* name another trainer\.log_dir"):
        collect_once(deployment)


def test_a_topic_that_is_not_there_names_the_step(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> None:
    with pytest.raises(CollectError, match="create it with `stream-app topics`"):
        collect_once(Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path))


def test_a_broker_that_is_not_there_names_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.service.collect._TIMEOUT_SECONDS", 2.0)
    deployment = Deployment("127.0.0.1:1", "nowhere", tmp_path)
    with pytest.raises(CollectError, match=r"127\.0\.0\.1:1.*is Kafka running"):
        collect_once(deployment)


def test_the_command_collects_until_sigterm_and_tells_what_it_did(deployment: Deployment) -> None:
    deployment.produce(clicks(400))
    process = deployment.start("collect", "--json", NEXTCLICK_TRAINER__FLUSH_INTERVAL="200ms")
    try:
        while not list(deployment.log_dir.glob("*.parquet")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.terminate()
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert Counter(json.loads(output))["clicks"] == len(logged(deployment))
    finished = deployment.trainer("collect", "--once", "--json")
    assert finished.returncode == 0, finished.stderr
    assert logged(deployment) == as_rows(clicks(400))
    assert json.loads(finished.stdout)["lost"] == 0


def test_forgotten_sessions_leave_the_log_and_may_begin_anew(deployment: Deployment) -> None:
    """Those of before in the files, those not written yet, and a request that was collected before a kill."""
    request = (b"s3", encode_forget(Forget("s3", "forget")))
    deployment.produce(clicks(100))
    assert collect_once(deployment) == 100
    deployment.produce(clicks(100, first=100))
    deployment.produce_raw([request])
    deployment.produce(clicks(100, first=200))
    kept = [*clicks(300)]
    kept = [click for click in kept if click.session_id != "s3" or click.timestamp >= NOW + 200]
    assert collect_once(deployment) == 198
    assert logged(deployment) == as_rows(iter(kept))
    assert collect_once(deployment) == 0
    deployment.produce_raw([request])
    collected = collect(deployment.root(), once=True, stopping=lambda: False)
    assert (collected.clicks, collected.rejected) == (0, {})
    assert logged(deployment) == as_rows(click for click in kept if click.session_id != "s3")
