"""A broker's fetches keep their distance, by a clock that only sleeping moves."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.errors import KafkaConnectionError

from stream_app.kafka import transport


def paced(send: Callable[..., Awaitable[Any]]) -> tuple[transport._ChunkConsumerThread, SimpleNamespace]:
    """A consumer thread that is none, and the fetcher whose requests it paces."""
    fetcher = SimpleNamespace(_proc_fetch_request=send)
    thread = transport._ChunkConsumerThread.__new__(transport._ChunkConsumerThread)
    thread._ensure_consumer = lambda: cast(Any, SimpleNamespace(_fetcher=fetcher))
    thread._pace_fetches()
    return thread, fetcher


async def test_a_fetch_waits_for_the_pace_since_the_last_one_of_its_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sent = [100.0], []

    async def sleep(seconds: float) -> None:
        clock[0] += seconds

    async def send(_: Any, node_id: int, request: Any) -> Any:
        sent.append((node_id, clock[0]))
        return request

    monkeypatch.setattr(transport, "now", lambda: clock[0])
    monkeypatch.setattr(asyncio, "sleep", sleep)
    thread, fetcher = paced(send)

    thread.pace = 0.5
    assert await fetcher._proc_fetch_request(None, 1, "request") == "request"  # the first at once
    await fetcher._proc_fetch_request(None, 2, "")  # another broker's, too
    await fetcher._proc_fetch_request(None, 1, "")
    clock[0] += 0.25
    await fetcher._proc_fetch_request(None, 1, "")
    thread.pace = 0.0  # a backlog
    await fetcher._proc_fetch_request(None, 1, "")
    assert sent == [(1, 100.0), (2, 100.0), (1, 100.5), (1, 101.0), (1, 101.0)]


async def test_the_first_fetch_does_not_wait_on_a_machine_that_has_just_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its clock begins at zero, and with a pace of an hour the first fetch waited for the clock to reach one."""

    async def send(*_: Any) -> bool:
        return True

    async def sleep(seconds: float) -> None:
        assert seconds == 0.0

    monkeypatch.setattr(transport, "now", lambda: 1.0)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    thread, fetcher = paced(send)
    thread.pace = 3600.0
    assert await fetcher._proc_fetch_request(None, 1, "") is True


async def test_the_broker_does_not_wait_long_for_a_record() -> None:
    """A fetch leaves out some partitions at times, and their clicks wait for its end."""
    _, fetcher = paced(lambda *_: asyncio.sleep(0))
    assert fetcher._fetch_max_wait_ms == transport._LONGEST_WAIT_MS


async def test_a_fetch_that_is_cancelled_while_it_waits_has_brought_nothing() -> None:
    """aiokafka's fetcher waits for what it cancels when it closes, and expects no CancelledError."""

    async def send(*_: Any) -> bool:
        return True

    thread, fetcher = paced(send)
    thread.pace = 3600.0
    assert await fetcher._proc_fetch_request(None, 1, "") is True
    waiting = asyncio.create_task(fetcher._proc_fetch_request(None, 1, ""))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await waiting is False


async def test_a_fetch_that_is_cancelled_after_a_broker_did_not_answer_has_brought_nothing() -> None:
    """aiokafka rests then, and lets the cancellation out: the consumer's thread ended, and a stop waited a minute."""
    fetcher = Fetcher.__new__(Fetcher)
    fetcher._client = SimpleNamespace(send=no_answer)
    fetcher._retry_backoff = 3600.0
    resting = asyncio.Event()
    fetcher._invalidate_preferred_read_replica_for_node = lambda *_: resting.set()
    _, patched = paced(fetcher._proc_fetch_request)
    waiting = asyncio.create_task(patched._proc_fetch_request(None, 1, ""))
    await resting.wait()
    waiting.cancel()
    assert await waiting is False


async def no_answer(*_: Any) -> Any:
    raise KafkaConnectionError
