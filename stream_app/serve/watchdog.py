"""Ends a worker that has work and makes no progress: a silent worker keeps its partitions and serves nobody."""

import asyncio
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

import structlog

log = structlog.get_logger(__name__)

EXIT_STALLED: Final = 70
_TICK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing that must move.

    Attributes:
        name: for the log.
        progress: changes whenever the thing has moved; None while it has nothing to do.
    """

    name: str
    progress: Callable[[], Hashable | None]


class Stalls:
    """Which probes have not moved for how long. Pure: time is passed in."""

    def __init__(self, probes: list[Probe], timeout: float) -> None:
        self._probes = probes
        self._timeout = timeout
        self._moved: dict[str, tuple[Hashable | None, float]] = {}

    def stalled(self, now: float) -> list[str]:
        """The names of the probes that have had the same progress for longer than the timeout (seconds)."""
        names = []
        for probe in self._probes:
            progress = probe.progress()
            last = self._moved.get(probe.name)
            if progress is None or last is None or last[0] != progress:
                self._moved[probe.name] = progress, now
            elif now - last[1] > self._timeout:
                names.append(probe.name)
        return names


def _exit(code: int) -> None:
    os._exit(code)


class Deadline:
    """Ends the process when it has not ended by itself: a thread, since what hangs may be the event loop."""

    def __init__(self, *, end: Callable[[int], None] = _exit) -> None:
        self._end = end
        self._timers: list[threading.Timer] = []

    def set(self, seconds: float, code: int) -> None:
        """Exit with `code` after so many seconds; the earliest of several deadlines counts."""
        timer = threading.Timer(seconds, self._overdue, (seconds, code))
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def cancel(self) -> None:
        """There is no deadline any more."""
        for timer in self._timers:
            timer.cancel()

    def _overdue(self, seconds: float, code: int) -> None:
        try:
            log.error(
                "the worker did not stop in time and is ended; what was in flight will be redelivered",
                seconds=seconds,
                code=code,
            )
        finally:
            self._end(code)


class Watchdog:
    """A thread beside the event loop, so that a blocked loop is noticed as well."""

    def __init__(self, probes: list[Probe], *, timeout: float, end: Callable[[int], None] = _exit) -> None:
        self._ticks = 0
        self._stalls = Stalls([Probe("event loop", lambda: self._ticks), *probes], timeout)
        self._timeout = timeout
        self._end = end
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._ticker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start watching the running event loop and the probes."""
        self._ticker = asyncio.create_task(self._tick(), name="watchdog tick")
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopping.set()
        if self._ticker is not None:
            self._ticker.cancel()

    async def _tick(self) -> None:
        while True:
            self._ticks += 1
            await asyncio.sleep(_TICK_SECONDS)

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:  # the thread's edge: nobody would watch the worker from here on
            log.critical("the watchdog cannot tell whether the worker moves", error=repr(error), exc_info=True)
            self._end(EXIT_STALLED)

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._stopping.wait(_TICK_SECONDS):
            now = time.monotonic()
            if now - last > 5 * _TICK_SECONDS:
                # This very thread was held up: the whole process was frozen, and nothing could have moved.
                self._stalls = Stalls(self._stalls._probes, self._timeout)
            last = now
            if stalled := self._stalls.stalled(now):
                log.critical(
                    "no progress; the worker exits and its supervisor should start it again",
                    parts=stalled,
                    seconds=self._timeout,
                )
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                self._end(EXIT_STALLED)
                return
