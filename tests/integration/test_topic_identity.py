"""Topics that are deleted and created again on a real Kafka, and what a worker makes of it, running or at its start."""

import asyncio
from pathlib import Path

import pytest

from schemas.kafka.topics import topic_table
from stream_app.errors import StoreError
from stream_app.state.topic_identity import check_identity, topic_ids, watch_identity
from tests.admin import delete_topics, ensure_topics
from tests.conftest import KafkaUnderTest
from tests.integration.workers import Group
from tests.patience import PATIENCE


def test_topics_that_are_created_anew_are_other_topics(
    kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path
) -> None:
    group = Group(kafka.bootstrap_servers, topic_prefix)
    clicks, changelog, tables = group.topics.clicks, group.changelog, tmp_path / "v1" / "tables"

    def started() -> bool:
        """A worker's start; whether its tables of last time are still there."""
        ids = topic_ids(group.connection, [clicks, changelog])
        check_identity(tmp_path, clicks=(clicks, ids[clicks]), changelog=(changelog, ids[changelog]), tables=tables)
        kept = tables.exists()
        tables.mkdir(parents=True, exist_ok=True)
        return kept

    def create_anew(topic: str) -> None:
        delete_topics(group.connection.librdkafka(), topic)
        ensure_topics(group.connection, topic_table(group.topics, group.prefix, session_ttl_ms=group.session_ttl_ms))

    assert not started()
    assert started()
    create_anew(changelog)
    assert not started()
    assert started()
    create_anew(clicks)
    with pytest.raises(StoreError, match=f"the topic {clicks} was created anew.*delete the topic {changelog}"):
        started()
    create_anew(changelog)
    assert not started()
    assert started()


@pytest.mark.parametrize("known", [True, False], ids=["known", "first seen"])
async def test_a_topic_that_is_created_anew_is_noticed_though_the_new_one_has_grown(
    kafka: KafkaUnderTest, topic_prefix: str, *, known: bool
) -> None:
    """A worker read on at its offset: what lay before was never ranked, or offered, without a word."""
    group, told = Group(kafka.bootstrap_servers, topic_prefix), list[BaseException]()
    clicks = group.topics.clicks
    ids = topic_ids(group.connection, [clicks, group.changelog])
    read = {**ids, f"{topic_prefix}-none": None, clicks: ids[clicks] if known else None}
    watching = asyncio.create_task(watch_identity(group.connection, read, on_fatal=told.append, every=0.05))
    await asyncio.sleep(0.5)
    assert not watching.done()
    await asyncio.to_thread(delete_topics, group.connection.librdkafka(), clicks)
    await asyncio.sleep(0.5)
    assert not watching.done()
    specs = topic_table(group.topics, group.prefix, session_ttl_ms=group.session_ttl_ms)
    await asyncio.to_thread(ensure_topics, group.connection, specs)
    await asyncio.wait_for(watching, PATIENCE)
    [error] = told
    assert f"the topic {clicks} was deleted and created again while it was read" in str(error)


async def test_a_topic_that_is_not_there_is_told(kafka: KafkaUnderTest, topic_prefix: str) -> None:
    group = Group(kafka.bootstrap_servers, topic_prefix)
    with pytest.raises(StoreError, match=rf"do not describe the topics {topic_prefix}-none"):
        topic_ids(group.connection, [f"{topic_prefix}-none"])


async def test_a_topic_whose_reader_can_begin_again_ends_nobody(kafka: KafkaUnderTest, topic_prefix: str) -> None:
    group, told = Group(kafka.bootstrap_servers, topic_prefix), list[BaseException]()
    models, begun = group.topics.models, asyncio.Semaphore(0)
    ids = await asyncio.to_thread(topic_ids, group.connection, [models])
    watch = watch_identity(
        group.connection, dict(ids), on_fatal=told.append, begins_anew={models: begun.release}, every=0.05
    )
    watching = asyncio.create_task(watch)
    for _ in range(2):
        await asyncio.to_thread(delete_topics, group.connection.librdkafka(), models)
        specs = topic_table(group.topics, group.prefix, session_ttl_ms=group.session_ttl_ms)
        await asyncio.to_thread(ensure_topics, group.connection, specs)
        await asyncio.wait_for(begun.acquire(), PATIENCE)
    assert not watching.done()
    assert told == []
    watching.cancel()
