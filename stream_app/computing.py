"""Runs the pipeline's calls one after the other: short ones where they are asked for, long ones on a thread."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# The event loop waits for a short call, and with it rebalances and the web server.
_SHORT_SECONDS: Final = 0.05
_LEARNING: Final = 1 / 8


class Computing:
    """One call at a time, in the order in which they were asked for.

    To hand a call to another thread and back costs both of them the interpreter, and a core that wakes: with six
    clicks together it was a tenth of their processor time, and a millisecond of their latency. Only calls that would
    take long go there, as far as can be told from the last ones of their kind.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pipeline")
        self._last: Future[Any] | None = None  # on the thread, which ends them in order
        self._seconds_each: dict[str, float] = {}  # by kind

    async def run(self, kind: str, size: int, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call, and return what it returns.

        Args:
            kind: calls of one kind take about as long for each of `size`.
            size: clicks or rows.
        """
        known = self._seconds_each.get(kind)
        timed = partial(self._timed, kind, size, partial(call, *args, **kwargs))
        if known is not None and known * size < _SHORT_SECONDS and (self._last is None or self._last.done()):
            return timed()
        self._last = self._thread.submit(timed)
        result: R = await asyncio.wrap_future(self._last)
        return result

    def stop(self) -> None:
        """Wait for the call under way; those behind it are abandoned."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _timed(self, kind: str, size: int, call: Callable[[], R]) -> R:
        began = time.perf_counter()
        try:
            return call()
        finally:
            taken = (time.perf_counter() - began) / max(size, 1)
            known = self._seconds_each.get(kind, 0.0)
            # Up at once, down by and by: a slow disk, or many rows to rebuild, seldom ends with one call.
            self._seconds_each[kind] = max(taken, known + _LEARNING * (taken - known))
