"""`stream-app sink`: copies the latest ranking of each session to Redis or Valkey.

One consumer group for all sinks. Where a partition begins is not the group's offset but the position in the store,
which is written with the rows (`stream_app/api/redis_rows.py`); the group's offsets only tell Kafka's tools the lag.
"""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import redis
import structlog
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from schemas.errors import SchemaRegistryError, StoppedWaitingError
from schemas.formats.codec import formats_of
from schemas.kafka.admin import check_topics
from stream_app.api.latest import Latest, newest, read
from stream_app.api.metrics import SinkMetrics
from stream_app.api.reader import starts_at
from stream_app.api.redis_rows import RedisRows
from stream_app.api.stores import store_client
from stream_app.errors import StoreError, StreamError
from stream_app.kafka.expired import NO_RESET, oldest_left
from stream_app.kafka.fetched import by_partition
from stream_app.serve.web import Web
from stream_app.settings import StreamSettings
from stream_app.state.data_lock import DataLock
from stream_app.state.member import member_id
from stream_app.state.topic_identity import topic_ids, watch_identity
from stream_app.telemetry import tracing_of

if TYPE_CHECKING:
    from stream_app.tracing import Tracing

log = structlog.get_logger(__name__)

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
_TOGETHER: Final = 1000
_POLL_SECONDS: Final = 0.1
_ANSWER_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 0.5
_TOLD_SECONDS: Final = 1.0

T = TypeVar("T")


def group_of(app_id: str) -> str:
    """The consumer group of a deployment's sinks."""
    return f"{app_id}-sink"


class Sink:
    """One process of the sinks' group; all of it runs on the thread that calls `run`."""

    def __init__(
        self,
        settings: StreamSettings,
        metrics: SinkMetrics,
        url: str,
        *,
        member: str,
        topic_id: str,
        stopping: Callable[[], bool],
        tracing: "Tracing | None" = None,
    ) -> None:
        self._metrics, self._stopping, self._tracing = metrics, stopping, tracing
        self._topic, self.topic_id = settings.topics.rankings, topic_id
        self._patience = settings.sink.store_timeout
        self._ttl_ms = round(settings.worker.session_ttl * 1000)
        client = store_client(redis.Redis, url, seconds=_ANSWER_SECONDS)
        self._rows = RedisRows(client, settings.api.store_prefix, topic_id, ttl_ms=self._ttl_ms)
        self._group, timeout = group_of(settings.app_id), settings.sink.session_timeout
        self._consumer = Consumer(
            {
                **settings.kafka.librdkafka(),
                "client.id": self._group,
                "error_cb": lambda error: log.warning("kafka", error=error.str()),
                "group.id": self._group,
                "group.instance.id": member,
                "partition.assignment.strategy": "cooperative-sticky",
                "enable.auto.commit": False,
                **NO_RESET,
                "isolation.level": "read_committed",
                "session.timeout.ms": int(timeout * 1000),
                "heartbeat.interval.ms": int(min(3.0, timeout / 5) * 1000),
                # A store that is away is waited for between two polls.
                "max.poll.interval.ms": round(1000 * max(300.0, 2 * self._patience)),
                "queued.max.messages.kbytes": 16_384,
            },
            logger=logging.getLogger("librdkafka"),
        )
        self._positions: dict[int, int | None] = {}  # as the store has them
        self._next: dict[int, int] = {}  # the first ranking of each partition that is not stored
        self.formats = formats_of(settings.schema_registry, settings.topics, stopping=self._gives_up)
        self._codec = self.formats.rankings
        self.assigned = False
        self.waiting_for: str | None = None

    def run(self) -> None:
        """Copy until told to stop. Raises StreamError and SchemaRegistryError for whatever it cannot go on with."""
        self._consumer.subscribe([self._topic], on_assign=self._assign, on_revoke=self._leave, on_lost=self._leave)
        told = 0.0
        try:
            while not self._stopping():
                first = self._consumer.poll(_POLL_SECONDS)
                if first is not None:
                    self._take([first, *self._consumer.consume(_TOGETHER, 0)])
                if (now := time.monotonic()) > told:
                    self._tell_kafka()
                    self._show_lag()
                    told = now + _TOLD_SECONDS
        finally:
            self._consumer.close()

    def _take(self, messages: Sequence[Message]) -> None:
        fetched, gone = by_partition(messages, self._topic)
        for partition, records in fetched.items():
            if partition in self._positions:
                self._store(partition, records)
        for partition in gone:
            if partition in self._positions:
                self._pass_over(partition)

    def _store(self, partition: int, records: Sequence[Message]) -> None:
        began_ns = time.time_ns()
        before = self._positions[partition]
        # A partition may have left and come back since these were fetched: what lies before is stored.
        records = [record for record in records if record.offset() >= (before or 0)]
        if not records:
            return
        self._codec.ready(record.value() for record in records)
        found = [(record.key(), read(record, self._codec.to_json)) for record in records]
        told = [(key, latest) for key, latest in found if latest is not None]
        after = records[-1].offset() + 1
        stored = self._apply(partition, newest(told), after)
        if stored is None:
            return  # told to stop
        if stored:
            self._metrics.rankings.inc(len(told))
            self._metrics.unreadable.inc(len(records) - len(told))
            if self._tracing is not None:
                self._tracing.processed(records, group=self._group, began_ns=began_ns)
            return
        self._metrics.moved.inc()
        log.warning("the store is at another position; going on from there", partition=partition, expected=before)
        for start in self._starts([partition]):
            self._consumer.seek(start)

    def _pass_over(self, partition: int) -> None:
        """Retention was faster than this sink, or than the one before it."""
        due = self._next[partition]
        left, _ = oldest_left(self._consumer, self._topic, partition, due)
        # In the store, too, or the next start would tell of them again. If that is elsewhere, the next batch shows it.
        # After a loss it goes back, or all would be left out that comes to the offsets of what was lost.
        if left != due and self._apply(partition, {}, left):
            self._metrics.expired.inc(max(0, left - due))

    def _apply(self, partition: int, changes: Mapping[bytes, Latest], after: int) -> bool | None:
        """Write rows and the position behind them. False: the store is at another position; None: told to stop."""
        before = self._positions[partition]
        stored = self._insist(lambda: self._rows.apply(partition, changes, before, after))
        if stored is None:
            return None
        # What was stored although its answer got lost is refused when it comes again.
        if not stored and self._insist(partial(self._rows.position, partition)) != after:
            return False
        self._positions[partition] = self._next[partition] = after
        return True

    def _insist(self, call: Callable[[], T]) -> T | None:
        """Call until the store answers; None when told to stop meanwhile. Raises StoreError when it never does."""
        deadline = time.monotonic() + self._patience
        while not self._stopping():
            try:
                answer = call()
            except redis.exceptions.AuthenticationError as error:
                raise StoreError(f"the store (api.store_url) refuses the login: {error}") from error
            except (redis.exceptions.RedisError, OSError) as error:
                self.waiting_for = f"the store (api.store_url) does not answer: {error}"
                if time.monotonic() > deadline:
                    raise StoreError(f"{self.waiting_for}; gave up after sink.store_timeout") from error
                log.warning("waiting for the store", error=str(error))
                self._show_lag()
                time.sleep(_RETRY_SECONDS)
            else:
                self.waiting_for = None
                return answer
        return None

    # -- partitions come and go, inside `poll` ------------------------------------------------------------------------

    def _assign(self, consumer: Consumer, given: Sequence[TopicPartition]) -> None:
        consumer.incremental_assign(self._starts([tp.partition for tp in given]))
        self.assigned = True

    def _starts(self, partitions: Sequence[int]) -> list[TopicPartition]:
        positions: dict[int, int | None] = {}
        for number in partitions:
            self._positions[number] = positions[number] = self._insist(partial(self._rows.position, number))
        starts = starts_at(self._consumer, self._topic, positions, ttl_ms=self._ttl_ms)
        for start in starts:
            self._next[start.partition] = start.offset
            log.info("storing rankings", partition=start.partition, offset=start.offset)
        return starts

    def _leave(self, consumer: Consumer, taken: Sequence[TopicPartition]) -> None:
        for tp in taken:
            self._positions.pop(tp.partition, None)
            self._next.pop(tp.partition, None)
        consumer.incremental_unassign(list(taken))

    def _tell_kafka(self) -> None:
        """How far it is, for whoever looks at the group."""
        offsets = [TopicPartition(self._topic, number, offset) for number, offset in self._next.items()]
        if not offsets:
            return
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:  # a rebalance; it is told again a second later
            log.debug("offsets were not told", error=str(error))

    def _gives_up(self) -> bool:
        """Whether it is told to stop, asked again and again while the registry is waited for."""
        self._show_lag()
        return self._stopping()

    def _show_lag(self) -> None:
        self._metrics.lag.clear()
        for number, offset in self._next.items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic, number), cached=True)
            self._metrics.lag.labels(partition=str(number)).set(max(0, high - offset))


async def run_sink(settings: StreamSettings) -> int:
    """Copy until SIGTERM or SIGINT; returns the exit code. Raises StreamError and SchemaError before it does."""
    if settings.api.store_url is None:
        raise StoreError("no store is named: `stream-app sink redis://HOST:6379`, or set api.store_url")
    tracing = tracing_of(settings.telemetry, "nextclick-sink")
    try:
        return await _run(settings, settings.api.store_url.get_secret_value(), tracing)
    finally:
        if tracing is not None:
            await asyncio.to_thread(tracing.stop)


async def _run(settings: StreamSettings, url: str, tracing: "Tracing | None") -> int:
    stop = threading.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    rankings = settings.topics.rankings
    specs = [spec for spec in settings.topic_specs() if spec.name == rankings]
    for difference in await asyncio.to_thread(check_topics, settings.kafka, specs):
        log.warning("topic differs", difference=str(difference))
    metrics = SinkMetrics()
    sink = await asyncio.to_thread(_sink, settings, metrics, url, stop.is_set, tracing)
    failure: str | None = None

    def readiness() -> Mapping[str, str | None]:
        waiting = None if sink.assigned else "none assigned yet"
        return {
            "sink": failure,
            "partitions": waiting,
            "store": sink.waiting_for,
            **({} if sink.formats.registry is None else {"schema registry": sink.formats.waiting_for}),
        }

    def refresh() -> None:
        metrics.waits.set(sink.waiting_for is not None)

    def fail(error: BaseException) -> None:
        nonlocal failure
        failure = str(error)
        log.error("the sink cannot go on", error=failure, kind=type(error).__name__)
        stop.set()

    own = settings.sink
    web = Web(own.web_host, own.web_port, registry=metrics.registry, readiness=readiness, refresh=refresh)
    await web.start()
    log.info("health and metrics", url=f"http://{own.web_host}:{web.port}")
    same = asyncio.create_task(watch_identity(settings.kafka, {rankings: sink.topic_id}, on_fatal=fail))
    try:
        await asyncio.to_thread(sink.run)
    except StoppedWaitingError as error:
        log.info("stopped", waited_for=str(error))
    except (StreamError, SchemaRegistryError, KafkaException) as error:
        fail(error)
    finally:
        same.cancel()
        await web.stop()
    return EXIT_OK if failure is None else EXIT_FAILED


def _sink(
    settings: StreamSettings, metrics: SinkMetrics, url: str, stopping: Callable[[], bool], tracing: "Tracing | None"
) -> Sink:
    data_dir, rankings = settings.sink.data_dir, settings.topics.rankings
    try:
        DataLock(data_dir, setting="sink.data_dir")  # until the process ends
        member = settings.sink.group_instance_id or member_id(data_dir)
    except OSError as error:
        raise StoreError(f"sink.data_dir {data_dir} cannot be written: {error}") from error
    topic_id = topic_ids(settings.kafka, [rankings])[rankings]
    return Sink(settings, metrics, url, member=member, topic_id=topic_id, stopping=stopping, tracing=tracing)


def main(settings: StreamSettings) -> int:
    """`stream-app sink`; returns the exit code."""
    return asyncio.run(run_sink(settings))
