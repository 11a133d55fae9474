"""The sink between Kafka and its store: what is stored of what comes, and what it waits for."""

import json
from collections.abc import Mapping
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
import redis
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from pydantic import SecretStr
from structlog.testing import capture_logs

from schemas.errors import StoppedWaitingError
from stream_app.api import sink as module
from stream_app.api.latest import Latest
from stream_app.api.metrics import SinkMetrics
from stream_app.api.sink import EXIT_FAILED, EXIT_OK, Sink, run_sink
from stream_app.api_settings import ApiSettings
from stream_app.errors import StoreError
from stream_app.settings import StreamSettings
from tests.unit.registry import ReadyFirst


class Rows:
    """The store: positions, the offset of each session's ranking, and what it answers first instead."""

    def __init__(self) -> None:
        self.positions: dict[int, int | None] = {0: 10, 1: 20}
        self.offsets: dict[bytes, int] = {}
        self.errors: list[Exception] = []

    def position(self, partition: int) -> int | None:
        if self.errors:
            raise self.errors.pop(0)
        return self.positions.get(partition)

    def apply(self, partition: int, changes: Mapping[bytes, Latest], before: int | None, after: int) -> bool:
        if self.positions.get(partition) != before:
            return False
        self.positions[partition] = after
        self.offsets |= {session: latest.offset for session, latest in changes.items()}
        return True


class Site:
    """A sink to which both partitions of its topic, which end at 40, were given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kafka, self.rows, self.stopping = Mock(), Rows(), False
        self.kafka.get_watermark_offsets.return_value = (0, 40)
        self.kafka.offsets_for_times.return_value = []
        monkeypatch.setattr(module, "Consumer", lambda *_, **__: self.kafka)
        monkeypatch.setattr(module, "_RETRY_SECONDS", 0.0)
        self.sink = Sink(
            StreamSettings(), SinkMetrics(), "redis://nowhere", member="a", topic_id="t", stopping=lambda: self.stopping
        )
        rows: Any = self.rows
        self.sink._rows, self.sink._codec = rows, ReadyFirst()
        with capture_logs():
            self.sink._assign(self.kafka, partitions(0, 1))

    def counted(self, *names: str) -> list[float | None]:
        value = self.sink._metrics.registry.get_sample_value
        return [value(f"nextclick_sink_{name}_total") for name in names]

    def lag(self) -> list[float | None]:
        self.sink._show_lag()
        value = self.sink._metrics.registry.get_sample_value
        return [value("nextclick_sink_lag", {"partition": number}) for number in "01"]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def partitions(*numbers: int) -> list[TopicPartition]:
    return [TopicPartition("rankings", number) for number in numbers]


def message(partition: int, offset: int, session: bytes | None = b"s", *, error: KafkaError | None = None) -> Message:
    told = {
        "partition": partition, "offset": offset, "key": session, "error": error, "timestamp": (2, 1),
        "value": json.dumps({"source": {"partition": 0, "offset": offset}}).encode(),
    }  # fmt: skip
    return Mock(Message, **{f"{name}.return_value": what for name, what in told.items()})


def test_what_lies_before_the_store_s_position_is_not_stored_again(site: Site) -> None:
    """It was fetched before the partition left and came back; the session may have been forgotten since."""
    site.sink._take([message(0, 8), message(0, 9)])
    assert (site.rows.positions[0], site.rows.offsets) == (10, {})
    site.sink._take([message(0, 9, b"before"), message(0, 10, b"at"), message(0, 11, b"after"), message(0, 12, None)])
    assert (site.rows.positions[0], site.rows.offsets) == (13, {b"at": 10, b"after": 11})
    assert site.counted("rankings", "unreadable", "moved") == [2, 1, 0]


def test_a_partition_that_another_has_now_is_neither_stored_nor_counted(site: Site) -> None:
    assert site.lag() == [30, 20]
    site.sink._leave(site.kafka, partitions(1))
    site.sink._take([message(1, 20), message(0, 10)])
    site.sink._take([message(1, -1, error=KafkaError(KafkaError._AUTO_OFFSET_RESET))])
    assert site.rows.positions == {0: 11, 1: 20}
    assert site.lag() == [29, None]
    site.sink._tell_kafka()
    [told] = [call.kwargs["offsets"] for call in site.kafka.commit.call_args_list]
    assert [(place.partition, place.offset) for place in told] == [(0, 11)]


def test_where_the_store_is_at_another_position_it_goes_on_from_there(site: Site) -> None:
    site.rows.positions[0] = 5
    with capture_logs():
        site.sink._take([message(0, 10)])
    [[place]] = [call.args for call in site.kafka.seek.call_args_list]
    assert (place.partition, place.offset) == (0, 5)
    assert site.counted("rankings", "moved") == [0, 1]
    site.sink._take([message(0, 5)])
    assert site.rows.positions[0] == 6


def test_told_to_stop_while_the_store_is_away_it_has_stored_nothing(site: Site) -> None:
    site.stopping = True
    site.sink._take([message(0, 10)])
    assert site.counted("rankings", "moved") == [0, 0]
    site.kafka.seek.assert_not_called()


def test_a_store_that_does_not_answer_is_waited_for(site: Site) -> None:
    site.rows.errors = [redis.ConnectionError("away"), OSError("away")]
    told: list[str | None] = []
    show = site.sink._show_lag

    def seen() -> None:
        told.append(site.sink.waiting_for)
        show()

    site.sink._show_lag = seen  # type: ignore[method-assign]
    with capture_logs():
        site.sink._assign(site.kafka, partitions(0))
    assert told == ["the store (api.store_url) does not answer: away"] * 2
    assert site.sink.waiting_for is None
    site.rows.errors = [redis.AuthenticationError("wrong password")]
    with pytest.raises(StoreError, match="refuses the login"):
        site.sink._assign(site.kafka, partitions(0))
    site.sink._patience = -1.0
    site.rows.errors = [redis.ConnectionError("away")]
    with pytest.raises(StoreError, match=r"gave up after sink\.store_timeout"):
        site.sink._assign(site.kafka, partitions(0))


def test_a_group_that_is_given_its_partitions_anew_does_not_end_the_sink(site: Site) -> None:
    site.kafka.commit.side_effect = KafkaException(KafkaError(KafkaError.REBALANCE_IN_PROGRESS))
    site.sink._tell_kafka()
    assert site.kafka.commit.call_count == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, EXIT_OK),
        (StoppedWaitingError("the schema registry"), EXIT_OK),
        (KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN)), EXIT_FAILED),
        (StoreError("the store refuses the login"), EXIT_FAILED),
    ],
)
async def test_how_it_ends_and_what_it_says_of_itself(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, code: int
) -> None:
    sink, web, told = Mock(assigned=False, waiting_for="the store"), Mock(return_value=AsyncMock()), list[Any]()
    sink.formats.registry = None

    def run() -> None:
        readiness = web.call_args.kwargs["readiness"]
        told.append(readiness())
        sink.assigned, sink.waiting_for = True, None
        told.append(readiness())
        if error is not None:
            raise error

    sink.run = run
    monkeypatch.setattr(module, "_sink", lambda *_: sink)
    monkeypatch.setattr(module, "Web", web)
    monkeypatch.setattr(module, "check_topics", lambda *_: [])
    settings = StreamSettings(api=ApiSettings(store_url=SecretStr("redis://nowhere")))
    with capture_logs():
        assert await run_sink(settings) == code
    assert told == [
        {"sink": None, "partitions": "none assigned yet", "store": "the store"},
        {"sink": None, "partitions": None, "store": None},
    ]
    assert web.call_args.kwargs["readiness"]()["sink"] == (str(error) if code == EXIT_FAILED else None)
    web.return_value.stop.assert_awaited_once()
