"""Follows rankings and scores as consumers would, and keeps the page up to date."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

import numpy as np
from confluent_kafka import Consumer, Message, TopicPartition

from deploy.demo.view import Page
from schemas.bundle.files import open_bundle
from schemas.messages.announcement import ModelAnnouncement, decode_announcement
from schemas.messages.click import Click
from schemas.messages.ranking import Ranking, decode_ranking
from schemas.messages.score import Score, Totals, decode_score, totals_by_model

_RECENT_SECONDS: Final = 10.0
_RECENT_RANKINGS: Final = 500
_DRAWN_SECONDS: Final = 0.5
_SHOWN_SESSIONS: Final = 4
_SHOWN_ITEMS: Final = 4
_REMEMBERED_SESSIONS: Final = 200_000


class RankingsReader:
    """Reads `rankings`, `scores` and `models` from their beginning, on a thread of its own, while its block runs.

    Attributes:
        models: what the scorer says of the models that served, in the order of their versions.
        announced: what each alias means now.
        count: rankings so far, each click's once.
        recent: the last rankings.
    """

    def __init__(
        self,
        kafka: Mapping[str, object],
        topics: Mapping[str, str],
        *,
        registry: Path,
        page: Page,
        event: Callable[[str], None],
    ) -> None:
        self._kafka, self._topics, self._registry = kafka, topics, registry
        self._page, self._event = page, event
        self.models: dict[str, Totals] = {}
        self.announced: dict[str, ModelAnnouncement] = {}
        self.count = 0
        self.recent: deque[Ranking] = deque(maxlen=_RECENT_RANKINGS)
        self._applied: list[tuple[int, int]] = []  # newest item known, and when the first such ranking was made
        self._scores: dict[bytes | None, Score] = {}
        self._last: OrderedDict[str, Ranking] = OrderedDict()
        self._served: set[str] = set()
        self._recent: deque[tuple[float, int]] = deque()  # (received at, latency in ms)
        self._items: dict[str, deque[str]] = {}  # last clicked items, by session
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rankings")

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._reading: Future[None] = self._pool.submit(self._read)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._pool.shutdown()

    def check(self) -> None:
        """Raise what ended the reading, if anything did."""
        if self._reading.done():
            self._reading.result()

    def finish(self) -> None:
        """Stop reading; raises what went wrong."""
        self._stopping.set()
        self._reading.result()

    @property
    def scored(self) -> int:
        """Rankings that the scorer has counted."""
        return sum(totals.rankings for totals in self.models.values())

    def first_applied(self, offset: int) -> int | None:
        """When the first ranking was made that knew of this record on the topic of items, in ms; None: none yet."""
        return next((made_ms for items, made_ms in list(self._applied) if items >= offset), None)

    def clicked(self, click: Click) -> None:
        """A click that was sent, to be shown beside its session's ranking."""
        self._items.setdefault(click.session_id, deque(maxlen=_SHOWN_ITEMS)).append(click.item_id)

    # -- on the reader's thread ---------------------------------------------------------------------------------------

    def _read(self) -> None:
        consumer = Consumer({**self._kafka, "group.id": "demo-view", "enable.auto.commit": False})
        try:
            known = consumer.list_topics(timeout=60).topics
            read = [self._topics[name] for name in ("rankings", "scores", "models")]
            consumer.assign([TopicPartition(topic, p, 0) for topic in read for p in known[topic].partitions])
            drawn = 0.0
            while not self._stopping.is_set():
                for message in consumer.consume(1000, timeout=0.2):
                    if message.error() is not None:
                        continue
                    if message.topic() == self._topics["scores"]:
                        self._scores[message.key()] = decode_score(message.value())
                    elif message.topic() == self._topics["models"]:
                        announcement = decode_announcement(message.value(), message.key())
                        self.announced[announcement.alias] = announcement
                    else:
                        self._take(message)
                self.models = dict(sorted(totals_by_model(self._scores.values()).items()))
                if time.monotonic() - drawn > _DRAWN_SECONDS:
                    self._draw()
                    drawn = time.monotonic()
        finally:
            consumer.close()

    def _take(self, message: Message) -> None:
        ranking = decode_ranking(message.value() or b"")
        before = self._last.get(ranking.session_id)
        if before is not None and ranking.source.offset <= before.source.offset:
            return  # published again
        self._last[ranking.session_id] = ranking
        self._last.move_to_end(ranking.session_id)
        if len(self._last) > _REMEMBERED_SESSIONS:
            self._last.popitem(last=False)
        self.count += 1
        self.recent.append(ranking)
        if ranking.applied is not None and (not self._applied or ranking.applied.items > self._applied[-1][0]):
            self._applied.append((ranking.applied.items, ranking.produced_at))
        self._recent.append((time.monotonic(), message.timestamp()[1] - ranking.click_timestamp))
        if ranking.model_version not in self._served:
            self._learn_offline(ranking.model_version)
            who = "" if ranking.variant is None else f" for the variant {ranking.variant}"
            verb = "swapped in under load, ranks now" if self._served else "ranks"
            self._served.add(ranking.model_version)
            self._event(f"{ranking.model_version} {verb}{who}")

    def _learn_offline(self, version: str) -> None:
        metrics = open_bundle(self._registry / version).manifest.metrics["model"]
        self._page.offline[version] = (metrics["recall@20"], metrics["mrr@20"])

    def _draw(self) -> None:
        now, page = time.monotonic(), self._page
        while self._recent and now - self._recent[0][0] > _RECENT_SECONDS:
            self._recent.popleft()
        page.rankings = self.count
        page.models = self.models
        page.clicks_per_second = len(self._recent) / min(_RECENT_SECONDS, max(1e-3, now - self._began))
        if self._recent:
            p50, p99 = np.percentile([ms for _, ms in self._recent], [50, 99])
            page.latency_ms = float(p50), float(p99)
        page.sessions = [
            (tuple(self._items.get(ranking.session_id, (ranking.item_id,))), ranking)
            for _, ranking in zip(range(_SHOWN_SESSIONS), reversed(self._last.values()), strict=False)
        ]
