"""How far a worker is behind, partition by partition, whether its clicks move or stand still."""

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Any, Final

import structlog
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from faust.types import TP

from stream_app.kafka.transport import ChunkConsumer

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 10.0


class Lag:
    """Knows the ends of this worker's partitions, and from them how many clicks wait in each.

    The consumer hears of an end with each fetch, but while fetched clicks wait here their partition is not fetched, and
    its end would stand still with it. So Kafka is asked too, over a connection of its own: no answer holds a click up.

    Args:
        connection: bootstrap servers and security.
        group: the consumer group, for where a partition stands that is assigned and not sought yet.
        consumer: of this worker.
        every: seconds between two questions.
    """

    def __init__(
        self,
        connection: Mapping[str, Any],
        *,
        group: str,
        consumer: ChunkConsumer,
        every: float = _LOOK_SECONDS,
    ) -> None:
        self._admin = AdminClient(dict(connection), logger=logging.getLogger("librdkafka"))
        self._group = group
        self._consumer = consumer
        self._every = every
        self._ends: dict[TP, int] = {}
        self._starts: dict[TP, int] = {}
        self._unanswered = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Ask from now on."""
        self._task = asyncio.create_task(self._watch(), name="lag")

    def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()

    def behind(self) -> dict[int, int]:
        """Clicks between the last settled one and the end, by the number of each partition that is assigned now.

        Those of a transaction that is still open count too: they hold back what comes behind them. A partition is left
        out as long as nobody has told where it ends.
        """
        consumer, behind = self._consumer, {}
        for tp in consumer.assigned_clicks():
            settled = consumer.settled(tp)
            start = self._starts.get(tp) if settled is None else settled
            ends = [end for end in (self._ends.get(tp), consumer.end_offset(tp)) if end is not None]
            if start is not None and ends:
                behind[tp.partition] = max(0, max(ends) - start)
        return behind

    async def _watch(self) -> None:
        while True:
            errors: list[BaseException] = []
            try:
                await self._look(errors)
            except Exception as error:  # noqa: BLE001 - the loop's edge: told, and asked again
                errors.append(error)
            if errors and not self._unanswered:
                log.warning(
                    "Kafka does not tell where partitions end; their lag is of what it told last", error=str(errors[0])
                )
            self._unanswered = bool(errors)
            await asyncio.sleep(self._every)

    async def _look(self, errors: list[BaseException]) -> None:
        consumer = self._consumer
        mine = consumer.assigned_clicks()
        ends = await self._offsets(mine, OffsetSpec.latest(), errors)
        self._ends = {tp: self._ends[tp] for tp in mine if tp in self._ends} | ends
        unsought = {tp for tp in mine if consumer.settled(tp) is None}
        committed = await self._committed(unsought)
        first = await self._offsets(unsought - committed.keys(), OffsetSpec.earliest(), errors)
        self._starts = committed | first

    async def _offsets(
        self, partitions: Collection[TP], spec: OffsetSpec, errors: list[BaseException]
    ) -> dict[TP, int]:
        """Of those partitions whose leader answers."""
        if not partitions:
            return {}
        asked = {TopicPartition(tp.topic, tp.partition): spec for tp in partitions}
        answers = self._admin.list_offsets(asked, request_timeout=_ANSWER_SECONDS)
        found = await asyncio.gather(*map(asyncio.wrap_future, answers.values()), return_exceptions=True)
        offsets = {}
        for one, result in zip(answers, found, strict=True):
            if isinstance(result, BaseException):
                errors.append(result)
            else:
                offsets[TP(one.topic, one.partition)] = int(result.offset)
        return offsets

    async def _committed(self, partitions: Collection[TP]) -> dict[TP, int]:
        if not partitions:
            return {}
        asked = ConsumerGroupTopicPartitions(self._group, [TopicPartition(tp.topic, tp.partition) for tp in partitions])
        [answer] = self._admin.list_consumer_group_offsets([asked], request_timeout=_ANSWER_SECONDS).values()
        found = await asyncio.wrap_future(answer)
        return {TP(one.topic, one.partition): one.offset for one in found.topic_partitions if one.offset >= 0}
