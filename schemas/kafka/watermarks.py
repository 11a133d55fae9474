"""Where partitions begin and end, and what they got at a time: asked of brokers that may be choosing a leader."""

import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

T = TypeVar("T")

LEADER_MOVES: Final = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
)
"""Passing states of a partition: it has just been created, or its broker went or came back."""
_AGAIN_SECONDS: Final = 0.1


def watermarks(consumer: Consumer, at: TopicPartition, *, timeout: float) -> tuple[int, int]:
    """The first offset that a partition has, and the one behind its last record.

    Asks again for `timeout` seconds while the partition has no leader. Raises KafkaException.
    """
    low, high = while_leaders_move(lambda: consumer.get_watermark_offsets(at, timeout=timeout), timeout=timeout)
    return int(low), int(high)


def offsets_for_times(consumer: Consumer, asked: Sequence[TopicPartition], *, timeout: float) -> dict[int, int]:
    """By partition, the first offset whose record was written at or after the time (ms) in `asked`; -1 without one.

    Asks again for `timeout` seconds while a partition has no leader. Raises KafkaException, for a single partition too.
    """

    def ask() -> dict[int, int]:
        found = consumer.offsets_for_times(list(asked), timeout=timeout)
        for place in found:
            if place.error is not None:
                raise KafkaException(place.error)
        return {place.partition: int(place.offset) for place in found}

    return while_leaders_move(ask, timeout=timeout)


def while_leaders_move(ask: Callable[[], T], *, timeout: float) -> T:
    """Ask again for `timeout` seconds while a partition has no leader. Raises KafkaException."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in LEADER_MOVES or time.monotonic() > deadline:
                raise
        time.sleep(_AGAIN_SECONDS)
