"""What a group has acknowledged, as Kafka has it."""

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.kafka.watermarks import watermarks
from tests.patience import PATIENCE

_COORDINATOR_AWAY = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)
"""A broker that has just started says so for a moment."""


def instances(config: Mapping[str, Any], group: str) -> set[str]:
    """Names of the group's static members."""
    admin = AdminClient(dict(config))  # in a variable: its futures fail once it is collected
    found = admin.describe_consumer_groups([group], request_timeout=PATIENCE)[group].result()
    return {member.group_instance_id for member in found.members}


class Offsets:
    """What one group has acknowledged and how far topics go, asked by one client, which joins no group.

    It may be asked when all else has stopped: its connections end when nobody holds it any more.

    A client for each question costs broker and test 35 ms of processor time, and tests ask ten times a second.
    """

    def __init__(self, config: Mapping[str, Any], group: str) -> None:
        self._consumer = Consumer({**config, "group.id": group, "reconnect.backoff.max.ms": 500, "log_level": 0})

    def committed(self, topic: str, partitions: int) -> list[int]:
        """The group's committed offset of each partition, below 0 without one."""
        asked = [TopicPartition(topic, partition) for partition in range(partitions)]
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return [found.offset for found in self._consumer.committed(asked, timeout=PATIENCE)]
            except KafkaException as error:
                if error.args[0].code() not in _COORDINATOR_AWAY or time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def marks(self, topic: str) -> dict[int, tuple[int, int]]:
        """First offset and end offset of each partition."""
        return {
            partition: watermarks(self._consumer, TopicPartition(topic, partition), timeout=PATIENCE)
            for partition in sorted(self._consumer.list_topics(topic, timeout=PATIENCE).topics[topic].partitions)
        }
