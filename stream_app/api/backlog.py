"""How many clicks no worker has acknowledged yet, as Kafka knows it. Asked only while somebody looks."""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

_KEPT_SECONDS: Final = 2.0
_ANSWER_SECONDS: Final = 5.0


class Waiting(msgspec.Struct):
    """Clicks of a partition that wait; None where no worker has acknowledged any yet."""

    partition: int
    clicks: int | None


class Backlog:
    """Compares the end of each partition of the clicks with the offset that the workers' group has committed.

    Needs Kafka's permission to describe that group; without it, or without an answer, `problem` says what is missing.
    """

    def __init__(self, connection: Mapping[str, Any], *, topic: str, group: str) -> None:
        self._connection, self._topic, self._group = connection, topic, group
        self._admin: AdminClient | None = None
        self._asking = asyncio.Lock()
        self._asked = -_KEPT_SECONDS
        self._found: list[Waiting] = []
        self.problem: str | None = None

    async def by_partition(self) -> list[Waiting]:
        """As it was at most two seconds ago."""
        async with self._asking:
            if time.monotonic() - self._asked >= _KEPT_SECONDS:
                try:
                    self._found, self.problem = await self._ask(), None
                except KafkaException as error:
                    self._found, self.problem = [], f"Kafka does not tell how far workers are: {error.args[0].str()}"
                self._asked = time.monotonic()
            return self._found

    async def _ask(self) -> list[Waiting]:
        if self._admin is None:
            self._admin = AdminClient(dict(self._connection), logger=logging.getLogger("librdkafka"))
        asked = [ConsumerGroupTopicPartitions(self._group)]
        [answer] = self._admin.list_consumer_group_offsets(asked, request_timeout=_ANSWER_SECONDS).values()
        described = self._admin.describe_topics(TopicCollection([self._topic]), request_timeout=_ANSWER_SECONDS)
        topic = await asyncio.wrap_future(described[self._topic])
        specs = {TopicPartition(self._topic, one.id): OffsetSpec.latest() for one in topic.partitions}
        ends = self._admin.list_offsets(specs, request_timeout=_ANSWER_SECONDS)
        group = await asyncio.wrap_future(answer)
        committed = {one.partition: one.offset for one in group.topic_partitions if one.topic == self._topic}
        found = {one.partition: (await asyncio.wrap_future(end)).offset for one, end in ends.items()}
        return [
            Waiting(number, max(0, end - committed[number]) if committed.get(number, -1) >= 0 else None)
            for number, end in sorted(found.items())
        ]
