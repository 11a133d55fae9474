"""Requests over HTTP at given times, open loop: a generator that costs less than the server that it measures."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchmarkError

CONNECTIONS: Final = 64
_LENGTH: Final = b"content-length: "
_PATIENCE_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Answers:
    """What came of requests, in the order in which they were due.

    Attributes:
        latency_ms: float64[N], from when each was due: what waits for a connection waits.
        status: int64[N].
    """

    latency_ms: NDArray[np.float64]
    status: NDArray[np.int64]


class _Connection(asyncio.Protocol):
    """One request at a time, kept alive."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._asked = -1
        self._came = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, number: int, request: bytes) -> None:
        self._asked = number
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._came += data
        head = self._came.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._came.index(_LENGTH) + len(_LENGTH)
        if len(self._came) >= head + 4 + int(self._came[at : self._came.index(b"\r", at)]):
            status, self._came = int(self._came[9:12]), b""
            self._load.answered(self, self._asked, status)

    def connection_lost(self, error: Exception | None) -> None:
        self._load.lost(error)


class _Load:
    def __init__(self, requests: Sequence[bytes], due: NDArray[np.float64]) -> None:
        self._requests, self._due = requests, due.tolist()
        self._free: list[_Connection] = []
        self._waiting: deque[int] = deque()
        self._left = len(requests)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.at = np.zeros(len(requests))
        self.status = np.zeros(len(requests), np.int64)

    async def run(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            _, connection = await loop.create_connection(lambda: _Connection(self), host, port)
            self._free.append(connection)
        self.began = time.perf_counter() + 0.05
        sent = 0
        while sent < len(self._due):
            await asyncio.sleep(self.began + self._due[sent] - time.perf_counter())
            now = time.perf_counter() - self.began
            while sent < len(self._due) and self._due[sent] <= now:
                self._waiting.append(sent)
                sent += 1
            self._ask()
        await asyncio.wait_for(self.done, _PATIENCE_SECONDS)

    def _ask(self) -> None:
        while self._waiting and self._free:
            number = self._waiting.popleft()
            self._free.pop().ask(number, self._requests[number])

    def answered(self, connection: _Connection, number: int, status: int) -> None:
        self.at[number], self.status[number] = time.perf_counter() - self.began, status
        self._free.append(connection)
        self._ask()
        self._left -= 1
        if not self._left:
            self.done.set_result(None)

    def lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(BenchmarkError(f"the server closed a connection: {error}"))


def send(port: int, requests: Sequence[bytes], due: NDArray[np.float64]) -> Answers:
    """Send each request `due` seconds after the start, to a server on this machine. Raises BenchmarkError."""

    async def run() -> Answers:
        load = _Load(requests, due)
        await load.run("127.0.0.1", port)
        return Answers(1000 * (load.at - due), load.status)

    return asyncio.run(run())


def get(path: str) -> bytes:
    """A request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, body: bytes) -> bytes:
    """A request with JSON."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body
