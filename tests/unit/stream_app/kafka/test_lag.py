"""What lag is told when Kafka answers for some partitions, or not at all."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from faust.types import TP
from structlog.testing import capture_logs

from stream_app.kafka import lag as lag_module
from stream_app.kafka.lag import Lag
from stream_app.kafka.transport import ChunkConsumer

CLICKS = [TP("clicks", n) for n in range(2)]


class FakeKafka:
    """Ends of partitions; those without one have no leader."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.ends: dict[int, int] = {}
        self.asked = 0

    def list_offsets(self, asked: Mapping[TopicPartition, Any], **_: Any) -> dict[TopicPartition, "Future[Any]"]:
        self.asked += 1
        return {one: self._answer(one.partition) for one in asked}

    def _answer(self, partition: int) -> "Future[Any]":
        answer: Future[Any] = Future()
        if partition in self.ends:
            answer.set_result(SimpleNamespace(offset=self.ends[partition]))
        else:
            answer.set_exception(KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE)))
        return answer


async def test_a_partition_without_a_leader_keeps_the_end_that_was_told_last(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka, assigned = FakeKafka(), set(CLICKS)
    fetched: dict[TP, int] = {}
    consumer = SimpleNamespace(assigned_clicks=lambda: assigned, settled=lambda _: 10, end_offset=fetched.get)
    monkeypatch.setattr(lag_module, "AdminClient", lambda *_, **__: kafka)
    lag = Lag({}, group="g", consumer=cast(ChunkConsumer, consumer), every=0.001)

    async def looked() -> None:
        before = kafka.asked
        while kafka.asked < before + 2:
            await asyncio.sleep(0)

    with capture_logs() as logs:
        lag.start()
        await looked()
        assert lag.behind() == {}
        kafka.ends = {0: 15, 1: 30}
        await looked()
        assert lag.behind() == {0: 5, 1: 20}
        kafka.ends = {1: 31}
        await looked()
        assert lag.behind() == {0: 5, 1: 21}
        fetched[CLICKS[1]] = 40  # the consumer has heard of more
        assert lag.behind() == {0: 5, 1: 30}
        assigned.remove(CLICKS[0])
        assert lag.behind() == {1: 30}
        lag.stop()
    told = [line["event"] for line in logs]
    assert len(told) == 2, "each time that answers cease, and not at every question"
    assert all("where partitions end" in event for event in told)
