"""What a group has acknowledged, as Kafka has it."""

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

_COORDINATOR_AWAY = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)
"""A broker that has just started says so for a moment."""
_SECONDS = 60.0


def instances(config: Mapping[str, Any], group: str) -> set[str]:
    """Names of the group's static members."""
    admin = AdminClient(dict(config))  # in a variable: its futures fail once it is collected
    found = admin.describe_consumer_groups([group], request_timeout=_SECONDS)[group].result(_SECONDS)
    return {member.group_instance_id for member in found.members}


def committed(config: Mapping[str, Any], group: str, topic: str, partitions: int) -> list[int]:
    """The group's committed offset of each partition, below 0 without one."""
    asked = [TopicPartition(topic, partition) for partition in range(partitions)]
    deadline = time.monotonic() + _SECONDS
    while True:
        consumer = Consumer({**config, "group.id": group})
        try:
            return [found.offset for found in consumer.committed(asked, timeout=_SECONDS)]
        except KafkaException as error:
            if error.args[0].code() not in _COORDINATOR_AWAY or time.monotonic() > deadline:
                raise
        finally:
            consumer.close()
        time.sleep(0.2)
