"""A compacted topic from the trainer's side: every record that it holds, and writing another one."""

import logging
import time
from collections.abc import Iterator
from typing import Any, Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from schemas.config.settings import KafkaConnection
from schemas.kafka.absent import why_absent
from schemas.kafka.unread import Unread
from trainer.errors import AnnounceError, KafkaAwayError, NoTopicError
from trainer.service.outage import is_away

_TIMEOUT_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.2

Record = tuple[bytes | None, bytes | None]
"""Key and value."""


class CompactedTopic:
    """Read whole each time. Everything raises AnnounceError when the topic cannot be used."""

    def __init__(self, connection: KafkaConnection, topic: str, *, group: str, delivery_seconds: float) -> None:
        self._connection = connection
        self._group = group
        self.name = topic
        self._delivery_seconds = delivery_seconds

    def records(self) -> list[Record]:
        """To the end of the topic, each partition in order."""
        consumer = Consumer(
            {
                **self._connection.plain_consumer(self._group, to_the_end=True),
                "fetch.wait.max.ms": 10,  # the end of the topic is the answer, not something to wait at
            },
            logger=logging.getLogger("librdkafka"),
        )
        try:
            return list(self._read(consumer))
        except KafkaException as error:
            raise self._unusable(error.args[0]) from error
        finally:
            consumer.close()

    def write(self, key: bytes, value: bytes | None, *, what: str) -> None:
        """Returns when Kafka has confirmed it. AnnounceError when it has not: it may yet arrive, or never."""
        failed: list[KafkaError] = []
        confirmed: list[bool] = []

        def on_delivery(error: KafkaError | None, _message: Any) -> None:
            failed.extend([error] if error else [])
            confirmed.append(error is None)

        producer = Producer(
            {
                **self._connection.librdkafka(),
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "message.timeout.ms": int(self._delivery_seconds * 1000),
            },
            logger=logging.getLogger("librdkafka"),
        )
        try:
            producer.produce(self.name, value, key, on_delivery=on_delivery)
            # Longer than the producer's own limit: it is the producer that decides.
            producer.flush(self._delivery_seconds + _TIMEOUT_SECONDS)
        except KafkaException as error:
            raise self._unusable(error.args[0]) from error
        if failed or not any(confirmed):
            reason = failed[0].str() if failed else "no answer"
            kind = AnnounceError if failed and not is_away(failed[0]) else KafkaAwayError
            raise kind(
                f"Kafka did not confirm {what} on {self.name}: {reason}; see `trainer models` for what counts now"
            )

    def _read(self, consumer: Consumer) -> Iterator[Record]:
        starts = [TopicPartition(self.name, number, OFFSET_BEGINNING) for number in self._partitions(consumer)]
        unread = Unread.of(consumer, starts, timeout=_TIMEOUT_SECONDS)
        consumer.assign(starts)
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while unread:
            message = consumer.poll(_POLL_SECONDS)
            if message is None:
                if time.monotonic() > deadline:
                    raise KafkaAwayError(f"the topic {self.name}: cannot be read to its end; is Kafka running?")
                continue
            unread.take(message)
            if (error := message.error()) is None:
                yield message.key(), message.value()
            elif error.code() != KafkaError._PARTITION_EOF and not is_away(error):
                raise self._unusable(error)

    def _partitions(self, consumer: Consumer) -> list[int]:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while True:
            found = consumer.list_topics(self.name, timeout=_TIMEOUT_SECONDS).topics[self.name]
            if found.error is None and found.partitions:
                return list(found.partitions)
            just_created = found.error is not None and found.error.code() == KafkaError.LEADER_NOT_AVAILABLE
            if not just_created or time.monotonic() > deadline:
                raise self._unusable(found.error)
            time.sleep(_POLL_SECONDS)

    def _unusable(self, error: KafkaError | None) -> AnnounceError:
        if error is None or error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            return NoTopicError(why_absent(self.name, error))
        return (KafkaAwayError if is_away(error) else AnnounceError)(
            f"the topic {self.name} at {self._connection.bootstrap_servers}: {error.str()}; is Kafka running, and "
            "are the settings in [kafka] right?"
        )
