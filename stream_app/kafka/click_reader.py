"""Reads the clicks by librdkafka; the group, the changelog and all else stay with aiokafka, which would read them too.

aiokafka builds each request and takes each answer apart in Python, on a thread of its own: at 1,000 clicks a second
that took four times the processor time of librdkafka, and a third of the worker's.

Partitions are given by hand, each with the offset to begin at. Nothing joins a group here, and nothing is committed.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import msgspec
import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from faust.types import TP

from schemas.kafka.record_headers import headers_of
from schemas.messages.headers import Headers, trace_of
from stream_app.errors import StreamError
from stream_app.kafka.lookup import first_from

log = structlog.get_logger(__name__)

# Clicks come one by one, and a batch for each costs more than ranking it. So batches wait for company, within limits:
# five times as long as a batch without a click takes. A slow or busy machine takes fewer and larger ones, before it
# queues.
_WAITS_PER_COST: Final = 5
_SHORTEST_PACE_SECONDS: Final = 0.002
_LONGEST_PACE_SECONDS: Final = 0.008
_BASE: Final = 16
"""What a batch takes before its first click, in clicks: 0.4 ms where one takes 25 µs, 1.4 where it takes 90."""
_LEARNING: Final = 1 / 16
_LOOKS: Final = 5
"""After so many in vain, a thread waits for the next click: cheaper than to look, and dearer than to find."""
_LONGEST_WAIT_SECONDS: Final = 0.25
"""A rebalance waits for the read under way."""
_FIND_SECONDS: Final = 2.0
_LOOK_UP_SECONDS: Final = 10.0
_FIND_AGAIN_SECONDS: Final = 5.0
"""As long as one partition's leader is away, all others of this worker wait for it so long, and so seldom."""
_TURN_SECONDS: Final = 5.0
"""After so long a look for the way of some partitions, the others are read as long: each record takes a tenth of a
second to look up, and the watchdog ends a worker that does nothing else for two minutes."""
# What librdkafka fetches ahead, and how soon it looks again after it had that: its own 1,000 ms starve a backlog.
_QUEUED_CLICKS: Final = 8192
_QUEUED_KILOBYTES: Final = 16_384
_REFILL_MS: Final = 20
# A fetch leaves out partitions of which enough waits here, and their next click waits for its end. An idle worker asks
# ten times a second.
_FETCH_MS: Final = 100
_UNKNOWN: Final = -1001
_NO_EPOCH: Final = -1
_REFUSED: Final = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)
_ASTRAY: Final = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)


class ClicksUnreadableError(StreamError):
    """This worker cannot read its clicks."""


class ClicksLostError(StreamError):
    """Kafka has lost clicks that this worker had read."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record of the clicks topic; the names are those of aiokafka's.

    Attributes:
        timestamp: milliseconds since the epoch.
        timestamp_type: 0 if the producer set it, 1 if the broker did.
        trace: the headers that its ranking takes over.
    """

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    trace: Headers | None = None


class Pace:
    """When to look for clicks again, from the processor time that batches have taken.

    Args:
        clock: seconds, of any beginning.
        spent: processor time of this process.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, spent: Callable[[], float] = time.process_time
    ) -> None:
        self._clock = clock
        self._spent = spent
        self._looked = -math.inf
        self._began = spent()
        self._cost = 0.0  # of a batch without a click
        self._clicks = 0
        self._full = False

    @property
    def seconds(self) -> float:
        """Between two looks."""
        if self._full:
            return 0.0
        return min(max(_WAITS_PER_COST * self._cost, _SHORTEST_PACE_SECONDS), _LONGEST_PACE_SECONDS)

    def wait(self) -> float:
        """Seconds until the next look, which this counts as done."""
        seconds = max(0.0, self._looked + self.seconds - self._clock())
        self._looked = self._clock() + seconds
        return seconds

    def batch(self, clicks: int, *, full: bool) -> None:
        """A look has found so many clicks, `full` if there may be more; the batch before them is paid for."""
        spent = self._spent()
        cost = (spent - self._began) * _BASE / (_BASE + self._clicks)
        self._cost += _LEARNING * (cost - self._cost)
        self._began, self._clicks, self._full = spent, clicks, full

    def look(self) -> None:
        """Somebody else has looked."""
        self._looked = self._clock()
        self._full = False


class ClickReader:
    """The clicks of this worker's partitions, as they come.

    All calls but `close`, `end_offset` and `record_at` belong to the event loop.

    Args:
        consumer_config: of a consumer without a group, for librdkafka.
        most: so many clicks at most are read at once.
        on_look: called whenever it looks for clicks, every few ms as long as some come.
        on_expired: told how many offsets retention removed before they were read.
        patience: so many seconds `record_at` waits for Kafka.
        traces: whether to look for headers that rankings take over.

    Attributes:
        reads: how often somebody asked for clicks.
        looks_up: how many `record_at` wait for Kafka now.
        passed: by partition, offsets from one up to below another, behind the last click that was read, at which there
            is none: marks of transactions, clicks of aborted ones, and what retention removed before it was read.
        epochs: by partition, the epoch of the leader that appended the last click that was read; before there is one,
            what `assign` was told.
        went_back: by partition, the offset at which reading went on because Kafka had lost what was to come next;
            whoever has seen it removes it.
    """

    def __init__(
        self,
        consumer_config: Mapping[str, Any],
        *,
        most: int,
        on_look: Callable[[], None],
        on_expired: Callable[[int], None],
        patience: float,
        traces: bool = False,
    ) -> None:
        self._most = most
        self._traces = traces
        self._on_look = on_look
        self._on_expired = on_expired
        self._patience = patience
        self._consumer = Consumer(
            {
                **consumer_config,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",  # clicks that are gone are told of
                "queued.min.messages": _QUEUED_CLICKS,
                "queued.max.messages.kbytes": _QUEUED_KILOBYTES,
                "fetch.queue.backoff.ms": _REFILL_MS,
                "fetch.wait.max.ms": _FETCH_MS,
                "error_cb": self._on_error,
            },
            logger=logging.getLogger("librdkafka"),
        )
        self._first_from = partial(first_from, consumer_config)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clicks")
        self._partitions: dict[tuple[str, int], TP] = {}
        self._next: dict[TP, int | None] = {}
        self._found: set[TP] = set()  # partitions that had the offset at which reading began
        self._unchecked: set[TP] = set()  # those whose records may be others than before `epochs`
        self._astray: dict[TP, None] = {}  # partitions without the offset that is to come next, in turns
        self._find_from = -math.inf
        self._closed = False
        self._pace = Pace()
        self._looks = 0  # in vain, since there was a click
        self._first: asyncio.Future[Message | None] | None = None  # what the thread waits for
        self.reads = self.looks_up = 0
        self.passed: dict[TP, tuple[int, int]] = {}
        self.epochs: dict[TP, int] = {}
        self.went_back: dict[TP, int] = {}

    async def prepare(self, topic: str) -> None:
        """Read nothing until `assign`, and find the topic's brokers for it.

        By itself librdkafka looks for them once a second, and the first click after a start waited for that.
        """
        await self.assign({})
        if not self._closed:
            self._thread.submit(self._find_brokers, topic)

    def _find_brokers(self, topic: str) -> None:
        try:
            self._consumer.list_topics(topic, timeout=_LONGEST_WAIT_SECONDS)
        except KafkaException as error:
            log.debug("the brokers of the clicks are not known yet", error=error.args[0].str())

    async def assign(self, starts: Mapping[TP, int | None], epochs: Mapping[TP, int] = MappingProxyType({})) -> None:
        """Read these partitions from these offsets on, None being the beginning, and no others.

        What was fetched before is forgotten. No `read` may be under way; one that was cancelled has left its thread.
        `epochs` are those of the leaders that had the clicks before these offsets, as far as they are known: a later
        leader may have others there.
        """
        if self._first is not None:
            await asyncio.wait([self._first])
            self._first = None
        self._partitions = {(tp.topic, tp.partition): tp for tp in starts}
        self._next, self._found = dict(starts), set()
        self._unchecked = {tp for tp in epochs if starts.get(tp) is not None}
        self.passed, self.epochs, self.went_back = {}, dict(epochs), {}
        self._astray.clear()
        self._find_from = -math.inf
        if self._closed:
            return  # a rebalance that comes while the worker stops
        self._go_on()

    def _go_on(self) -> None:
        self._consumer.assign(
            [
                TopicPartition(tp.topic, tp.partition, OFFSET_BEGINNING)
                if at is None
                else TopicPartition(tp.topic, tp.partition, at, leader_epoch=self.epochs.get(tp, _NO_EPOCH))
                for tp, at in self._next.items()
            ]
        )

    async def _find_way(self) -> None:
        """Tell of the clicks that are gone, and go on with those that are left.

        What librdkafka does by itself would skip them without a word.
        """
        loop, before, began = asyncio.get_running_loop(), len(self._astray), time.monotonic()
        for tp in list(self._astray):
            due = self._next[tp]
            try:
                begin, end, same = await loop.run_in_executor(self._thread, partial(self._ask, tp, due))
            except KafkaException as error:
                log.warning("clicks cannot be read at the moment", topic=tp.topic, error=error.args[0].str())
                self._find_from = time.monotonic() + _FIND_AGAIN_SECONDS
                self._astray[tp] = self._astray.pop(tp)  # others first, the next time
                break
            if due is None:
                pass  # its beginning has moved on while it was looked for
            elif due < begin:
                log.warning(
                    "clicks were lost: the topic's retention removed them before they were read; add workers, or raise "
                    "topics.clicks_retention_ms",
                    partition=tp.partition, first=due, last=begin - 1, offsets=begin - due,
                )  # fmt: skip
                self._on_expired(begin - due)
                self._pass_over(tp, due, begin)
                self._next[tp] = begin
            elif same != due:
                self._go_back(tp, due, begin, end, same)
            self._unchecked.discard(tp)
            del self._astray[tp]
            if (taken := time.monotonic() - began) >= _TURN_SECONDS:
                self._find_from = time.monotonic() + taken
                break
        if len(self._astray) < before:
            self._go_on()

    def _ask(self, tp: TP, due: int | None) -> tuple[int, int, int | None]:
        """Where a partition begins and ends, and up to which offset it is what it was when `due` was the next one.

        The last is None where nothing tells. Raises KafkaException.
        """
        begin, end = self._consumer.get_watermark_offsets(TopicPartition(tp.topic, tp.partition), timeout=_FIND_SECONDS)
        epoch = self.epochs.get(tp)
        if due is None or due < begin or epoch is None:
            return begin, end, None
        # Later leaders have later epochs: the first record of one stands where the records that were lost begin. It is
        # looked for from the back: most leaders that go have lost nothing, and then the last record tells it.
        low, high, step = begin, min(due, end), 1
        while low < high:
            middle = max(high - step, (low + high) // 2)
            found = self._first_from(tp.topic, tp.partition, middle, seconds=_LOOK_UP_SECONDS)
            if found is None or (found.leader_epoch() or 0) > epoch:
                high, step = middle, 2 * step
            else:
                low = min(found.offset() + 1, high)
        if low < due <= end:
            found = self._first_from(tp.topic, tp.partition, low, seconds=_LOOK_UP_SECONDS)
            if found is None or found.offset() >= due:
                low = due  # there is nothing between but marks of transactions
        return begin, end, low

    def _go_back(self, tp: TP, due: int, begin: int, end: int, same: int | None) -> None:
        """Read on from where the partition is no longer what it was; from its beginning if nobody knows.

        Raises:
            ClicksLostError: clicks behind that are on their way through this worker.
        """
        if tp in self._found:
            raise ClicksLostError(
                f"brokers lost records that they had confirmed: {tp.topic} partition {tp.partition} was read up to "
                f"offset {due}, and now ends at {end}. The next start goes on with the clicks that are there"
            )
        log.warning(
            "brokers lost records that they had confirmed, or the offsets of the group were set behind the end of the "
            "topic: clicks are read on from where it is no longer what it was",
            partition=tp.partition, next=due, end=end, first=begin if same is None else same,
        )  # fmt: skip
        self._next[tp] = same
        self.went_back[tp] = begin if same is None else same

    def end_offset(self, tp: TP) -> int | None:
        """Where a partition ended when it was last fetched, with what is not committed yet; None before that.

        None as well once this is closed: whoever asks for the lag while a worker stops gets none.
        """
        if self._closed or tp not in self._next:
            return None
        _, end = self._consumer.get_watermark_offsets(TopicPartition(tp.topic, tp.partition), cached=True)
        return None if end == _UNKNOWN else int(end)

    def record_at(self, tp: TP, offset: int) -> Record | None:
        """The record at an offset, None if there is none. From one thread. Raises ClicksUnreadableError."""
        self.looks_up += 1
        try:
            found = self._first_from(tp.topic, tp.partition, offset, seconds=self._patience)
        except KafkaException as error:
            raise ClicksUnreadableError(f"{tp.topic} cannot be read: {error.args[0].str()}") from error
        finally:
            self.looks_up -= 1
        return None if found is None or found.offset() != offset else self._record(found)

    async def read(self) -> dict[TP, list[Record]]:
        """The clicks that have come, at most `most`; waits a little while there are none.

        Raises:
            ClicksUnreadableError: Kafka refuses to give them.
        """
        self.reads += 1
        if self._closed:
            await asyncio.sleep(_LONGEST_WAIT_SECONDS)
            return {}
        if self._astray and time.monotonic() >= self._find_from:
            await self._find_way()
            return {}
        while self._looks < _LOOKS:
            await asyncio.sleep(self._pace.wait())
            self._on_look()
            if messages := self._consumer.consume(self._most, 0):
                self._looks = 0
                found = self._sorted(messages)
                self._pace.batch(sum(map(len, found.values())), full=len(messages) == self._most)
                return found
            self._looks += 1
        if self._first is None:
            loop = asyncio.get_running_loop()
            self._first = loop.run_in_executor(self._thread, self._consumer.poll, _LONGEST_WAIT_SECONDS)
        first = await asyncio.shield(self._first)
        self._first = None
        self._pace.look()
        if first is None:
            return {}
        self._looks = 0
        return self._sorted([first, *self._consumer.consume(self._most - 1, 0)])

    def close(self) -> None:
        """Read no more; waits for a read under way. From any thread."""
        self._closed = True
        self._thread.shutdown()
        self._consumer.close()

    def _sorted(self, messages: Iterable[Message]) -> dict[TP, list[Record]]:
        """By partition, in order. Without those of an assignment that is no longer: librdkafka drops them too."""
        found: dict[TP, list[Record]] = {}
        last: dict[TP, Message] = {}
        for message in messages:
            tp = self._partitions.get((message.topic(), message.partition()))
            if message.error() is not None:
                self._told(message, tp)
            elif tp is not None and (tp not in self._unchecked or self._is_same(tp, message)):
                record = self._record(message)
                self._next[tp] = record.offset + 1
                found.setdefault(tp, []).append(record)
                last[tp] = message
        self._found.update(last)
        for tp, message in last.items():
            if (epoch := message.leader_epoch()) is not None:
                self.epochs[tp] = epoch
        return found

    def _is_same(self, tp: TP, message: Message) -> bool:
        """Whether the first record that comes is of the leader that had those before it, and not of a later one.

        That one may have others before it. librdkafka asks only when a leader changes while it reads.
        """
        if (message.leader_epoch() or 0) > self.epochs[tp]:
            self._astray.setdefault(tp)
            return False
        self._unchecked.discard(tp)
        return True

    def _record(self, message: Message) -> Record:
        kind, timestamp = message.timestamp()
        trace = trace_of(headers_of(message)) if self._traces else None
        return Record(message.offset(), timestamp, kind - 1, message.key(), message.value(), trace)

    def _told(self, message: Message, tp: TP | None) -> None:
        error = message.error()
        if error.code() == KafkaError._PARTITION_EOF:
            if tp is not None and tp not in self._astray:  # else clicks before it are to be read again
                if tp not in self._unchecked:  # else the end alone does not tell that what lies before it is the same
                    self._found.add(tp)
                begin, end = self._next[tp], message.offset()
                if begin is not None and begin < end:
                    self._pass_over(tp, begin, end)
        elif error.code() in _ASTRAY:
            if tp is not None:
                self._astray.setdefault(tp)
        elif error.code() in _REFUSED:
            raise ClicksUnreadableError(
                f"Kafka does not let this worker read {message.topic()}: {error.str()}; see the rights in docs/security"
            ) from KafkaException(error)
        else:
            log.warning("clicks cannot be read at the moment", topic=message.topic(), error=error.str())

    def _pass_over(self, tp: TP, begin: int, end: int) -> None:
        """There is no click from one offset up to another, nor in what was passed over right before."""
        before, reached = self.passed.get(tp, (begin, begin))
        self.passed[tp] = before if before <= begin <= reached else begin, end

    def _on_error(self, error: KafkaError) -> None:
        log.warning("kafka consumer", error=error.str())
