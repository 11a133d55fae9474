"""The thread that reads what the API tells: rankings, announcements, scores, items. From all partitions, in no group.

Rankings go into the embedded store, with the position behind them, and to whoever waits for them; where a sink fills
another store they are read from now on, for those who wait.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.config.settings import TopicSettings
from schemas.errors import StoppedWaitingError
from schemas.formats.codec import Codec
from schemas.kafka.absent import not_listed
from schemas.kafka.unread import Unread
from schemas.kafka.watermarks import offsets_for_times, watermarks
from stream_app.api.board import Board
from stream_app.api.latest import newest, read
from stream_app.api.metrics import ApiMetrics
from stream_app.api.shelf import Shelf
from stream_app.api.stores import EmbeddedStore
from stream_app.api.traffic import SPAN_MS, Traffic
from stream_app.api.watchers import Watchers
from stream_app.kafka.expired import NO_RESET, is_gone, oldest_left
from stream_app.kafka.fetched import is_fatal
from stream_app.kafka.plain_consumer import ReadError

log = structlog.get_logger(__name__)

_TOGETHER: Final = 1000
_POLL_SECONDS: Final = 0.1
_ANSWER_SECONDS: Final = 30.0
_SHOWN_SECONDS: Final = 5.0


class Reader:
    """Reads until it is stopped.

    Args:
        consumer_config: of a consumer without a group, for librdkafka.
        store: filled with rankings; None where a sink fills another one.
        ttl_ms: older rankings are not read.
        codec: of rankings.
        on_fatal: told, from the thread, of what it cannot go on with.

    Attributes:
        waiting_for: what keeps it from knowing everything that was there at the start; None once it does.
    """

    def __init__(
        self,
        consumer_config: Mapping[str, Any],
        topics: TopicSettings,
        *,
        store: EmbeddedStore | None,
        ttl_ms: int,
        watchers: Watchers,
        board: Board,
        traffic: Traffic,
        shelf: Shelf,
        metrics: ApiMetrics,
        on_fatal: Callable[[BaseException], None],
        codec: Codec,
    ) -> None:
        self._topics = topics
        self._store, self._ttl_ms = store, ttl_ms
        self._watchers, self._board, self._metrics = watchers, board, metrics
        self._traffic, self._shelf = traffic, shelf
        self._on_fatal = on_fatal
        self._codec = codec
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._consumer = Consumer(
            {**consumer_config, **NO_RESET, "queued.max.messages.kbytes": 16_384, "error_cb": _tell},
            logger=logging.getLogger("librdkafka"),
        )
        self._unread: Unread | None = None
        self._positions: dict[int, int] = {}
        self._gone: set[tuple[str, int]] = set()  # partitions whose next record is no longer there
        self.waiting_for: str | None = "the topics have not been read yet"

    def start(self) -> None:
        """Start reading."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._read()
        except StoppedWaitingError as error:
            log.info("stopped", waited_for=str(error))
        except Exception as error:  # noqa: BLE001 - the thread's edge: no ranking would be told from here on
            self._on_fatal(error)
        finally:
            self._consumer.close()

    def _read(self) -> None:
        rankings = self._rankings_from()
        self._positions = {start.partition: start.offset for start in rankings}
        starts = [*rankings, *self._all_of(self._topics.models), *self._all_of(self._topics.scores)]
        self._unread = Unread.of(self._consumer, starts, timeout=_ANSWER_SECONDS)
        # No lookup waits for what only the page shows.
        self._consumer.assign([*starts, *self._all_of(self._topics.items), *self._lately_rejected()])
        shown = 0.0
        while not self._stopping.is_set():
            first = self._consumer.poll(_POLL_SECONDS)
            if first is not None:
                # Not `consume` alone: it waits for as many as it may bring, and a click waits for its ranking.
                self._take([first, *self._consumer.consume(_TOGETHER, 0)])
            if (now := time.monotonic()) > shown:
                self._show_lag()
                shown = now + _SHOWN_SECONDS

    # -- where to begin -----------------------------------------------------------------------------------------------

    def _partitions(self, topic: str) -> list[int]:
        # All topics: asking for one by name may create it.
        found = self._consumer.list_topics(timeout=_ANSWER_SECONDS).topics.get(topic)
        return sorted(found.partitions) if found is not None else []

    def _all_of(self, topic: str) -> list[TopicPartition]:
        """From their beginning; nothing where there is no such topic (scores, where nobody counts them)."""
        return [TopicPartition(topic, number, OFFSET_BEGINNING) for number in self._partitions(topic)]

    def _lately_rejected(self) -> list[TopicPartition]:
        topic = self._topics.rejected
        return starts_at(self._consumer, topic, dict.fromkeys(self._partitions(topic)), ttl_ms=SPAN_MS)

    def _end(self, number: int) -> int:
        """The offset behind the last ranking of a partition."""
        at = TopicPartition(self._topics.rankings, number)
        return watermarks(self._consumer, at, timeout=_ANSWER_SECONDS)[1]

    def _rankings_from(self) -> list[TopicPartition]:
        topic, store = self._topics.rankings, self._store
        numbers = self._partitions(topic)
        if not numbers:
            raise ReadError(not_listed(topic))
        if store is None:
            return [TopicPartition(topic, number, self._end(number)) for number in numbers]
        if not store.positions:
            store.clear()  # it is new, or its rows are of a topic that is no more
        positions = {number: store.positions.get(number) for number in numbers}
        for number, position in positions.items():
            if position is not None and position > self._end(number):
                log.warning("the stored rankings are of other offsets and are read anew", partition=number)
                store.clear()
                positions = dict.fromkeys(numbers)
                break
        return starts_at(self._consumer, topic, positions, ttl_ms=self._ttl_ms)

    # -- what comes ---------------------------------------------------------------------------------------------------

    def _take(self, messages: Sequence[Message]) -> None:
        if self._unread:
            for message in messages:
                self._unread.take(message)
        rankings = [message for message in messages if self._is_ranking(message)]
        if rankings:
            positions = {message.partition(): message.offset() + 1 for message in rankings}
            self._codec.ready(message.value() for message in rankings)
            found = [(message.key(), read(message, self._codec.to_json)) for message in rankings]
            told = [(key, latest) for key, latest in found if latest is not None]
            if self._store is not None:
                self._store.apply(newest(told), positions)
            self._positions |= positions
            self._watchers.tell(told)  # after the store: whoever is told and looks finds it there
            self._traffic.take(told, time.time_ns() // 1_000_000)
            self._metrics.rankings.inc(len(told))
            self._metrics.unreadable.inc(len(rankings) - len(told))
        while self._gone:
            self._pass_over(*self._gone.pop())
        if self.waiting_for is not None and self._unread is not None:  # last: what was read is stored
            self.waiting_for = f"not read to the end yet: {', '.join(self._unread.topics)}" if self._unread else None

    def _is_ranking(self, message: Message) -> bool:
        """Take care of whatever is none."""
        topic = message.topic()
        if (error := message.error()) is not None:
            if is_fatal(error):
                raise KafkaException(error)
            if is_gone(error):
                self._gone.add((topic, message.partition()))
            elif error.code() != KafkaError._PARTITION_EOF:
                log.warning("reading", topic=topic, error=error.str())
            return False
        if topic == self._topics.models:
            self._board.announce(message.key(), message.value())
        elif topic == self._topics.scores:
            self._board.score(message.key(), message.value(), now_ms=time.time_ns() // 1_000_000)
        elif topic == self._topics.items:
            self._shelf.put(message.key(), message.value())
        elif topic == self._topics.rejected:
            self._traffic.reject(message.timestamp()[1], message.value(), time.time_ns() // 1_000_000)
        return bool(topic == self._topics.rankings)

    def _pass_over(self, topic: str, partition: int) -> None:
        """Retention was faster than this reader, or than the process before it."""
        due = self._positions.get(partition) if topic == self._topics.rankings else None
        left, _ = oldest_left(self._consumer, topic, partition, due)
        # After a loss it goes back, too, or a restart would leave out what has come to the offsets of what was lost.
        if due is not None and left != due:
            if self._store is not None:
                self._store.apply({}, {partition: left})
            self._positions[partition] = left
            self._metrics.expired.inc(max(0, left - due))

    def _show_lag(self) -> None:
        for number, position in self._positions.items():
            _, high = self._consumer.get_watermark_offsets(TopicPartition(self._topics.rankings, number), cached=True)
            self._metrics.lag.labels(partition=str(number)).set(max(0, high - position))


def starts_at(
    consumer: Consumer, topic: str, positions: Mapping[int, int | None], *, ttl_ms: int
) -> list[TopicPartition]:
    """Each partition at its position; without one, at the first ranking that has not expired. Raises KafkaException."""
    oldest = max(0, time.time_ns() // 1_000_000 - ttl_ms)
    new = [number for number, position in positions.items() if position is None]
    # First: what comes after is read, whether or not the next question finds it.
    ends = {number: watermarks(consumer, TopicPartition(topic, number), timeout=_ANSWER_SECONDS)[1] for number in new}
    asked = [TopicPartition(topic, number, oldest) for number in new]
    found = offsets_for_times(consumer, asked, timeout=_ANSWER_SECONDS) if asked else {}
    starts = {number: offset if offset >= 0 else ends[number] for number, offset in found.items()}
    known = {number: position for number, position in positions.items() if position is not None}
    return [TopicPartition(topic, number, offset) for number, offset in {**known, **starts}.items()]


def _tell(error: KafkaError) -> None:
    log.warning("kafka", error=error.str())
