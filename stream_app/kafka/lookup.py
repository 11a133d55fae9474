"""Looks up single records of the clicks topic, beside what reads all of them."""

import logging
import time
from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.kafka.watermarks import watermarks

_ONE_RECORD: Final = {
    "client.rack": "",  # a near replica learns late what there is
    "auto.offset.reset": "error",
    "fetch.wait.max.ms": 10,
    "max.partition.fetch.bytes": 16_384,
    "queued.min.messages": 1,
}
_NONE_THERE: Final = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)


def first_from(
    consumer_config: Mapping[str, Any], topic: str, partition: int, offset: int, *, seconds: float
) -> Message | None:
    """The first record from an offset on, as the leader has it; None at the end of the partition and behind it.

    From any thread. Each time by a consumer of its own: one that is kept takes a second until it fetches another
    partition. `consumer_config` is that of a consumer without a group, for librdkafka. Raises KafkaException where the
    topic may not be read, or there is no answer for so many seconds.
    """
    consumer = Consumer({**consumer_config, **_ONE_RECORD}, logger=logging.getLogger("librdkafka"))
    try:
        consumer.assign([TopicPartition(topic, partition, offset)])
        return _first(consumer, TopicPartition(topic, partition), seconds)
    finally:
        consumer.close()


def _first(consumer: Consumer, at: TopicPartition, seconds: float) -> Message | None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        message = consumer.poll(left)
        if message is None:
            continue
        if (error := message.error()) is None:
            return message
        if error.code() in _NONE_THERE:
            return None
        # A fetch tells the end as far as the leader knows that others have it, too. One that is new learns late that
        # they have the last record; it answers no question for the end before that.
        if error.code() == KafkaError._PARTITION_EOF and watermarks(consumer, at, timeout=left)[1] <= message.offset():
            return None
        if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise KafkaException(error)
    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer from its leader"))
