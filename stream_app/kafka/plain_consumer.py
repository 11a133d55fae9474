"""Reads a topic beside the workers: partitions assigned by hand, no group joined, nothing committed."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from aiokafka.partitioner import murmur2
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.config.settings import KafkaConnection
from schemas.kafka.absent import not_listed
from schemas.kafka.unread import Unread
from schemas.kafka.watermarks import offsets_for_times, watermarks
from stream_app.errors import StreamError

_ANSWER_SECONDS = 30.0  # a broker ends a killed producer's transaction after 10 to 20 s
_POLL_SECONDS = 0.2
_END_MS = 10
"""Partitions are read one after the other: with 500, librdkafka's own, each took 1.0 to 1.5 s, however empty."""


class ReadError(StreamError):
    """A topic could not be read."""


def partition_of(key: bytes, partitions: int) -> int:
    """Where Java's producers, and ours, put the records of a key; from 0."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


class PlainConsumer:
    """One topic of a cluster, opened by `plain_consumer`."""

    def __init__(self, consumer: Consumer, topic: str, servers: str) -> None:
        self._consumer = consumer
        self.topic = topic
        self._servers = servers
        self.partitions = self._ask_partitions()

    def _ask_partitions(self) -> list[int]:
        try:
            # All topics: asking for one by name may create it.
            found = self._consumer.list_topics(timeout=_ANSWER_SECONDS).topics.get(self.topic)
        except KafkaException as error:
            raise ReadError(
                f"Kafka at {self._servers} does not answer: {error.args[0].str()}; is it running, and are the settings "
                "in [kafka] right?"
            ) from error
        if found is None or not found.partitions:
            raise ReadError(not_listed(self.topic, self._servers))
        return sorted(found.partitions)

    def ends(self, partitions: Sequence[int]) -> dict[int, int]:
        """The offset that the next record of each partition will have."""
        ends = {}
        for partition in partitions:
            try:
                at = TopicPartition(self.topic, partition)
                _, ends[partition] = watermarks(self._consumer, at, timeout=_ANSWER_SECONDS)
            except KafkaException as error:
                raise ReadError(
                    f"the end of {self.topic} partition {partition} is not known: {error.args[0].str()}"
                ) from error
        return ends

    def follow(
        self, starts: dict[int, int], *, go_on: Callable[[], bool], warn: Callable[[str], None]
    ) -> Iterator[Message]:
        """Records from these offsets on, as they come, for as long as `go_on` says so."""
        self._consumer.assign([TopicPartition(self.topic, *start) for start in starts.items()])
        while go_on():
            message = self._consumer.poll(_POLL_SECONDS)
            if message is None:
                continue
            if (error := message.error()) is None:
                yield message
            elif error.code() != KafkaError._PARTITION_EOF:
                warn(f"{self.topic}: {error.str()}")

    def first_at(self, partition: int, offset: int) -> Message | None:
        """The first record at or behind an offset, None at the end. Raises ReadError."""
        return next(self._records(partition, offset, until=0), None)

    def offset_at(self, partition: int, timestamp: int) -> int:
        """Of the first record that a partition got at or after a time (ms); -1 without one. Raises ReadError."""
        asked = TopicPartition(self.topic, partition, max(0, timestamp))
        try:
            return offsets_for_times(self._consumer, [asked], timeout=_ANSWER_SECONDS)[partition]
        except KafkaException as error:
            raise ReadError(
                f"{self.topic} partition {partition} cannot be searched by time: {error.args[0].str()}"
            ) from error

    def history(self, partition: int, *, start: int = OFFSET_BEGINNING, until: int = 0) -> Iterator[Message]:
        """Every record that a partition holds now, from `start` on. Raises ReadError when the broker falls silent.

        Where somebody writes meanwhile, one that has come since may be the last.

        `until` is an offset that must be reached: an open transaction lies before it, perhaps, and is waited for.
        """
        return self._records(partition, start, until)

    def _records(self, partition: int, start: int, until: int) -> Iterator[Message]:
        unread = Unread({(self.topic, partition): self.ends([partition])[partition]})
        self._consumer.assign([TopicPartition(self.topic, partition, start)])
        while True:
            message = self._consumer.poll(_ANSWER_SECONDS)
            if message is None:
                raise ReadError(
                    f"{self.topic} partition {partition} cannot be read to its end: Kafka at {self._servers} was "
                    f"silent for {_ANSWER_SECONDS:g} s"
                )
            if (error := message.error()) is None:
                position = message.offset() + 1
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                position = message.offset()
            elif not error.retriable() and error.code() != KafkaError._ALL_BROKERS_DOWN:
                raise ReadError(f"{self.topic} partition {partition} cannot be read: {error.str()}")
            else:
                continue
            unread.take(message)
            if not unread and position >= until:
                return


@contextmanager
def plain_consumer(
    connection: KafkaConnection, topic: str, *, name: str, wait_ms: int = _END_MS
) -> Iterator[PlainConsumer]:
    """Open a topic to read. `name` is told to the brokers. Raises ReadError when there is no such topic.

    `wait_ms` is how long a broker waits for records before it says that there are none: longer for whoever follows.
    """
    config = {**connection.plain_consumer(name, to_the_end=True), "fetch.wait.max.ms": wait_ms}
    try:
        consumer = Consumer(config, logger=logging.getLogger("librdkafka"))
    except KafkaException as error:
        raise ReadError(f"the settings in [kafka] are not usable: {error.args[0].str()}") from error
    try:
        yield PlainConsumer(consumer, topic, connection.bootstrap_servers)
    finally:
        consumer.close()
