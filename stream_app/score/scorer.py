"""Reads rankings, counts, and publishes scores, once each: scores and read offsets are in one Kafka transaction.

A killed scorer's successor begins at the committed offset with the scores that were committed with it. One that was
frozen while its partitions moved cannot commit: Kafka fences it by the generation of its group.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from schemas.formats.codec import formats_of
from schemas.kafka.watermarks import watermarks
from schemas.messages.score import encode_score, score_key
from stream_app.core.scoring import PartitionScores, ScoringRules
from stream_app.errors import DeliveryError
from stream_app.kafka.expired import NO_RESET, oldest_left, tell_expired, tell_lost
from stream_app.kafka.fetched import by_partition
from stream_app.kafka.plain_consumer import PlainConsumer, plain_consumer
from stream_app.score.metrics import ScoreMetrics
from stream_app.score.partition import Partition
from stream_app.score.restore import known_scores, lookback
from stream_app.settings import StreamSettings
from stream_app.state.database import StoreOptions, block_cache
from stream_app.state.last_rankings import LastRankings

log = structlog.get_logger(__name__)

_BATCH: Final = 2_000
_POLL_SECONDS: Final = 0.2
_SHOWN_SECONDS: Final = 5.0
_MOST_UNSETTLED: Final = 50_000
"""Rows in memory, beyond which scores are published before their time."""
_ANSWER_SECONDS: Final = 30.0
_TRANSACTION_MS: Final = 10_000
"""After so long Kafka ends the transaction of a killed scorer, which until then hides what is behind it."""
_STORE_FOLDER: Final = "last-rankings"

T = TypeVar("T")


def group_of(app_id: str, *, shadows: bool = False) -> str:
    """The consumer group of a deployment's scorers, or of those of its shadows."""
    return f"{app_id}-score-shadows" if shadows else f"{app_id}-score"


def rankings_topic(settings: StreamSettings, *, shadows: bool) -> str:
    """Whose rankings are scored."""
    return settings.topics.rankings_shadow if shadows else settings.topics.rankings


def scores_dir(settings: StreamSettings, *, shadows: bool) -> Path:
    """The folder for local state; that of the shadows' scorer lies in the other's."""
    return settings.scores.data_dir / "shadows" if shadows else settings.scores.data_dir


class Scorer:
    """One process of the scorers' group; all of it runs on the thread that calls `run`."""

    def __init__(
        self,
        settings: StreamSettings,
        metrics: ScoreMetrics,
        *,
        member: str,
        topic_id: str,
        stopping: Callable[[], bool],
        shadows: bool = False,
    ) -> None:
        self._settings, self._metrics = settings, metrics
        self._topics = settings.topics
        self._rankings = rankings_topic(settings, shadows=shadows)
        self._shadows, self._stopping = shadows, stopping
        formats = formats_of(settings.schema_registry, settings.topics, rankings=self._rankings, stopping=stopping)
        self._codec = formats.rankings
        self.topic_id = topic_id
        self._group = group = group_of(settings.app_id, shadows=shadows)
        scores = settings.scores
        self._rules = ScoringRules(
            k=scores.k,
            window_ms=round(scores.window * 1000),
            keep_ms=round(scores.keep * 1000),
            idle_gap_ms=settings.clicks.idle_gap_ms,
        )
        self._store_options = StoreOptions(
            cache_mb=scores.store_cache_mb, ttl_seconds=max(6 * 3600, 2 * round(settings.clicks.idle_gap))
        )
        self._cache = block_cache(self._store_options)
        common = {**settings.kafka.librdkafka(), "client.id": group, "error_cb": _tell}
        self._consumer = Consumer(
            {
                **common,
                "group.id": group,
                "group.instance.id": member,
                "partition.assignment.strategy": "cooperative-sticky",
                "enable.auto.commit": False,
                **NO_RESET,
                "isolation.level": "read_committed",
                "session.timeout.ms": int(scores.session_timeout * 1000),
                "heartbeat.interval.ms": int(min(3.0, scores.session_timeout / 5) * 1000),
                "queued.max.messages.kbytes": 16_384,
            },
            logger=logging.getLogger("librdkafka"),
        )
        self._new_producer = partial(_transactional, common, f"{group}-{member}")
        self._producer = self._new_producer()
        self._partitions: dict[int, Partition] = {}
        self._score_partitions = 1
        self._failing_since: float | None = None
        self._broken = False
        self._failure: BaseException | None = None
        self.assigned = False

    def run(self) -> None:
        """Count until told to stop. Raises StreamError and SchemaRegistryError for whatever it cannot go on with."""
        try:
            with plain_consumer(self._settings.kafka, self._topics.scores, name=self._group) as scores:
                self._score_partitions = len(scores.partitions)
            self._init_transactions()
            self._consumer.subscribe(
                [self._rankings], on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lose
            )
            self._count_until_told_to_stop()
        except BaseException:
            self._broken = True  # closing revokes what is assigned, and nothing of it may be published any more
            raise
        finally:
            self._consumer.close()
            self._drop(list(self._partitions))

    def fail(self, error: BaseException) -> None:
        """End because of `error`, without publishing what was counted; from any thread."""
        self._failure = error

    def _count_until_told_to_stop(self) -> None:
        due = shown = 0.0
        while not self._stopping():
            if self._failure is not None:
                raise self._failure
            self._take(self._consumer.consume(_BATCH, _POLL_SECONDS))
            now = time.monotonic()
            if now >= due or sum(part.unsettled for part in self._partitions.values()) > _MOST_UNSETTLED:
                self._publish()
                due = time.monotonic() + self._settings.scores.interval
            if now >= shown:
                self._show()
                shown = now + _SHOWN_SECONDS
        self._publish()

    def _take(self, messages: Sequence[Message]) -> None:
        fetched, gone = by_partition(messages, self._rankings)
        for number, records in fetched.items():
            if (part := self._partitions.get(number)) is not None:
                part.take(records)
        for number in gone:
            if (part := self._partitions.get(number)) is not None:
                begin, end = oldest_left(self._consumer, self._rankings, number, part.due, at=part.position)
                if end < part.due:
                    part.go_back(begin, end)
                else:
                    part.pass_over(begin)

    # -- publishing ---------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Make durable what was counted since the last time: scores and offsets first, then the rows."""
        moved = [part for part in self._partitions.values() if part.position > part.committed]
        if moved and not self._commit(moved):
            return
        metrics = self._metrics
        for part in self._partitions.values():
            metrics.counted.inc(max(0, part.position - part.committed - part.expired))
            part.settle()
            for counter, owner, name in (
                (metrics.repeated, part.scores, "repeated"),
                (metrics.late, part.scores, "late"),
                (metrics.unreadable, part, "unreadable"),
                (metrics.expired, part, "expired"),
            ):
                counter.inc(getattr(owner, name))
                setattr(owner, name, 0)

    def _commit(self, moved: Sequence[Partition]) -> bool:
        """One transaction; False where it was aborted and is to be tried again. Raises DeliveryError."""
        producer = self._producer
        offsets = [TopicPartition(self._rankings, part.number, part.position, self.topic_id) for part in moved]
        try:
            producer.begin_transaction()
            for part in moved:
                number = part.number % self._score_partitions
                for score in part.published():
                    self._produce(encode_score(score), score_key(score), number)
            self._insist(lambda: self._send_offsets(offsets), "the offsets of scores")
            self._insist(lambda: producer.commit_transaction(_ANSWER_SECONDS), "scores")
        except TimeoutError:
            return self._begin_anew()
        except KafkaException as error:
            return self._abort(error.args[0])
        self._failing_since = None
        return True

    def _produce(self, value: bytes, key: bytes, partition: int) -> None:
        while True:
            try:
                self._producer.produce(self._topics.scores, value, key, partition)
            except BufferError:
                self._producer.poll(_POLL_SECONDS)
            else:
                return

    def _send_offsets(self, offsets: list[TopicPartition]) -> None:
        """Raises TimeoutError where librdkafka does not come back: it keeps no limit, and can hang for good.

        It does when the coordinator of the group was away for so long that other brokers, or itself when it came back,
        did not name it (its issues 5456 and 5511). Beyond the limit Kafka ends the transaction anyway.
        """
        sent: Future[None] = Future()
        send, group = self._producer.send_offsets_to_transaction, self._consumer.consumer_group_metadata()

        def run() -> None:
            try:
                sent.set_result(send(offsets, group, _ANSWER_SECONDS))
            except BaseException as error:  # noqa: BLE001 - raised by `result`
                sent.set_exception(error)

        threading.Thread(target=run, name="offsets", daemon=True).start()
        sent.result(_TRANSACTION_MS / 1000)

    def _begin_anew(self) -> bool:
        """Another producer of the same name: Kafka fences the one that hangs, and aborts what it had begun."""
        self._failed("the coordinator of the group does not answer")
        self._producer = self._new_producer()
        self._init_transactions()
        return False

    def _init_transactions(self) -> None:
        self._insist(lambda: self._producer.init_transactions(_ANSWER_SECONDS), "the transactions")

    def _failed(self, why: str) -> None:
        """What was counted stays to be published, unless that has failed for too long. Raises DeliveryError."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if now - self._failing_since > self._settings.scores.delivery_timeout:
            raise DeliveryError(f"scores could not be published for {now - self._failing_since:.0f} s: {why}")
        log.warning("scores were not published; trying again", error=why)

    def _abort(self, error: KafkaError) -> bool:
        """Nothing of the transaction is published; that may pass, or DeliveryError is raised."""
        if not error.txn_requires_abort():
            raise DeliveryError(f"scores cannot be published: {error.str()}; the next start goes on from the last ones")
        self._failed(error.str())
        try:
            self._insist(lambda: self._producer.abort_transaction(_ANSWER_SECONDS), "the end of a transaction")
        except KafkaException as fatal:
            raise DeliveryError(f"scores cannot be published any more: {fatal.args[0].str()}") from fatal
        return False

    def _insist(self, call: Callable[[], T], what: str) -> T:
        """Call until it succeeds or says that it never will: librdkafka goes on where a call of before timed out."""
        deadline = time.monotonic() + self._settings.scores.delivery_timeout
        while True:
            try:
                return call()
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise
                if time.monotonic() > deadline:
                    raise DeliveryError(
                        f"Kafka did not confirm {what} for {self._settings.scores.delivery_timeout:g} s: "
                        f"{error.args[0].str()}; check the brokers, and scores.delivery_timeout"
                    ) from error
                log.warning("waiting for Kafka", to_confirm=what, error=error.args[0].str())

    # -- partitions come and go, inside `consume` ---------------------------------------------------------------------

    def _assign(self, consumer: Consumer, given: list[TopicPartition]) -> None:
        open_topic = partial(plain_consumer, self._settings.kafka, name=f"{self._group}-restore")
        with open_topic(self._topics.scores) as scores, open_topic(self._rankings) as rankings:
            for tp in given:
                part = self._partitions[tp.partition] = self._restored(tp.partition, scores, rankings)
                log.info(
                    "counting rankings", partition=part.number, offset=part.committed, read_again_from=part.position,
                    windows=len(list(part.scores.scores)),
                )  # fmt: skip
        starts = [TopicPartition(self._rankings, tp.partition, self._partitions[tp.partition].position) for tp in given]
        consumer.incremental_assign(starts)
        self.assigned = True

    def _restored(self, number: int, published: PlainConsumer, rankings: PlainConsumer) -> Partition:
        topic = self._rankings
        at = TopicPartition(topic, number)
        low, high = watermarks(self._consumer, at, timeout=_ANSWER_SECONDS)
        [told] = self._consumer.committed([at], timeout=_ANSWER_SECONDS)
        folder = scores_dir(self._settings, shadows=self._shadows) / _STORE_FOLDER / str(number)
        rows = LastRankings(folder, self.topic_id, self._store_options, self._cache, setting="scores.data_dir")
        # Kafka forgets the offsets of a topic that is deleted, and who reads on may have noted others since.
        if anew := told.metadata != self.topic_id if told.metadata else rows.was_of_another_topic:
            log.warning("the topic of rankings was created anew; it is counted from its beginning", partition=number)
            told = TopicPartition(topic, number)
        committed = told.offset if low <= told.offset <= high else low
        expired = low - told.offset if 0 <= told.offset < low else 0
        if expired:
            tell_expired(topic, number, told.offset, low)
        known = known_scores(self._settings.kafka, published, number, self._rules, shadows=self._shadows)
        position = rows.positions.get(number)
        if position is None or not low <= position <= committed:
            rows.clear()
            position = lookback(rankings, number, low, committed, self._rules, codec=self._codec)
        scores = PartitionScores(number, self._rules, known)
        if told.offset > high:
            tell_lost(topic, number, told.offset, high)
            scores.go_back(high)
        elif anew:
            scores.go_back(low)
        # From where the group was, though it is gone: the next commit says that it was told of.
        was = committed - expired
        return Partition(number, scores, rows, position=position, committed=was, expired=expired, codec=self._codec)

    def _revoke(self, consumer: Consumer, taken: list[TopicPartition]) -> None:
        if not self._broken:
            self._publish()
        self._drop([tp.partition for tp in taken])
        consumer.incremental_unassign(taken)

    def _lose(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        log.warning("partitions were lost; their next owner goes on from what was published last", partitions=len(lost))
        self._drop([tp.partition for tp in lost])
        consumer.incremental_unassign(lost)

    def _drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if (part := self._partitions.pop(number, None)) is not None:
                part.close()

    def _show(self) -> None:
        self._metrics.show(score for part in self._partitions.values() for score in part.scores.scores)
        self._metrics.lag.clear()
        for part in self._partitions.values():
            at = TopicPartition(self._rankings, part.number)
            _, high = self._consumer.get_watermark_offsets(at, cached=True)
            if high >= 0:
                self._metrics.lag.labels(partition=str(part.number)).set(max(0, high - part.position))


def _transactional(common: Mapping[str, Any], name: str) -> Producer:
    return Producer(
        {**common, "transactional.id": name, "transaction.timeout.ms": _TRANSACTION_MS, "linger.ms": 0},
        logger=logging.getLogger("librdkafka"),
    )


def _tell(error: Any) -> None:
    log.warning("kafka", error=error.str())
