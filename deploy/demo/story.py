"""The demo from start to end: Kafka, topics, a first model, worker and trainer, live clicks, a swap, the verdict."""

import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from msgspec.structs import replace

from deploy.demo.processes import Commands
from deploy.demo.progress import Plan, Progress
from deploy.demo.reader import RankingsReader
from deploy.demo.sources import ClickSource, from_now_on
from deploy.demo.stock import Stock
from deploy.demo.tempo import Tempo
from deploy.demo.trials import CHALLENGER, Trials
from deploy.demo.verdict import Verdict, judge
from deploy.demo.view import Page, View
from deploy.kafka import LocalKafka, LocalKafkaError
from deploy.kafka.folders import LOGS, remove_folder
from deploy.kafka.ports import free_port, hold
from schemas.config.settings import KafkaConnection, TopicSettings
from schemas.kafka.topics import changelog_topic
from schemas.kafka.watermarks import watermarks
from schemas.messages.announcement import CHAMPION
from schemas.messages.click import Click, encode_click
from stream_app.api_settings import ApiSettings
from stream_app.settings import StreamSettings
from stream_app.tools.pacing import wait_until_due

_PARTITIONS: Final = 4
_READY_SECONDS: Final = 180.0
_ANSWER_SECONDS: Final = 120.0

_TRAINING: Final = {"hidden_size": "64", "epochs": "4", "n_sample": "256", "batch_size": "64", "dropout_hidden": "0.1"}
"""Small enough to be trained twice within the demo."""


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why."""


class Demo:
    """One run. Everything it starts is stopped when its block ends."""

    def __init__(
        self,
        source: ClickSource,
        plan: Plan,
        *,
        page: bool = True,
        keep: Path | None = None,
        picture: Path | None = None,
    ) -> None:
        self._source = source
        self._plan = plan
        self._page = Page()
        self._with_page = page
        self._view = View(self._page)
        self._stack = ExitStack()
        self._keep = keep
        self._picture = picture
        self._trials: Trials | None = None

    def run(self) -> Verdict:
        """Tell the whole story."""
        with self._stack, self._view.shown():
            self._prepare()
            self._learn_first_model()
            self._open_shop()
            self._serve()
            return self._verdict()

    # -- before --------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._phase("starting Kafka")
        root = self._keep or self._stack.enter_context(_temporary_folder())
        root.mkdir(parents=True, exist_ok=True)
        self._logs, self._registry = root / LOGS, root / "registry"
        self._root = root
        named = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
        bootstrap = named or self._stack.enter_context(LocalKafka()).bootstrap_servers
        self._event(f"Kafka at {bootstrap}")
        # Its own log lines would tear the page apart; what matters is raised or seen in the processes' logs.
        self._kafka = {**KafkaConnection(bootstrap_servers=bootstrap).librdkafka(), "log_level": 0}
        settings = StreamSettings(topics=TopicSettings(prefix=f"demo-{int(time.time())}-{os.getpid()}."))
        self._prefix, self._app_id = settings.topics.prefix, settings.app_id
        names = ("clicks", "rankings", "rejected", "models", "scores", "items", "splits", "rankings_shadow")
        self._topics = {name: str(getattr(settings.topics, name)) for name in names}
        left: list[str] = []
        self._stack.callback(self._remove_topics, left)
        self._data_dir = root / "worker"
        self._port, self._page_port = free_port(), _page_port()
        self._commands = self._stack.enter_context(self._running_commands(bootstrap))
        self._commands.run("stream-app", "topics")
        if named and not self._keep:
            left += [*self._topics.values(), changelog_topic(self._app_id)]
        self._event("topics created")
        self._producer = Producer(
            {**self._kafka, "partitioner": "murmur2_random", "enable.idempotence": True, "linger.ms": 5}
        )
        self._stock = Stock(self._producer, self._topics["items"], self._event, self._source.items())

    @contextmanager
    def _running_commands(self, bootstrap: str) -> Iterator[Commands]:
        self._logs.mkdir(exist_ok=True)
        commands = Commands(self._environment(bootstrap), self._logs)
        try:
            yield commands
        finally:
            commands.stop_all()

    def _environment(self, bootstrap: str) -> dict[str, str]:
        trainer = {
            "LOG_DIR": str(self._root / "click-log"),
            "REGISTRY": str(self._registry),
            "WORK_DIR": str(self._root / "trainer-work"),
            "MIN_NEW_SESSIONS": str(self._plan.new_sessions),
            "REFIT": "false",
            "BASELINES": '["pop", "markov-chain"]',
            **{f"TRAINING__{name.upper()}": value for name, value in _TRAINING.items()},
        }
        return {
            "NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "NEXTCLICK_TOPICS__PREFIX": self._prefix,
            "NEXTCLICK_TOPICS__PARTITIONS": str(_PARTITIONS),
            "NEXTCLICK_WORKER__DATA_DIR": str(self._data_dir),
            "NEXTCLICK_WORKER__WEB_PORT": str(self._port),
            "NEXTCLICK_WORKER__ITEMS": "true",
            "NEXTCLICK_WORKER__SPLITS": "true",
            "NEXTCLICK_GUARD__EVERY": "2s",
            "NEXTCLICK_GUARD__MIN_SESSIONS": str(self._plan.judged_sessions),
            "NEXTCLICK_SCORES__DATA_DIR": str(self._root / "scorer"),
            "NEXTCLICK_SCORES__WEB_PORT": "0",
            "NEXTCLICK_API__DATA_DIR": str(self._root / "api"),
            "NEXTCLICK_API__PORT": str(self._page_port),
            # The page draws a point a window, the guard compares whole windows: usually they last five minutes.
            "NEXTCLICK_SCORES__WINDOW": "10s",
            **{f"NEXTCLICK_TRAINER__{name}": value for name, value in trainer.items()},
        }

    def _learn_first_model(self) -> None:
        self._phase("training the first model on what was clicked before")
        count = 0
        for click in self._source.history(_now_ms()):
            self._stock.offer(click.item_id)
            self._send(click)
            count += 1
        self._flush()
        self._event(f"{count:,} clicks of {self._source.name} from before are in Kafka")
        began = time.monotonic()
        result = self._commands.run_json("trainer", "run", "--once", "--json")
        self._trained_in = time.monotonic() - began
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
        self._commands.start("stream-app", "score")
        if self._with_page:
            self._open_page()
        self._wait_until_ready("worker", self._port)
        self._event("worker ready: RocksDB open, model loaded and verified")
        every, alias = f"{self._plan.retrain_every:g}s", CHAMPION
        if (share := self._plan.canary) is not None:
            alias = CHALLENGER
            self._trials = self._stack.enter_context(Trials(self._commands, self._registry, share, self._event))
            self._commands.start("trainer", "guard", niceness=5)
        # In production the trainer has a machine of its own; here it must not take the worker's cores.
        self._commands.start("trainer", "run", "--every", every, niceness=5, NEXTCLICK_TRAINER__MODEL_ALIAS=alias)
        self._event(f"trainer running: a cycle every {every}, its models are announced as {alias}")

    def _open_page(self) -> None:
        self._commands.start("stream-app", "api")
        self._wait_until_ready("api", self._page_port)
        self._page.url = f"http://127.0.0.1:{self._page_port}/"
        self._event(f"look and click in a browser: {self._page.url}")

    def _wait_until_ready(self, name: str, port: int) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not _is_ready(port):
            self._commands.check()
            if time.monotonic() > deadline:
                raise DemoError(f"stream-app {name} was not ready within {_READY_SECONDS:g} s; see {self._logs}")
            time.sleep(0.2)

    # -- live ----------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._phase("live clicks")
        reader = self._reader = self._stack.enter_context(
            RankingsReader(self._kafka, self._topics, registry=self._registry, page=self._page, event=self._event)
        )
        progress, tempo = Progress(self._plan, trained_in=self._trained_in), Tempo()
        began = time.monotonic()
        live = from_now_on(self._source.live(_now_ms(), self._plan.live), _now_ms)
        for batch in wait_until_due(live, clock=tempo.now, sleep=tempo.sleep):
            if self._trials is not None:
                self._trials.update(reader)
            progress.update(
                time.monotonic() - began, reader.models, None if self._trials is None else self._trials.waits_for
            )
            self._page.outlook = progress.outlook
            if progress.is_over:
                break
            lost_ms = round(tempo.lost * 1000)
            for click in batch.clicks:
                self._stock.offer(click.item_id)
                self._send(replace(click, timestamp=click.timestamp + lost_ms))
                reader.clicked(click)
            self._page.clicks += len(batch.clicks)
            self._producer.poll(0)
            tempo.adapt(self._page.clicks, reader.count)
            self._stock.update((time.monotonic() - began) / self._plan.live, reader, _now_ms())
            self._check()
        if self._picture is not None:
            self._view.save(self._picture)
        self._page.outlook = ""
        self._flush()
        self._live_seconds = time.monotonic() - began
        self._phase("waiting for the last rankings")
        deadline = time.monotonic() + _ANSWER_SECONDS
        while min(reader.count, reader.scored) < self._page.clicks and time.monotonic() < deadline:
            self._check()
            time.sleep(0.1)
        reader.finish()
        self._phase("stopping trainer, worker and scorer")
        names = ("trainer run", "trainer guard", "stream-app worker", "stream-app score")
        for name in filter(self._commands.runs, names):
            code = self._commands.stop(name)
            self._event(f"{name} stopped with exit code {code}")
            if code != 0:
                raise DemoError(f"{name} ended with exit code {code}; see {self._logs}")

    def _check(self) -> None:
        """Raise what ended a part of the demo before its time."""
        self._commands.check()
        self._reader.check()

    def _verdict(self) -> Verdict:
        self._phase("computing every session anew, one click at a time")
        verdict = judge(
            self._kafka,
            self._topics,
            self._from,
            seconds=self._live_seconds,
            registry=self._registry,
            data_dir=self._data_dir,
            served=self._reader.models,
            offline=self._page.offline,
            needed=self._plan.predictions,
            sold_out=self._stock.sold_out,
            trials=self._trials,
        )
        for line in verdict.wrong_rows[:5]:
            self._event(f"mismatch: {line}")
        result = verdict.result
        self._event(
            f"{result['clicks']:,} clicks checked: {result['lost']} lost, {result['state_mismatches']} wrong rows, "
            f"{verdict.wrong_rankings} wrong rankings, {result['swaps']} swaps"
        )
        return verdict

    # -- small things -------------------------------------------------------------------------------------------------

    def _send(self, click: Click) -> None:
        self._produce(self._topics["clicks"], click.session_id, encode_click(click))

    def _produce(self, topic: str, key: str, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key.encode())
            except BufferError:
                self._producer.poll(0.1)
            else:
                return

    def _remove_topics(self, topics: list[str]) -> None:
        """From a Kafka that was there before the demo, and stays."""
        if not topics:
            return
        admin = AdminClient(self._kafka)  # in a variable: its futures fail once it is collected
        for topic, removed in admin.delete_topics(topics, operation_timeout=60).items():
            error = removed.exception(30)
            if error is not None:
                self._event(f"the topic {topic} is not removed: {error}")

    def _flush(self) -> None:
        if self._producer.flush(60):
            raise DemoError("Kafka did not take all clicks within a minute")

    def _ends(self, topic: str) -> Mapping[int, int]:
        consumer = Consumer({**self._kafka, "group.id": "demo-view"})
        try:
            return {p: watermarks(consumer, TopicPartition(topic, p), timeout=60)[1] for p in range(_PARTITIONS)}
        finally:
            consumer.close()

    def _phase(self, text: str) -> None:
        self._page.phase = text
        self._view.event(text)

    def _event(self, text: str) -> None:
        self._view.event(text)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Removed at the end. When an error ends the demo the logs stay: its message names them."""
    folder, keep_logs = Path(tempfile.mkdtemp(prefix="nextclick-demo-")), False
    try:
        yield folder
    except Exception:
        keep_logs = True
        raise
    finally:
        remove_folder(folder, keep_logs=keep_logs)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:  # not listening yet, or 503 until it is ready
        return False


def _page_port() -> int:
    """The usual one, where nothing else has it."""
    try:
        return hold(ApiSettings().port)
    except LocalKafkaError:
        return free_port()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
