"""Topics that are deleted and created again on a real Kafka, and what a worker's start makes of it."""

from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from schemas.kafka.admin import ensure_topics
from schemas.kafka.topics import topic_table
from stream_app.errors import StoreError
from stream_app.state.topic_identity import check_identity, topic_ids
from tests.conftest import KafkaUnderTest
from tests.integration.workers import Group, until
from tests.patience import PATIENCE


async def test_topics_that_are_created_anew_are_other_topics(
    kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path
) -> None:
    group = Group(kafka.bootstrap_servers, topic_prefix)
    clicks, changelog, tables = group.topics.clicks, group.changelog, tmp_path / "v1" / "tables"
    admin = AdminClient(group.connection.librdkafka())

    def started() -> bool:
        """A worker's start; whether its tables of last time are still there."""
        ids = topic_ids(group.connection, [clicks, changelog])
        check_identity(tmp_path, clicks=(clicks, ids[clicks]), changelog=(changelog, ids[changelog]), tables=tables)
        kept = tables.exists()
        tables.mkdir(parents=True, exist_ok=True)
        return kept

    async def create_anew(topic: str) -> None:
        admin.delete_topics([topic])[topic].result(PATIENCE)
        await until(lambda: topic not in admin.list_topics(timeout=30).topics, f"{topic} is deleted")
        ensure_topics(group.connection, topic_table(group.topics, group.prefix, session_ttl_ms=group.session_ttl_ms))

    assert not started()
    assert started()
    await create_anew(changelog)
    assert not started()
    assert started()
    await create_anew(clicks)
    with pytest.raises(StoreError, match=f"the topic {clicks} was created anew.*delete the topic {changelog}"):
        started()
    await create_anew(changelog)
    assert not started()
    assert started()


async def test_a_topic_that_is_not_there_is_told(kafka: KafkaUnderTest, topic_prefix: str) -> None:
    group = Group(kafka.bootstrap_servers, topic_prefix)
    with pytest.raises(StoreError, match=rf"do not describe the topics {topic_prefix}-none"):
        topic_ids(group.connection, [f"{topic_prefix}-none"])
