"""Shadow models, as a worker sees them: a process of its own that is handed the clicks once they are answered.

A thread would hold up those who serve, however it gives way: where other processes want the core, it is stopped while
it holds the interpreter, and everybody waits for it. The process has the lowest priority that the system knows. What
waits for it is bounded; beyond that clicks are skipped and counted. It reads splits, models and items by itself
(:mod:`stream_app.serve.shadow_process`).
"""

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import msgspec
import structlog
from msgspec.structs import replace

from schemas.messages.click import Click
from stream_app.core.plan import SourcedClick, SourcedForget
from stream_app.core.session import SessionState
from stream_app.core.state_codec import decode_state, encode_state
from stream_app.serve.metrics import Metrics
from stream_app.serve.serving import Records

log = structlog.get_logger(__name__)

LENGTH_BYTES: Final = 4
"""Before each batch: its length, the highest byte first."""
# Of what waits, beside the 64 KiB that a pipe holds. A click and its row are some 500 bytes, or 16 KiB with long ids.
_MOST_CLICKS: Final = 4096
_MOST_BYTES: Final = 16 * 1024 * 1024
_RESTART_SECONDS: Final = 10.0
_END_SECONDS: Final = 5.0


class Record(msgspec.Struct, frozen=True, array_like=True):
    """A click and its offset; without a click, a request to forget the session."""

    offset: int
    session_id: str
    click: Click | None


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """A partition's clicks of a batch, and the rows of their sessions before it."""

    topic: str
    partition: int
    now_ms: int
    rows: dict[str, bytes]
    records: list[Record]

    def known(self) -> tuple[dict[str, SessionState], Records]:
        """Rows and clicks as the worker has them, the rows without hidden states."""
        rows = {name: decode_state(row) for name, row in self.rows.items()}
        records: Records = [
            SourcedForget(one.session_id, one.offset) if one.click is None else SourcedClick(one.click, one.offset)
            for one in self.records
        ]
        return rows, records


def batch_of(topic: str, partition: int, now_ms: int, rows: Mapping[str, SessionState], clicks: Records) -> Batch:
    """The same for the way to the other process."""
    known = {
        # Another model's hidden state is nothing to a shadow.
        name: encode_state(replace(row, hidden=None, model_version=""))
        for name, row in rows.items()
    }
    records = [
        Record(one.offset, one.session_id, None)
        if isinstance(one, SourcedForget)
        else Record(one.offset, one.click.session_id, one.click)
        for one in clicks
    ]
    return Batch(topic, partition, now_ms, known, records)


class Shadows:
    """Starts and ends the process, and feeds it.

    `command` is the process, `environment` what it is told. `tidy` is called where it has ended and nobody wants it.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        metrics: Metrics,
        tidy: Callable[[], None] = lambda: None,
    ) -> None:
        self._command, self._environment = list(command), dict(environment)
        self._metrics = metrics
        self._tidy = tidy
        self._encoder = msgspec.msgpack.Encoder()
        self._wanted = False
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._waiting_clicks = self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="shadows", daemon=True)

    def want(self, wanted: bool) -> None:
        """Whether the split names a shadow."""
        with self._changed:
            self._wanted = wanted
            if not wanted:
                self._forget()
            self._changed.notify()

    def start(self) -> None:
        """Start feeding."""
        self._thread.start()

    def stop(self) -> None:
        """End the process; what waits for it is left out."""
        with self._changed:
            self._stopping = True
            self._forget()
            self._changed.notify()
            process = self._process
        if process is not None:
            process.kill()  # or the thread waits for it to read
        if self._thread.ident is not None:
            self._thread.join(_END_SECONDS)
        self._end()  # only now: the thread may have begun another meanwhile, and may have been writing

    def offer(self, topic: str, partition: int, now_ms: int, rows: Mapping[str, SessionState], clicks: Records) -> None:
        """Clicks that have been answered. Skipped, and counted, where too many wait already."""
        if not self._wanted or not clicks:
            return
        if self._waiting_clicks + len(clicks) <= _MOST_CLICKS and self._waiting_bytes < _MOST_BYTES:
            data = self._encoder.encode(batch_of(topic, partition, now_ms, rows, clicks))
            with self._changed:
                if self._waiting_bytes + len(data) <= _MOST_BYTES:
                    self._waiting_clicks += len(clicks)
                    self._waiting_bytes += len(data)
                    self._waiting.append((len(clicks), data))
                    self._changed.notify()
                    return
        self._metrics.shadow_skipped.inc(len(clicks))

    def _forget(self) -> None:
        self._waiting_clicks -= sum(clicks for clicks, _ in self._waiting)
        self._waiting_bytes -= sum(len(data) for _, data in self._waiting)
        self._waiting.clear()

    # -- on the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._wanted or self._process is not None)
            if not self._wanted or self._stopping:
                self._end()
                if not self._stopping:
                    self._tidy()
                continue
            try:
                self._feed()
            except OSError as error:  # it ended by itself, or cannot be started
                self._end()
                if self._stopping or not self._wanted:
                    continue
                log.error("the process of the shadows has ended; it is started again", error=str(error))
                self._pause(_RESTART_SECONDS)

    def _feed(self) -> None:
        """Start the process, and hand it what waits as long as it is wanted."""
        log.info("shadows begin")
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, env=self._environment)
        pipe = self._process.stdin
        assert pipe is not None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or not self._wanted or self._stopping)
                if not self._wanted or self._stopping:
                    return
                clicks, data = self._waiting.popleft()  # now: what waits may be others when this is written
            try:
                pipe.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)  # waits while it is busy, for nobody else
                pipe.flush()
            finally:
                with self._changed:
                    self._waiting_clicks -= clicks
                    self._waiting_bytes -= len(data)
            self._metrics.shadow_clicks.inc(clicks)

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or not self._wanted, max(0.0, deadline - time.monotonic()))

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.kill()  # it holds nothing that is missed
            process.wait()
            with suppress(OSError):  # what was still to be written
                process.stdin.close()


def shadow_command(data_dir: os.PathLike[str]) -> list[str]:
    """This program's command for the process."""
    return [sys.executable, "-P", "-m", "stream_app", "shadows", "--data-dir", str(data_dir)]
