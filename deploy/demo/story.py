"""The demo from start to end: Kafka, topics, a first model, worker and trainer, live clicks, a swap, the verdict."""

import os
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from confluent_kafka import OFFSET_END, Consumer, Message, Producer, TopicPartition

from deploy.demo.online import OnlineScores
from deploy.demo.oracle import Position, Published, mismatches, read_topic, recompute, stored_rows
from deploy.demo.ports import free_port
from deploy.demo.processes import Commands
from deploy.demo.sources import ClickSource
from deploy.demo.view import Page, View
from deploy.kafka import LocalKafka
from schemas.bundle import open_bundle
from schemas.click import Click, encode_click
from schemas.ranking import decode_ranking
from schemas.settings import KafkaConnection
from stream_app.pacing import wait_until_due

_PARTITIONS: Final = 4
_RECENT_SECONDS: Final = 10.0
_READY_SECONDS: Final = 90.0
_ANSWER_SECONDS: Final = 60.0
_SHOWN_SESSIONS: Final = 4
_SHOWN_ITEMS: Final = 4
_CHECKED_RANKINGS: Final = 25
"""The oracle compares every n-th ranking item by item; rows, and that there is a ranking, for all clicks."""

_TRAINING: Final = {"hidden_size": "64", "epochs": "4", "n_sample": "256", "batch_size": "64", "dropout_hidden": "0.1"}
"""Small enough to be trained twice within the demo."""


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True)
class Plan:
    """How long things take, in seconds.

    Attributes:
        live: of live clicks; more when no model was swapped by then.
        patience: how much more at most.
        retrain_every: from one training cycle to the next.
        new_sessions: that a cycle trains on at least.
    """

    live: float = 165.0
    patience: float = 120.0
    retrain_every: float = 55.0
    new_sessions: int = 1500


@dataclass
class _Received:
    """What the demo has read of the rankings topic; written by the reader's thread."""

    scores: OnlineScores = field(default_factory=OnlineScores)
    recent: "deque[tuple[float, int]]" = field(default_factory=deque)  # (received at, latency in ms)
    items: dict[str, "deque[str]"] = field(default_factory=dict)  # last clicked items, by session
    count: int = 0


class Demo:
    """One run. Everything it starts is stopped when its block ends."""

    def __init__(self, source: ClickSource, plan: Plan, *, keep: Path | None = None) -> None:
        self._source = source
        self._plan = plan
        self._page = Page()
        self._view = View(self._page)
        self._received = _Received()
        self._stack = ExitStack()
        self._keep = keep

    def run(self) -> dict[str, Any]:
        """Tell the whole story; returns the result that is printed as JSON."""
        with self._stack, self._view.shown():
            self._prepare()
            self._learn_first_model()
            self._open_shop()
            self._serve()
            return self._verdict()

    # -- before --------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._phase("starting Kafka")
        root = self._keep or Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="nextclick-demo-")))
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        bootstrap = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
        if not bootstrap:
            bootstrap = self._stack.enter_context(LocalKafka()).bootstrap_servers
        self._event(f"Kafka at {bootstrap}")
        # Its own log lines would tear the page apart; what matters is raised or seen in the processes' logs.
        self._kafka = {**KafkaConnection(bootstrap_servers=bootstrap).librdkafka(), "log_level": 0}
        prefix = f"demo-{int(time.time())}-{os.getpid()}"
        self._topics = {name: f"{prefix}.{name}" for name in ("clicks", "rankings", "rejected", "models")}
        self._app_id = prefix
        self._data_dir = root / "worker"
        self._port = free_port()
        self._commands = self._stack.enter_context(self._running_commands(bootstrap))
        self._commands.run("stream-app", "topics")
        self._event("topics created")
        self._producer = Producer(
            {**self._kafka, "partitioner": "murmur2_random", "enable.idempotence": True, "linger.ms": 5}
        )

    @contextmanager
    def _running_commands(self, bootstrap: str) -> Iterator[Commands]:
        logs = self._root / "logs"
        logs.mkdir(exist_ok=True)
        commands = Commands(self._environment(bootstrap), logs)
        try:
            yield commands
        finally:
            commands.stop_all()

    def _environment(self, bootstrap: str) -> dict[str, str]:
        trainer = {
            "LOG_DIR": str(self._root / "click-log"),
            "REGISTRY": str(self._root / "registry"),
            "WORK_DIR": str(self._root / "trainer-work"),
            "MIN_NEW_SESSIONS": str(self._plan.new_sessions),
            "REFIT": "false",
            "BASELINES": '["pop", "markov-chain"]',
            **{f"TRAINING__{name.upper()}": value for name, value in _TRAINING.items()},
        }
        return {
            "NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            **{f"NEXTCLICK_TOPICS__{name.upper()}": topic for name, topic in self._topics.items()},
            "NEXTCLICK_TOPICS__PARTITIONS": str(_PARTITIONS),
            "NEXTCLICK_WORKER__APP_ID": self._app_id,
            "NEXTCLICK_WORKER__DATA_DIR": str(self._data_dir),
            "NEXTCLICK_WORKER__WEB_PORT": str(self._port),
            **{f"NEXTCLICK_TRAINER__{name}": value for name, value in trainer.items()},
        }

    def _learn_first_model(self) -> None:
        self._phase("training the first model on what was clicked before")
        count = 0
        for click in self._source.history(_now_ms()):
            self._send(click)
            count += 1
        self._flush()
        self._event(f"{count:,} clicks of {self._source.name} from before are in Kafka")
        result = self._commands.run_json("trainer", "run", "--once", "--json")
        if result["outcome"] != "announced":
            raise DemoError(f"the first model was not announced: {'; '.join(result['reasons'])}")
        self._event(f"first model trained and announced: {result['version']}")

    def _open_shop(self) -> None:
        self._phase("starting the worker")
        # The worker begins with the live clicks: what was before is for learning.
        self._from = self._ends(self._topics["clicks"])
        group = Consumer({**self._kafka, "group.id": self._app_id})
        group.commit(
            offsets=[TopicPartition(self._topics["clicks"], p, offset) for p, offset in self._from.items()],
            asynchronous=False,
        )
        group.close()
        self._commands.start("stream-app", "worker")
        deadline = time.monotonic() + _READY_SECONDS
        while not self._worker_is_ready():
            self._commands.check()
            if time.monotonic() > deadline:
                raise DemoError(f"the worker was not ready within {_READY_SECONDS:g} s; see {self._root}/logs")
            time.sleep(0.2)
        self._event("worker ready: RocksDB open, model loaded and verified")
        every = f"{self._plan.retrain_every:g}s"
        # In production the trainer has a machine of its own; here it must not take the worker's cores.
        self._commands.start("trainer", "run", "--every", every, niceness=5)
        self._event(f"trainer running: a cycle every {every}")

    def _worker_is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:  # not listening yet, or 503 until it is ready
            return False

    # -- live ----------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._phase("live clicks")
        stopping = threading.Event()
        reader = threading.Thread(target=self._read_rankings, args=(stopping,), name="rankings", daemon=True)
        reader.start()
        self._stack.callback(stopping.set)
        self._began = time.monotonic()
        for batch in wait_until_due(
            self._source.live(_now_ms(), self._plan.live), clock=time.monotonic, sleep=time.sleep
        ):
            for click in batch.clicks:
                self._send(click)
                items = self._received.items.setdefault(click.session_id, deque(maxlen=_SHOWN_ITEMS))
                items.append(click.item_id)
            self._page.clicks += len(batch.clicks)
            self._producer.poll(0)
            self._commands.check()
            if self._has_seen_enough():
                break
        self._flush()
        self._live_seconds = time.monotonic() - self._began
        self._phase("waiting for the last rankings")
        deadline = time.monotonic() + _ANSWER_SECONDS
        while self._received.count < self._page.clicks and time.monotonic() < deadline:
            self._commands.check()
            time.sleep(0.1)
        stopping.set()
        reader.join()
        self._phase("stopping trainer and worker")
        for name in ("trainer", "stream-app"):
            code = self._commands.stop(name)
            self._event(f"{name} stopped with exit code {code}")
            if code != 0:
                raise DemoError(f"{name} ended with exit code {code}; see {self._root}/logs")

    def _has_seen_enough(self) -> bool:
        elapsed = time.monotonic() - self._began
        swapped = len(self._received.scores.models) > 1
        return elapsed > (self._plan.live if swapped else self._plan.live + self._plan.patience)

    def _read_rankings(self, stopping: threading.Event) -> None:
        consumer = Consumer({**self._kafka, "group.id": "demo-view", "enable.auto.commit": False})
        partitions = (
            consumer.list_topics(self._topics["rankings"], timeout=15).topics[self._topics["rankings"]].partitions
        )
        consumer.assign([TopicPartition(self._topics["rankings"], p, 0) for p in partitions])
        received, drawn = self._received, 0.0
        while not stopping.is_set():
            for message in consumer.consume(1000, timeout=0.2):
                if message.error() is None:
                    self._take(message)
            if time.monotonic() - drawn > 0.5:
                self._draw(received)
                drawn = time.monotonic()
        consumer.close()

    def _take(self, message: Message) -> None:
        value = message.value()
        assert value is not None
        ranking = decode_ranking(value)
        received = self._received
        known = set(received.scores.models)
        if not received.scores.add(ranking):
            return
        received.count += 1
        received.recent.append((time.monotonic(), message.timestamp()[1] - ranking.click_timestamp))
        if ranking.model_version not in known:
            self._learn_offline(ranking.model_version)
            verb = "swapped under load: now serving" if known else "serving"
            self._event(f"{verb} {ranking.model_version}")

    def _learn_offline(self, version: str) -> None:
        metrics = open_bundle(self._root / "registry" / version).manifest.metrics["model"]
        self._page.offline[version] = (metrics["recall@20"], metrics["mrr@20"])

    def _draw(self, received: _Received) -> None:
        now = time.monotonic()
        while received.recent and now - received.recent[0][0] > _RECENT_SECONDS:
            received.recent.popleft()
        page = self._page
        page.rankings = received.count
        page.models = dict(received.scores.models)
        span = min(_RECENT_SECONDS, max(1e-3, now - self._began))
        page.clicks_per_second = len(received.recent) / span
        if received.recent:
            p50, p99 = np.percentile([ms for _, ms in received.recent], [50, 99])
            page.latency_ms = float(p50), float(p99)
        page.sessions = [
            (tuple(received.items.get(ranking.session_id, (ranking.item_id,))), ranking)
            for ranking in received.scores.latest(_SHOWN_SESSIONS)
        ]

    # -- after ---------------------------------------------------------------------------------------------------------

    def _verdict(self) -> dict[str, Any]:
        self._phase("computing every session anew, one click at a time")
        appended: dict[Position, int] = {}
        latencies: list[int] = []

        def clicks() -> Iterator[Message]:
            for record in read_topic(self._kafka, self._topics["clicks"]):
                if record.offset() >= self._from[record.partition()]:
                    yield record

        for record in clicks():
            appended[record.partition(), record.offset()] = record.timestamp()[1]
        rankings = list(read_topic(self._kafka, self._topics["rankings"]))
        published = Published.of(rankings)
        for record in rankings:
            ranking = decode_ranking(record.value() or b"")
            latencies.append(record.timestamp()[1] - appended[ranking.source.partition, ranking.source.offset])
        versions = {ranking.model_version for ranking in published.last.values()}
        models = {version: open_bundle(self._root / "registry" / version) for version in versions}
        expected = recompute(clicks(), published, models, check_every=_CHECKED_RANKINGS)
        wrong = mismatches(expected.rows, stored_rows(self._data_dir))
        if expected.wrong_rankings:
            raise DemoError(f"{len(expected.wrong_rankings)} rankings are not what their sessions lead to")
        for line in wrong[:5]:
            self._event(f"mismatch: {line}")
        served = self._received.scores.models
        p50, p99 = np.percentile(latencies, [50, 99]) if latencies else (0.0, 0.0)
        self._event(
            f"{expected.clicks:,} clicks checked: {len(expected.lost)} lost, {len(wrong)} wrong rows, "
            f"{max(0, len(served) - 1)} swaps"
        )
        return {
            "clicks": len(appended),
            "rankings": len(rankings),
            "rejected": len(list(read_topic(self._kafka, self._topics["rejected"]))),
            "duplicates": published.duplicates,
            "lost": len(expected.lost),
            "state_mismatches": len(wrong),
            "swaps": max(0, len(served) - 1),
            "models": [
                {
                    "version": version,
                    "offline": dict(zip(("recall@20", "mrr@20"), self._page.offline[version], strict=True)),
                    "online": {"recall@20": score.recall, "mrr@20": score.mrr, "predictions": score.predictions},
                }
                for version, score in served.items()
            ],
            "latency_ms": {"p50": float(p50), "p99": float(p99)},
            "clicks_per_second": len(appended) / self._live_seconds,
        }

    # -- small things -------------------------------------------------------------------------------------------------

    def _send(self, click: Click) -> None:
        while True:
            try:
                self._producer.produce(self._topics["clicks"], encode_click(click), click.session_id.encode())
            except BufferError:
                self._producer.poll(0.1)
            else:
                return

    def _flush(self) -> None:
        if self._producer.flush(60):
            raise DemoError("Kafka did not take all clicks within a minute")

    def _ends(self, topic: str) -> Mapping[int, int]:
        consumer = Consumer({**self._kafka, "group.id": "demo-view"})
        try:
            return {
                p: consumer.get_watermark_offsets(TopicPartition(topic, p, OFFSET_END), timeout=15)[1]
                for p in range(_PARTITIONS)
            }
        finally:
            consumer.close()

    def _phase(self, text: str) -> None:
        self._page.phase = text
        self._view.event(text)

    def _event(self, text: str) -> None:
        self._view.event(text)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
