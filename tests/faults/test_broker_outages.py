"""The broker goes away and comes back, while workers and trainers work."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import pytest
from faust.types import TP

from deploy.demo.shop import Shop, ShopSettings
from deploy.kafka import LocalKafka
from deploy.kafka.ports import free_port
from schemas.messages.click import Click
from schemas.messages.ranking import decode_ranking
from tests.conftest import REPOSITORY, KafkaUnderTest, local_kafka
from tests.faults.deployment import GAVE_UP, SESSION_TIMEOUT, Deployment
from tests.faults.scorers import Scorers, shop_rankings
from tests.harness.clients import read_all
from tests.integration.trainer_deployment import Deployment as TrainerDeployment
from tests.integration.workers import BEGAN, Group, running, until
from tests.patience import PATIENCE
from tests.torn_log import tear
from trainer.data.click_log_lock import keeping_files
from trainer.service import outage
from trainer.service.assembly import registry_of
from trainer.service.click_log import ClickLogFolder
from trainer.service.collect import Collected, Collector
from trainer.service.loop import run
from trainer.service.registry import PublishedModel, Registry

STALLED = 70
"""The exit code of a worker that its watchdog ends."""
FEW_LINES = 300
"""An outage told 6,000 a minute."""
NOW = 1_767_225_600_000
OF_THREE = "abc"
"""Sessions."""


@pytest.fixture(scope="module")
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """These tests' own, to stop and kill: the others share one."""
    if os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        pytest.skip("needs a broker to stop and kill; KAFKA_BOOTSTRAP_SERVERS names one that is not ours")
    with local_kafka(request.session, tmp_path_factory) as local:
        yield local


@pytest.fixture(scope="module")
def kafka(broker: LocalKafka) -> KafkaUnderTest:
    return KafkaUnderTest(broker.bootstrap_servers)


@pytest.fixture
def trainer(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> TrainerDeployment:
    deployment = TrainerDeployment(kafka.bootstrap_servers, topic_prefix, tmp_path)
    deployment.create_topics()
    return deployment


def test_a_short_outage_needs_no_restart(deployment: Deployment, stream: list[Click], broker: LocalKafka) -> None:
    """Longer than everything that the worker has a limit for, but the outage itself."""
    stall_timeout = 3 * SESSION_TIMEOUT  # what comes after the outage takes seconds on a busy machine
    deployment.extra["NEXTCLICK_WORKER__STALL_TIMEOUT"] = str(stall_timeout)
    worker = deployment.start_ready()
    load = deployment.load(stream, per_second=250)
    deployment.wait_until_more_clicks(worker, 500)
    broker.stop_broker(0)
    try:
        deployment.wait(lambda: "coordinator dead" in worker.output(), "the worker misses the broker")
        time.sleep(stall_timeout + 2)
    finally:
        broker.start_broker(0)
    deployment.wait_until_more_clicks(worker, 1000)
    deployment.judge(load, worker)
    assert len(worker.output().splitlines()) < FEW_LINES


def test_a_scorer_goes_on_behind_an_outage(
    kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path, broker: LocalKafka
) -> None:
    """Of its group's coordinator, which librdkafka waits for without end once it has left the metadata."""
    scorers, rankings = Scorers(kafka.bootstrap_servers, topic_prefix, tmp_path), shop_rankings(60)
    scorer = scorers.start(NEXTCLICK_SCORES__SESSION_TIMEOUT="60")  # it stays a member
    half = len(rankings) // 2
    scorers.publish(rankings[:half])
    scorers.wait_until_counted()
    broker.kill_broker(0)
    broker.start_broker(0)
    scorers.publish(rankings[half:])
    scorers.wait_until_counted()
    assert scorer.stop() == 0


def test_an_outage_that_is_too_long_ends_the_worker_with_one_line(
    deployment: Deployment, stream: list[Click], broker: LocalKafka
) -> None:
    deployment.send(stream)
    worker = deployment.start(NEXTCLICK_WORKER__DELIVERY_TIMEOUT="2")
    deployment.wait(
        lambda: worker.ready() is not None and worker.metric("nextclick_clicks_total") > 0, "it is in its backlog"
    )
    broker.kill_broker(0)
    try:
        assert worker.process.wait(PATIENCE) == GAVE_UP[0]
    finally:
        broker.start_broker(0)
    told = [json.loads(line) for line in worker.output().splitlines()]  # nothing that is no JSON
    assert len([line for line in told if "cannot go on" in line["event"]]) == 1
    assert not [line for line in told if "thread" in line["event"]], "the consumer's thread died on its own"

    worker = deployment.start_ready()
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0
    verdict = deployment.verdict(worker)
    verdict.assert_nothing_lost_nothing_wrong()
    assert verdict.clicks == len(stream)


GATED_WORKER = """
import asyncio, pathlib, sys
from stream_app.state.table import SessionTable

gate = pathlib.Path(sys.argv.pop())

async def wait_for_gate(self, *partitions):
    gate.with_suffix(".reached").touch()
    while not gate.exists():
        await asyncio.sleep(0.05)

SessionTable.on_recovery_completed = wait_for_gate
from stream_app.__main__ import main
main()
"""


def test_a_recovery_that_never_ends_ends_the_worker(deployment: Deployment, broker: LocalKafka, tmp_path: Path) -> None:
    """The last step of a recovery asks for the committed offsets; Faust has no way back from a silent broker."""
    gate, log = tmp_path / "gate", tmp_path / "worker.log"
    port, options = free_port(), ["--data-dir", str(tmp_path / "data")]
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-c", GATED_WORKER, "worker", *options, "--web-port", str(port), str(gate)],
            cwd=REPOSITORY,
            env=deployment.environment()
            | {"NEXTCLICK_WORKER__STALL_TIMEOUT": "7", "NEXTCLICK_WORKER__DELIVERY_TIMEOUT": "8"},
            stdout=output,
            stderr=output,
        )
    try:
        deployment.wait(gate.with_suffix(".reached").exists, "the worker comes to the gate", PATIENCE)
        broker.kill_broker(0)
        gate.touch()
        assert worker.wait(PATIENCE) == STALLED
    finally:
        worker.kill()
        worker.wait()
        broker.start_broker(0)
    [told] = [line for line in log.read_text().splitlines() if "no progress" in line]
    assert json.loads(told)["parts"] == ["rebalance and recovery"]


def test_a_broker_that_dies_and_comes_back_costs_no_click(trainer: TrainerDeployment, broker: LocalKafka) -> None:
    trainer.produce(clicks(0, 3000))
    process = trainer.start("collect", "--json", NEXTCLICK_TRAINER__FLUSH_INTERVAL="100ms")
    try:
        await_offsets(trainer, 3000, process)
        broker.kill_broker(0)
        time.sleep(2)  # long enough for the collector to find the connection gone
        broker.start_broker(0)
        trainer.produce(clicks(3000, 6000))
        await_offsets(trainer, 6000, process)
        process.terminate()
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()  # reads what it said, so that its pipes close
    assert process.returncode == 0, errors
    collected = json.loads(output)
    assert (collected["clicks"], collected["lost"]) == (6000, 0)


def test_an_outage_when_a_cycle_is_due_and_one_at_the_announcement_are_waited_out(
    trainer: TrainerDeployment, broker: LocalKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker is gone before the cycle collects, and again between publishing and announcing."""
    trainer.produce(Shop(ShopSettings(departments=2, brands=3, items_per_line=6)).history(900, before_ms=NOW))
    sleep, publish = outage.sleep, Registry.publish
    waited: list[str] = []

    def back_after_a_pause(seconds: float, stopping: Callable[[], bool]) -> None:
        waited.append("before" if not registry_of(trainer.root()).versions() else "announcing")
        if 0 not in broker.running_brokers:
            broker.start_broker(0)
        sleep(seconds, stopping)

    def published_and_then_gone(registry: Registry, bundle: Path) -> PublishedModel:
        model = publish(registry, bundle)
        broker.kill_broker(0)
        return model

    collect_to_end = Collector.collect_to_end

    def gone_and_then_collecting(collector: Collector, stop: Callable[[], bool]) -> Collected:
        if not waited:
            broker.kill_broker(0)
        return collect_to_end(collector, stop)

    monkeypatch.setattr("trainer.service.collect._TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr("trainer.service.compacted._TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr(outage, "sleep", back_after_a_pause)
    monkeypatch.setattr(Registry, "publish", published_and_then_gone)
    monkeypatch.setattr(Collector, "collect_to_end", gone_and_then_collecting)
    result = run(trainer.root(max_failures=1, delivery_timeout="5s"), once=True, stopping=lambda: False)
    assert set(waited) == {"before", "announcing"}
    assert result is not None
    (model,) = registry_of(trainer.root()).versions()
    announced = trainer.models_topic().current()
    assert announced is not None
    assert (result.outcome, result.version, announced.version) == ("announced", model.version, model.version)


def clicks(first: int, last: int) -> Iterator[Click]:
    return (Click(f"s{number % 97}", f"i{number % 11}", NOW + number) for number in range(first, last))


def await_offsets(trainer: TrainerDeployment, count: int, process: "subprocess.Popen[str]") -> None:
    reached = 0
    while reached < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
        with keeping_files(trainer.log_dir):  # the collector joins them now and then
            reached = sum(ClickLogFolder(trainer.log_dir).scan().next_offsets.values())


async def test_each_click_that_is_there_is_ranked_after_kafka_lost_some(
    broker: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    """Nobody saw how: when the worker comes back, the topic has grown past its rows, and past what is acknowledged."""
    group = Group(broker.bootstrap_servers, topic_prefix)

    def click(count: int, sessions: str, begin: int) -> None:
        for n, session in enumerate(islice(cycle(sessions), count), start=begin):
            group.produce(1, session=session, start=n)  # each in a batch of its own

    click(30, OF_THREE, 0)
    async with running(group.settings(tmp_path / "data")) as worker:
        await until(lambda: group.committed() == 30 or bool(worker.errors), "the first clicks")
        assert worker.errors == []
    broker.kill_broker(0)
    tear(broker.data_dir, group.topics.clicks, 0, keep=0.5)
    broker.start_broker(0)
    lost_from, end = group.marks(group.topics.clicks)[1], 60
    assert 0 < lost_from < 30
    click(end - lost_from, OF_THREE[::-1], 1000)
    async with running(group.settings(tmp_path / "data")) as worker:
        await until(lambda: group.committed() == end or bool(worker.errors), "all clicks that are there")
        assert worker.errors == []
        rows = worker.app.sessions.states(0, OF_THREE)
    answered = {
        (ranking.source.offset, ranking.click_timestamp - BEGAN)
        for ranking in (decode_ranking(one.value) for one in read_all(broker.bootstrap_servers, group.topics.rankings))
    }
    there = [(offset, offset) for offset in range(lost_from)]
    assert answered >= {*there, *((lost_from + n, 1000 + n) for n in range(end - lost_from))}
    # Whoever restores them has the same: the changelog holds rows with higher offsets, of clicks that are gone.
    async with running(group.settings(tmp_path / "another")) as other:
        await other.ready()
        assert {one: row.offset for one, row in other.app.sessions.states(0, OF_THREE).items()} == {
            one: row.offset for one, row in rows.items()
        }
        assert other.consumer.settled(TP(group.topics.clicks, 0)) == end
