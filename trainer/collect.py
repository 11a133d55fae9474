"""From the clicks topic to the click log. Positions come from the log's own file names; no consumer group is involved.

Clicks are taken by the rules that the worker applies, with the broker's time of arrival for "now": collecting the same
offsets again, hours later, decides the same.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from confluent_kafka import (
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from schemas.click import ClickLimits, ClickRejectedError, decode_click
from schemas.settings import KafkaConnection
from trainer.click_log import ClickLogFolder, LogFile, Rows, TopicIdentity
from trainer.service_errors import ClickLogError, CollectError

log = structlog.get_logger(__name__)

_BATCH: Final = 10_000
_POLL_SECONDS: Final = 0.2
_TIMEOUT_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Collected:
    """What a call collected: clicks by row, and offsets that have none."""

    clicks: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Records that are no clicks, by reason; the worker has parked them on the rejected topic."""
    lost: int = 0
    """Offsets that the topic's retention removed before they could be collected."""
    files: int = 0
    seconds: float = 0.0


@dataclass
class _Partition:
    """One partition while it is being read."""

    expected: int  # the offset that follows what the log holds
    first: int  # where the rows being gathered begin; above `expected` only after a loss
    next: int  # the offset to read next
    rows: Rows = field(default_factory=lambda: Rows([], [], [], []))
    caught_up: bool = False

    def flushed(self) -> None:
        self.expected = self.first = self.next
        self.rows = Rows([], [], [], [])


class Collector:
    """Reads the clicks topic into a click log. Use as a context manager, inside `folder.locked()`."""

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        folder: ClickLogFolder,
        *,
        limits: ClickLimits,
        flush_clicks: int,
        flush_seconds: float,
        on_records: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`on_records` hears the number of records read since it last heard. Limits as the worker's."""
        self._connection = connection
        self._topic = topic
        self._folder = folder
        self._limits = limits
        self._flush_clicks = flush_clicks
        self._flush_seconds = flush_seconds
        self._on_records = on_records
        self._partitions: dict[int, _Partition] = {}
        self._clicks = self._lost = self._files = 0
        self._rejected: Counter[str] = Counter()
        self._buffered = 0
        self._flushed_at = 0.0

    def __enter__(self) -> "Collector":
        """Find the positions and start to fetch. Raises ClickLogError and CollectError."""
        for path in self._folder.clean():
            log.info("removed what a killed collector left", file=path.name)
        self._identity = self._identify()
        config: dict[str, Any] = {
            **self._connection.librdkafka(),
            "group.id": "unused: partitions are assigned by hand and nothing is committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",  # an offset that is gone is a loss to be counted, not a reason to skip
            "check.crcs": True,
            "max.poll.interval.ms": 86_400_000,  # a cycle of training may lie between two polls
            "queued.max.messages.kbytes": 65_536,
            "error_cb": lambda error: log.warning("kafka consumer", error=error.str()),
        }
        self._consumer = Consumer(config, logger=logging.getLogger("librdkafka"))
        try:
            self._assign()
        except BaseException:
            self._consumer.close()
            raise
        self._flushed_at = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def collect_to_end(self, stop: Callable[[], bool] = lambda: False) -> Collected:
        """Collect up to where the partitions end now, then write. Ends early, with what it has, when `stop` says so."""
        targets = self._ends()
        for partition in self._partitions.values():
            partition.caught_up = False

        def done() -> bool:
            return all(p.caught_up or p.next >= targets[number] for number, p in self._partitions.items())

        return self._collect(lambda: stop() or done())

    def collect_until(self, stop: Callable[[], bool]) -> Collected:
        """Collect as clicks come, writing at intervals, until `stop` says so; then write the rest."""
        return self._collect(stop)

    def _collect(self, done: Callable[[], bool]) -> Collected:
        began = time.monotonic()
        before = self._clicks, Counter(self._rejected), self._lost, self._files
        while not done():
            messages = self._consumer.consume(_BATCH, _POLL_SECONDS)
            for message in messages:
                error = message.error()
                if error is None:
                    self._take(message)
                else:
                    self._on_error(error, message)
            if messages:
                self._on_records(len(messages))
            overdue = time.monotonic() - self._flushed_at >= self._flush_seconds
            if self._buffered >= self._flush_clicks or overdue:
                self._flush()
        self._flush()
        clicks, rejected, lost, files = before
        return Collected(
            clicks=self._clicks - clicks,
            rejected=dict(self._rejected - rejected),
            lost=self._lost - lost,
            files=self._files - files,
            seconds=time.monotonic() - began,
        )

    def _take(self, message: Message) -> None:
        partition = self._partitions[message.partition()]
        offset = message.offset()
        if offset < partition.next:
            return  # fetched before a reposition, and taken then
        partition.next = offset + 1
        self._buffered += 1
        kind, timestamp = message.timestamp()
        now_ms = timestamp if kind == TIMESTAMP_LOG_APPEND_TIME else time.time_ns() // 1_000_000
        try:
            click = decode_click(message.key(), message.value(), now_ms=now_ms, limits=self._limits)
        except ClickRejectedError as error:
            self._rejected[error.reason] += 1
            return
        rows = partition.rows
        rows.session_id.append(click.session_id)
        rows.item_id.append(click.item_id)
        rows.timestamp.append(click.timestamp)
        rows.offset.append(offset)

    def _flush(self) -> None:
        for number, partition in self._partitions.items():
            if partition.next == partition.first:
                continue
            self._folder.write(
                number,
                partition.first,
                partition.next - 1,
                partition.rows,
                topic=self._identity,
                expected=partition.expected,
            )
            self._files += 1
            self._clicks += len(partition.rows.offset)
            partition.flushed()
        self._buffered = 0
        self._flushed_at = time.monotonic()

    def _on_error(self, error: KafkaError, message: Message) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            partition = self._partitions[message.partition()]
            # Beyond the last click there may be offsets without one, such as marks of transactions.
            partition.next = max(partition.next, message.offset())
            partition.caught_up = True
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._reposition(message.partition())
        elif error.retriable() or code in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT):
            log.warning("clicks topic", error=error.str())
        else:
            raise CollectError(f"the topic {self._topic} cannot be read: {error.str()}")

    # -- positions ----------------------------------------------------------------------------------------------------

    def _assign(self) -> None:
        state = self._folder.scan()
        self._check_origin(state.files)
        expected = state.next_offsets
        for lost in state.lost:
            log.warning(
                "clicks are missing from the log: retention had removed them before they were collected",
                partition=lost.partition, first=lost.first, last=lost.last, offsets=lost.count,
            )  # fmt: skip
        numbers = self._partition_numbers()
        if foreign := sorted(expected.keys() - set(numbers)):
            raise ClickLogError(
                f"{self._folder.folder}: holds partitions {foreign}, the topic {self._topic} has {len(numbers)}; "
                "the topic was made anew: name another trainer.log_dir"
            )
        starts = []
        for number in numbers:
            start = self._start(number, expected.get(number))
            self._partitions[number] = _Partition(expected=expected.get(number, start), first=start, next=start)
            starts.append(TopicPartition(self._topic, number, start))
        self._consumer.assign(starts)

    def _start(self, number: int, expected: int | None) -> int:
        """Where to read on: what follows the log, or the topic's beginning where that is later (and say so)."""
        low, high = self._watermarks(number)
        if expected is None:
            if low:
                log.info("the topic's first offsets are gone; the log starts after them", partition=number, offset=low)
            return low
        if expected > high:
            raise ClickLogError(
                f"{self._folder.folder}: holds partition {number} up to offset {expected - 1}, the topic {self._topic} "
                f"ends at {high}: the topic was made anew or cut; name another trainer.log_dir"
            )
        if expected < low:
            self._lost += low - expected
            log.warning(
                "clicks were lost: the topic's retention removed them before they were collected; collect more often, "
                "or raise topics.clicks_retention_ms",
                partition=number, first=expected, last=low - 1, offsets=low - expected,
            )  # fmt: skip
        return max(expected, low)

    def _reposition(self, number: int) -> None:
        """The topic's beginning has overtaken us."""
        self._flush()
        partition = self._partitions[number]
        partition.first = partition.next = self._start(number, partition.expected)
        self._consumer.seek(TopicPartition(self._topic, number, partition.next))

    def _check_origin(self, files: tuple[LogFile, ...]) -> None:
        for file in {file.partition: file for file in files}.values():
            origin = self._folder.topic_of(file)
            if origin != self._identity:
                raise ClickLogError(
                    f"{self._folder.folder}: {file.name} comes from the topic {origin.name} with the id "
                    f"{origin.topic_id}, now there is {self._identity.name} with {self._identity.topic_id}; "
                    "name another trainer.log_dir for it"
                )

    # -- asking Kafka -------------------------------------------------------------------------------------------------

    def _identify(self) -> TopicIdentity:
        admin = AdminClient(self._connection.librdkafka(), logger=logging.getLogger("librdkafka"))
        try:
            described = admin.describe_topics(TopicCollection([self._topic]), request_timeout=_TIMEOUT_SECONDS)
            found = described[self._topic].result(_TIMEOUT_SECONDS)
        except (KafkaException, TimeoutError) as error:
            raise self._unreadable(error) from error
        return TopicIdentity(self._topic, str(found.topic_id))

    def _partition_numbers(self) -> list[int]:
        try:
            return sorted(
                self._consumer.list_topics(self._topic, timeout=_TIMEOUT_SECONDS).topics[self._topic].partitions
            )
        except KafkaException as error:
            raise self._unreadable(error) from error

    def _ends(self) -> dict[int, int]:
        return {number: self._watermarks(number)[1] for number in self._partitions}

    def _watermarks(self, number: int) -> tuple[int, int]:
        try:
            found: tuple[int, int] | None = self._consumer.get_watermark_offsets(
                TopicPartition(self._topic, number), timeout=_TIMEOUT_SECONDS
            )
        except KafkaException as error:
            raise self._unreadable(error) from error
        if found is None:
            raise CollectError(
                f"Kafka at {self._connection.bootstrap_servers} does not tell the offsets of {self._topic} {number} "
                f"within {_TIMEOUT_SECONDS:g} s; is it running?"
            )
        return found

    def _unreadable(self, error: Exception) -> CollectError:
        cause = error.args[0] if error.args else error
        reason = cause.str() if isinstance(cause, KafkaError) else str(error) or type(error).__name__
        missing = isinstance(cause, KafkaError) and cause.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
        action = (
            "create it with `stream-app topics`"
            if missing
            else "is Kafka running, and are the settings in [kafka] right?"
        )
        return CollectError(f"the topic {self._topic} at {self._connection.bootstrap_servers}: {reason}; {action}")
