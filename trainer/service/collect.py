"""From the clicks topic to the click log. Positions come from the log's own file names, not from a consumer group.

Clicks are taken by the rules that the worker applies, with the broker's time of arrival for "now": collecting the same
offsets again, hours later, decides the same.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
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
from confluent_kafka.admin import AdminClient, OffsetSpec

from schemas.config.settings import KafkaConnection
from schemas.errors import SchemaRegistryError, StoppedWaitingError
from schemas.formats.codec import PLAIN, Formats
from schemas.kafka.watermarks import LEADER_MOVES
from schemas.messages.click import ClickLimits, ClickRejectedError
from schemas.messages.forget import decode_forget
from trainer.errors import ClickLogError, CollectError, KafkaAwayError
from trainer.service.click_log import ClickLogFolder, LogFile, Rows, TopicIdentity
from trainer.service.outage import is_away

log = structlog.get_logger(__name__)

_BATCH: Final = 10_000
_POLL_SECONDS: Final = 0.2
_TIMEOUT_SECONDS: Final = 30.0
_TIDY_FLUSHES: Final = 16
"""As many small files of a partition as are joined at least."""


@dataclass(frozen=True)
class Collected:
    """What was collected since the last call said so (or since the start)."""

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
    rows: Rows = field(default_factory=lambda: Rows([], [], [], [], []))
    forgotten: set[str] = field(default_factory=set)  # sessions whose rows in the log are to go
    caught_up: bool = False

    def forget(self, session_id: str) -> None:
        """All of its clicks so far; those that come behind are of a session that begins anew."""
        self.forgotten.add(session_id)
        rows = self.rows
        kept = [i for i, one in enumerate(rows.session_id) if one != session_id]
        self.rows = Rows(
            [rows.session_id[i] for i in kept],
            [rows.item_id[i] for i in kept],
            [rows.timestamp[i] for i in kept],
            [rows.offset[i] for i in kept],
            [rows.type[i] for i in kept],
        )

    def flushed(self) -> None:
        self.expected = self.first = self.next
        self.rows = Rows([], [], [], [], [])
        self.forgotten = set()


class Collector:
    """Reads the clicks topic into a click log. Use as a context manager, inside `folder.locked()`."""

    def __init__(
        self,
        connection: KafkaConnection,
        topic: str,
        folder: ClickLogFolder,
        *,
        group: str,
        partitions: Collection[int] = (),
        limits: ClickLimits,
        flush_clicks: int,
        flush_seconds: float,
        log_keep: float | None = None,
        on_records: Callable[[int], None] = lambda _: None,
        formats: Formats = PLAIN,
    ) -> None:
        """`partitions` are those that are collected, all of them if none is named. Limits and formats are the worker's.

        `log_keep` in seconds: see `ClickLogFolder.tidy`, which is done now and then; None: whoever trains from the log
        does it. `on_records` hears the number of records read since it last heard.
        """
        self._connection = connection
        self._topic = topic
        self._group = group
        self._folder = folder
        self._limits = limits
        self._flush_clicks = flush_clicks
        self._flush_seconds = flush_seconds
        self._log_keep = log_keep
        self._flushes = 0
        self._on_records = on_records
        self._schemas, self._decode_click = formats.clicks, formats.decode_click
        self._wanted = partitions
        self._numbers: list[int] = []
        self._partitions: dict[int, _Partition] = {}
        self._clicks = self._lost = self._files = 0
        self._rejected: Counter[str] = Counter()
        self._buffered = 0
        self._flushed_at = 0.0

    def __enter__(self) -> "Collector":
        """Find the positions and start to fetch. Raises ClickLogError and CollectError."""
        # A question that fails says only that it timed out; why (a refused connection or login) comes by the callback.
        self._troubles: set[str] = set()
        self._admin = AdminClient(
            {
                **self._connection.librdkafka(),
                "error_cb": lambda error: self._troubles.add(error.str().split(" (after ")[0]),
            },
            logger=logging.getLogger("librdkafka"),
        )
        self._identity = self._identify()
        config: dict[str, Any] = {
            **self._connection.plain_consumer(self._group),
            "auto.offset.reset": "error",  # an offset that is gone is a loss to be counted, not a reason to skip
            "check.crcs": True,
            "max.poll.interval.ms": 86_400_000,  # a cycle of training may lie between two polls
            "queued.max.messages.kbytes": 65_536,
            "error_cb": lambda error: log.warning("kafka consumer", error=error.str()),
            **self._membership(),
        }
        self._consumer = Consumer(config, logger=logging.getLogger("librdkafka"))
        try:
            self._begin()
        except BaseException:
            self._consumer.close()
            raise
        self._flushed_at = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def collect_to_end(self, stop: Callable[[], bool] = lambda: False) -> Collected:
        """Collect up to where the partitions end now, then write. Ends early, with what it has, when `stop` says so."""
        targets = self._offsets(self._numbers, OffsetSpec.latest())
        for partition in self._partitions.values():
            partition.caught_up = False

        return self._collect(lambda: stop() or self._has_reached(targets))

    def collect_until(self, stop: Callable[[], bool]) -> Collected:
        """Collect as clicks come, writing at intervals, until `stop` says so; then write the rest."""
        return self._collect(stop)

    def _collect(self, done: Callable[[], bool]) -> Collected:
        began = time.monotonic()
        while not done():
            self._look_around()
            overdue = time.monotonic() - self._flushed_at >= self._flush_seconds
            if self._buffered >= self._flush_clicks or overdue:
                self._flush()  # before more is read: what a full disk does not take stays in memory
            messages = self._consumer.consume(_BATCH, _POLL_SECONDS)
            if not self._have_schemas(messages):
                break
            for message in messages:
                error = message.error()
                if error is None:
                    self._take(message)
                else:
                    self._on_error(error, message)
            if messages:
                self._on_records(len(messages))
        self._flush()
        collected = Collected(self._clicks, dict(self._rejected), self._lost, self._files, time.monotonic() - began)
        self._clicks = self._lost = self._files = 0
        self._rejected = Counter()
        return collected

    def _have_schemas(self, messages: Iterable[Message]) -> bool:
        """Have those that clicks name for the first time; without them none of these messages is taken, nor lost.

        False: told to stop while the registry was waited for.
        """
        try:
            self._schemas.ready(message.value() for message in messages if message.error() is None)
        except SchemaRegistryError as error:
            self._assign_positions()
            if not isinstance(error, StoppedWaitingError):
                raise
            log.info("stopped", waited_for=str(error))
            return False
        return True

    def _take(self, message: Message) -> None:
        partition = self._partitions.get(message.partition())
        offset = message.offset()
        if partition is None or offset < partition.next:
            return  # fetched before the partition was given up, or before a reposition, and taken then
        partition.next = offset + 1
        self._buffered += 1
        kind, timestamp = message.timestamp()
        now_ms = timestamp if kind == TIMESTAMP_LOG_APPEND_TIME else time.time_ns() // 1_000_000
        try:
            click = self._decode_click(message.key(), message.value(), now_ms=now_ms, limits=self._limits)
        except ClickRejectedError as error:
            if (request := decode_forget(message.key(), message.value())) is not None:
                partition.forget(request.session_id)
                return
            self._rejected[error.reason] += 1
            return
        rows = partition.rows
        rows.session_id.append(click.session_id)
        rows.item_id.append(click.item_id)
        rows.timestamp.append(click.timestamp)
        rows.offset.append(offset)
        rows.type.append(click.type)

    def _flush(self) -> None:
        for number, partition in self._partitions.items():
            if partition.next == partition.first:
                continue
            if partition.forgotten:
                # Before the position moves past the request: a kill in between has it done again.
                removed = self._folder.forget(number, partition.forgotten)
                log.info("forgot sessions", partition=number, sessions=len(partition.forgotten), clicks=removed)
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
        self._flushes += 1
        if self._flushes % _TIDY_FLUSHES == 0:
            self.tidy()

    def tidy(self) -> None:
        """Join small files and remove old ones, if that is ours to do."""
        if self._log_keep is not None:
            self._folder.tidy(self._log_keep)

    def _on_error(self, error: KafkaError, message: Message) -> None:
        code, partition = error.code(), self._partitions.get(message.partition())
        if code == KafkaError._PARTITION_EOF:
            if partition is not None:
                # Beyond the last click there may be offsets without one, such as marks of transactions.
                partition.next = max(partition.next, message.offset())
                partition.caught_up = True
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            if partition is not None:
                self._reposition(message.partition())
        elif is_away(error):
            log.warning("clicks topic", error=error.str())
        else:
            raise CollectError(f"the topic {self._topic} cannot be read: {error.str()}")

    # What a member of a group does otherwise.

    def _membership(self) -> dict[str, Any]:
        """Settings of the consumer."""
        return {}

    def _begin(self) -> None:
        """Find out what to read. Raises ClickLogError and CollectError."""
        if foreign := sorted(self._folder.scan().next_offsets.keys() - set(self._numbers)):
            raise ClickLogError(
                f"{self._folder.folder}: holds partitions {foreign}, which {self._topic} has not or "
                "trainer.collect_partitions leaves out: name another trainer.log_dir"
            )
        self._take_up(self._numbers)

    def _look_around(self) -> None:
        """Between two batches of records."""

    def _has_reached(self, targets: Mapping[int, int]) -> bool:
        """Whether all that is ours to read before these offsets has been read."""
        return all(p.caught_up or p.next >= targets[number] for number, p in self._partitions.items())

    # -- positions ----------------------------------------------------------------------------------------------------

    def _take_up(self, numbers: Collection[int]) -> None:
        """Read these partitions too, from where the log ends. Raises ClickLogError and CollectError."""
        for path in self._folder.clean():
            log.info("removed what a killed collector left", file=path.name)
        state = self._folder.scan()
        self._check_origin(state.files)
        expected = state.next_offsets
        for lost in state.lost:
            log.warning(
                "clicks are missing from the log: retention had removed them before they were collected",
                partition=lost.partition, first=lost.first, last=lost.last, offsets=lost.count,
            )  # fmt: skip
        lows = self._offsets(numbers, OffsetSpec.earliest())
        highs = self._offsets(numbers, OffsetSpec.latest())
        for number in numbers:
            start = self._start(number, expected.get(number), lows[number], highs[number])
            self._partitions[number] = _Partition(expected=expected.get(number, start), first=start, next=start)
        self._assign_positions()

    def _assign_positions(self) -> None:
        self._consumer.assign(
            [TopicPartition(self._topic, number, partition.next) for number, partition in self._partitions.items()]
        )

    def _start(self, number: int, expected: int | None, low: int, high: int) -> int:
        """Where to read on: what follows the log, or the topic's beginning where that is later (and say so)."""
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
        # From `next`, not `expected`: the same overtaking may be told twice, and counts once.
        low = self._offsets([number], OffsetSpec.earliest())[number]
        high = self._offsets([number], OffsetSpec.latest())[number]
        if low < partition.next <= high:  # it ended before that, and has grown since
            log.warning(
                "brokers lost clicks that they had confirmed: the log keeps those that it has, and lacks others that "
                "have come to their offsets",
                partition=number, next=partition.next,
            )  # fmt: skip
        partition.first = partition.next = self._start(number, partition.next, low, high)
        # Assigned anew, all of them: a partition in this state takes no seek.
        self._assign_positions()

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
    # Over the admin client's own connection: behind a consumer's waiting fetch each question takes half a second.

    def _identify(self) -> TopicIdentity:
        topics = TopicCollection([self._topic])
        found = self._ask(lambda: self._admin.describe_topics(topics, request_timeout=_TIMEOUT_SECONDS))
        (description,) = found.values()
        there = {partition.id for partition in description.partitions}
        if missing := sorted(set(self._wanted) - there):
            raise CollectError(
                f"trainer.collect_partitions names {missing}, the topic {self._topic} has 0 to {max(there)}"
            )
        self._numbers = sorted(self._wanted or there)
        return TopicIdentity(self._topic, str(description.topic_id))

    def _offsets(self, numbers: Iterable[int], spec: OffsetSpec) -> dict[int, int]:
        """The first or the next offset of each partition, as the spec says."""
        wanted = {TopicPartition(self._topic, number): spec for number in numbers}
        found = self._ask(lambda: self._admin.list_offsets(wanted, request_timeout=_TIMEOUT_SECONDS))
        return {partition.partition: int(result.offset) for partition, result in found.items()}

    def _ask(self, question: Callable[[], Mapping[Any, Future[Any]]]) -> dict[Any, Any]:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        code = None
        while True:
            try:
                if code is not None:  # the client would go on asking whom it took for the leader
                    self._admin.list_topics(self._topic, timeout=_TIMEOUT_SECONDS)
                return {asked: future.result(_TIMEOUT_SECONDS) for asked, future in question().items()}
            except (KafkaException, TimeoutError) as error:
                cause = error.args[0] if error.args else error
                code = cause.code() if isinstance(cause, KafkaError) else None
                if code not in LEADER_MOVES or time.monotonic() > deadline:
                    reason = cause.str() if isinstance(cause, KafkaError) else str(error) or type(error).__name__
                    self._admin.poll(0)  # calls back with what has come up
                    reason = "; ".join([reason, *sorted(self._troubles)])
                    where = f"the topic {self._topic} at {self._connection.bootstrap_servers}: {reason}"
                    if code == KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise CollectError(f"{where}; create it with `stream-app topics`") from error
                    kind = CollectError if isinstance(cause, KafkaError) and not is_away(cause) else KafkaAwayError
                    raise kind(f"{where}; is Kafka running, and are the settings in [kafka] right?") from error
            time.sleep(_POLL_SECONDS)
