"""The worker's real code, from the recovered table to the acknowledgement, as a function of what happens to it.

`Pipeline`, `Settling`, `Sending`, `SessionTable` and `SessionStore` are the product's own, and so is the consumer's
judgement of its membership. In the place of librdkafka, aiokafka and RocksDB there is what the explorer has to decide:
when a record is confirmed, what the coordinator says, and a dict.

A coroutine cannot be copied, so a worker that has come to a fork is run anew, from its last rest, for each way from it.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
from faust.types import TP

from schemas.bundle.runtime import Model
from schemas.messages.click import Click
from schemas.messages.forget import Forget, encode_forget
from schemas.messages.ranking import Ranking, decode_ranking
from stream_app.kafka.click_reader import Record
from stream_app.kafka.transport import Chunk, ChunkConsumer
from stream_app.serve.computing import Computing
from stream_app.serve.delivery import Sending
from stream_app.serve.hot_swap import LiveModel
from stream_app.serve.metrics import Metrics
from stream_app.serve.pipeline import Pipeline, PipelineSettings
from stream_app.serve.settling import SettlingSettings
from stream_app.state.store import SessionStore
from stream_app.state.table import SessionTable
from tests.unit.models import exact_model

BEGAN = 1_767_225_600_000
CLICKS, CHANGELOG = TP("clicks", 0), TP("changelog", 0)
MODELS: Sequence[Model] = [exact_model(f"v{n}", ("i", "j", "k", "l"), salt=n) for n in range(2)]
_METRICS = Metrics()
_GENERATION = 7

Rows = tuple[tuple[bytes, bytes], ...]
Records = tuple[tuple[bytes, bytes | None], ...]
Input = tuple[Any, ...]


class Broken(Exception):  # noqa: N818 - a finding of a test, no error of the program
    """A promise that is not kept."""


class Store(NamedTuple):
    """A local store: its rows, by key, and the changelog offset that it covers."""

    rows: Rows = ()
    covered: int | None = None


class Start(NamedTuple):
    """A worker at rest: all that it took is acknowledged.

    Attributes:
        seen: the changelog offset up to which it has written or restored every record; None once it has not.
        position: of the next click.
        model: the place of the one that serves among `MODELS`.
    """

    store: Store
    seen: int | None
    position: int
    model: int


@dataclass(frozen=True)
class Lived:
    """What has come of a worker.

    Attributes:
        rankings: what was handed to librdkafka for the rankings topic; where a session was forgotten, None.
        changelog: what was handed to it for the changelog.
        acked: the offset of the clicks below which all are acknowledged.
        rest: where the worker is at rest, if it is and may go on from there.
        in_flight: chunks.
    """

    rankings: tuple[tuple[bytes, Ranking | None], ...]
    changelog: Records
    store: Store
    acked: int
    rest: Start | None
    in_flight: int


def click_log(told: str) -> tuple[Record, ...]:
    """Records of the clicks topic: `a` to `z` are clicks of sessions so named, a capital asks to forget its session."""
    records = []
    for offset, letter in enumerate(told):
        session_id = letter.lower()
        if letter.isupper():
            value = encode_forget(Forget(session_id, "forget"))
        else:
            value = msgspec.json.encode(Click(session_id, "ijkl"[offset % 4], BEGAN + offset))
        records.append(Record(offset, BEGAN + offset, 1, session_id.encode(), value))
    return tuple(records)


def restored(store: Store, changelog: Records, end: int, *, at_once: int) -> Start:
    """What a worker begins with that has this store when the changelog ends at `end`; it reads all that there is.

    Args:
        store: the local store.
        changelog: all records.
        end: the changelog's end when the partition was assigned; records behind it came while it was read.
        at_once: how many records are restored together.
    """
    table = _Table(store)
    table.begin_restore(CHANGELOG, store.covered, end)
    first = 0 if store.covered is None else store.covered + 1
    for begin in range(first, len(changelog), at_once):
        batch = changelog[begin : begin + at_once]
        records = [Record(begin + n, BEGAN, 1, key, value) for n, (key, value) in enumerate(batch)]
        message = SimpleNamespace(value=Chunk(CHANGELOG, records, _GENERATION))
        table.apply_changelog_batch([SimpleNamespace(message=message)])
    return Start(table.local.snapshot(), table._seen.get(0), 0, 0)


def live(start: Start, clicks: tuple[Record, ...], inputs: Sequence[Input]) -> Lived:
    """Run a worker from its rest through what happens to it: what comes of that is all in what is returned.

    Inputs:
        fetch, n: the next n clicks.
        swap: the next model is in service.
        rankings, n: the first n records for the rankings topic are confirmed.
        changelog, offset, ...: the next records for the changelog are confirmed, with these offsets.
        cut: heartbeats are overdue.
        lost: the coordinator tells that this is no member any more.
    """
    loop: Any = _Loop()
    worker = _Worker(start, clicks, loop)
    for name, *told in inputs:
        loop.run(partial(getattr(worker, name), *told), worker.consumer)
    if worker.errors:
        raise Broken(f"the worker ends: {worker.errors[0]!r}")
    partitions = worker.pipeline._partitions.values()
    gave_up = any(partition.given_up for partition in partitions) or worker.consumer.lost
    rest = None
    if not worker.pipeline.in_flight.chunks and not gave_up and not worker.consumer.overdue:
        if any(partition.pending for partition in partitions):
            raise Broken("all is acknowledged, and RocksDB has not all rows")
        rest = Start(worker.table.local.snapshot(), worker.table._seen.get(0), worker.position, worker.model)
    return Lived(
        rankings=tuple(
            (key, None if value is None else _ranking(value)) for key, value, _ in worker.queues["rankings"]
        ),
        changelog=tuple((key, value) for key, value, _ in worker.queues["changelog"]),
        store=worker.table.local.snapshot(),
        acked=worker.consumer.acked,
        rest=rest,
        in_flight=worker.pipeline.in_flight.chunks,
    )


def _ranking(value: bytes) -> Ranking:
    """The ranking without the time of day."""
    return msgspec.structs.replace(decode_ranking(value), produced_at=0)


class _Worker:
    """The parts of a worker, put together as `create_app` does."""

    def __init__(self, start: Start, clicks: tuple[Record, ...], loop: Any) -> None:
        self.clicks, self.position, self.model = clicks, start.position, start.model
        self.errors: list[BaseException] = []
        self.queues: dict[str, list[tuple[bytes, bytes | None, Callable[..., None]]]] = {
            "rankings": [],
            "changelog": [],
        }
        self.confirmed = {"rankings": 0, "changelog": 0}
        self.consumer = _Consumer(start.position, clicks)
        self.table = _Table(start.store)
        if start.seen is not None:
            self.table._seen[0] = start.seen
        self._live = LiveModel()
        self._live.replace(MODELS[start.model])
        delivery: Any = SimpleNamespace(sending=lambda: Sending(producer, loop), serve=lambda: None, may_wait=False)
        producer: Any = SimpleNamespace(produce=self._produce)
        parts: dict[str, Any] = {"table": self.table, "consumer": self.consumer}
        self.pipeline = Pipeline(
            PipelineSettings(SettlingSettings("rankings", "rejected", "changelog")),
            live=self._live, delivery=delivery, metrics=_METRICS, on_fatal=self.errors.append, **parts,
        )  # fmt: skip
        self.pipeline._computing = self.pipeline._settling._computing = _Inline()

    def _produce(self, topic: str, value: bytes | None, key: bytes, _: int, on_delivery: Callable[..., None]) -> None:
        self.queues[topic].append((key, value, on_delivery))

    async def fetch(self, count: int) -> None:
        records = self.clicks[self.position : self.position + count]
        self.position += count
        chunk = Chunk(CLICKS, records, _GENERATION)
        message: Any = SimpleNamespace(value=chunk, offset=records[-1].offset)
        await self.pipeline.submit(SimpleNamespace(chunks=[(chunk, message)]))  # type: ignore[arg-type]

    async def swap(self) -> None:
        self.model += 1
        self._live.replace(MODELS[self.model])

    async def rankings(self, count: int) -> None:
        self._confirm("rankings", [0] * (count - self.confirmed["rankings"]))

    async def changelog(self, *offsets: int) -> None:
        self._confirm("changelog", offsets)

    def _confirm(self, topic: str, offsets: Sequence[int]) -> None:
        first = self.confirmed[topic]
        self.confirmed[topic] += len(offsets)
        for (_, _, on_delivery), offset in zip(self.queues[topic][first:], offsets, strict=False):
            on_delivery(None, SimpleNamespace(offset=partial(int, offset)))

    async def cut(self) -> None:
        self.consumer.overdue = True

    async def lost(self) -> None:
        self.consumer.lost = True
        self.consumer.overdue = False


class _Consumer(ChunkConsumer):
    """What the worker knows of its membership; how it judges that is `ChunkConsumer`'s."""

    def __init__(self, position: int, clicks: Sequence[Record]) -> None:
        self._clicks = clicks
        self.acked = position
        self.lost = self.overdue = self.waits = False
        self._expelled_seconds = 15.0, 60.0
        told: Any = SimpleNamespace(
            consumer_generation_id=_GENERATION,
            group_generation=lambda: -1 if self.lost else _GENERATION,
            assigned=lambda: {CLICKS},
            last_heartbeat=math.inf,
            last_at_rest=math.inf,
        )
        self.app = self._thread = told

    def may_be_expelled(self) -> bool:
        self._thread.last_heartbeat = -math.inf if self.overdue else math.inf
        self.waits = super().may_be_expelled()
        return self.waits

    def end_offset(self, tp: TP) -> int | None:
        return None  # clicks are looked up at once

    def record_at(self, tp: TP, offset: int) -> Record | None:
        return self._clicks[offset]

    def ack(self, message: Any) -> bool:
        if message.offset < self.acked:
            raise Broken("chunks are acknowledged out of order")
        self.acked = message.offset + 1
        return True


class _Store(SessionStore):
    """RocksDB is a dict."""

    def __init__(self, store: Store) -> None:
        self._rows, self._covered = dict(store.rows), store.covered

    def rows(self, partition: int, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._rows.get(key) for key in keys]

    def write_rows(self, partition: int, rows: Mapping[bytes, bytes | None], changelog_offset: int | None) -> None:
        self._rows = {key: row for key, row in {**self._rows, **rows}.items() if row is not None}
        if changelog_offset is not None:
            self._covered = changelog_offset

    def snapshot(self) -> Store:
        return Store(tuple(sorted(self._rows.items())), self._covered)


class _Table(SessionTable):
    """Faust's part of the table is left out."""

    def __init__(self, store: Store) -> None:
        self._data = self.local = _Store(store)
        self.restored = self.stale = 0
        self._seen: dict[int, int] = {}

    def _on_fatal(self, error: BaseException) -> None:
        raise error


class _Inline(Computing):
    """Calls where it is asked to."""

    def __init__(self) -> None:
        self._seconds_each = {}

    def run(self, kind: str, size: int, call: Callable[[], Any], *, may_wait: bool) -> "asyncio.Future[Any]":
        return self._here(kind, size, call)


class _Loop:
    """Of an event loop what the worker uses: runs whatever is ready, timers at once, and never waits."""

    def __init__(self) -> None:
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: deque[asyncio.Handle] = deque()
        self._self: Any = self

    def run(self, begin: Callable[[], Any], consumer: _Consumer) -> None:
        """Run a coroutine and all that follows from it, until nothing goes on but a wait for the coordinator's word."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self._self)
        try:
            self.create_task(begin())
            while self._ready or (self._timers and not (consumer.waits and consumer.overdue)):
                handle = (self._ready or self._timers).popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            asyncio._set_running_loop(before)

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        self._ready.append(asyncio.Handle(callback, args, self._self, context))
        return self._ready[-1]

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        self._timers.append(asyncio.Handle(callback, args, self._self, context))
        return self._timers[-1]

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self._self)

    def create_task(self, coro: Any, **named: Any) -> Any:
        return asyncio.Task(coro, loop=self._self, **named)

    def time(self) -> float:
        return 0.0

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: Any) -> None:
        """Tasks of a worker that went no further are no news."""
