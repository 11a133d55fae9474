"""Scorer processes that can be killed, rankings for them, and what they publish."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from deploy.demo.shop import Shop, ShopSettings
from schemas.config.settings import KafkaConnection, TopicSettings
from schemas.kafka.topics import topic_table
from schemas.messages.click import Click
from schemas.messages.ranking import RankedItem, Ranking, RankingReason, decode_ranking, encode_ranking
from schemas.messages.score import Score, decode_score
from schemas.messages.source import Source
from schemas.messages.split import SHADOW
from stream_app.kafka.plain_consumer import partition_of, plain_consumer
from stream_app.settings import StreamSettings
from tests.admin import ensure_topics
from tests.patience import PATIENCE
from tests.recount import Window, counted, recount
from tests.stream_process import StreamProcess

PARTITIONS = 4
WINDOW_MS = 10_000
IDLE_GAP_MS = 1_800_000


@dataclass
class Scorers:
    """The rankings and scores of one deployment, and its scorers."""

    bootstrap: str
    prefix: str
    root: Path
    shadows: bool = False
    """Whether these score shadows: their topic of rankings is another, and their scores lie beside those of others."""
    started: list[StreamProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = StreamSettings(topics=TopicSettings(prefix=f"{self.prefix}-", partitions=PARTITIONS))
        self.topics, self.group = settings.topics, settings.app_id
        self.rankings = self.topics.rankings_shadow if self.shadows else self.topics.rankings
        self.connection = KafkaConnection(bootstrap_servers=self.bootstrap)
        self.create_topics()
        self._producer = Producer(
            {**self.connection.librdkafka(), "partitioner": "murmur2_random", "enable.idempotence": True}
        )

    def create_topics(self) -> None:
        """Those that are not there."""
        table = topic_table(self.topics, self.group, session_ttl_ms=6 * 3_600_000, splits=self.shadows)
        ensure_topics(self.connection, table)

    def environment(self) -> dict[str, str]:
        """What a scorer is told."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NEXTCLICK_", "KAFKA_"))},
            "NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap,
            "NEXTCLICK_TOPICS__PREFIX": self.topics.prefix,
            "NEXTCLICK_TOPICS__PARTITIONS": str(PARTITIONS),
            "NEXTCLICK_SCORES__WINDOW": f"{WINDOW_MS / 1000:g}s",
            "NEXTCLICK_SCORES__INTERVAL": "0.1",
            "NEXTCLICK_SCORES__SESSION_TIMEOUT": "6",
            "NEXTCLICK_SCORES__LOG_FORMAT": "json",
            "NEXTCLICK_WORKER__SPLITS": str(self.shadows),
        }

    def start(self, name: str = "a", **extra: str) -> StreamProcess:
        """Start one whose data folder is named `name`, and wait until it has partitions."""
        log = self.root / f"scorer-{name}-{len(self.started)}.log"
        scorer = StreamProcess.start(
            "score",
            *["--shadows"] * self.shadows,
            log=log,
            data_dir=self.root / f"scores-{name}",
            environment=self.environment() | extra,
        )
        self.started.append(scorer)
        self.wait(scorer.is_ready, f"scorer {name} ready")
        return scorer

    def publish(self, rankings: Iterable[Ranking]) -> None:
        """Put rankings on their topic, as workers do; returns when they are durable."""
        for ranking in rankings:
            self._producer.produce(self.rankings, encode_ranking(ranking), ranking.session_id.encode())
            self._producer.poll(0)
        assert self._producer.flush(PATIENCE) == 0

    def put(self, value: bytes | None, *, partition: int = 0) -> None:
        """Any record on the rankings topic."""
        self._producer.produce(self.rankings, value, b"key", partition)
        assert self._producer.flush(PATIENCE) == 0

    def scores(self) -> list[Score]:
        """The newest of each key."""
        newest = {record.key(): record.value() for record in self._records(self.topics.scores)}
        found = [decode_score(value) for value in newest.values()]
        return [score for score in found if (score.variant or "").startswith(SHADOW) == self.shadows]

    def expected(self) -> dict[Window, dict[str, Any]]:
        """A recount of the rankings topic."""
        rankings = [decode_ranking(record.value() or b"") for record in self._records(self.rankings)]
        return recount(rankings, k=20, window_ms=WINDOW_MS, idle_gap_ms=IDLE_GAP_MS)

    def wait_until_counted(self) -> None:
        """Until the published counts are those of the recount; shows the difference when they never are."""
        expected = self.expected()
        deadline = time.monotonic() + PATIENCE
        while (found := counted(self.scores())) != expected and time.monotonic() < deadline:
            self.check()
            time.sleep(0.2)
        assert found == expected, self.logs()

    def wait(self, until: Callable[[], bool], what: str) -> None:
        """Poll until true."""
        deadline = time.monotonic() + PATIENCE
        while not until():
            self.check()
            assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}\n{self.logs()}"
            time.sleep(0.05)

    def check(self) -> None:
        """Nobody gave up: a killed one has a code below 0, a stopped one 0."""
        for scorer in self.started:
            assert (scorer.process.poll() or 0) <= 0, self.logs()

    def logs(self) -> str:
        return "\n".join(f"{one.log.name}:\n{one.log.read_text()[-3000:]}" for one in self.started[-2:])

    def stop_all(self) -> None:
        for scorer in self.started:
            if scorer.process.poll() is None:
                scorer.process.send_signal(signal.SIGCONT)
                scorer.kill()

    def _records(self, topic: str) -> Iterator[Any]:
        with plain_consumer(self.connection, topic, name="look") as consumer:
            for partition in consumer.partitions:
                yield from consumer.history(partition)


def shop_rankings(sessions: int, *, seed: int = 5, now_ms: int = 1_767_225_600_000) -> list[Ranking]:
    """Rankings of a simulated shop's clicks by two models; one in fifty is published again, with those after it."""
    clicks = list(Shop(ShopSettings(seed=seed, departments=2)).history(sessions, before_ms=now_ms))
    items = sorted({click.item_id for click in clicks})
    rng = random.Random(seed)
    offsets = [0] * PARTITIONS
    rankings: list[Ranking] = []
    for n, click in enumerate(clicks):
        rankings.append(_ranking(click, items, rng, offsets, n > len(clicks) // 3))
        if rng.random() < 0.02:
            rankings += rankings[-rng.randint(1, 20) :]
    return rankings


def _ranking(click: Click, items: list[str], rng: random.Random, offsets: list[int], second: bool) -> Ranking:
    partition = partition_of(click.session_id.encode(), PARTITIONS)
    offsets[partition] += 1
    ranked = rng.sample(items, min(25, len(items)))
    return Ranking(
        session_id=click.session_id,
        event_id=None,
        item_id=click.item_id,
        model_version="v2" if second and rng.random() < 0.7 else "v1",
        items=tuple(RankedItem(item, 1.0) for item in ranked),
        source=Source("clicks", partition, offsets[partition] - 1),
        click_timestamp=click.timestamp,
        produced_at=click.timestamp,
        reason=rng.choice([RankingReason.MODEL, RankingReason.MODEL, RankingReason.UNKNOWN_ITEM]),
        type=rng.choice([None, None, "cart"]),
        market=rng.choice([None, "de"]),
    )
