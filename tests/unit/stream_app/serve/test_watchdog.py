"""What counts as a stall, and that a stalled worker ends."""

import asyncio
import math
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.formats.codec import PLAIN
from stream_app.serve.watchdog import EXIT_STALLED, Deadline, Probe, Stalls, Watchdog
from stream_app.serve.worker import Worker
from stream_app.settings import StreamSettings
from tests.patience import PATIENCE


class Part:
    """Something with work to do: `done` rises while it moves, and is None while it has nothing to do."""

    def __init__(self, name: str) -> None:
        self.done: int | None = 0
        self.probe = Probe(name, lambda: self.done)


def test_a_part_that_stands_still_longer_than_the_timeout_is_stalled() -> None:
    part = Part("chunks")
    stalls = Stalls([part.probe], timeout=10)
    assert [stalls.stalled(now) for now in (0, 5, 10)] == [[], [], []]
    assert stalls.stalled(10.1) == ["chunks"]
    assert stalls.stalled(11) == ["chunks"]


def test_a_part_that_moves_is_not_stalled() -> None:
    part = Part("chunks")
    stalls = Stalls([part.probe], timeout=10)
    for now in range(0, 100, 9):
        part.done = now
        assert stalls.stalled(now) == []


def test_a_part_without_work_is_not_stalled_and_starts_anew_when_there_is_some() -> None:
    part = Part("chunks")
    stalls = Stalls([part.probe], timeout=10)
    stalls.stalled(0)
    part.done = None
    assert stalls.stalled(50) == []
    assert stalls.stalled(100) == []
    part.done = 0
    assert stalls.stalled(105) == []
    assert stalls.stalled(115) == []
    assert stalls.stalled(115.1) == ["chunks"]


def test_each_part_has_its_own_clock() -> None:
    moving, standing = Part("moving"), Part("standing")
    stalls = Stalls([moving.probe, standing.probe], timeout=10)
    stalls.stalled(0)
    moving.done = 1
    assert stalls.stalled(8) == []
    assert stalls.stalled(11) == ["standing"]
    assert stalls.stalled(19) == ["moving", "standing"]


class Ended:
    """Takes the place of the end of the process."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.event = threading.Event()

    def __call__(self, code: int) -> None:
        self.code = code
        self.event.set()


async def test_a_stalled_part_ends_the_worker(capfd: pytest.CaptureFixture[str]) -> None:
    ended = Ended()
    watchdog = Watchdog([Probe("chunks", lambda: "stuck")], timeout=0.5, end=ended)
    watchdog.start()
    # The event loop stands still as well, which the watchdog's own thread must survive.
    assert ended.event.wait(PATIENCE)
    watchdog.stop()
    assert ended.code == EXIT_STALLED
    assert "test_a_stalled_part_ends_the_worker" in capfd.readouterr().err  # where every thread stands


async def test_a_blocked_event_loop_ends_the_worker() -> None:
    ended = Ended()
    watchdog = Watchdog([], timeout=0.5, end=ended)
    watchdog.start()
    assert ended.event.wait(PATIENCE)  # blocks the loop
    watchdog.stop()
    assert ended.code == EXIT_STALLED


def test_a_probe_that_fails_ends_the_worker() -> None:
    """A watchdog that died of its own would be a worker that nobody watches."""

    def broken() -> int:
        raise RuntimeError("the part is gone")

    ended = Ended()
    watchdog = Watchdog([Probe("broken", broken)], timeout=60, end=ended)
    watchdog._thread.start()
    assert ended.event.wait(PATIENCE)
    watchdog.stop()
    assert ended.code == EXIT_STALLED


@pytest.mark.parametrize(("ticks", "end"), [([1.0] * 40, 12.0), ([1.0] * 8 + [500.0] + [1.0] * 40, 519.0)])
def test_a_process_that_was_frozen_has_its_time_to_move_again(
    monkeypatch: pytest.MonkeyPatch, ticks: list[float], end: float
) -> None:
    """Nothing could have moved meanwhile; one that only stands still has not been frozen."""
    now, ended = [0.0], list[tuple[int, float]]()
    watchdog = Watchdog([Probe("chunks", lambda: "stuck")], timeout=10.0, end=lambda code: ended.append((code, now[0])))

    def wait(_: float) -> bool:
        now[0] += ticks.pop(0)
        return False

    monkeypatch.setattr(watchdog._stopping, "wait", wait)
    monkeypatch.setattr("stream_app.serve.watchdog.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("stream_app.serve.watchdog.faulthandler.dump_traceback", lambda **_: None)
    watchdog._watch()
    assert ended == [(EXIT_STALLED, end)]


def test_a_watchdog_that_was_stopped_ends_nothing() -> None:
    ended = Ended()
    seen = threading.Event()

    def watched() -> float:
        seen.set()
        return time.monotonic()

    watchdog = Watchdog([Probe("chunks", watched)], timeout=60, end=ended)
    watchdog._thread.start()
    assert seen.wait(PATIENCE)
    watchdog.stop()
    watchdog._thread.join(PATIENCE)
    assert not watchdog._thread.is_alive()
    assert ended.code is None


def test_a_deadline_ends_a_process_whose_loop_hangs_and_a_cancelled_one_does_not() -> None:
    ended, kept = Ended(), Ended()
    deadline, cancelled = Deadline(end=ended), Deadline(end=kept)
    cancelled.set(0.01, 1)
    cancelled.cancel()
    deadline.set(3600.0, 7)
    deadline.set(0.01, 1)
    assert ended.event.wait(PATIENCE)  # and nothing but its own thread runs
    deadline.cancel()
    for timer in cancelled._timers:
        timer.join(PATIENCE)
    assert ended.code == 1
    assert kept.code is None


@pytest.mark.parametrize(
    ("unconfirmed", "looks_up", "silent", "waits"),
    [
        (0, 0, 3.0, False),
        (1, 0, 3.0, True),
        (0, 1, 3.0, True),  # the leader of one partition is away, the group's coordinator is not
        (0, 0, 20.0, True),
        (0, 0, 301.0, False),
        (0, 0, math.inf, False),
    ],
)
@pytest.mark.parametrize("recovered", [True, False])
def test_a_worker_that_waits_for_kafka_has_not_stalled_until_an_outage_is_too_long(
    *, unconfirmed: int, looks_up: int, silent: float, waits: bool, recovered: bool
) -> None:
    """Nor while it restores its tables, of which the brokers give no more then."""
    worker: Any = object.__new__(Worker)
    worker._settings, worker._formats, worker._stop = StreamSettings(), PLAIN, asyncio.Event()
    worker._delivery = SimpleNamespace(unconfirmed=unconfirmed)
    worker._app = SimpleNamespace(
        tables=SimpleNamespace(actives_ready=recovered),
        sessions=SimpleNamespace(restored=5),
        rebalancing_count=1,
        pipeline=SimpleNamespace(in_flight=SimpleNamespace(chunks=2, finished=7)),
        consumer=SimpleNamespace(seconds_since_heartbeat=lambda: silent, reader=SimpleNamespace(looks_up=looks_up)),
    )
    assert worker._chunk_progress() == (None if waits else 7)
    assert worker._recovery_progress() == (None if waits or recovered else (5, 1))
