"""What a member of a group fetched together: records by partition, and what came in place of records."""

from collections import defaultdict
from collections.abc import Sequence

import structlog
from confluent_kafka import KafkaError, Message

from stream_app.errors import DeliveryError
from stream_app.kafka.expired import is_gone

log = structlog.get_logger(__name__)


def is_fatal(error: KafkaError) -> bool:
    """Whether a client that reads this in place of a record reads nothing any more; `fatal()` is false of it."""
    return bool(error.code() == KafkaError._FATAL or error.fatal())


def by_partition(messages: Sequence[Message], topic: str) -> tuple[dict[int, list[Message]], list[int]]:
    """Records by partition, and the partitions whose next record is gone.

    Raises DeliveryError where nothing more can be read, as when another process has this one's place in the group.
    """
    records: dict[int, list[Message]] = defaultdict(list)
    gone: list[int] = []
    for message in messages:
        if (error := message.error()) is None:
            records[message.partition()].append(message)
        elif is_fatal(error):
            raise DeliveryError(f"{topic} cannot be read any more: {error.str()}; the next start goes on from here")
        elif is_gone(error):
            gone.append(message.partition())
        elif error.code() != KafkaError._PARTITION_EOF:
            log.warning("reading rankings", error=error.str())
    return records, gone
