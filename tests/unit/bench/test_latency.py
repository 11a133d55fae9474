"""What becomes of a latency run when a part of it fails: it ends, and tells the cause."""

import math
import threading
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, Producer

from bench.errors import BenchmarkError
from bench.latency import Arrivals, Background, _produce
from schemas.messages.click import Click
from tests.patience import PATIENCE


@dataclass
class Polled:
    """A record of the rankings, or the error in its place."""

    body: bytes = b""
    problem: KafkaError | None = None

    def error(self) -> KafkaError | None:
        return self.problem

    def value(self) -> bytes:
        return self.body


@dataclass
class FakeConsumer:
    """Hands out what the test gives it, then nothing."""

    records: list[Polled]
    empty: threading.Event = field(default_factory=threading.Event)
    closed: bool = False

    def poll(self, seconds: float) -> Polled | None:
        if self.records:
            return self.records.pop(0)
        self.empty.set()
        return None

    def close(self) -> None:
        self.closed = True


def arrivals(consumer: FakeConsumer, clicks: int = 2) -> Arrivals:
    fake: Any = consumer
    return Arrivals(cast(Consumer, fake), clicks)


def ranking(event_id: str, version: str) -> Polled:
    return Polled(f'{{"event_id": "{event_id}", "model_version": "{version}", "items": []}}'.encode())


def test_the_first_ranking_of_a_click_counts() -> None:
    consumer = FakeConsumer([ranking("1", "old"), ranking("1", "new")])

    with arrivals(consumer) as seen:
        assert consumer.empty.wait(PATIENCE)

    seen.check()
    assert (seen.seen, seen.by.tolist(), math.isnan(seen.at[0]), math.isnan(seen.at[1])) == (
        1,
        ["", "old"],
        True,
        False,
    )
    assert consumer.closed


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        (Polled(problem=KafkaError(KafkaError._TIMED_OUT)), "_TIMED_OUT"),
        (Polled(b"{"), "DecodeError"),
        (ranking("7", "an event that nobody sent"), "IndexError"),
    ],
    ids=["an error of Kafka's", "no JSON", "an unknown click"],
)
def test_a_ranking_that_cannot_be_read_is_told_to_the_main_thread(record: Polled, cause: str) -> None:
    consumer = FakeConsumer([record])

    with arrivals(consumer) as seen:
        seen.join(PATIENCE)
        assert not seen.is_alive()

    with pytest.raises(BenchmarkError, match=f"reading rankings: .*{cause}"):
        seen.check()
    assert consumer.closed


def test_an_error_of_the_main_thread_ends_the_threads() -> None:
    announced: list[str] = []

    def later(stopping: threading.Event) -> None:
        if not stopping.wait(PATIENCE):
            announced.append("the second model")

    consumer = FakeConsumer([])
    with pytest.raises(MemoryError), arrivals(consumer) as seen, Background(later, "swap") as swap:
        raise MemoryError

    assert not seen.is_alive()
    assert not swap.is_alive()
    assert seen.daemon
    assert consumer.closed
    assert announced == []


@dataclass
class FullProducer:
    """Has no room for the first `full` attempts."""

    full: int
    polls: int = 0
    taken: list[str] = field(default_factory=list)

    def produce(self, topic: str, value: bytes, key: bytes) -> None:
        if self.polls < self.full:
            raise BufferError
        self.taken.append(key.decode())

    def poll(self, seconds: float) -> None:
        self.polls += 1


def test_a_full_queue_is_waited_for() -> None:
    producer = FullProducer(full=2)
    fake: Any = producer

    _produce(cast(Producer, fake), "clicks", Click("s", "i", 1))

    assert (producer.polls, producer.taken) == (2, ["s"])
