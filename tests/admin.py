"""What tests ask of Kafka's admin interface, as patient as tests are.

Just after its start a broker may not say who the controller is, and on a busy machine every answer takes its time.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from schemas.kafka import admin
from tests.patience import PATIENCE

ensure_topics = partial(admin.ensure_topics, timeout=PATIENCE)
_LOOK_SECONDS: Final = 0.05


def topic_names(config: Mapping[str, Any]) -> set[str]:
    """Of all topics that there are."""
    return set(AdminClient(dict(config)).list_topics(timeout=PATIENCE).topics)


def create_topics(config: Mapping[str, Any], *topics: NewTopic) -> None:
    """Returns when everybody is told of them, which is later than the answer."""
    client = AdminClient(dict(config))
    _await(client.create_topics(list(topics), operation_timeout=PATIENCE, request_timeout=PATIENCE))
    while not {topic.topic for topic in topics} <= client.list_topics(timeout=PATIENCE).topics.keys():
        time.sleep(_LOOK_SECONDS)


def alter_topic(config: Mapping[str, Any], topic: str, **changes: str) -> None:
    """Change its configuration, names with underscores for dots."""
    entries = [
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in changes.items()
    ]
    client = AdminClient(dict(config))
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    _await(client.incremental_alter_configs([resource], request_timeout=PATIENCE))


def delete_topics(config: Mapping[str, Any], *names: str) -> None:
    """Returns when nobody is told of them any more, which is later than the answer."""
    if not names:
        return
    client = AdminClient(dict(config))
    _await(client.delete_topics(list(names), operation_timeout=PATIENCE, request_timeout=PATIENCE))
    while client.list_topics(timeout=PATIENCE).topics.keys() & set(names):
        time.sleep(_LOOK_SECONDS)


def delete_topics_of(config: Mapping[str, Any], prefix: str) -> None:
    """Delete those whose names begin so."""
    delete_topics(config, *(name for name in topic_names(config) if name.startswith(prefix)))


def delete_records(config: Mapping[str, Any], topic: str, before: Mapping[int, int]) -> None:
    """Delete the beginning of each of these partitions, up to an offset, as retention does."""
    client = AdminClient(dict(config))
    beginnings = [TopicPartition(topic, partition, offset) for partition, offset in before.items()]
    _await(client.delete_records(beginnings, operation_timeout=PATIENCE, request_timeout=PATIENCE))


def _await(answers: Mapping[Any, "Future[Any]"]) -> None:
    """Its client has to live as long."""
    for answer in answers.values():
        answer.result()
