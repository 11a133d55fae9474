"""The broker of docker-compose.yml without Docker: its environment through the image's own start-up, then our commands.

The image turns KAFKA_* variables into server.properties and formats the storage with `kafka.docker.KafkaDockerWrapper`,
a class of the broker's jar. So the jars that the tests run show what the variables of docker-compose.yml become. Ports
and folders are replaced by free ones; nothing else is.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from deploy.kafka import LocalKafkaError
from deploy.kafka.health import wait_until_healthy
from deploy.kafka.jars import resolve_jars
from deploy.kafka.java import find_java
from deploy.kafka.node import GUARD
from deploy.kafka.ports import free_ports
from tests.admin import topic_names
from tests.container_files import REPOSITORY, command_of, environment_of, services, stages
from tests.patience import PATIENCE

pytestmark = pytest.mark.kafka

PORTS = ("19092", "9092", "9093")  # INTERNAL, HOST, CONTROLLER


class ComposeBroker:
    """The broker as compose would start it, in a folder in place of the container's file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
        self.environment = {name: self._moved(str(value)) for name, value in services()["kafka"]["environment"].items()}
        self.data = root / "var/lib/kafka/data"
        self.environment["KAFKA_LOG_DIRS"] = str(self.data)
        self.configuration = root / "opt/kafka/config"
        self.log = root / "stdout"
        self._java = [str(find_java()), *shlex.split(self.environment["KAFKA_HEAP_OPTS"])]
        self._java += shlex.split(self.environment["KAFKA_GC_LOG_OPTS"])
        self._java += ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]  # a short life: see deploy/kafka
        self._jars = ["-cp", f"{resolve_jars()}/*"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"localhost:{self.ports['9092']}"

    def _moved(self, value: str) -> str:
        for port, free in self.ports.items():
            value = value.replace(f":{port}", f":{free}")
        return value

    def set_up(self) -> subprocess.CompletedProcess[str]:
        """What the image's start script does before it starts the broker."""
        defaults, mounted = self.root / "etc/kafka/docker", self.root / "mnt/shared/config"
        for folder in (defaults, mounted, self.configuration):
            folder.mkdir(parents=True, exist_ok=True)
        for volume in services()["kafka"]["volumes"]:
            source, target, *_ = volume.split(":")
            if target.startswith("/mnt/shared/config/"):
                shutil.copy(REPOSITORY / source, mounted / Path(target).name)
        for name in ("log4j2.yaml", "tools-log4j2.yaml"):
            shutil.copy(REPOSITORY / "deploy/docker/kafka-log4j2.yaml", defaults / name)
        (defaults / "server.properties").write_text("node.id=4711\n")
        folders = ["--default-configs-dir", str(defaults), "--mounted-configs-dir", str(mounted)]
        return subprocess.run(
            [*self._java, *self._jars, "kafka.docker.KafkaDockerWrapper", "setup", *folders,
             "--final-configs-dir", str(self.configuration)],
            env={"PATH": os.environ["PATH"]} | self.environment,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def start(self) -> None:
        logging = f"-Dlog4j2.configurationFile={(self.configuration / 'log4j2.yaml').as_uri()}"
        command = [*self._java, logging, *self._jars, "kafka.Kafka", str(self.configuration / "server.properties")]
        guard = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid())]  # no broker outlives the tests
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([*guard, *command], stdout=log, stderr=log, start_new_session=True)
        wait_until_healthy(self.bootstrap_servers, {1}, timeout=120, check_alive=self._check_alive)

    def _check_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise LocalKafkaError(f"the broker ended:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGUSR1)  # the guard kills, and ends after what it guards
                self._process.wait()
                raise
            finally:
                self._process = None


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeBroker]:
    broker = ComposeBroker(tmp_path_factory.mktemp("compose"))
    try:
        formatted = broker.set_up()
        assert formatted.returncode == 0, formatted.stdout + formatted.stderr
        broker.start()
        yield broker
    finally:
        broker.stop()


def run(broker: ComposeBroker, service: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    """One of our commands in the environment of a service, with the address and the folders of this machine."""
    environ = {name: value for name, value in environment_of(services()[service], {}).items() if value}
    environ = {name: value.replace("/var/lib/nextclick", str(broker.root)) for name, value in environ.items()}
    environ |= {"PATH": os.environ["PATH"], "NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers}
    program = Path(sys.executable).with_name(words[0])
    return subprocess.run(
        [program, *words[1:]], env=environ, cwd=broker.root, capture_output=True, text=True, timeout=120, check=False
    )


def test_every_variable_becomes_a_setting(broker: ComposeBroker) -> None:
    lines = (broker.configuration / "server.properties").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line)
    options = {"KAFKA_HEAP_OPTS", "KAFKA_GC_LOG_OPTS"}  # the start script's, not the broker's
    expected = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in broker.environment.items()
        if name.startswith("KAFKA_") and name not in options
    }
    assert settings == expected
    assert broker.environment["CLUSTER_ID"] in (broker.data / "meta.properties").read_text()


def test_a_client_of_this_machine_is_sent_to_loopback(broker: ComposeBroker) -> None:
    found = AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=PATIENCE).brokers
    assert {(one.host, str(one.port)) for one in found.values()} == {("localhost", broker.ports["9092"])}


def test_topics_are_created_once_and_the_trainers_health_check_passes(broker: ComposeBroker) -> None:
    unchecked = run(broker, "trainer", stages(REPOSITORY / "deploy/docker/trainer.Dockerfile")[-1].health_check())
    assert unchecked.returncode != 0, "healthy without its topic"
    command = [*command_of(services()["topics"]), "--json"]
    first, second = (run(broker, "topics", command) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert {"clicks", "rankings", "clicks.rejected", "models", "scores"} <= set(json.loads(first.stdout)["created"])
    assert json.loads(second.stdout)["created"] == []
    check = run(broker, "trainer", stages(REPOSITORY / "deploy/docker/trainer.Dockerfile")[-1].health_check())
    assert (check.returncode, json.loads(check.stdout)) == (0, [])


def test_a_container_made_anew_keeps_the_data(broker: ComposeBroker) -> None:
    assert run(broker, "topics", command_of(services()["topics"])).returncode == 0
    broker.stop()
    shutil.rmtree(broker.configuration)
    again = broker.set_up()
    # The image's start script goes on when it reads this.
    assert again.returncode != 0
    assert "already formatted" in again.stdout + again.stderr
    broker.start()
    assert "clicks" in topic_names({"bootstrap.servers": broker.bootstrap_servers})


def test_the_log_goes_to_standard_output_alone(broker: ComposeBroker) -> None:
    assert "INFO [KafkaRaftServer nodeId=1] Kafka Server started" in broker.log.read_text()
    assert not list(broker.root.rglob("*.log.*"))
    assert not list(broker.root.rglob("server.log"))
