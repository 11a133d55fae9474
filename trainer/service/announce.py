"""The models topic from the trainer's side: which model an alias means now, and making it mean another."""

import logging
import time
from typing import Any, Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from schemas.config.settings import KafkaConnection
from schemas.errors import AnnouncementError
from schemas.messages.announcement import ModelAnnouncement, decode_announcement, encode_announcement
from trainer.errors import AnnounceError, KafkaAwayError
from trainer.service.outage import is_away

log = structlog.get_logger(__name__)

_TIMEOUT_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.2


class ModelsTopic:
    """Reads the announcements of every alias, and writes those of one."""

    def __init__(self, connection: KafkaConnection, topic: str, alias: str, *, delivery_seconds: float) -> None:
        self._connection = connection
        self._topic = topic
        self._delivery_seconds = delivery_seconds
        self.alias = alias

    def current(self) -> ModelAnnouncement | None:
        """The newest usable announcement of our alias, None without one. Raises AnnounceError."""
        return self.announced().get(self.alias)

    def announced(self) -> dict[str, ModelAnnouncement]:
        """The newest usable announcement of each alias. Raises AnnounceError."""
        consumer = Consumer(
            {
                **self._connection.librdkafka(),
                "group.id": "nextclick-trainer",  # librdkafka asks for one; nothing is committed
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 10,  # the end of the topic is the answer, not something to wait at
            },
            logger=logging.getLogger("librdkafka"),
        )
        try:
            return self._newest(consumer)
        except KafkaException as error:
            raise self._unusable(error.args[0]) from error
        finally:
            consumer.close()

    def announce(self, announcement: ModelAnnouncement) -> None:
        """Returns when Kafka has confirmed it. Raises AnnounceError when it has not: it may yet arrive, or never."""
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
            value = encode_announcement(announcement)
            producer.produce(self._topic, value, announcement.alias.encode(), on_delivery=on_delivery)
            # Longer than the producer's own limit: it is the producer that decides.
            producer.flush(self._delivery_seconds + _TIMEOUT_SECONDS)
        except KafkaException as error:
            raise self._unusable(error.args[0]) from error
        if failed or not any(confirmed):
            reason = failed[0].str() if failed else "no answer"
            kind = AnnounceError if failed and not is_away(failed[0]) else KafkaAwayError
            raise kind(
                f"Kafka did not confirm the announcement of {announcement.version} on {self._topic}: {reason}; "
                "see `trainer models` for what is announced, and announce it with `trainer promote`"
            )

    def _newest(self, consumer: Consumer) -> dict[str, ModelAnnouncement]:
        unread = set(self._partitions(consumer))
        consumer.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in unread])
        newest: dict[str, ModelAnnouncement] = {}
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while unread:
            message = consumer.poll(_POLL_SECONDS)
            if message is None:
                if time.monotonic() > deadline:
                    raise KafkaAwayError(f"the topic {self._topic}: cannot be read to its end; is Kafka running?")
            elif (error := message.error()) is None:
                if (usable := self._usable(message.key(), message.value())) is not None:
                    newest[usable.alias] = usable
            elif error.code() == KafkaError._PARTITION_EOF:
                unread.discard(message.partition())
            elif not is_away(error):
                raise self._unusable(error)
        return newest

    def _partitions(self, consumer: Consumer) -> list[int]:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while True:
            found = consumer.list_topics(self._topic, timeout=_TIMEOUT_SECONDS).topics[self._topic]
            if found.error is None and found.partitions:
                return list(found.partitions)
            just_created = found.error is not None and found.error.code() == KafkaError.LEADER_NOT_AVAILABLE
            if not just_created or time.monotonic() > deadline:
                raise self._unusable(found.error)
            time.sleep(_POLL_SECONDS)

    def _usable(self, key: bytes | None, value: bytes | None) -> ModelAnnouncement | None:
        try:
            return decode_announcement(value, key)
        except AnnouncementError as error:
            log.warning("an announcement is not usable, and no worker uses it", key=str(key), error=str(error))
            return None

    def _unusable(self, error: KafkaError | None) -> AnnounceError:
        if error is None or error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return AnnounceError(f"the topic {self._topic} does not exist; create it with `stream-app topics`")
        return (KafkaAwayError if is_away(error) else AnnounceError)(
            f"the topic {self._topic} at {self._connection.bootstrap_servers}: {error.str()}; is Kafka running, and "
            "are the settings in [kafka] right?"
        )
