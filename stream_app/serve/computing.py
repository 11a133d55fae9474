"""Runs the pipeline's calls one after the other: short ones where they are asked for, long ones on a thread."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

R = TypeVar("R")

# The event loop waits for a short call, and with it fetches, rebalances and the web server.
_SHORT_SECONDS: Final = 0.01
_FEW: Final = 128
# What a call takes before the first click or row, in clicks: half a ms where one takes 30 µs, 9 ms where it takes 0.6.
_BASE: Final = 16
_LEARNING: Final = 1 / 8


class Computing:
    """One call at a time, in the order in which they were asked for.

    To hand a call to another thread and back costs both of them the interpreter, and a core that wakes: with two clicks
    together it was a tenth of the worker's processor time, and most of a millisecond of a click's wait. Only calls that
    may take long go there, as far as can be told from the last ones of their kind.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pipeline")
        self._last: Future[Any] | None = None  # on the thread, which ends them in order
        self._seconds_each: dict[str, float] = {}  # by kind
        self._stopped = False

    def run(self, kind: str, size: int, call: Callable[[], R], *, may_wait: bool) -> "asyncio.Future[R]":
        """Call in turn; the future has what it returns, or raises. To cancel it does not cancel the call.

        Args:
            kind: calls of one kind take about as long for each of `size`.
            size: clicks or rows.
            may_wait: whether it may have to wait for others, however little there is to do.

        Raises:
            RuntimeError: after `stop`.
        """
        if self._stopped:
            raise RuntimeError(f"nothing is computed any more: {kind}")
        known = self._seconds_each.get(kind)
        short = known is not None and size <= _FEW and known * (_BASE + size) < _SHORT_SECONDS and not may_wait
        if short and (self._last is None or self._last.done()):
            return self._here(kind, size, call)
        self._last = self._thread.submit(self._timed, kind, size, call)
        # Shielded: who stops waiting must not make a call that is still to come look done.
        return asyncio.shield(asyncio.wrap_future(self._last))

    def stop(self) -> None:
        """Wait for the call under way; those behind it are abandoned."""
        self._stopped = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _here(self, kind: str, size: int, call: Callable[[], R]) -> "asyncio.Future[R]":
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        try:
            done.set_result(self._timed(kind, size, call))
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            done.set_exception(error)
        return done

    def _timed(self, kind: str, size: int, call: Callable[[], R]) -> R:
        began = time.perf_counter()
        try:
            return call()
        finally:
            if size:
                taken = (time.perf_counter() - began) / (_BASE + size)
                known = self._seconds_each.get(kind, 0.0)
                # Up at once, down by and by: what makes a disk slow seldom ends with one call.
                self._seconds_each[kind] = max(taken, known + _LEARNING * (taken - known))
