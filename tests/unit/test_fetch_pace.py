"""A broker's fetches keep their distance, by a clock that only sleeping moves."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stream_app import transport


async def test_a_fetch_waits_for_the_pace_since_the_last_one_of_its_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sent = [100.0], []

    async def sleep(seconds: float) -> None:
        clock[0] += seconds

    async def send(_: Any, node_id: int, request: Any) -> Any:
        sent.append((node_id, clock[0]))
        return request

    monkeypatch.setattr(transport, "now", lambda: clock[0])
    monkeypatch.setattr(asyncio, "sleep", sleep)
    fetcher = SimpleNamespace(_proc_fetch_request=send)
    thread = transport._ChunkConsumerThread.__new__(transport._ChunkConsumerThread)
    thread._ensure_consumer = lambda: cast(Any, SimpleNamespace(_fetcher=fetcher))
    thread._pace_fetches()

    thread.pace = 0.5
    assert await fetcher._proc_fetch_request(None, 1, "request") == "request"  # the first at once
    await fetcher._proc_fetch_request(None, 2, "")  # another broker's, too
    await fetcher._proc_fetch_request(None, 1, "")
    clock[0] += 0.25
    await fetcher._proc_fetch_request(None, 1, "")
    thread.pace = 0.0  # a backlog
    await fetcher._proc_fetch_request(None, 1, "")
    assert sent == [(1, 100.0), (2, 100.0), (1, 100.5), (1, 101.0), (1, 101.0)]
