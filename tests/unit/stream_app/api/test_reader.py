"""The thread that reads what the API tells: where it begins, what it stores, and when it cannot go on."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from structlog.testing import capture_logs

from schemas.kafka.connection import TopicSettings
from stream_app.api import reader as module
from stream_app.api.metrics import ApiMetrics
from stream_app.api.reader import Reader
from stream_app.api.stores import EmbeddedStore
from tests.unit.registry import ReadyFirst

HOUR = 3_600_000
END = 40


class Site:
    """A reader whose Kafka has two partitions of rankings that begin at `begin` and end at 40, and one of models."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, topic_id: str | None = "topic") -> None:
        self.begin, self.times = 0, {0: 0, 1: -1}
        two, one = SimpleNamespace(partitions={0: None, 1: None}), SimpleNamespace(partitions={0: None})
        self.kafka = Mock(**{
            "list_topics.return_value": SimpleNamespace(topics={"rankings": two, "models": one}),
            "get_watermark_offsets.side_effect": lambda at, **_: (30 if at.topic == "models" else self.begin, END),
            "offsets_for_times.side_effect": self._since,
            "consume.return_value": [],
        })  # fmt: skip
        monkeypatch.setattr(module, "Consumer", lambda *_, **__: self.kafka)
        self.store = EmbeddedStore(folder, topic_id, ttl_ms=HOUR, cache_mb=8) if topic_id else None
        self.told, self.others, self.failed = Mock(), Mock(), list[BaseException]()
        self.metrics = ApiMetrics()
        self.reader = Reader(
            {}, TopicSettings(), store=self.store, ttl_ms=HOUR, watchers=self.told, board=self.others.board,
            traffic=self.others.traffic, shelf=self.others.shelf, metrics=self.metrics, on_fatal=self.failed.append,
            codec=ReadyFirst(),
        )  # fmt: skip

    def _since(self, asked: list[TopicPartition], **_: Any) -> list[TopicPartition]:
        hour_ago = time.time_ns() // 1_000_000 - HOUR
        assert all(hour_ago - HOUR < place.offset <= hour_ago for place in asked)
        return [TopicPartition(place.topic, place.partition, self.times[place.partition]) for place in asked]

    def starts(self) -> dict[int, int]:
        return {start.partition: start.offset for start in self.reader._rankings_from()}

    def stored(self, session: bytes) -> bytes | None:
        assert self.store is not None
        return asyncio.run(self.store.ranking(session))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(tmp_path, monkeypatch)
    yield site
    assert site.store is not None
    asyncio.run(site.store.close())


def message(partition: int, offset: int, *, topic: str = "rankings", error: int | None = None) -> Message:
    told = {
        "topic": topic, "partition": partition, "offset": offset, "key": b"s",
        "value": json.dumps({"source": {"partition": partition, "offset": offset}}).encode(),
        "timestamp": (2, time.time_ns() // 1_000_000), "error": None if error is None else KafkaError(error),
    }  # fmt: skip
    return Mock(Message, **{f"{name}.return_value": what for name, what in told.items()})


def gone(partition: int, *, topic: str = "rankings") -> Message:
    return message(partition, -1, topic=topic, error=KafkaError._AUTO_OFFSET_RESET)


def test_a_new_store_begins_with_what_has_not_expired_and_another_where_it_was(site: Site) -> None:
    assert site.store is not None
    assert site.starts() == {0: 0, 1: END}  # in the second, all was written before that time
    site.reader._take([message(0, END - 1), message(1, 11)])
    assert site.starts() == {0: END, 1: 12}
    assert site.stored(b"s") is not None


def test_a_store_that_is_ahead_of_its_topic_is_filled_anew(site: Site) -> None:
    """Offsets of one partition that are not the topic's any more say that no row is."""
    site.reader._take([message(1, 11), message(0, END)])
    with capture_logs():
        assert site.starts() == {0: 0, 1: END}
    assert site.stored(b"s") is None


def test_rows_of_a_topic_that_is_no_more_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for topic_id, stored in (("old", True), ("new", False)):
        site = Site(tmp_path, monkeypatch, topic_id=topic_id)
        site.starts()
        if stored:
            site.reader._take([message(0, 5)])
        assert (site.stored(b"s") is not None) == stored
        assert site.store is not None
        asyncio.run(site.store.close())


def test_where_a_sink_stores_only_what_comes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path, monkeypatch, topic_id=None)
    assert site.starts() == {0: END, 1: END}
    site.reader._take([message(0, END)])
    assert site.told.tell.call_count == 1


def test_what_is_told_is_found_and_what_was_there_is_read_before_lookups_are_answered(site: Site) -> None:
    found: list[bytes | None] = []
    site.told.tell.side_effect = lambda told: found.append(site.stored(told[0][0]))
    last = [message(0, END - 1), message(1, END - 1)]
    waited_for: list[str | None] = []

    def poll(_: float) -> Message | None:
        waited_for.append(site.reader.waiting_for)
        if last:
            return last.pop(0)
        site.reader._stopping.set()
        return message(0, END, topic="models", error=KafkaError._PARTITION_EOF)

    site.kafka.poll.side_effect = poll
    site.reader._run()
    assert [json.loads(value or b"{}")["source"]["partition"] for value in found] == [0, 1]
    assert waited_for[1:] == ["not read to the end yet: models, rankings", "not read to the end yet: models"]
    assert site.reader.waiting_for is None
    assert site.failed == []


def test_every_record_goes_to_whoever_tells_of_it_and_what_is_no_ranking_is_counted(site: Site) -> None:
    for topic in ("models", "scores", "items", "clicks.rejected", "rankings"):
        site.reader._take([message(0, 1, topic=topic)])
    told = [name for name, *_ in site.others.method_calls]
    assert told == ["board.announce", "board.score", "shelf.put", "traffic.reject", "traffic.take"]
    none: Any = message(0, 2)
    none.value.return_value = b"{}"
    site.reader._take([none, message(0, 3)])
    value = site.metrics.registry.get_sample_value
    assert [value(f"nextclick_api_{what}_total") for what in ("rankings", "unreadable")] == [2, 1]


def test_an_error_that_nothing_is_read_after_is_told_of(site: Site) -> None:
    """Or lookups would be answered with what they were for ever."""
    site.kafka.poll.return_value = message(0, -1, error=KafkaError._FATAL)
    site.reader._run()
    [error] = site.failed
    assert isinstance(error, KafkaException)
    site.kafka.close.assert_called_once()


@pytest.mark.parametrize(("begin", "expired"), [(12, 5), (3, 0)])
def test_where_records_are_gone_it_goes_on_with_the_oldest_that_is_left(site: Site, begin: int, expired: int) -> None:
    """Behind what retention removed, or, where brokers lost rankings, before others that have come to their offsets."""
    assert site.store is not None
    site.reader._take([message(0, 6), message(1, 6)])
    site.begin = begin
    with capture_logs():
        site.reader._take([gone(0), gone(1), gone(0, topic="models")])
    assert site.metrics.registry.get_sample_value("nextclick_api_expired_total") == 2 * expired
    assert site.starts() == {0: begin, 1: begin}
    site.reader._show_lag()
    assert site.metrics.registry.get_sample_value("nextclick_api_lag", {"partition": "0"}) == END - begin
