"""A whole deployment for fault tests: its own topics, worker processes that can be killed, and the oracle's verdict."""

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec
from confluent_kafka import Producer

from bench.random_model import random_bundle
from deploy.demo.oracle import Published, mismatches, read_topic, recompute, restored_rows, stored_rows
from deploy.demo.shop import Shop, ShopSettings
from schemas.bundle.files import manifest_digest, open_bundle
from schemas.bundle.runtime import Model
from schemas.config.settings import KafkaConnection, TopicSettings
from schemas.kafka.topics import changelog_topic, topic_table
from schemas.messages.announcement import ModelAnnouncement, encode_announcement
from schemas.messages.click import Click, encode_click
from schemas.messages.item import Item, encode_item
from schemas.messages.split import Split, Variant, encode_split
from stream_app.core.session import SessionRules
from stream_app.settings import StreamSettings
from stream_app.tools.click_file import read_click_file
from tests.admin import ensure_topics
from tests.committed import Offsets
from tests.contract.tiny_model import TinyModel
from tests.patience import PATIENCE
from tests.stream_process import StreamProcess

PARTITIONS = 4
SESSION_TIMEOUT = 6
GAVE_UP = (1, 70)
"""A worker's exit codes when it cannot go on: an error that it tells of, and the watchdog."""
NEVER_TAKEN_FOR_DEAD = {"NEXTCLICK_WORKER__SESSION_TIMEOUT": "30"}
"""For workers that nobody kills: on a busy machine one may be late with its heartbeats, and its clicks come twice."""


def real_clicks(shared_data: Path | None, count: int) -> list[Click]:
    """Real clicks in time order, or the simulated shop's where the files are absent."""
    if shared_data is not None:
        return list(itertools.islice(read_click_file(shared_data / "rsc15_100k.tsv.gz"), count))
    shop = Shop(ShopSettings(seed=5)).history(sessions=count // 4, before_ms=1_700_000_000_000)
    return list(itertools.islice(shop, count))


def endless(clicks: Sequence[Click]) -> Iterator[Click]:
    """The clicks again and again, each time of other sessions."""
    for n in itertools.count():
        for click in clicks:
            yield msgspec.structs.replace(click, session_id=f"{click.session_id}~{n}")


class Load:
    """Clicks that come at a rate, in the background, until a test has seen what it wants to see.

    A slow machine gets more of them instead of an idle worker: a fault after the last click is no fault under load.
    """

    def __init__(
        self, clicks: Iterable[Click], *, per_second: float, send: Callable[[Click], None], flush: Callable[[], None]
    ) -> None:
        self._clicks, self._per_second = clicks, per_second
        self._send, self._flush = send, flush
        self._enough = threading.Event()
        self._sent = 0
        self._thread = threading.Thread(target=self._produce, name="clicks", daemon=True)
        self._thread.start()

    def _produce(self) -> None:
        began = time.monotonic()
        for click in self._clicks:
            self._send(click)
            self._sent += 1
            if self._sent % 50 == 0 and self._enough.wait(began + self._sent / self._per_second - time.monotonic()):
                return

    def stop(self) -> int:
        """No more clicks; returns how many there were, all of them durable."""
        assert self._thread.is_alive(), f"the load ended by itself, after {self._sent} clicks"
        self.abandon()
        self._flush()
        return self._sent

    def abandon(self) -> None:
        """No more clicks, whatever became of those on their way."""
        self._enough.set()
        self._thread.join()


def has_all_partitions(worker: StreamProcess) -> bool:
    """Whether a worker has restored the rows of every partition since the last rebalance."""
    told = [line for line in worker.output().splitlines() if "tables recovered" in line]
    return bool(told) and str([*range(PARTITIONS)]) in told[-1]


@dataclass
class Verdict:
    """What the oracle says once everything is answered."""

    clicks: int
    rejected: int
    duplicates: int
    lost: int
    wrong_rankings: int
    changelog: list[str]
    stored: list[str]
    versions: list[str]

    def assert_nothing_lost_nothing_wrong(self) -> None:
        assert self.lost == 0
        assert self.wrong_rankings == 0
        assert self.changelog == []
        assert self.stored == []


@dataclass
class Deployment:
    """Topics, bundles and workers under one prefix."""

    bootstrap: str
    prefix: str
    root: Path
    items: Sequence[str]
    extra: dict[str, str] = field(default_factory=dict)
    rules: SessionRules = field(default_factory=SessionRules)
    """What the workers are told of sessions, for the oracle."""
    workers: list[StreamProcess] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    models: dict[str, Model] = field(default_factory=dict)
    _sent: int = 0

    def __post_init__(self) -> None:
        settings = StreamSettings(topics=TopicSettings(prefix=f"{self.prefix}-", partitions=PARTITIONS))
        self.topics, self.app_id, self.group = settings.topics, settings.worker.app_id, settings.app_id
        self.changelog = changelog_topic(self.group)
        self.connection = KafkaConnection(bootstrap_servers=self.bootstrap)
        self.create_topics()
        self._offsets = Offsets(self.connection.librdkafka(), self.group)
        self._producer = Producer(
            {
                **self.connection.librdkafka(),
                "partitioner": "murmur2_random",
                "linger.ms": 5,
                "enable.idempotence": True,
            }
        )

    def create_topics(self) -> None:
        """The admin step, as `stream-app topics` does it."""
        ensure_topics(self.connection, topic_table(self.topics, self.group, session_ttl_ms=6 * 3_600_000))

    # -- models -------------------------------------------------------------------------------------------------------

    def bundle(self, version: str, *, items: Sequence[str] | None = None, hidden: int = 16) -> Path:
        """A small model with random weights; its seed is its version."""
        path = random_bundle(
            self.root / "registry",
            version,
            self.items if items is None else items,
            units=hidden,
            seed=hash_of(version),
        )
        self.models[version] = open_bundle(path)
        return path

    def add(self, model: TinyModel, version: str) -> Path:
        """A bundle of another kind, for this test's items."""
        path = model.write(self.root / "registry", version)
        self.models[version] = open_bundle(path)
        return path

    def announce(self, path: Path, *, uri: str | None = None, alias: str = "champion") -> None:
        """Make a bundle the champion, or another alias, as if it lay at `uri`."""
        announcement = ModelAnnouncement(
            alias=alias,
            version=path.name,
            uri=uri or str(path),
            manifest_sha256=manifest_digest(path),
            announced_at=int(time.time() * 1000),
            why="test",
        )
        self._producer.produce(self.topics.models, encode_announcement(announcement), alias.encode())
        assert self._producer.flush(PATIENCE) == 0

    # -- workers ------------------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """What a worker of this deployment is told."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NEXTCLICK_", "KAFKA_"))},
            "NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap,
            "NEXTCLICK_TOPICS__PREFIX": self.topics.prefix,
            "NEXTCLICK_TOPICS__PARTITIONS": str(PARTITIONS),
            "NEXTCLICK_WORKER__SESSION_TIMEOUT": str(SESSION_TIMEOUT),
            "NEXTCLICK_WORKER__CHUNK_CLICKS": "128",
            "NEXTCLICK_WORKER__LOG_FORMAT": "json",
            **self.extra,
        }

    def start(self, name: str = "a", **extra: str) -> StreamProcess:
        """Start a worker whose data folder is named `name`; a second start of the same name finds its data."""
        log = self.root / f"worker-{name}-{len(self.workers)}.log"
        worker = StreamProcess.start(
            "worker", log=log, data_dir=self.root / f"data-{name}", environment=self.environment() | extra
        )
        self.workers.append(worker)
        return worker

    def start_ready(self, name: str = "a", **extra: str) -> StreamProcess:
        """Start a worker and wait until it serves."""
        worker = self.start(name, **extra)

        def is_ready() -> bool:
            assert worker.process.poll() is None, f"worker {name} exited:\n{worker.output()[-3000:]}"
            return worker.is_ready()

        self.wait(is_ready, f"worker {name} ready")
        return worker

    def stop_all(self) -> None:
        """Kill what still runs."""
        for load in self.loads:
            load.abandon()
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGCONT)
                worker.kill()

    # -- clicks -------------------------------------------------------------------------------------------------------

    def send(self, clicks: Iterable[Click]) -> None:
        """Produce clicks as fast as possible and wait until they are durable."""
        for click in clicks:
            self._send_click(click)
        self.flush()

    def _send_click(self, click: Click) -> None:
        self.send_raw(click.session_id.encode(), encode_click(click))

    def flush(self) -> None:
        """Wait until everything that was produced is durable."""
        assert self._producer.flush(PATIENCE) == 0

    def use_items_and_rules(self, item_ids: Iterable[str]) -> None:
        """Workers started from now on use both; all of these items may be shown."""
        self.extra |= {"NEXTCLICK_WORKER__ITEMS": "true", "NEXTCLICK_WORKER__RULES": "true"}
        specs = topic_table(self.topics, self.group, session_ttl_ms=6 * 3_600_000, items=True, rules=True)
        ensure_topics(self.connection, specs)
        for item_id in item_ids:
            self._producer.produce(self.topics.items, encode_item(Item(item_id=item_id)), item_id.encode())
            self._producer.poll(0)
        self.flush()

    def use_splits(self) -> None:
        """Workers started from now on follow splits."""
        self.extra |= {"NEXTCLICK_WORKER__SPLITS": "true"}
        ensure_topics(self.connection, topic_table(self.topics, self.group, session_ttl_ms=6 * 3_600_000, splits=True))

    def split(self, *shadows: str, **shares: float) -> None:
        """Publish a split; none without shares and shadows."""
        variants = tuple(Variant(alias, share) for alias, share in shares.items())
        value = encode_split(Split(app_id=self.app_id, variants=variants, shadow=shadows))
        self.put(self.topics.splits, self.app_id, value if shares or shadows else None)

    def put(self, topic: str, key: str, value: bytes | None) -> int:
        """Produce one record of another topic; returns its offset once it is durable."""
        offsets: list[int] = []
        self._producer.produce(
            topic, value, key.encode(), on_delivery=lambda _, record: offsets.append(record.offset())
        )
        self.flush()
        return offsets[0]

    def send_raw(self, key: bytes | None, value: bytes | None) -> None:
        """Produce one record, whatever it is."""
        self._producer.produce(self.topics.clicks, value, key)
        self._sent += 1
        if self._sent % 1000 == 0:
            self._producer.poll(0)

    def load(self, clicks: Sequence[Click], *, per_second: float) -> Load:
        """Produce clicks at a rate, in the background, until the load is stopped."""
        load = Load(endless(clicks), per_second=per_second, send=self._send_click, flush=self.flush)
        self.loads.append(load)
        return load

    def send_in_transactions(self, clicks: Sequence[Click], enough: threading.Event) -> int:
        """Produce clicks in transactions, every third of which is aborted, until it is enough; returns those committed.

        The last one is aborted.
        """
        producer, more, kept = self._transactional, endless(clicks), 0
        for n in itertools.count(1):
            producer.begin_transaction()
            for click in itertools.islice(more, 100):
                producer.produce(self.topics.clicks, encode_click(click), click.session_id.encode())
            if n % 3:
                producer.commit_transaction(PATIENCE)
                kept += 100
                continue
            assert producer.flush(PATIENCE) == 0  # else they would not come to be aborted
            producer.abort_transaction(PATIENCE)
            if enough.wait(0.5):
                break
        return kept

    @cached_property
    def _transactional(self) -> Producer:
        producer = Producer(
            {
                **self.connection.librdkafka(),
                "partitioner": "murmur2_random",
                "transactional.id": self.prefix,
            }
        )
        producer.init_transactions(PATIENCE)
        return producer

    # -- looking ------------------------------------------------------------------------------------------------------

    def wait(self, until: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        """Poll until true; a worker that died unasked, or the time running out, fails with its log."""
        deadline = time.monotonic() + seconds
        while not until():
            if time.monotonic() > deadline:
                logs = "\n".join(f"{w.log.name}:\n{w.output()[-3000:]}" for w in self.workers[-2:])
                raise AssertionError(f"not within {seconds:g} s: {what}\n{logs}")
            time.sleep(0.1)

    def records(self, topic: str) -> int:
        """How many records a topic holds, from its watermarks."""
        return sum(high - low for low, high in self._offsets.marks(topic).values())

    def committed(self) -> int:
        """Sum of the group's committed offsets: clicks that are acknowledged."""
        return sum(max(0, offset) for offset in self._offsets.committed(self.topics.clicks, PARTITIONS))

    def has_acknowledged_all(self) -> bool:
        """Whether every record of the clicks topic is."""
        return self.committed() == self.records(self.topics.clicks)

    def wait_until_acknowledged(self, seconds: float = PATIENCE) -> None:
        """Until every record of the clicks topic is acknowledged."""
        self.wait(self.has_acknowledged_all, "all clicks acknowledged", seconds)

    def wait_until_more_clicks(self, worker: StreamProcess, count: int) -> None:
        """Until a worker has handled so many clicks from now on."""
        goal = worker.metric("nextclick_clicks_total") + count
        self.wait(lambda: worker.metric("nextclick_clicks_total") >= goal, f"{count} more clicks handled")

    def wait_until_swapped(self, worker: StreamProcess, models: int) -> None:
        """Until a worker has taken so many models into service."""
        self.wait(lambda: worker.metric("nextclick_swaps_total") == models, f"{models} models taken")

    def supervised(self, worker: StreamProcess, until: Callable[[], bool], what: str) -> StreamProcess:
        """Wait, and start the worker anew when it gives up; returns the one that runs then."""

        def is_true() -> bool:
            nonlocal worker
            if (code := worker.process.poll()) is not None:
                assert code in GAVE_UP, f"exit code {code}:\n{worker.output()[-3000:]}"
                worker = self.start_ready()
            return until()

        self.wait(is_true, what)
        return worker

    def judge(self, load: Load, worker: StreamProcess) -> Verdict:
        """End the load and, once all is acknowledged, the worker that is left; nothing may be lost, nothing wrong."""
        sent = load.stop()
        self.wait_until_acknowledged()
        # All may have been answered before it took over what another one had; its rows are compared, too.
        self.wait(lambda: has_all_partitions(worker), "the worker that is left has every partition's rows")
        assert worker.stop() == 0
        verdict = self.verdict(worker)
        verdict.assert_nothing_lost_nothing_wrong()
        assert verdict.clicks == sent
        return verdict

    def verdict(self, holder: StreamProcess | None = None) -> Verdict:
        """Recompute every session one click at a time and compare rankings, changelog, and every worker's RocksDB.

        They have all stopped. What a worker's RocksDB holds must lead to the right rows once it is restored; that of
        `holder`, the worker that had all partitions when it was stopped, must have them already.
        """
        config = self.connection.librdkafka()
        published = Published.of(read_topic(config, self.topics.rankings))
        expected = recompute(read_topic(config, self.topics.clicks), published, self.models, rules=self.rules)
        changelog = list(read_topic(config, self.changelog))
        stored = [] if holder is None else mismatches(expected.rows, stored_rows(holder.data_dir))
        for data_dir in sorted({worker.data_dir for worker in self.workers}):
            wrong = mismatches(expected.rows, restored_rows(data_dir, changelog))
            stored += [f"{data_dir.name}, restored: {line}" for line in wrong]
        return Verdict(
            clicks=expected.clicks,
            rejected=len(expected.rejected),
            duplicates=published.duplicates,
            lost=len(expected.lost),
            wrong_rankings=len(expected.wrong_rankings),
            changelog=mismatches(expected.rows, restored_rows(self.root / "a new worker", changelog)),
            stored=stored,
            versions=sorted({ranking.model_version for ranking in published.last.values()}),
        )


def hash_of(text: str) -> int:
    """A seed that is the same in every process."""
    return random.Random(text).randrange(2**31)
