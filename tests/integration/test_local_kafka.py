"""LocalKafka does what it says, with real brokers."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from deploy.kafka import LocalKafka, LocalKafkaError
from deploy.kafka.jars import resolve_jars
from schemas.config.settings import KafkaConnection
from tests.admin import create_topics, topic_names
from tests.conftest import KafkaUnderTest, local_kafka
from tests.patience import PATIENCE
from tests.shared_broker import answers

REPOSITORY = Path(__file__).resolve().parents[2]
QUIET = {"log_level": 0}  # librdkafka tells of every refused connection, and brokers go down here on purpose

pytestmark = pytest.mark.kafka


def create_topic(servers: str, topic: str, *, replication: int = 1) -> None:
    create_topics({"bootstrap.servers": servers, **QUIET}, NewTopic(topic, 1, replication))


def produce(servers: str, topic: str, values: list[str]) -> None:
    """Returns when every value is written by all replicas in sync."""
    errors: list[str] = []
    producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True, **QUIET})
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, _message: errors.append(str(error)) if error else None)
    assert producer.flush(PATIENCE) == 0
    assert errors == []


def consume(servers: str, topic: str, count: int) -> list[str]:
    """The first `count` values of partition 0."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "reader", "enable.auto.commit": False, **QUIET})
    consumer.assign([TopicPartition(topic, 0, 0)])
    values: list[str] = []
    deadline = time.monotonic() + 60
    while len(values) < count and time.monotonic() < deadline:
        for message in consumer.consume(count - len(values), timeout=1):
            if message.error() is None:
                values.append(message.value().decode())
    consumer.close()
    return values


def fetches_from(servers: str, topic: str, rack: int) -> None:
    """A consumer of this rack comes to fetch from its broker, whoever leads the partition."""
    connection = KafkaConnection(bootstrap_servers=servers, client_rack=f"rack-{rack}")
    asked: list[int] = []

    def look(statistics: str) -> None:
        partition = json.loads(statistics)["topics"].get(topic, {}).get("partitions", {}).get("0", {})
        asked.append(partition.get("broker", -1))

    consumer = Consumer({**connection.plain_consumer("near"), "statistics.interval.ms": 100, "stats_cb": look, **QUIET})
    consumer.assign([TopicPartition(topic, 0, 0)])
    deadline = time.monotonic() + PATIENCE
    while rack not in asked:
        consumer.poll(0.1)
        assert time.monotonic() < deadline, asked
    consumer.close()


@pytest.fixture(scope="module")
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    temporary = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as temporary_folders:
        temporary_folders.setattr(tempfile, "tempdir", str(temporary))
        with local_kafka(request.session, tmp_path_factory) as local:
            servers = local.bootstrap_servers
            assert [local.data_dir] == list(temporary.iterdir())
            yield local
    assert list(temporary.iterdir()) == [], "what is temporary is removed at the end"
    assert not answers(servers)


def test_the_shared_broker_takes_and_gives(kafka: KafkaUnderTest, topic_prefix: str) -> None:
    create_topic(kafka.bootstrap_servers, topic_prefix)
    produce(kafka.bootstrap_servers, topic_prefix, ["a", "b"])
    assert consume(kafka.bootstrap_servers, topic_prefix, 2) == ["a", "b"]


def test_an_unknown_topic_is_not_made(one: LocalKafka) -> None:
    admin = AdminClient({"bootstrap.servers": one.bootstrap_servers, **QUIET})
    asked = admin.list_topics("misspelt", timeout=PATIENCE).topics[
        "misspelt"
    ]  # asking for one makes it where that is allowed
    assert asked.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
    assert "misspelt" not in admin.list_topics(timeout=PATIENCE).topics


def test_every_log_library_is_there_in_one_version() -> None:
    jars = [jar.name for jar in resolve_jars().iterdir()]
    versions = {re.sub(r".*-([0-9.]+)\.jar", r"\1", name) for name in jars if name.startswith("log4j-")}
    assert len(versions) == 1
    assert {re.sub(r"-[0-9.]+\.jar", "", name) for name in jars if name.startswith("log4j-")} == {
        "log4j-api",
        "log4j-core",
        "log4j-slf4j-impl",
    }


@pytest.mark.parametrize("end", ["stop_broker", "kill_broker"])
def test_data_outlives_the_process(one: LocalKafka, end: str) -> None:
    topic, values = f"outlives-{end}", [str(i) for i in range(500)]
    create_topic(one.bootstrap_servers, topic)
    produce(one.bootstrap_servers, topic, values)
    getattr(one, end)(0)
    assert one.running_brokers == frozenset()
    assert not answers(one.bootstrap_servers)
    listeners = (one.data_dir / "broker-0.properties").read_text()
    for port in re.findall(r"(?:PLAINTEXT|CONTROLLER)://127\.0\.0\.1:(\d+)", listeners):
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind(("127.0.0.1", int(port)))
    one.start_broker(0)
    produce(one.bootstrap_servers, topic, ["after"])
    assert consume(one.bootstrap_servers, topic, 501) == [*values, "after"]


def test_logs_are_where_it_says(one: LocalKafka) -> None:
    assert "Kafka Server started" in (one.log_dir / "broker-0.log").read_text()


def watch_until_dead(kafka: LocalKafka) -> None:
    while True:
        kafka.check_alive()
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the JVM in /proc")
def test_a_broker_that_ends_by_itself_is_noticed_with_its_log(one: LocalKafka) -> None:
    named = ["pgrep", "-f", f"nextclick.log={one.log_dir}"]  # the JVM and the guard before it
    pids = subprocess.run(named, capture_output=True, text=True, check=True).stdout.split()
    [java] = [int(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text() == "java\n"]
    os.kill(java, signal.SIGKILL)
    with pytest.raises(LocalKafkaError, match=rf"broker 0 ended with exit code 137; see {re.escape(str(one.log_dir))}"):
        watch_until_dead(one)  # `pytest_runtest_setup` starts it for the next test


def test_the_test_after_that_finds_it_again(one: LocalKafka) -> None:
    assert answers(one.bootstrap_servers)
    assert one.running_brokers == {0}


@pytest.mark.long
def test_three_brokers_go_on_with_one_down(tmp_path: Path) -> None:
    with LocalKafka(3, log_dir=tmp_path) as three:
        servers = three.bootstrap_servers
        create_topic(servers, "replicated", replication=3)
        produce(servers, "replicated", ["all up"])
        for broker, end in ((0, three.stop_broker), (1, three.kill_broker), (2, three.stop_broker)):
            end(broker)
            produce(servers, "replicated", [f"without {broker}"])
            three.start_broker(broker)
        metadata = AdminClient({"bootstrap.servers": servers, **QUIET}).list_topics(timeout=PATIENCE)
        assert set(metadata.topics["replicated"].partitions[0].isrs) == {0, 1, 2}
        written = ["all up", "without 0", "without 1", "without 2"]
        assert consume(servers, "replicated", 4) == written
        for rack in range(3):
            fetches_from(servers, "replicated", rack)


def test_a_named_folder_keeps_its_data_and_can_change_its_ports(tmp_path: Path) -> None:
    with LocalKafka(data_dir=tmp_path) as kafka:
        first = kafka.bootstrap_servers
        create_topic(first, "kept")
        produce(first, "kept", ["from the first run"])
        with pytest.raises(LocalKafkaError, match="in use by another local Kafka"):
            LocalKafka(data_dir=tmp_path).start()
        taken = int(first.split(":")[1])
        with pytest.raises(LocalKafkaError, match=rf"something else listens.*{taken}"):
            LocalKafka(ports=[taken]).start()
    assert not answers(first)
    with LocalKafka(data_dir=tmp_path) as kafka:
        assert kafka.bootstrap_servers != first
        assert consume(kafka.bootstrap_servers, "kept", 1) == ["from the first run"]


@pytest.fixture
def empty_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary folders are made here, so that a test sees what is left of them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_broker_that_cannot_start_tells_why_and_keeps_its_logs(empty_tmp: Path) -> None:
    with pytest.raises(LocalKafkaError, match=r"no\.such\.Reporter") as told:
        LocalKafka(overrides={"metric.reporters": "no.such.Reporter"}).start()
    [folder] = empty_tmp.iterdir()
    assert f"logs are in {folder / 'logs'}." in str(told.value)
    assert {entry.name for entry in folder.iterdir()} == {"logs"}
    assert "no.such.Reporter" in (folder / "logs" / "broker-0.log").read_text()


def test_settings_that_kafka_refuses_are_told(empty_tmp: Path) -> None:
    with pytest.raises(LocalKafkaError, match=r"num\.io\.threads"):
        LocalKafka(overrides={"num.io.threads": "0"}).start()
    assert list(empty_tmp.iterdir()) == []


def in_the_foreground(data: Path) -> tuple["subprocess.Popen[str]", str]:
    """The command, once its broker is up, and the broker's address."""
    command = [sys.executable, "-m", "deploy.kafka", "--port", "0", "--data", str(data)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = ""
    while "Ctrl-C" not in said:
        line = process.stdout.readline()
        assert line, f"it ended: {said}"
        said += line
    [servers] = re.findall(r"bootstrap servers: (\S+)", said)
    return process, servers


@pytest.mark.fault
def test_a_broker_does_not_outlive_its_killed_user_and_stops_on_sigterm(tmp_path: Path) -> None:
    killed, servers = in_the_foreground(tmp_path)
    create_topic(servers, "kept")
    killed.kill()
    killed.communicate()
    while answers(servers):
        time.sleep(0.05)
    process, servers = in_the_foreground(tmp_path)  # the folder is free again, and what was in it is still good
    assert "kept" in topic_names({"bootstrap.servers": servers})
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate()
    assert process.returncode == 0
    assert "Kafka is stopped." in rest
    assert not answers(servers)
    assert "App info kafka.server for 0 unregistered" in (tmp_path / "logs" / "broker-0.log").read_text()
