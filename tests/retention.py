"""What a topic's retention does, at once."""

from collections.abc import Mapping
from typing import Any

from confluent_kafka import OFFSET_END, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.patience import PATIENCE


def expire(config: Mapping[str, Any], topic: str) -> None:
    """Remove every record that a topic has now. `config`: of a client."""
    admin = AdminClient(dict(config))
    partitions = admin.list_topics(topic, timeout=PATIENCE).topics[topic].partitions
    for removed in admin.delete_records([TopicPartition(topic, number, OFFSET_END) for number in partitions]).values():
        removed.result(PATIENCE)
