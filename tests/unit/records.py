"""Kafka records as a consumer hands them out, for readers under test."""

from dataclasses import dataclass
from typing import Any, cast

from confluent_kafka import Message


@dataclass
class _Record:
    at: int
    key_: bytes | None
    value_: bytes | None
    partition_: int
    time_ms: int

    def key(self) -> bytes | None:
        return self.key_

    def value(self) -> bytes | None:
        return self.value_

    def offset(self) -> int:
        return self.at

    def partition(self) -> int:
        return self.partition_

    def timestamp(self) -> tuple[int, int]:
        return 2, self.time_ms  # LogAppendTime


def record(offset: int, key: bytes | None, value: bytes | None, *, partition: int = 0, time_ms: int = 0) -> Message:
    """A record where a Message is wanted."""
    fake: Any = _Record(offset, key, value, partition, time_ms)
    return cast(Message, fake)
