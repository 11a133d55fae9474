"""A Kafka that does not answer for a while, and waiting for it."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

import structlog
from confluent_kafka import KafkaError

from trainer.errors import KafkaAwayError, StopRequested

log = structlog.get_logger(__name__)

PATIENCE_SECONDS: Final = 900.0
"""A cycle waits so long for a Kafka that is away before it has failed."""
_LONGEST_PAUSE: Final = 60.0

_AWAY: Final = (
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError._NOENT,  # "No leaders found": what a question about offsets is answered when all brokers went
)

T = TypeVar("T")


def is_away(error: KafkaError) -> bool:
    """Whether the brokers are out of reach, or not ready, rather than refusing what was asked."""
    return error.code() in _AWAY or (error.retriable() and error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART)


def waiting_out(step: Callable[[], T], stopping: Callable[[], bool], *, patience: float = PATIENCE_SECONDS) -> T:
    """The result of a step, which is repeated at growing intervals while Kafka does not answer.

    Raises KafkaAwayError once that has gone on for `patience` seconds, and StopRequested.
    """
    deadline = time.monotonic() + patience
    pause = 1.0
    while True:
        try:
            return step()
        except KafkaAwayError as error:
            if time.monotonic() + pause > deadline:
                raise
            log.warning("Kafka does not answer; trying again", seconds=pause, error=str(error))
            sleep(pause, stopping)
            pause = min(2 * pause, _LONGEST_PAUSE)


def sleep(seconds: float, stopping: Callable[[], bool]) -> None:
    """Raises StopRequested as soon as `stopping` says so."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stopping():
            raise StopRequested
        time.sleep(min(left, 0.2))
