"""Rankings that retention removed before they were read: told of, and passed over.

By itself librdkafka goes on with the oldest record that is left, without a word.
"""

from typing import Final

import structlog
from confluent_kafka import Consumer, KafkaError, TopicPartition

from schemas.kafka.watermarks import watermarks

log = structlog.get_logger(__name__)

NO_RESET: Final = {"auto.offset.reset": "error"}
"""Configuration of a consumer that is told when the record that it is to read next is gone."""
_GONE: Final = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
_ANSWER_SECONDS: Final = 30.0


def is_gone(error: KafkaError) -> bool:
    """Whether an error says that there is no record at the offset that is to be read next."""
    return error.code() in _GONE


def oldest_left(
    consumer: Consumer, topic: str, partition: int, due: int | None, *, at: int | None = None
) -> tuple[int, int]:
    """Go on with the oldest record that a partition has; returns its offset, and where the partition ends.

    Raises KafkaException.

    `due` is the first offset that was not used yet: what was removed from there on is told of. None tells nothing. `at`
    is the one that was to be read next, where that lies before.
    """
    place = TopicPartition(topic, partition)
    begin, end = watermarks(consumer, place, timeout=_ANSWER_SECONDS)
    if due is not None and due < begin:
        tell_expired(topic, partition, due, begin)
    elif due is not None and (due if at is None else at) > begin:  # it is gone, though retention did not come so far
        tell_lost(topic, partition, due, end)
    # A partition that is fetched no more cannot be sought in.
    consumer.incremental_unassign([place])
    consumer.incremental_assign([TopicPartition(topic, partition, begin)])
    return begin, end


def tell_lost(topic: str, partition: int, due: int, end: int) -> None:
    """Say that a partition, which ends at `end`, is not the one any more that was read up to `due`."""
    log.warning(
        "brokers lost records that they had confirmed: the topic is read again from its beginning",
        topic=topic, partition=partition, next=due, end=end,
    )  # fmt: skip


def tell_expired(topic: str, partition: int, due: int, left: int) -> None:
    """Say that the rankings of a partition from `due` up to `left` were removed before they were read."""
    log.warning(
        "rankings were lost: the topic's retention removed them before they were read; keep this process running, or "
        "raise topics.rankings_retention_ms",
        topic=topic, partition=partition, first=due, last=left - 1, offsets=left - due,
    )  # fmt: skip
