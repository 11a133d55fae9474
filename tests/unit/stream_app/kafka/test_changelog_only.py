"""aiokafka fetches the changelog only, and that while tables are restored."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.subscription_state import Assignment
from aiokafka.errors import KafkaConnectionError
from aiokafka.structs import TopicPartition

from stream_app.kafka import transport

CLICKS, CHANGELOG = TopicPartition("clicks", 0), TopicPartition("changelog", 0)


def resting(send: Callable[..., Awaitable[Any]]) -> tuple[transport._ChunkConsumerThread, SimpleNamespace]:
    """A consumer thread that is none, and the fetcher that it lets rest."""
    fetcher = SimpleNamespace(_proc_fetch_request=send, _get_actions_per_node=lambda _: ([], {}, 0.2, False, []))
    thread = transport._ChunkConsumerThread.__new__(transport._ChunkConsumerThread)
    tables = SimpleNamespace(actives_ready=False)
    thread.app = SimpleNamespace(clicks_topic="clicks", client_rack="zone-b", tables=tables)
    thread._ensure_consumer = lambda: cast(Any, SimpleNamespace(_fetcher=fetcher))
    thread._fetch_the_changelog_only()
    return thread, fetcher


async def test_clicks_are_never_fetched_and_the_changelog_only_while_tables_are_restored() -> None:
    thread, fetcher = resting(lambda *_: asyncio.sleep(0))
    assignment = Assignment([CLICKS, CHANGELOG])

    def paused() -> list[bool]:
        _, _, seconds, *_ = fetcher._get_actions_per_node(assignment)
        assert seconds == (transport._REST_SECONDS if thread.app.tables.actives_ready else 0.2)
        return [assignment.state_value(tp).paused for tp in (CLICKS, CHANGELOG)]

    for _ in range(2):
        assert paused() == [True, False]
        thread.app.tables.actives_ready = True
        assert paused() == [True, True]
        thread.app.tables.actives_ready = False
    assert fetcher._client_rack == "zone-b"


async def test_a_fetch_that_is_cancelled_after_a_broker_did_not_answer_has_brought_nothing() -> None:
    """aiokafka rests then, and lets the cancellation out: the consumer's thread ended, and a stop waited a minute."""
    fetcher = Fetcher.__new__(Fetcher)
    fetcher._client = SimpleNamespace(send=no_answer)
    fetcher._retry_backoff = 3600.0
    began_to_rest = asyncio.Event()
    fetcher._invalidate_preferred_read_replica_for_node = lambda *_: began_to_rest.set()
    _, patched = resting(fetcher._proc_fetch_request)
    waiting = asyncio.create_task(patched._proc_fetch_request(None, 1, ""))
    await began_to_rest.wait()
    waiting.cancel()
    assert await waiting is False


async def no_answer(*_: Any) -> Any:
    raise KafkaConnectionError
