"""One deployment on a real Kafka: its topics, its workers as processes of their own, and what they cost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from bench.budget import FILE as BUDGET_FILE
from bench.errors import BenchmarkError
from bench.report import console
from bench.slow import SlowCore, core_share
from deploy.kafka.ports import free_port
from schemas.bundle.files import manifest_digest
from schemas.config.settings import KafkaConnection, TopicSettings
from schemas.kafka.admin import ensure_topics
from schemas.kafka.topics import changelog_topic, topic_table
from schemas.messages.announcement import ModelAnnouncement, encode_announcement
from schemas.messages.click import Click, encode_click
from schemas.messages.split import Split, encode_split

_RANKINGS = "nextclick_rankings_total{"
_STEP = re.compile(r'nextclick_step_seconds_sum\{step="(\w+)"\}')
_SESSION_TTL_MS = 6 * 3_600_000
_STOP_SECONDS = 80.0
"""A worker gives itself 75."""


@dataclass
class Worker:
    """A `stream-app worker` process."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path
    data_dir: Path

    @property
    def budget(self) -> dict[str, Any] | None:
        """Where its processor time went (`bench/budget.py`), once it has stopped; None without BUDGET=1."""
        path = self.log.with_suffix(".json")
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def cpu_seconds(self) -> float:
        """Processor time so far, user and system."""
        return cpu_seconds(self.process.pid)

    @property
    def stands_still(self) -> bool:
        """Whether it is stopped by a signal."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"

    @property
    def rss_mb(self) -> float:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    @property
    def is_up(self) -> bool:
        """Whether it answers; it may still wait for a model."""
        try:
            return bool(self.metrics())
        except OSError:
            return False

    def metrics(self) -> dict[str, float]:
        """Its metrics, by name with labels as Prometheus prints them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def steps(self) -> dict[str, float]:
        """Seconds spent in each step so far; steps of several chunks overlap."""
        return {found[1]: seconds for name, seconds in self.metrics().items() if (found := _STEP.fullmatch(name))}

    @property
    def answered(self) -> float:
        """Rankings that Kafka has confirmed to it so far."""
        return sum(value for name, value in self.metrics().items() if name.startswith(_RANKINGS))

    @property
    def batches(self) -> float:
        """How often clicks were computed together so far."""
        return self.metrics()["nextclick_chunk_clicks_count"]

    def check(self) -> None:
        """Raise BenchmarkError if it has ended."""
        if (code := self.process.poll()) is not None:
            raise BenchmarkError(f"the worker ended with {code}; its log ends with\n{self.log.read_text()[-2000:]}")

    def stop(self, seconds: float = _STOP_SECONDS) -> None:
        """SIGTERM, and SIGKILL for one that does not end in time."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            console.print(f"a worker did not stop within {seconds:g} s and is killed; its log ends with")
            console.print(self.log.read_text()[-2000:], markup=False)
            self.process.kill()
            self.process.wait()


@dataclass
class Deployment:
    """Topics of their own for one measurement. A context manager: workers are stopped and their data removed.

    Attributes:
        bootstrap: of the Kafka that is used.
        folder: where the workers' data and logs go.
        partitions: of the clicks topic.
        settings: of the workers, by dotted key.
    """

    bootstrap: str
    folder: Path
    partitions: int = 8
    settings: Mapping[str, object] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = f"bench-{time.time_ns()}"
        self.topics = TopicSettings(
            clicks=f"{self.name}-clicks",
            rankings=f"{self.name}-rankings",
            rejected=f"{self.name}-rejected",
            scores=f"{self.name}-scores",
            splits=f"{self.name}-splits",
            rankings_shadow=f"{self.name}-rankings-shadow",
            models=f"{self.name}-models",
            partitions=self.partitions,
        )
        self.changelog = changelog_topic(self.name)
        self.connection = KafkaConnection(bootstrap_servers=self.bootstrap)
        share = core_share()
        self._slow = None if share is None else SlowCore(self.name, share)
        splits = bool(self.settings.get("worker__splits"))
        specs = topic_table(self.topics, self.name, session_ttl_ms=_SESSION_TTL_MS, splits=splits)
        ensure_topics(self.connection, specs)
        self._errors: list[str] = []
        self._marks = Consumer({**self.connection.librdkafka(), "group.id": f"{self.name}-marks"})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.stop()
            shutil.rmtree(worker.data_dir, ignore_errors=True)
        if self._slow is not None:
            self._slow.remove()
        self._marks.close()

    def producer(self, **config: object) -> Producer:
        """A producer that places records as the workers do; `flush` tells what became of them."""
        return Producer(
            {
                **self.connection.librdkafka(),
                "partitioner": "murmur2_random",
                "delivery.report.only.error": True,
                "on_delivery": self._undelivered,
                **config,
            }
        )

    def flush(self, producer: Producer) -> None:
        """Wait until everything is durable. Raises BenchmarkError when a record is not, after five minutes."""
        producer.flush()
        if self._errors:
            raise BenchmarkError(f"Kafka did not take {len(self._errors)} records; the first was {self._errors[0]}")

    def _undelivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._errors.append(f"{message.topic()}: {error}")

    def announce(self, bundle: Path, alias: str = "champion") -> None:
        """Make the bundle what an alias means; returns when the announcement is durable."""
        producer = self.producer()
        announcement = ModelAnnouncement(alias, bundle.name, str(bundle), manifest_digest(bundle), 0, "benchmark")
        producer.produce(self.topics.models, encode_announcement(announcement), alias.encode())
        self.flush(producer)

    def split(self, split: Split) -> None:
        """Have workers with worker.splits serve by this split."""
        producer = self.producer()
        producer.produce(self.topics.splits, encode_split(split), split.app_id.encode())
        self.flush(producer)

    def send(self, clicks: Iterable[Click]) -> int:
        """Put clicks on the topic as fast as it takes them; returns how many when all are durable."""
        producer, count = self.producer(**{"linger.ms": 20}), 0
        for click in clicks:
            producer.produce(self.topics.clicks, encode_click(click), click.session_id.encode())
            count += 1
            while len(producer) > 50_000:
                producer.poll(0.05)
        self.flush(producer)
        return count

    def environment(self, **settings: object) -> dict[str, str]:
        """What a process of this deployment is told, and settings of its own by dotted key."""
        given = {
            "kafka__bootstrap_servers": self.bootstrap,
            **{
                f"topics__{name}": getattr(self.topics, name)
                for name in ("clicks", "rankings", "rejected", "models", "scores", "splits", "rankings_shadow")
            },
            "topics__partitions": self.partitions,
            "worker__app_id": self.name,
            **settings,
        }
        return os.environ | {f"NEXTCLICK_{key.upper()}": str(value) for key, value in given.items()}

    def start_worker(self, **settings: object) -> Worker:
        """Start one more worker, with settings by dotted key (`worker__chunk_clicks=64`)."""
        number = len(self.workers)
        data_dir, port = self.folder / f"{self.name}-{number}", free_port()
        environment = self.environment(
            worker__data_dir=data_dir, worker__web_port=port, **{**self.settings, **settings}
        )
        log = self.folder / f"{self.name}-{number}.log"
        environment[BUDGET_FILE] = str(log.with_suffix(".json"))
        with log.open("wb") as output:
            module = "bench.budget" if os.environ.get("BUDGET") else "stream_app"
            command = [sys.executable, "-m", module, "worker"]
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        if self._slow is not None:
            self._slow.add(process.pid)
        self.workers.append(Worker(process, port, log, data_dir))
        return self.workers[-1]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The workers stand still: what is sent meanwhile waits. After their session timeout they lose partitions.

        Raises BenchmarkError when one was woken by somebody else.
        """
        for worker in self.workers:
            worker.process.send_signal(signal.SIGSTOP)
        try:
            for worker in self.workers:
                while not worker.stands_still:
                    worker.check()
                    time.sleep(0.001)
            yield
            if not all(worker.stands_still for worker in self.workers):
                raise BenchmarkError("something has woken a worker that should stand still until all clicks were sent")
        finally:
            for worker in self.workers:
                worker.process.send_signal(signal.SIGCONT)

    def records(self, topic: str) -> int:
        """Records ever written to a topic, by its end offsets: costs the machine nearly nothing."""
        ends = (
            self._marks.get_watermark_offsets(TopicPartition(topic, partition), timeout=15)[1]
            for partition in range(self.partitions)
        )
        return sum(ends)

    def wait_for(
        self, condition: Callable[[], bool], what: str, *, seconds: float = 300.0, every: float = 0.05
    ) -> None:
        """Wait until the condition holds; BenchmarkError when it does not come, or a worker ends."""
        deadline = time.monotonic() + seconds
        while not _holds(condition):
            for worker in self.workers:
                worker.check()
            if time.monotonic() > deadline:
                logs = "\n".join(worker.log.read_text()[-2000:] for worker in self.workers)
                raise BenchmarkError(f"not within {seconds:g} s: {what}\n{logs}")
            time.sleep(every)


def _holds(condition: Callable[[], bool]) -> bool:
    """The condition; not yet, while a topic that has just been made has no leader."""
    try:
        return condition()
    except KafkaException as error:
        if not error.args[0].retriable():
            raise
        return False


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its threads so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
