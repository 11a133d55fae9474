"""The README's commands, in the README's order, as a reader types them, on a real Kafka."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from deploy.demo.shop import Shop, ShopSettings
from deploy.kafka.ports import free_port
from tests.conftest import KafkaUnderTest
from tests.doc_pages import README, blocks, lines, section
from tests.patience import PATIENCE

SESSIONS: Final = 1000  # a cycle wants 500 new ones with two clicks at least
ELSEWHERE: Final = {
    "make demo": "tests/integration/test_demo.py",
    "make demo CLICKS=clicks.tsv.gz": "tests/integration/test_demo.py",
    "make test": ".ci/run",
    "make .venv/.installed": "what `make test` begins with",
    ". .venv/bin/activate": "PATH, below",
    "docker compose up -d kafka": "tests/integration/test_compose_kafka.py",
    "export KAFKA_BOOTSTRAP_SERVERS=localhost:9092": "the broker that the line before starts",
}
"""Lines that are run somewhere else."""
ENDLESS: Final = {"stream-app worker": '"tables recovered"', "trainer run --every 1h": '"next cycle"'}
"""Commands that run until they are stopped, and what they log when they have worked."""


@dataclass
class Reader:
    """A terminal of someone who follows the README; `lines` are those that were run."""

    folder: Path
    environment: dict[str, str]
    substitutes: dict[str, Callable[[], str]]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)

    def type(self, line: str) -> None:
        """Run a line as the shell would. An endless command stays, and has worked when this returns."""
        meant = line
        for text, substitute in self.substitutes.items():
            if text in meant:
                meant = meant.replace(text, substitute())
        if meant.startswith("export "):
            name, value = meant.removeprefix("export ").split("=", 1)
            self.environment[name] = value
        elif line in ENDLESS:
            self._start(line, meant)
        else:
            done = subprocess.run(
                ["bash", "-c", meant],
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                timeout=PATIENCE,
                check=False,
            )
            assert done.returncode == 0, f"{meant}\n{done.stdout.decode()}\n{done.stderr.decode()}\n{self._logs()}"
            self.answers.setdefault(line, []).append(done.stdout.decode())

    def _start(self, line: str, meant: str) -> None:
        with self.log(line).open("wb") as log:
            process = self.running[line] = subprocess.Popen(
                ["bash", "-c", f"exec {meant}"], cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )

        def has_worked() -> bool:
            assert process.poll() is None, self._logs()
            return ENDLESS[line] in self.log(line).read_text()

        self.wait(has_worked, f"{line} works")

    def stop(self, line: str) -> None:
        """SIGTERM; the command must end with exit code 0."""
        process = self.running.pop(line)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, self._logs()

    def wait(self, until: Callable[[], bool], what: str) -> None:
        """Poll until it is true."""
        deadline = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}\n{self._logs()}"
            time.sleep(0.1)

    def log(self, line: str) -> Path:
        return self.folder / f"{line.split(maxsplit=1)[0]}.log"

    def metrics(self) -> dict[str, float]:
        """The worker's metrics, by name and labels."""
        port = self.environment["NEXTCLICK_WORKER__WEB_PORT"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
            told = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in told}

    def topic(self, name: str) -> str:
        """What the settings call a topic."""
        return self.environment[f"NEXTCLICK_TOPICS__{name.upper()}"]

    def versions(self) -> list[str]:
        """Published models, oldest first."""
        return sorted(manifest.parent.name for manifest in self.folder.glob("registry/*/manifest.json"))

    def kill_all(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))


@pytest.fixture
def reader(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> Iterator[Reader]:
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NEXTCLICK_", "KAFKA_"))}
    environment |= {f"NEXTCLICK_TOPICS__{name.upper()}": f"{topic_prefix}.{name}" for name in ("clicks", "rankings")}
    environment |= {
        f"NEXTCLICK_TOPICS__{name.upper()}": f"{topic_prefix}.{name}" for name in ("rejected", "models", "scores")
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        "COLUMNS": "200",
        "NEXTCLICK_TOPICS__PARTITIONS": "4",
        "NEXTCLICK_WORKER__APP_ID": topic_prefix,
        "NEXTCLICK_WORKER__WEB_PORT": str(port),
        "NEXTCLICK_WORKER__LOG_FORMAT": "json",
        "NEXTCLICK_TRAINER__LOG_FORMAT": "json",
    }
    reader = Reader(tmp_path, environment, {})
    reader.substitutes |= {
        "broker-1.example:9092,broker-2.example:9092": lambda: kafka.bootstrap_servers,
        "127.0.0.1:6066": lambda: f"127.0.0.1:{port}",
        "VERSION": lambda: reader.versions()[-1],
        "SESSION": lambda: "first",
    }
    yield reader
    reader.kill_all()


def write_clicks(file: Path) -> int:
    """A day of the simulated shop, as a click file; returns the number of its clicks."""
    clicks = list(Shop(ShopSettings(seed=3, departments=2)).history(SESSIONS, before_ms=1_767_225_600_000))
    names = {clicks[0].session_id: "first"}
    with gzip.open(file, "wt") as text:
        text.write("session_id\titem_id\ttimestamp\n")
        for click in clicks:
            session_id = names.get(click.session_id, click.session_id)
            text.write(f"{session_id}\t{click.item_id}\t{click.timestamp / 1000:.3f}\n")
    return len(clicks)


def test_every_line_of_the_readme(reader: Reader) -> None:
    clicks = write_clicks(reader.folder / "clicks.tsv.gz")
    quick = blocks(section(README, "Quickstart"), "sh")
    told = [line for block in blocks(README, "sh") if block not in quick for line in lines(block)]
    assert set(ELSEWHERE) <= set(told)
    for line in told:
        if line in ELSEWHERE:
            continue
        reader.type(line)
        if line.startswith("stream-app replay"):
            reader.wait(lambda: rankings(reader) == clicks, "every click has its ranking")
        if line == "trainer run --every 1h":
            reader.stop(line)  # it would hold the click log, which a later line wants

    first, second = reader.versions()
    serving = f'nextclick_model_info{{version="{first}"}}'
    reader.wait(lambda: reader.metrics().get(serving) == 1, f"the worker serves {first} again")
    assert reader.metrics()["nextclick_swaps_total"] >= 3
    assert rankings(reader) == clicks
    reader.stop("stream-app worker")

    (page,) = answers(reader, "curl ")
    assert json.loads(page) == {"status": "ready", "model": "ok", "tables": "ok", "worker": "ok"}
    (watched,) = answers(reader, "stream-app watch")
    assert len(watched.splitlines()) == 10
    assert all(re.search(r"clicked .* next: .*, ", line) for line in watched.splitlines())
    (inspected,) = answers(reader, "stream-app inspect")
    assert "Session first" in inspected
    assert [first in listed for listed in answers(reader, "trainer models")] == [True, True]
    assert [second in listed for listed in answers(reader, "trainer models")] == [False, True]
    assert json.loads((reader.folder / "report.json").read_text())["recall"]["20"] > 0
    for line in ENDLESS:
        for record in reader.log(line).read_text().splitlines():
            assert record.startswith("{"), f"{line} logged what is not JSON: {record}"
            assert {"event", "level", "logger", "timestamp"} <= json.loads(record).keys()


def test_the_quickstart(reader: Reader, kafka: KafkaUnderTest) -> None:
    quick = section(README, "Quickstart")
    programs = dict(zip(re.findall(r"`(\w+\.py)`:", quick), blocks(quick, "python"), strict=True))
    for name, program in programs.items():
        (reader.folder / name).write_text(
            program.replace("localhost:9092", kafka.bootstrap_servers).replace(
                '"clicks"', f'"{reader.topic("clicks")}"'
            )
        )
    reader.environment["KAFKA_BOOTSTRAP_SERVERS"] = kafka.bootstrap_servers
    for line in (line for block in blocks(quick, "sh") for line in lines(block)):
        if line not in ("make kafka", ". .venv/bin/activate"):
            reader.type(line)
    reader.stop("stream-app worker")
    (watched,) = answers(reader, "stream-app watch")
    _, _, third = watched.splitlines()
    assert re.search(r"clicked item-7  next: item-8\b", third), watched
    assert len(re.findall("^.", programs["send_clicks.py"], re.MULTILINE)) <= 7


def rankings(reader: Reader) -> float:
    return sum(value for name, value in reader.metrics().items() if name.startswith("nextclick_rankings_total"))


def answers(reader: Reader, beginning: str) -> list[str]:
    """What the lines that begin so printed."""
    return [answer for line, told in reader.answers.items() if line.startswith(beginning) for answer in told]
