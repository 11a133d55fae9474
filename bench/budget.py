"""Where a worker's processor time goes, step by step and thread by thread.

    BUDGET=1 python -m bench latency

The worker is then started by this module (`python -m bench.budget worker`), which reads the event loop's processor
clock around each step: 0.5 µs a reading. A step does not count the steps within it. What comes is written when the
worker is told to stop, and counts from its first batch on.
"""

import functools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

FILE: Final = "BENCH_BUDGET_FILE"
"""The environment variable that names where it is written."""


class Budget:
    """Processor time of the event loop's thread by step, and of all threads by whose they are; ns."""

    def __init__(self) -> None:
        self._steps: Counter[str] = Counter()
        self._within: list[int] = []  # of each step under way, what steps within it took
        self._loop_began: int | None = None
        self._threads_began: Counter[str] = Counter()
        self.batches = 0

    def measure(self, owner: Any, name: str, step: str) -> None:
        """Count what a function or method takes under the name of a step."""
        call = getattr(owner, name)

        @functools.wraps(call)
        def measured(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return call(*args, **kwargs)
            began = time.thread_time_ns()
            self._within.append(0)
            try:
                return call(*args, **kwargs)
            finally:
                taken = time.thread_time_ns() - began
                self._steps[step] += taken - self._within.pop()
                if self._within:
                    self._within[-1] += taken

        setattr(owner, name, measured)

    def count_batches(self, compute: Callable[..., None]) -> Callable[..., None]:
        """The same function; the first call begins the budget."""

        @functools.wraps(compute)
        def counted(*args: Any, **kwargs: Any) -> None:
            if self._loop_began is None:
                self._steps.clear()
                self._loop_began, self._threads_began = _loop_ns(), _threads()
            self.batches += 1
            compute(*args, **kwargs)

        return counted

    def write(self, path: Path) -> None:
        """µs a batch, as JSON: `steps` of the event loop's thread, and `threads`."""
        if self._loop_began is None:
            return
        loop = _loop_ns() - self._loop_began
        steps = dict(self._steps) | {"all else: Faust, asyncio, waiting": loop - sum(self._steps.values())}
        threads = _threads()
        threads.subtract(self._threads_began)
        each = {
            kind: {name: round(ns / self.batches / 1000, 1) for name, ns in sorted(found.items(), key=lambda x: -x[1])}
            for kind, found in (("steps", steps), ("threads", threads))
        }
        path.write_text(json.dumps({"batches": self.batches, **each}))


def _loop_ns() -> int:
    """Processor time of the event loop's thread, whichever asks: the first batch is computed by another."""
    return time.clock_gettime_ns(time.pthread_getcpuclockid(threading.main_thread().ident or 0))


def _threads() -> Counter[str]:
    """Processor time of this process's threads."""
    spent: Counter[str] = Counter()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            name = (task / "comm").read_text().strip()
            whose = "event loop" if int(task.name) == os.getpid() else "others"
            if name.startswith("rdk"):
                whose = "librdkafka"
            spent[whose] += int((task / "schedstat").read_text().split()[0])
    return spent


def main() -> None:
    """`stream-app` with its steps measured."""
    from stream_app.__main__ import main as stream_app
    from stream_app.kafka.click_reader import ClickReader
    from stream_app.serve import pipeline, worker
    from stream_app.serve.delivery import Delivery
    from stream_app.serve.pipeline import Pipeline
    from stream_app.serve.settling import Settling

    budget = Budget()
    for owner, name, step in (
        (ClickReader, "_sorted", "read clicks"),
        (Pipeline, "_take", "form a batch"),
        (Pipeline, "_begin_waiting", "form a batch"),
        (Pipeline, "_decode", "decode"),
        (Pipeline, "_read", "read rows"),
        (pipeline, "plan", "advance"),
        (pipeline, "queries", "advance"),
        (pipeline, "rank", "rank"),
        (Settling, "send", "encode and send rankings"),
        (Pipeline, "_compute", "metrics"),
        (Delivery, "serve", "confirmations"),
        (Settling, "_send_changelogs", "encode and send rows"),
        (Settling, "_write", "write rows"),
    ):
        budget.measure(owner, name, step)
    Pipeline._compute = budget.count_batches(Pipeline._compute)  # type: ignore[method-assign]
    stop = worker.Worker.stop

    def stop_and_tell(self: worker.Worker) -> None:
        budget.write(Path(os.environ[FILE]))
        stop(self)

    worker.Worker.stop = stop_and_tell  # type: ignore[method-assign]
    stream_app()


if __name__ == "__main__":
    main()
