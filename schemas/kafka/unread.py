"""What a consumer has yet to read of what its partitions held when it began."""

from collections.abc import Iterable, Mapping
from typing import Self

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from schemas.kafka.watermarks import watermarks


class Unread:
    """The partitions of which something is unread that was there at the start; false once there is none.

    librdkafka tells a partition's end when a fetch finds nothing there (`enable.partition.eof`). Where somebody always
    writes, none does, and whoever waits for that alone waits for ever. It is still needed where the last record lies
    before the end: behind it there are marks of transactions, or what compaction removed.
    """

    def __init__(self, ends: Mapping[tuple[str, int], int]) -> None:
        """By topic and partition, the offset behind the last record."""
        self._ends = dict(ends)

    @classmethod
    def of(cls, consumer: Consumer, partitions: Iterable[TopicPartition], *, timeout: float) -> Self:
        """Ask the brokers, `timeout` seconds for each partition. Raises KafkaException."""
        return cls({
            (at.topic, at.partition): watermarks(consumer, at, timeout=timeout)[1] for at in partitions
        })  # fmt: skip

    def take(self, message: Message) -> None:
        """A record that was read, or the end of a partition."""
        at = message.topic(), message.partition()
        error = message.error()
        if error is None:
            reached = message.offset() + 1 >= self._ends.get(at, 0)
        else:
            reached = error.code() == KafkaError._PARTITION_EOF
        if reached:
            self._ends.pop(at, None)

    def __bool__(self) -> bool:
        return bool(self._ends)

    @property
    def topics(self) -> list[str]:
        """Those with something unread, in order of their names."""
        return sorted({topic for topic, _ in self._ends})
