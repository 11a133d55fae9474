"""Brokers that are choosing a leader are asked again; those that refuse are not."""

from collections.abc import Iterator
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.kafka.watermarks import offsets_for_times, watermarks

AT = TopicPartition("clicks", 3)


class Broker:
    """Answers in turn; an error of one partition comes as an exception, or within the answer."""

    def __init__(self, *answers: Any) -> None:
        self._answers: Iterator[Any] = iter(answers)

    def get_watermark_offsets(self, _: TopicPartition, **__: float) -> Any:
        answer = next(self._answers)
        if isinstance(answer, KafkaError):
            raise KafkaException(answer)
        return answer

    def offsets_for_times(self, _: list[TopicPartition], **__: float) -> Any:
        return [next(self._answers)]


class Place:
    """What the client answers for a partition."""

    partition = 3

    def __init__(self, offset: int, error: KafkaError | None = None) -> None:
        self.offset, self.error = offset, error


def broker(*answers: Any) -> Consumer:
    return cast(Consumer, Broker(*answers))


MOVES = KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION)
DENIED = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)


def test_a_leader_is_waited_for() -> None:
    assert watermarks(broker(MOVES, MOVES, (2, 7)), AT, timeout=60) == (2, 7)
    found = offsets_for_times(broker(Place(-1, MOVES), Place(5)), [AT], timeout=60)
    assert found == {3: 5}, "an answer without an offset must not be taken for a partition without such records"
    assert offsets_for_times(broker(Place(-1)), [AT], timeout=60) == {3: -1}


def test_what_does_not_pass_is_told_at_once() -> None:
    with pytest.raises(KafkaException, match="TOPIC_AUTHORIZATION_FAILED"):
        watermarks(broker(DENIED, (2, 7)), AT, timeout=60)
    with pytest.raises(KafkaException, match="TOPIC_AUTHORIZATION_FAILED"):
        offsets_for_times(broker(Place(-1, DENIED), Place(5)), [AT], timeout=60)
    with pytest.raises(KafkaException, match="NOT_LEADER"):
        watermarks(broker(MOVES, (2, 7)), AT, timeout=-1)
