"""What is unread of what was there at the start."""

from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import KafkaError, TopicPartition

from schemas.kafka import unread as module
from schemas.kafka.unread import Unread


@dataclass
class Read:
    """What librdkafka hands out: a record, or, with a code, something else."""

    of: str
    number: int
    at: int
    code: int | None = None

    def topic(self) -> str:
        return self.of

    def partition(self) -> int:
        return self.number

    def offset(self) -> int:
        return self.at

    def error(self) -> Any:
        return None if self.code is None else KafkaError(self.code)


END = KafkaError._PARTITION_EOF


def test_each_partition_counts_until_what_it_held_is_read() -> None:
    unread = Unread({("a", 0): 10, ("a", 1): 3, ("b", 0): 5})
    for one in (Read("a", 0, 8), Read("a", 1, 2), Read("b", 0, 0), Read("unknown", 0, 99)):
        unread.take(one)
    assert unread.topics == ["a", "b"]
    unread.take(Read("a", 0, 9))
    assert unread.topics == ["b"]
    unread.take(Read("b", 0, 7))  # marks of transactions lay before it
    assert not unread


def test_an_end_that_is_told_counts_and_nothing_else_does() -> None:
    unread = Unread({("a", 0): 10})
    unread.take(Read("a", 0, 0, KafkaError._TRANSPORT))
    assert unread
    unread.take(Read("a", 0, 8, END))
    assert not unread


def test_what_is_asked_of_the_brokers_is_the_end_of_each_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "watermarks", lambda _, at, **__: (3, 10 + at.partition))
    consumer: Any = None
    unread = Unread.of(consumer, [TopicPartition("a", 0), TopicPartition("b", 1)], timeout=1.0)
    for one in (Read("a", 0, 9), Read("b", 1, 9)):
        unread.take(one)
    assert unread.topics == ["b"]
