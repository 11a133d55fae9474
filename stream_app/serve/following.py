"""Follows compacted topics that every worker needs whole: from their beginning, and then as they grow.

A plain consumer without a group: an agent would hand each record to one worker only.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.kafka.absent import why_absent
from schemas.kafka.unread import Unread
from schemas.messages.refused import RecordRefusedError
from stream_app.errors import StreamError
from stream_app.serve.metrics import Metrics

log = structlog.get_logger(__name__)

_TOGETHER: Final = 1000  # records; who ranks may have to wait until so many are taken in
_WAIT_SECONDS: Final = 0.1  # for so many
_METADATA_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 1.0
_MOST_TOLD: Final = 100  # refused records, one line each


class FollowedTopicError(StreamError):
    """A topic is not as a worker needs it."""


class TopicFollower(ABC):
    """Reads topics of one partition each on a thread of its own; `what` they are, for people.

    `consumer_config` is that of a consumer without a group, for librdkafka. A record that cannot be used is refused,
    counted and told; what its key had before stays.

    Attributes:
        topics: their names.
        waiting_for: what has not been read yet of what was there at the start; None once everything is.
    """

    def __init__(
        self,
        *,
        consumer_config: Mapping[str, Any],
        what: str,
        topics: Sequence[str],
        metrics: Metrics,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        name = what.replace(" ", "-")
        self._config = {
            **consumer_config,
            "queued.max.messages.kbytes": 16_384,  # of a million items that are read at the start
        }
        self.what = what
        self.topics = topics
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{name}-follower", daemon=True)
        self._refused = 0
        self._applied = dict.fromkeys(topics, -1)  # offset of the newest record taken in
        self.waiting_for: str | None = f"{what} have not been read yet"

    @abstractmethod
    def _take_in(self, records: list[Message]) -> None:
        """Use these records, in order."""

    def _missing(self) -> str | None:
        """What the topics must hold, and do not, before the worker may begin."""
        return None

    def start(self) -> None:
        """Start following."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def is_ready(self) -> bool:
        """Whether everything has been read that was there at the start."""
        return self.waiting_for is None

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001 - the thread's edge: no change would be heard of from here on
            self._on_fatal(error)

    def _follow(self) -> None:
        consumer = Consumer(self._config, logger=logging.getLogger("librdkafka"))
        try:
            if (unread := self._assign(consumer)) is None:
                return
            while not self._stopping.is_set():
                records = []
                for message in consumer.consume(_TOGETHER, _WAIT_SECONDS):
                    if unread:
                        unread.take(message)
                    if (error := message.error()) is None:
                        records.append(message)
                    elif error.code() != KafkaError._PARTITION_EOF:
                        log.warning(f"topics of {self.what}", error=error.str())
                if records:
                    self._take_in(records)
                if not unread and not self.is_ready:
                    self._tell_whether_ready()
        finally:
            consumer.close()

    def _assign(self, consumer: Consumer) -> Unread | None:
        """Begin to read; None where it was told to stop before it could."""
        for topic in self.topics:
            while not self._stopping.is_set():
                try:
                    found = consumer.list_topics(topic, timeout=_METADATA_SECONDS).topics[topic]
                except KafkaException as error:
                    self._wait(f"the brokers do not answer: {error.args[0].str()}")
                    self._stopping.wait(_RETRY_SECONDS)  # a connection that is lost is told at once
                    continue
                if len(found.partitions) == 1:
                    break
                if found.partitions:
                    raise FollowedTopicError(
                        f"topic {topic} has {len(found.partitions)} partitions and must have 1, so that its records "
                        "have one order: delete it, run `stream-app topics` and publish its records again"
                    )
                self._wait(why_absent(topic, found.error))
                self._stopping.wait(_RETRY_SECONDS)
        starts = [TopicPartition(topic, 0, OFFSET_BEGINNING) for topic in self.topics]
        while not self._stopping.is_set():
            try:
                unread = Unread.of(consumer, starts, timeout=_METADATA_SECONDS)
            except KafkaException as error:
                self._wait(f"the brokers do not answer: {error.args[0].str()}")
                self._stopping.wait(_RETRY_SECONDS)
                continue
            consumer.assign(starts)
            return unread
        return None

    def _refuse(self, message: Message, error: RecordRefusedError) -> None:
        self._metrics.refused_records.labels(topic=message.topic(), reason=error.reason.value).inc()
        self._refused += 1
        if self._refused <= _MOST_TOLD:
            log.error(
                "a record was refused; what its key had before stays",
                topic=message.topic(),
                offset=message.offset(),
                key=(message.key() or b"").decode(errors="replace")[:256],
                error=str(error),
                more="further ones are only counted" if self._refused == _MOST_TOLD else None,
            )

    def _tell_whether_ready(self) -> None:
        if (missing := self._missing()) is not None:
            self._wait(missing)
            return
        self.waiting_for = None
        log.info(f"{self.what} read", **{topic: offset + 1 for topic, offset in self._applied.items()})

    def _wait(self, reason: str) -> None:
        if reason != self.waiting_for:
            self.waiting_for = reason
            log.warning(f"waiting for {self.what}; no click is consumed until they are read", reason=reason)
