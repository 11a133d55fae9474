"""When another worker may have this one's partitions, by what the broker answered and a clock in the test's hands."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stream_app.kafka import transport

SESSION_TIMEOUT, REBALANCE_TIMEOUT = 6.0, 60.0


class Member:
    """A consumer and its thread, of which only heartbeats are real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.answer, self.rejoin = 1000.0, True, False
        monkeypatch.setattr(transport, "now", lambda: self.clock)
        rejoin_needed = SimpleNamespace(done=lambda: self.rejoin)
        self.coordinator = SimpleNamespace(_do_heartbeat=self._answer, _rejoin_needed_fut=rejoin_needed)
        thread = transport._ChunkConsumerThread.__new__(transport._ChunkConsumerThread)
        thread._ensure_consumer = lambda: cast(Any, SimpleNamespace(_coordinator=self.coordinator))
        thread._observe_heartbeats()
        self.consumer = transport.ChunkConsumer.__new__(transport.ChunkConsumer)
        self.consumer._expelled_seconds = SESSION_TIMEOUT, REBALANCE_TIMEOUT
        self.consumer._thread = thread

    async def _answer(self) -> bool:
        return self.answer

    async def beat(self, *, after: float) -> bool:
        """A heartbeat, and whether the worker may be expelled by then."""
        self.clock += after
        await self.coordinator._do_heartbeat()
        return self.consumer.may_be_expelled()


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> Member:
    return Member(monkeypatch)


async def test_a_session_timeout_after_the_last_confirmed_heartbeat(member: Member) -> None:
    assert await member.beat(after=0) is False
    member.answer = False
    assert await member.beat(after=SESSION_TIMEOUT - 0.1) is False
    assert await member.beat(after=0.1) is True
    member.answer = True
    assert await member.beat(after=1) is False


async def test_a_confirmation_counts_from_when_it_was_asked_for(member: Member) -> None:
    """The host may be frozen between the answer and our reading it."""

    async def slow() -> bool:
        member.clock += SESSION_TIMEOUT
        return True

    member.coordinator._do_heartbeat = slow
    member.consumer._thread._observe_heartbeats()
    assert await member.beat(after=0) is True


async def test_a_rebalance_expels_whoever_does_not_join_however_fresh_its_heartbeats_are(member: Member) -> None:
    """The broker answers that a rebalance is in progress, which aiokafka counts as a confirmation."""
    assert await member.beat(after=0) is False
    member.rejoin = True
    for _ in range(59):
        assert await member.beat(after=1) is False
    assert await member.beat(after=1) is True
    member.rejoin = False  # it has joined
    assert await member.beat(after=1) is False


async def test_a_worker_that_never_got_into_its_group_is_silent_since_it_asked(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog takes this silence for an outage; a worker that has not got as far as to ask has stalled."""

    async def asked(*_: Any) -> None: ...

    monkeypatch.setattr("faust.transport.drivers.aiokafka.AIOKafkaConsumerThread.subscribe", asked)
    consumer, thread = member.consumer, member.consumer._thread
    assert consumer.seconds_since_heartbeat() == math.inf
    await thread.subscribe(["clicks"])
    member.clock += 20
    assert consumer.seconds_since_heartbeat() == 20
    assert consumer.may_be_expelled()
    assert await member.beat(after=0) is False
    member.clock += 5
    await thread.subscribe(["clicks", "more"])
    assert consumer.seconds_since_heartbeat() == 5
