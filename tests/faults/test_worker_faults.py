"""Faults under load. After each: every click has its ranking, and every row is what its clicks lead to."""

import random
import shutil
import signal
import time

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from deploy.demo.oracle import mismatches
from schemas.click import Click
from tests.conftest import KafkaUnderTest
from tests.faults.deployment import PARTITIONS, Deployment


@pytest.mark.parametrize("keep_data", [True, False], ids=["with its data", "without its data"])
def test_killed_at_random_moments(deployment: Deployment, clicks: list[Click], keep_data: bool) -> None:
    rng = random.Random(f"kills {keep_data}")
    producing = deployment.send_slowly(clicks, per_second=800)
    for _ in range(3):
        worker = deployment.start_ready()
        time.sleep(rng.uniform(0.1, 2.0))
        worker.kill()
        if not keep_data:
            shutil.rmtree(worker.data_dir)
    worker = deployment.start_ready()
    producing.join()
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0

    verdict = deployment.verdict()
    verdict.assert_nothing_lost_nothing_wrong()
    assert verdict.clicks == len(clicks)
    assert mismatches(deployment.changelog_rows(), deployment.stored_rows(worker)) == []


def test_killed_while_restoring(deployment: Deployment, clicks: list[Click]) -> None:
    first = deployment.start_ready()
    deployment.send(clicks)
    deployment.wait_until_acknowledged()
    first.kill()
    shutil.rmtree(first.data_dir)
    for wait in (1.0, 2.0, 3.0):
        worker = deployment.start()
        time.sleep(wait)
        worker.kill()
    deployment.send(clicks[:1000])
    worker = deployment.start_ready()
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0
    deployment.verdict().assert_nothing_lost_nothing_wrong()


def test_one_to_two_to_one_workers(deployment: Deployment, clicks: list[Click]) -> None:
    first = deployment.start_ready("a")
    producing = deployment.send_slowly(clicks, per_second=700)
    second = deployment.start_ready("b")
    deployment.wait(lambda: second.metric("nextclick_clicks_total") > 100, "the second worker works", 30)
    assert first.stop() == 0
    producing.join()
    deployment.wait_until_acknowledged()
    assert second.stop() == 0

    verdict = deployment.verdict()
    verdict.assert_nothing_lost_nothing_wrong()
    assert verdict.clicks == len(clicks)
    assert verdict.duplicates == 0  # nobody crashed
    assert mismatches(deployment.changelog_rows(), deployment.stored_rows(second)) == []


def test_partition_comes_back_to_a_worker_with_old_rows(deployment: Deployment, clicks: list[Click]) -> None:
    third = len(clicks) // 3
    first = deployment.start_ready("a")
    deployment.send(clicks[:third])
    deployment.wait_until_acknowledged()
    assert first.stop() == 0
    second = deployment.start_ready("b")
    deployment.send(clicks[third : 2 * third])
    deployment.wait_until_acknowledged()
    assert second.stop() == 0
    first = deployment.start_ready("a")
    deployment.send(clicks[2 * third :])
    deployment.wait_until_acknowledged()
    assert first.stop() == 0
    verdict = deployment.verdict()
    verdict.assert_nothing_lost_nothing_wrong()
    assert verdict.duplicates == 0
    assert mismatches(deployment.changelog_rows(), deployment.stored_rows(first)) == []


def test_frozen_worker_wakes_after_its_partitions_moved(deployment: Deployment, clicks: list[Click]) -> None:
    frozen = deployment.start_ready("a")
    producing = deployment.send_slowly(clicks, per_second=600)
    deployment.wait(lambda: frozen.metric("nextclick_clicks_total") > 500, "the first worker works", 30)
    frozen.process.send_signal(signal.SIGSTOP)
    second = deployment.start_ready("b")
    deployment.wait(lambda: second.metric("nextclick_clicks_total") > 2000, "the second worker took over", 60)
    frozen.process.send_signal(signal.SIGCONT)
    producing.join()
    deployment.wait_until_acknowledged()
    assert frozen.stop() == 0
    assert second.stop() == 0
    deployment.verdict().assert_nothing_lost_nothing_wrong()


def test_broker_restart(deployment: Deployment, clicks: list[Click], kafka: KafkaUnderTest) -> None:
    if kafka.local is None:
        pytest.skip("needs a broker of its own to stop; KAFKA_BOOTSTRAP_SERVERS names one that is not ours")
    worker = deployment.start_ready()
    producing = deployment.send_slowly(clicks, per_second=800)
    deployment.wait(lambda: worker.metric("nextclick_clicks_total") > 500, "the worker works", 30)
    kafka.local.stop_broker(0)
    time.sleep(3)
    kafka.local.start_broker(0)
    producing.join()
    if worker.process.poll() is not None:  # it may give up, but not silently; its supervisor starts it again
        assert worker.process.returncode == 1
        worker = deployment.start_ready()
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0
    verdict = deployment.verdict()
    verdict.assert_nothing_lost_nothing_wrong()
    assert verdict.clicks >= len(clicks)


def test_redelivered_clicks_are_skipped(deployment: Deployment, clicks: list[Click]) -> None:
    worker = deployment.start_ready()
    deployment.send(clicks)
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0
    _commit(deployment, 0)

    worker = deployment.start_ready()
    deployment.wait_until_acknowledged()
    deployment.wait(
        lambda: worker.metric("nextclick_redelivered_total") == len(clicks), "every click seen a second time", 30
    )
    assert worker.stop() == 0
    verdict = deployment.verdict()
    verdict.assert_nothing_lost_nothing_wrong()
    assert verdict.duplicates == 0


def test_poison_records(deployment: Deployment, clicks: list[Click]) -> None:
    future = int(time.time() * 1000) + 86_400_000
    poison: list[tuple[bytes | None, bytes | None]] = [
        (b"s", b"not json"),
        (b"s", b"\xff\xfe"),
        (b"s", b""),
        (b"s", None),
        (b"s", b"[]"),
        (b"s", b"null"),
        (b"s", b'{"session_id":"s","item_id":1,"timestamp":1}'),
        (b"s", b'{"session_id":"s","item_id":"i"}'),
        (b"s", b'{"session_id":"s","item_id":"","timestamp":1}'),
        (b"s", b'{"session_id":"s","item_id":"' + b"x" * 257 + b'","timestamp":1}'),
        (b"s", b'{"session_id":"other","item_id":"i","timestamp":1}'),
        (None, b'{"session_id":"s","item_id":"i","timestamp":1}'),
        (b"s", b'{"session_id":"s","item_id":"i","timestamp":%d}' % future),
        (b"s", b'{"session_id":"s","item_id":"i","timestamp":-1}'),
        (b"s", b'{"session_id":"s","item_id":"i","timestamp":1' + b" " * 20_000 + b"}"),
        (b"s", b"[" * 10_000),
    ]
    worker = deployment.start_ready()
    some = clicks[:3000]
    for n, click in enumerate(some):
        deployment.send([click]) if n % 500 == 0 else deployment.send_raw(*_record(click))
        if n % 100 == 0:
            deployment.send_raw(*poison[(n // 100) % len(poison)])
    deployment.send([])
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0
    verdict = deployment.verdict()
    poisoned = len(range(0, len(some), 100))
    assert deployment.records(deployment.topics.rejected) == poisoned
    assert verdict.clicks == len(some) + sum(1 for n in range(poisoned) if n % len(poison) == 12)  # the future one
    assert verdict.lost == sum(1 for n in range(poisoned) if n % len(poison) == 12)
    assert verdict.wrong_rankings == 0
    assert verdict.changelog == []


def test_corrupt_bundle_leaves_the_old_model_serving(deployment: Deployment, clicks: list[Click]) -> None:
    worker = deployment.start_ready()
    damaged = deployment.bundle("v2")
    del deployment.models["v2"]
    graph = damaged / "rank.onnx"
    graph.write_bytes(graph.read_bytes()[:-100])
    deployment.send(clicks[:2000])
    deployment.announce(damaged)
    deployment.wait(lambda: worker.metric("nextclick_refused_bundles_total") == 1, "the bundle is refused", 30)
    deployment.send(clicks[2000:4000])
    deployment.wait_until_acknowledged()
    assert "rank.onnx" in worker.output()
    assert worker.stop() == 0
    verdict = deployment.verdict()
    verdict.assert_nothing_lost_nothing_wrong()
    assert verdict.versions == ["v1"]


def test_swaps_under_load(deployment: Deployment, clicks: list[Click]) -> None:
    half = len(deployment.items) // 2
    worker = deployment.start_ready()
    producing = deployment.send_slowly(clicks, per_second=1000)
    for version, items, hidden in (("v2", deployment.items[half:], 24), ("v3", deployment.items[:-half], 8)):
        time.sleep(2.5)
        deployment.announce(deployment.bundle(version, items=items, hidden=hidden))
    time.sleep(1.0)
    deployment.announce(deployment.root / "registry" / "v1")  # a roll-back is announcing an older version
    producing.join()
    deployment.wait_until_acknowledged()
    deployment.wait(lambda: worker.metric("nextclick_swaps_total") == 4, "four models taken into service", 20)
    assert worker.metric("nextclick_rebuilt_rows_total") > 0
    assert worker.stop() == 0
    verdict = deployment.verdict()
    verdict.assert_nothing_lost_nothing_wrong()
    assert verdict.versions == ["v1", "v2", "v3"]


def test_killed_during_a_swap(deployment: Deployment, clicks: list[Click]) -> None:
    worker = deployment.start_ready()
    producing = deployment.send_slowly(clicks, per_second=1000)
    time.sleep(2)
    deployment.announce(deployment.bundle("v2"))
    deployment.wait(lambda: worker.metric("nextclick_swaps_total") == 2, "the second model serves", 20)
    worker.kill()
    worker = deployment.start_ready()
    producing.join()
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0
    deployment.verdict().assert_nothing_lost_nothing_wrong()


def test_drained_by_sigterm_under_load(deployment: Deployment, clicks: list[Click]) -> None:
    producing = deployment.send_slowly(clicks, per_second=1500)
    for _ in range(2):
        worker = deployment.start_ready()
        time.sleep(1.5)
        assert worker.stop() == 0
    worker = deployment.start_ready()
    producing.join()
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0
    verdict = deployment.verdict()
    verdict.assert_nothing_lost_nothing_wrong()
    assert verdict.duplicates == 0


def test_damaged_local_store_is_restored(deployment: Deployment, clicks: list[Click]) -> None:
    worker = deployment.start_ready()
    deployment.send(clicks[:4000])
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0
    for manifest in worker.data_dir.glob("v1/tables/sessions-*.db/MANIFEST-*"):
        manifest.write_bytes(b"\0" * 100)
    worker = deployment.start_ready()
    deployment.send(clicks[4000:6000])
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0
    assert "damaged" in worker.output()
    deployment.verdict().assert_nothing_lost_nothing_wrong()


def _record(click: Click) -> tuple[bytes, bytes]:
    from schemas.click import encode_click

    return click.session_id.encode(), encode_click(click)


def _commit(deployment: Deployment, offset: int) -> None:
    """Move the group's offsets, as an operator would with kafka-consumer-groups."""
    admin = AdminClient(deployment.connection.librdkafka())
    parts = [TopicPartition(deployment.topics.clicks, p, offset) for p in range(PARTITIONS)]

    def moved() -> bool:
        for future in admin.alter_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(deployment.app_id, parts)]
        ).values():
            if future.exception(30) is not None:  # the group still has a member for a moment
                return False
        return True

    deployment.wait(moved, "offsets moved", 30)
