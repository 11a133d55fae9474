"""Whole workers, as processes: what they refuse to start with, what they wait for, how they end."""

import json
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from deploy.kafka.ports import free_port
from schemas.messages.click import Click
from schemas.messages.ranking import decode_ranking
from tests.admin import create_topics, delete_topics, delete_topics_of
from tests.committed import instances
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.faults.deployment import Deployment
from tests.harness.clients import read_all
from tests.integration.workers import BEGAN, ITEMS, Group, running, until
from tests.patience import PATIENCE
from tests.stream_process import StreamProcess

EXIT_REFUSED, EXIT_FAILED, EXIT_STALLED = 2, 1, 70


@dataclass
class Scene:
    """Workers of one deployment that were started together."""

    deployment: Deployment
    workers: list[StreamProcess]


def deploy(bootstrap: str, prefix: str, root: Path) -> Deployment:
    root.mkdir(parents=True)
    return Deployment(bootstrap, prefix, root, ITEMS)


def without_a_model(deployment: Deployment) -> list[StreamProcess]:
    deployment.send(some_clicks(40))
    return [deployment.start(NEXTCLICK_WORKER__COMPRESSION="zstd", NEXTCLICK_WORKER__GROUP_INSTANCE_ID="worker-7")]


def with_a_changelog_of_other_partitions(deployment: Deployment) -> list[StreamProcess]:
    kafka, policy = deployment.connection.librdkafka(), {"cleanup.policy": "compact,delete"}
    delete_topics(kafka, deployment.changelog)
    create_topics(kafka, NewTopic(deployment.changelog, 3, 1, config=policy))
    return [deployment.start()]


def with_garbage_in_the_changelog(deployment: Deployment) -> list[StreamProcess]:
    deployment.announce(deployment.bundle("v1"))
    producer = Producer(deployment.connection.librdkafka())
    producer.produce(deployment.changelog, b"not a row", b"s", 0)
    assert producer.flush(PATIENCE) == 0
    return [deployment.start()]


def with_one_folder_for_two(deployment: Deployment) -> list[StreamProcess]:
    deployment.announce(deployment.bundle("v1"))
    first = deployment.start("same")
    deployment.wait(lambda: first.ready() is not None, "the first worker has its folder", PATIENCE)
    return [first, deployment.start("same")]


def with_a_folder_that_cannot_be_written(deployment: Deployment) -> list[StreamProcess]:
    (deployment.root / "data-a").write_text("this is a file")
    return [deployment.start()]


def codecs(kafka: Mapping[str, Any], topic: str) -> set[str]:
    """How the first records of each partition are compressed, as they lie on the disk of a broker on this machine."""
    admin = AdminClient(dict(kafka))
    [told] = admin.describe_configs([ConfigResource(ResourceType.BROKER, "0")], request_timeout=PATIENCE).values()
    data_dir = Path(told.result()["log.dirs"].value)
    names = ("none", "gzip", "snappy", "lz4", "zstd")
    first = [path.read_bytes()[:23] for path in data_dir.glob(f"{topic}-*/*.log")]
    return {names[batch[22] & 0b111] for batch in first if len(batch) == 23}


SCENES: dict[str, Callable[[Deployment], list[StreamProcess]]] = {
    "waiting": without_a_model,
    "partitions": with_a_changelog_of_other_partitions,
    "garbage": with_garbage_in_the_changelog,
    "folder": with_one_folder_for_two,
    "unwritable": with_a_folder_that_cannot_be_written,
}


@pytest.fixture(scope="module")
def scenes(kafka: KafkaUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Scene]]:
    """Every scene's workers, side by side: a worker's start is mostly waiting."""
    root, prefix = tmp_path_factory.mktemp("workers"), f"worker-{uuid.uuid4().hex[:8]}"
    made: dict[str, Scene] = {}

    def begin(name: str) -> None:
        deployment = deploy(kafka.bootstrap_servers, f"{prefix}-{name}", root / name)
        made[name] = Scene(deployment, [])
        made[name].workers = SCENES[name](deployment)

    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(begin, SCENES))
        yield made
    finally:
        for scene in made.values():
            scene.deployment.stop_all()
        delete_topics_of({"bootstrap.servers": kafka.bootstrap_servers}, prefix)


def exit_code(worker: StreamProcess) -> int:
    """Wait for a worker's own end; one that hangs fails with its log."""
    try:
        return worker.process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it does not end:\n{worker.output()[-5000:]}")


def some_clicks(count: int) -> list[Click]:
    return [Click(session_id=f"s{n % 10}", item_id=ITEMS[n % len(ITEMS)], timestamp=BEGAN + n) for n in range(count)]


def test_a_changelog_of_other_partitions_refuses_to_start(scenes: dict[str, Scene]) -> None:
    [worker] = scenes["partitions"].workers
    assert exit_code(worker) == EXIT_REFUSED
    told = " ".join(worker.output().split())
    assert f"topic {scenes['partitions'].deployment.changelog}: partitions is 3, expected 4" in told
    assert "stop the workers, delete" in told
    assert "Traceback" not in told


def test_garbage_in_the_changelog_ends_the_worker(scenes: dict[str, Scene]) -> None:
    """Faust would log it, and wait for ever for a row that cannot be applied."""
    [worker] = scenes["garbage"].workers
    assert exit_code(worker) == EXIT_FAILED
    told = worker.output()
    assert "record 0 of the changelog's partition 0, key b's': a session row has format version 110" in told  # an n


def test_two_workers_in_one_folder_are_told_so(scenes: dict[str, Scene]) -> None:
    first, second = scenes["folder"].workers
    assert exit_code(second) == EXIT_REFUSED
    told = " ".join(second.output().split())
    assert f"the process {first.process.pid} is using" in told
    assert "give each process a worker.data_dir of its own" in told
    assert "Traceback" not in told
    assert first.process.poll() is None


def test_a_folder_that_cannot_be_written_refuses_to_start(scenes: dict[str, Scene]) -> None:
    [worker] = scenes["unwritable"].workers
    assert exit_code(worker) == EXIT_REFUSED
    told = " ".join(worker.output().split())
    assert f"worker.data_dir {worker.data_dir} cannot be written: [Errno 17] File exists" in told
    assert "another" not in told
    assert "Traceback" not in told


def test_a_worker_without_a_model_waits_then_serves_and_drains(kafka: KafkaUnderTest, scenes: dict[str, Scene]) -> None:
    deployment, [worker] = scenes["waiting"].deployment, scenes["waiting"].workers
    deployment.wait(
        lambda: "announced" in (worker.ready() or {}).get("model", ""), "it says what it waits for", PATIENCE
    )
    page = worker.ready()
    assert page is not None
    assert page["status"] == "not ready"
    assert page["model"] == f"no 'champion' is announced on the topic {deployment.topics.models}"
    assert "no 'champion' is announced" in worker.output()
    assert worker.metric("nextclick_clicks_total") == 0
    admin = AdminClient(deployment.connection.librdkafka())
    groups = admin.list_consumer_groups(request_timeout=PATIENCE).result().valid
    assert deployment.group not in {group.group_id for group in groups}, "it must not even hold partitions"

    deployment.announce(deployment.bundle("v1"))
    deployment.wait(worker.is_ready, "it serves", PATIENCE)
    assert instances(deployment.connection.librdkafka(), deployment.group) == {"worker-7"}
    with socket.create_server(("127.0.0.1", 0)) as silent_store:
        deployment.announce(deployment.bundle("v2"), uri=f"http://127.0.0.1:{silent_store.getsockname()[1]}/v2")
        deployment.send(some_clicks(400))
        with silent_store.accept()[0]:
            assert worker.stop() == 0  # what it has taken is finished and acknowledged, the bundle is not waited for
    assert deployment.committed() == deployment.records(deployment.topics.rankings)
    assert worker.output().count("chunk left") == 0
    if not kafka.is_named:
        for topic in (deployment.topics.rankings, deployment.changelog):
            assert codecs(deployment.connection.librdkafka(), topic) == {"zstd"}


def test_two_prefixes_on_one_broker_do_not_see_each_other(scenes: dict[str, Scene]) -> None:
    """They have the same worker.app_id. One has a model and clicks of its own, and clicks of the other wait, or did."""
    one, other = scenes["folder"].deployment, scenes["waiting"].deployment
    worker = scenes["folder"].workers[0]
    assert one.app_id == other.app_id
    before = other.records(other.topics.rankings)
    one.wait(worker.is_ready, "it serves", PATIENCE)
    one.send(some_clicks(30))
    one.wait_until_acknowledged()
    assert one.records(one.topics.rankings) == worker.metric("nextclick_clicks_total") == 30
    assert other.records(other.topics.rankings) == before
    assert len(instances(one.connection.librdkafka(), one.group)) == 1


STUCK_WORKERS = {
    "agent": """
import asyncio
from stream_app.serve.pipeline import Pipeline

async def take_nothing(self, fetch):
    await asyncio.Event().wait()

Pipeline.submit = take_nothing
from stream_app.__main__ import main
main()
""",
    "fetcher": """
import asyncio
from stream_app.kafka.transport import ChunkConsumer

getmany = ChunkConsumer.getmany

async def nothing_once_ready(self, timeout):
    while self.app.tables.actives_ready:
        await asyncio.sleep(0.05)
    async for found in getmany(self, timeout):
        yield found

ChunkConsumer.getmany = nothing_once_ready
from stream_app.__main__ import main
main()
""",
}


@pytest.mark.parametrize("part", STUCK_WORKERS)
def test_clicks_that_nobody_takes_end_the_worker(
    kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path, part: str
) -> None:
    """Ready, with its partitions and heartbeats, and nothing in flight."""
    deployment = deploy(kafka.bootstrap_servers, topic_prefix, tmp_path / "deployment")
    deployment.announce(deployment.bundle("v1"))
    deployment.send(some_clicks(2_000))
    log, options = tmp_path / "worker.log", ["--data-dir", str(tmp_path / "data"), "--web-port", str(free_port())]
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-c", STUCK_WORKERS[part], "worker", *options],
            cwd=REPOSITORY,
            env=deployment.environment() | {"NEXTCLICK_WORKER__STALL_TIMEOUT": "7"},
            stdout=output,
            stderr=output,
        )
    try:
        assert worker.wait(PATIENCE) == EXIT_STALLED
    finally:
        worker.kill()
        worker.wait()
    told = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [one["parts"] for one in told if "no progress" in one["event"]] == [["chunks"]]
    assert any(one["event"] == "tables recovered" for one in told)


async def test_more_workers_than_partitions(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> None:
    """The one without partitions is ready too, and takes over."""
    group = Group(kafka.bootstrap_servers, topic_prefix)
    async with running(group.settings(tmp_path / "a")) as first, running(group.settings(tmp_path / "b")) as second:
        async with running(group.settings(tmp_path / "c")) as third:
            workers = [first, second, third]
            await until(lambda: all(w.app.tables.actives_ready for w in workers), "all are ready")
            await until(
                lambda: sorted(len(w.consumer.assignment()) for w in workers) == [0, 2, 2],
                "one has none",
                seen=lambda: [(w.consumer.assignment(), w.app.rebalancing, w.errors) for w in workers],
            )
            group.produce(20, partition=0)
            group.produce(20, partition=1, session="other")
            await until(lambda: (group.committed(0), group.committed(1)) == (20, 20), "all is answered")
        assert [error for worker in workers for error in worker.errors] == []


def test_a_worker_whose_clicks_topic_is_created_anew_ends_and_every_click_of_the_new_one_is_ranked(
    kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path
) -> None:
    """The new one has grown past its offsets before it looks: it read on there, and so did the next worker."""
    deployment = deploy(kafka.bootstrap_servers, topic_prefix, tmp_path / "deployment")
    config, topics = deployment.connection.librdkafka(), deployment.topics
    deployment.announce(deployment.bundle("v1"))
    old, new = some_clicks(1000)[:100], some_clicks(1000)[100:]
    try:
        worker = deployment.start_ready()
        deployment.send(old)
        deployment.wait_until_acknowledged()
        delete_topics(config, topics.clicks)
        deployment.create_topics()
        deployment.send(new)
        assert exit_code(worker) == EXIT_FAILED
        assert f"the topic {topics.clicks} was deleted and created again while it was read" in worker.output()
        ranked = deployment.records(topics.rankings)
        assert ranked < len(old) + len(new), "it had passed over clicks"
        refused = deployment.start()
        assert exit_code(refused) == EXIT_REFUSED
        assert f"delete the topic {deployment.changelog}" in " ".join(refused.output().split())
        delete_topics(config, deployment.changelog)
        deployment.create_topics()
        deployment.start_ready()
        deployment.wait(lambda: deployment.records(topics.rankings) >= ranked + len(new), "all of the new one ranked")
        rankings = (decode_ranking(one.value) for one in read_all(kafka.bootstrap_servers, topics.rankings))
        assert {ranking.click_timestamp for ranking in rankings} == {click.timestamp for click in old + new}
    finally:
        deployment.stop_all()


def test_a_worker_whose_models_topic_is_created_anew_serves_on_and_takes_what_is_announced_there(
    kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path
) -> None:
    """The first announcement of the new one lies below the offset that is to be read next."""
    deployment = deploy(kafka.bootstrap_servers, topic_prefix, tmp_path / "deployment")
    deployment.announce(deployment.bundle("v1"))
    second = deployment.bundle("v2")
    try:
        worker = deployment.start_ready()
        delete_topics(deployment.connection.librdkafka(), deployment.topics.models)
        deployment.create_topics()
        deployment.announce(second)
        deployment.wait(lambda: worker.metric("nextclick_swaps_total") == 2, "it serves v2", PATIENCE)
        assert worker.process.poll() is None
    finally:
        deployment.stop_all()
