"""A worker's Faust app inside the test, with its chunks in the test's hands, and what Kafka knows of its group."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from faust.types import Message

from schemas.config.settings import KafkaConnection, TopicSettings
from schemas.kafka.topics import changelog_topic, topic_table
from schemas.messages.click import Click, encode_click
from stream_app.kafka.transport import Chunk, ChunkConsumer, Fetch
from stream_app.serve.app import RecommenderApp, create_app
from stream_app.serve.delivery import Delivery, producer_config
from stream_app.serve.hot_swap import LiveModel
from stream_app.serve.in_flight import InFlight
from stream_app.serve.metrics import Metrics
from stream_app.serve.pipeline import Pipeline
from stream_app.settings import StreamSettings, WorkerSettings
from stream_app.tracing import Tracing
from tests.admin import alter_topic, delete_records, ensure_topics
from tests.committed import Offsets
from tests.patience import PATIENCE
from tests.unit.models import exact_model

PARTITIONS = 2
SESSION_TIMEOUT = 20.0
"""No test waits for a dead worker; none is to be taken for dead on a busy machine."""
BEGAN = 1_700_000_000_000
"""The time of the first click, in milliseconds."""
ITEMS = tuple(f"item-{n}" for n in range(40))


async def until(condition: Callable[[], bool], what: str, *, seen: Callable[[], object] | None = None) -> None:
    """Wait for a condition; AssertionError with `what`, and what is `seen` in its place, when it does not come."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}{f'; {seen()}' if seen is not None else ''}"
        await asyncio.sleep(0.02)


class RecordRefusedError(AssertionError):
    """Kafka did not take a record of the test's."""


def _durable(error: KafkaError | None, _message: object) -> None:
    if error is not None:
        raise RecordRefusedError(error.str())


@dataclass
class Group:
    """The topics of one deployment and what Kafka has of them."""

    bootstrap: str
    prefix: str
    session_ttl_ms: int = 6 * 3_600_000
    _producer: Producer = field(init=False)
    _offsets: Offsets = field(init=False)

    def __post_init__(self) -> None:
        self.topics = TopicSettings(
            clicks=f"{self.prefix}-clicks",
            rankings=f"{self.prefix}-rankings",
            rejected=f"{self.prefix}-rejected",
            models=f"{self.prefix}-models",
            scores=f"{self.prefix}-scores",
            partitions=PARTITIONS,
        )
        self.changelog = changelog_topic(self.prefix)
        self.connection = KafkaConnection(bootstrap_servers=self.bootstrap)
        ensure_topics(self.connection, topic_table(self.topics, self.prefix, session_ttl_ms=self.session_ttl_ms))
        self._producer = self.producer()
        self._offsets = Offsets(self.connection.librdkafka(), self.prefix)

    def producer(self, **config: Any) -> Producer:
        """A producer of its own, for what is special about it."""
        return Producer({**self.connection.librdkafka(), "linger.ms": 5, **config})

    def settings(self, data_dir: Path, **worker: Any) -> StreamSettings:
        """Of a worker of this deployment."""
        return StreamSettings(
            kafka=self.connection,
            topics=self.topics,
            worker=WorkerSettings(
                app_id=self.prefix, data_dir=data_dir, **({"session_timeout": SESSION_TIMEOUT} | worker)
            ),
        )

    def produce(
        self, count: int, *, partition: int = 0, session: str = "s", start: int = 0, producer: Producer | None = None
    ) -> None:
        """`count` clicks of one session; returns when they are durable."""
        producer = producer or self._producer
        for n in range(start, start + count):
            click = Click(session_id=session, item_id=ITEMS[n % len(ITEMS)], timestamp=BEGAN + n)
            producer.produce(self.topics.clicks, encode_click(click), session.encode(), partition, on_delivery=_durable)
        assert producer.flush(PATIENCE) == 0

    def put(self, topic: str, records: Iterable[tuple[bytes | None, bytes | None]], partition: int = 0) -> None:
        """Raw records; returns when they are durable."""
        for key, value in records:
            self._producer.produce(topic, value, key, partition, on_delivery=_durable)
        assert self._producer.flush(PATIENCE) == 0

    def committed(self, partition: int = 0) -> int | None:
        """The group's committed offset; None without one."""
        offset = self._offsets.committed(self.topics.clicks, PARTITIONS)[partition]
        return None if offset < 0 else offset

    def commit(self, partition: int, offset: int, metadata: str = "") -> None:
        """As if the group had acknowledged all below an offset; nobody may be in it."""
        consumer = Consumer({**self.connection.librdkafka(), "group.id": self.prefix})
        try:
            consumer.commit(
                offsets=[TopicPartition(self.topics.clicks, partition, offset, metadata)], asynchronous=False
            )
        finally:
            consumer.close()

    def marks(self, topic: str, partition: int = 0) -> tuple[int, int]:
        """First offset and end offset of a partition."""
        return self._offsets.marks(topic)[partition]

    def alter(self, topic: str, **config: str) -> None:
        """Change a topic's configuration, names with underscores for dots."""
        alter_topic(self.connection.librdkafka(), topic, **config)

    def delete_records(self, topic: str, before: int, partition: int = 0) -> None:
        """Delete the beginning of a partition, as retention does."""
        delete_records(self.connection.librdkafka(), topic, {partition: before})


class HandPipeline(Pipeline):
    """In the pipeline's place: keeps the chunks that the transport hands over; the test says what becomes of them."""

    def __init__(self, app: RecommenderApp) -> None:
        self._app = app
        self.got: list[tuple[Chunk, Message]] = []
        self.before_recovery: list[Chunk] = []
        self.fail_next = False
        self.open = asyncio.Event()
        self.open.set()
        self.draining = asyncio.Event()
        self.in_flight = InFlight(Metrics(), lambda _: None)

    async def submit(self, fetch: Fetch) -> None:
        await self.open.wait()
        if not self._app.tables.actives_ready:
            self.before_recovery += [chunk for chunk, _ in fetch.chunks]
        self.got += fetch.chunks
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("the agent fails on purpose")

    async def wants_more(self) -> None:
        return

    async def drained(self) -> None:
        self.draining.set()
        while self.in_flight.chunks:
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        return

    def chunks(self, partition: int, generation: int | None = None) -> list[Chunk]:
        """Of a partition, in the order in which they came."""
        found = (chunk for chunk, _ in self.got if chunk.tp.partition == partition)
        return [chunk for chunk in found if generation is None or chunk.generation == generation]

    def offsets(self, partition: int, generation: int | None = None) -> list[int]:
        """Of all records of a partition."""
        return [record.offset for chunk in self.chunks(partition, generation) for record in chunk.records]

    def message(self, chunk: Chunk) -> Message:
        """The Faust message that a chunk came in."""
        [message] = [message for one, message in self.got if one is chunk]
        return message

    def acknowledge(self, chunk: Chunk, *, durable: bool = True) -> bool:
        """As the pipeline does when a chunk is through; whether the consumer took it."""
        chunk.durable = durable
        return cast(ChunkConsumer, self._app.consumer).ack(self.message(chunk))


@dataclass
class AppUnderTest:
    """A running app."""

    app: RecommenderApp
    errors: list[BaseException]
    metrics: Metrics

    @property
    def consumer(self) -> ChunkConsumer:
        """Ours, in Faust's place."""
        return cast(ChunkConsumer, self.app.consumer)

    @property
    def hand(self) -> HandPipeline:
        """The pipeline, where the test has it in hand."""
        return cast(HandPipeline, self.app.pipeline)

    @property
    def generation(self) -> int:
        """Of the group."""
        return int(self.app.consumer_generation_id)

    async def ready(self) -> None:
        """Wait until the tables are recovered."""
        await until(lambda: self.app.tables.actives_ready or bool(self.errors), "tables recovered")
        assert self.errors == []

    async def rebalance(self, meanwhile: Callable[[], None] = lambda: None, *, seek_seconds: float = 0.0) -> None:
        """Give all partitions back and get them again, as when another worker comes or goes.

        It begins while a fetch is under way, which Faust does not break off: the fetch ends in the new generation, with
        what came `meanwhile` (it runs in a thread), and if it can, after the seek to the committed offsets.
        `seek_seconds` is how long Faust takes from that seek to the end of the recovery.
        """
        before, reader, sought = self.generation, self.consumer.reader, threading.Event()
        read, seek = reader.read, self.consumer.perform_seek

        async def read_into_a_rebalance() -> Any:
            reader.read = read  # type: ignore[method-assign]
            found = await read()
            thread = self.consumer._thread
            thread.thread_loop.call_soon_threadsafe(thread._ensure_consumer()._coordinator.request_rejoin)
            while self.generation == before:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(meanwhile)
            await asyncio.to_thread(sought.wait, 1.0)
            return found or await read()

        async def seek_slowly() -> None:
            await seek()
            sought.set()
            await asyncio.sleep(seek_seconds)

        self.consumer.perform_seek = seek_slowly  # type: ignore[method-assign]
        reader.read = read_into_a_rebalance  # type: ignore[method-assign]
        await until(lambda: self.generation != before, "a new generation")
        await self.ready()
        self.consumer.perform_seek = seek  # type: ignore[method-assign]


@contextlib.asynccontextmanager
async def running(
    settings: StreamSettings,
    *,
    by_hand: bool = False,
    delivery_type: type[Delivery] = Delivery,
    tracing: Tracing | None = None,
) -> AsyncIterator[AppUnderTest]:
    """The app of a worker with these settings, starting, and stopped at the end."""
    live, metrics = LiveModel(), Metrics()
    live.replace(exact_model("v1", ITEMS))
    errors: list[BaseException] = []
    config = producer_config(settings.kafka.librdkafka(), client_id="test", linger_ms=2, timeout_ms=30_000)
    delivery = delivery_type(config, on_fatal=errors.append)
    delivery.start()
    app = create_app(settings, live=live, delivery=delivery, metrics=metrics, on_fatal=errors.append, tracing=tracing)
    pipeline = app.pipeline
    if by_hand:
        app.pipeline = HandPipeline(app)
    starting = asyncio.create_task(app.start())
    try:
        yield AppUnderTest(app, errors, metrics)
    finally:
        async with asyncio.timeout(PATIENCE):
            await app.stop()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await pipeline.stop()
        await asyncio.to_thread(delivery.stop, 10.0)


def contiguous(offsets: Sequence[int]) -> bool:
    """Each offset one above the one before."""
    return list(offsets) == list(range(offsets[0], offsets[0] + len(offsets)))
