"""Follows the rankings as a consumer would: scores the models online, and keeps the page up to date."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

import numpy as np
from confluent_kafka import Consumer, Message, TopicPartition

from deploy.demo.online import OnlineScores
from deploy.demo.view import Page
from schemas.bundle.files import open_bundle
from schemas.messages.click import Click
from schemas.messages.ranking import decode_ranking

_RECENT_SECONDS: Final = 10.0
_DRAWN_SECONDS: Final = 0.5
_SHOWN_SESSIONS: Final = 4
_SHOWN_ITEMS: Final = 4


class RankingsReader:
    """Reads the rankings topic from its beginning, on a thread of its own, while its block runs.

    Attributes:
        scores: of the models that served.
        count: rankings so far, each click's once.
    """

    def __init__(
        self, kafka: Mapping[str, object], topic: str, *, registry: Path, page: Page, event: Callable[[str], None]
    ) -> None:
        self._kafka, self._topic, self._registry = kafka, topic, registry
        self._page, self._event = page, event
        self.scores = OnlineScores()
        self.count = 0
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

    def clicked(self, click: Click) -> None:
        """A click that was sent, to be shown beside its session's ranking."""
        self._items.setdefault(click.session_id, deque(maxlen=_SHOWN_ITEMS)).append(click.item_id)

    # -- on the reader's thread ---------------------------------------------------------------------------------------

    def _read(self) -> None:
        consumer = Consumer({**self._kafka, "group.id": "demo-view", "enable.auto.commit": False})
        try:
            partitions = consumer.list_topics(self._topic, timeout=60).topics[self._topic].partitions
            consumer.assign([TopicPartition(self._topic, p, 0) for p in partitions])
            drawn = 0.0
            while not self._stopping.is_set():
                for message in consumer.consume(1000, timeout=0.2):
                    if message.error() is None:
                        self._take(message)
                if time.monotonic() - drawn > _DRAWN_SECONDS:
                    self._draw()
                    drawn = time.monotonic()
        finally:
            consumer.close()

    def _take(self, message: Message) -> None:
        ranking = decode_ranking(message.value() or b"")
        known = set(self.scores.models)
        if not self.scores.add(ranking):
            return
        self.count += 1
        self._recent.append((time.monotonic(), message.timestamp()[1] - ranking.click_timestamp))
        if ranking.model_version not in known:
            self._learn_offline(ranking.model_version)
            verb = "swapped under load: now serving" if known else "serving"
            self._event(f"{verb} {ranking.model_version}")

    def _learn_offline(self, version: str) -> None:
        metrics = open_bundle(self._registry / version).manifest.metrics["model"]
        self._page.offline[version] = (metrics["recall@20"], metrics["mrr@20"])

    def _draw(self) -> None:
        now, page = time.monotonic(), self._page
        while self._recent and now - self._recent[0][0] > _RECENT_SECONDS:
            self._recent.popleft()
        page.rankings = self.count
        page.models = dict(self.scores.models)
        page.clicks_per_second = len(self._recent) / min(_RECENT_SECONDS, max(1e-3, now - self._began))
        if self._recent:
            p50, p99 = np.percentile([ms for _, ms in self._recent], [50, 99])
            page.latency_ms = float(p50), float(p99)
        page.sessions = [
            (tuple(self._items.get(ranking.session_id, (ranking.item_id,))), ranking)
            for ranking in self.scores.latest(_SHOWN_SESSIONS)
        ]
