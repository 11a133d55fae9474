"""The scores topic from the trainer's side: the newest score of each key, kept up to date."""

import logging
import time
from types import TracebackType
from typing import Final, Self

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from schemas.config.settings import KafkaConnection
from schemas.errors import MessageError
from schemas.kafka.absent import why_absent
from schemas.kafka.unread import Unread
from schemas.messages.score import Score, decode_score
from trainer.errors import CollectError, KafkaAwayError
from trainer.service.outage import is_away

log = structlog.get_logger(__name__)

_TIMEOUT_SECONDS: Final = 60.0
_WAIT_SECONDS: Final = 1.0


class ScoresTopic:
    """A context manager. `keep_ms` is how long before the newest window others are remembered."""

    def __init__(self, connection: KafkaConnection, topic: str, *, group: str, keep_ms: int) -> None:
        self._topic, self._keep_ms = topic, keep_ms
        self._newest: dict[bytes | None, Score] = {}
        self._consumer = Consumer(
            {**connection.plain_consumer(group, to_the_end=True), "fetch.wait.max.ms": 100},
            logger=logging.getLogger("librdkafka"),
        )
        self._unread: Unread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def scores(self) -> list[Score]:
        """What is there now; the first time that is the whole topic. Raises CollectError."""
        if self._unread is None:
            self._unread = self._begin()
        silent = 0.0
        while True:
            messages = self._consumer.consume(10_000, _WAIT_SECONDS)
            for message in messages:
                self._unread.take(message)
                if (error := message.error()) is None:
                    self._take(message.key(), message.value(), message.offset())
                elif error.code() != KafkaError._PARTITION_EOF and not is_away(error):
                    raise CollectError(f"the topic {self._topic} cannot be read: {error.str()}")
            silent = 0.0 if messages else silent + _WAIT_SECONDS
            if not self._unread and (silent or len(messages) < 10_000):
                break
            if silent > _TIMEOUT_SECONDS:
                raise KafkaAwayError(f"the topic {self._topic}: cannot be read to its end; is Kafka running?")
        oldest = max((score.window_start for score in self._newest.values()), default=0) - self._keep_ms
        self._newest = {key: score for key, score in self._newest.items() if score.window_start >= oldest}
        return list(self._newest.values())

    def _begin(self) -> Unread:
        """Assign every partition from its beginning."""
        try:
            found = self._consumer.list_topics(self._topic, timeout=_TIMEOUT_SECONDS).topics[self._topic]
            starts = [TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in found.partitions]
            unread = Unread.of(self._consumer, starts, timeout=_TIMEOUT_SECONDS)
        except KafkaException as error:
            kind = KafkaAwayError if is_away(error.args[0]) else CollectError
            raise kind(f"Kafka does not answer: {error.args[0].str()}") from error
        if found.error is not None:
            raise CollectError(why_absent(self._topic, found.error))
        self._consumer.assign(starts)
        return unread

    def _take(self, key: bytes | None, value: bytes | None, offset: int) -> None:
        try:
            score = decode_score(value)
        except MessageError as error:
            log.warning("a score cannot be read and counts for nothing", offset=offset, error=str(error))
            return
        if score.has_begun(time.time_ns() // 1_000_000):
            self._newest[key] = score
        else:
            log.warning("a score of a window in the future counts for nothing", offset=offset)
