"""Kafka by a client that no part of the product uses (kafka-python): clicks in, rankings out, and a look at topics."""

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Final

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from tests.harness.history import History
from tests.patience import PATIENCE

Record = tuple[bytes, bytes]
"""Key and value."""
_TOGETHER: Final = 20
_ONE_TRANSACTION: Final = 100
_FOR_EVER_MS: Final = 3_600_000
_AGAIN_MS: Final = 500
_HOUR_MS: Final = 3_600_000
_PREFERRED: Final = 0
"""Kind of election."""
_senders = itertools.count()


def shop(
    rng: random.Random, items: Sequence[str], *, name: str = "s", open_sessions: int = 200, ago_ms: int = 5 * _HOUR_MS
) -> Iterator[Record]:
    """Clicks without end, of sessions that come and go: long, interrupted and late ones, some of unknown items.

    They begin so long ago; those of now go by the clock, and are not interrupted, for that would be in the future.
    """
    weights = [1 / (rank + 1) for rank in range(len(items))]
    time_of: dict[str, int] = {}
    visitors: list[str] = []
    now = int(time.time() * 1000) - ago_ms
    for n in range(10**12):
        now = now + rng.randrange(5) if ago_ms else int(time.time() * 1000)
        if len(visitors) < open_sessions or rng.random() < 0.1:
            visitors.append(f"{name}{n}")
        place = rng.randrange(len(visitors))
        visitor = visitors[place]
        if len(visitors) > open_sessions and rng.random() < 0.5:
            visitors.pop(place)
        at = max(now, time_of.get(visitor, 0)) + rng.choice([0, 500, 4000, -3000])
        if ago_ms and rng.random() < 0.01:
            at += 40 * 60_000  # a pause that ends the session
        time_of[visitor] = max(at, time_of.get(visitor, 0))
        [item] = rng.choices(items, weights)
        yield record(visitor, item, at, event=None)


def bot(rng: random.Random, items: Sequence[str], name: str = "bot") -> Iterator[Record]:
    """Clicks of one session, without end."""
    now = int(time.time() * 1000) - 5 * _HOUR_MS
    for n in range(10**12):
        yield record(name, rng.choice(items), now + n, event=None)


def record(session_id: str, item_id: str, timestamp: int, *, event: str | None) -> Record:
    """A click as docs/messages.md has it."""
    click = {"session_id": session_id, "item_id": item_id, "timestamp": timestamp}
    return session_id.encode(), json.dumps(click | ({} if event is None else {"event_id": event})).encode()


class Running(threading.Thread):
    """A thread whose error comes out where it is joined: without pytest nobody else would say so."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Do the work."""
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - whoever joins it is told
            self._error = error

    def join(self, timeout: float | None = None) -> None:
        """As every thread's, and raises what ended it."""
        super().join(timeout)
        if self._error is not None:
            raise self._error


class Sender:
    """Sends records at a rate, in a thread, until it is stopped; the history has each, and what Kafka said of it.

    Attributes:
        records: those that are still to be sent, once it is stopped.
        per_second: how many.
        sent: how many were.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        records: Iterable[Record],
        history: History,
        *,
        per_second: float,
        compression: str | None = None,
        transactions: str | None = None,
    ) -> None:
        """`transactions`: the id under which clicks are sent in transactions, of which every third is aborted."""
        self._topic, self._history, self._transactions = topic, history, transactions
        self.records, self.per_second = records, per_second
        self._stopped = threading.Event()
        self._failed: list[BaseException] = []
        self.sent, self._name = 0, next(_senders)
        self._producer = KafkaProducer(
            bootstrap_servers=bootstrap,
            acks="all",
            enable_idempotence=True,
            compression_type=compression,
            transactional_id=transactions,
            linger_ms=5,
            max_request_size=16 * 2**20,
            max_block_ms=_FOR_EVER_MS,
            delivery_timeout_ms=_FOR_EVER_MS,
            reconnect_backoff_max_ms=_AGAIN_MS,
        )
        self._thread = Running(self._send if transactions is None else self._send_in_transactions, "sender")

    def stop(self) -> int:
        """No more; returns how many were sent, all of which Kafka has confirmed."""
        if not self._stopped.is_set():
            self._stopped.set()
            try:
                self._thread.join()
                self._producer.flush()
            finally:
                self._producer.close()
        if self._failed:
            raise self._failed[0]
        return self.sent

    def _paced(self) -> Iterator[tuple[str, Record]]:
        began = time.monotonic()
        for key, value in self.records:
            self.sent += 1
            yield f"{self._name}.{self.sent}", (key, value)
            if self.sent % _TOGETHER == 0:
                self._stopped.wait(began + self.sent / self.per_second - time.monotonic())
            if self._stopped.is_set():
                return

    def _send(self) -> None:
        for event, (key, value) in self._paced():
            self._history.note("sent", event=event)
            sending = self._producer.send(self._topic, key=key, value=value)
            sending.add_callback(self._acknowledge, event).add_errback(self._failed.append)

    def _acknowledge(self, event: str, metadata: Any) -> None:
        self._history.note("acknowledged", event=event, partition=metadata.partition, offset=metadata.offset)

    def _send_in_transactions(self) -> None:
        self._producer.init_transactions()
        under_way: list[tuple[str, Any]] = []
        number = 0
        for event, (key, value) in self._paced():
            if not under_way:
                self._producer.begin_transaction()
            self._history.note("sent", event=event)
            under_way.append((event, self._producer.send(self._topic, key=key, value=value)))
            if len(under_way) == _ONE_TRANSACTION:
                self._end_transaction(under_way, keep=number % 3 < 2)
                number, under_way = number + 1, []
        if under_way:
            self._end_transaction(under_way, keep=False)

    def _end_transaction(self, sent: Sequence[tuple[str, Any]], *, keep: bool) -> None:
        self._producer.flush()
        if not keep:
            self._producer.abort_transaction()
            return
        self._producer.commit_transaction()
        for event, sending in sent:
            self._acknowledge(event, sending.get(timeout=60))


class Receiver:
    """Writes every ranking that a consumer sees into the history, in a thread, until it is stopped.

    Attributes:
        count: how many there were.
    """

    def __init__(self, bootstrap: str, topic: str, history: History) -> None:
        self._bootstrap, self._topic, self._history = bootstrap, topic, history
        self._read: dict[int, int] = {}
        self.count = 0
        self._stopped = threading.Event()
        self._consumer = _reader(bootstrap)
        self._consumer.assign(_partitions(self._consumer, topic))
        self._consumer.seek_to_beginning()
        self._thread = Running(self._run, "receiver")

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._take()

    def _take(self) -> None:
        for partition, records in self._consumer.poll(timeout_ms=100).items():
            for one in records:
                self._history.received(partition.partition, one.offset, one.value)
                self._read[partition.partition] = one.offset + 1
            self.count += len(records)

    def catch_up(self) -> None:
        """Wait until the history has all that is in the topic now."""
        ends = end_offsets(self._bootstrap, self._topic)
        deadline = time.monotonic() + PATIENCE
        while any(self._read.get(partition, 0) < end for partition, end in ends.items()):
            assert self._thread.is_alive(), "the consumer of rankings has ended"
            assert time.monotonic() < deadline, "the consumer of rankings does not get on"
            time.sleep(0.05)

    def stop(self) -> None:
        """Read to the topic's end, and no further."""
        self.catch_up()
        self._stopped.set()
        self._thread.join()
        self._consumer.close()


def read_all(bootstrap: str, topic: str, start: dict[int, int] | None = None) -> Iterator[Any]:
    """Every committed record of a topic, each partition in order, from these offsets on if they are named."""
    consumer = _reader(bootstrap)
    try:
        partitions = _partitions(consumer, topic)
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        for partition in partitions:
            if start is not None:
                consumer.seek(partition, start[partition.partition])
        ends = consumer.end_offsets(partitions)
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            for records in consumer.poll(timeout_ms=500).values():
                yield from records
    finally:
        consumer.close()


def end_offsets(bootstrap: str, topic: str) -> dict[int, int]:
    """Where each partition of a topic ends."""
    consumer = _reader(bootstrap)
    try:
        ends = consumer.end_offsets(_partitions(consumer, topic))
        return {partition.partition: end for partition, end in ends.items()}
    finally:
        consumer.close()


def committed(bootstrap: str, group: str, topic: str) -> dict[int, tuple[int, int]]:
    """By partition what a group has acknowledged (0 before it has), and where the topic ends."""
    consumer = _reader(bootstrap, group_id=group)
    try:
        partitions = _partitions(consumer, topic)
        ends = consumer.end_offsets(partitions)
        return {one.partition: (consumer.committed(one) or 0, ends[one]) for one in partitions}
    finally:
        consumer.close()


def set_committed(bootstrap: str, group: str, topic: str, offset: int) -> None:
    """Set back what a group without members has acknowledged."""
    consumer = _reader(bootstrap, group_id=group)
    try:
        partitions = _partitions(consumer, topic)
        consumer.assign(partitions)
        consumer.commit({one: OffsetAndMetadata(offset, "", -1) for one in partitions})
    finally:
        consumer.close()


def delete_records(bootstrap: str, topic: str, below: dict[int, int]) -> None:
    """Delete the records below these offsets, as retention does."""
    with _admin(bootstrap) as admin:
        admin.delete_records({TopicPartition(topic, partition): offset for partition, offset in below.items()})


def delete_group(bootstrap: str, group: str) -> None:
    """Delete a group without members, with all that it has acknowledged, as brokers do after a while."""
    with _admin(bootstrap) as admin:
        admin.delete_groups([group])


def leaders(bootstrap: str, topic: str) -> dict[int, int]:
    """By partition, the broker that leads it."""
    with _admin(bootstrap) as admin:
        [told] = admin.describe_topics([topic])
        return {one["partition_index"]: one["leader_id"] for one in told["partitions"]}


def move_leaders_back(bootstrap: str) -> None:
    """Let each partition be led by the broker that should, after others had to."""
    with _admin(bootstrap) as admin:
        admin.elect_leaders(_PREFERRED)


def configure(bootstrap: str, topic: str, name: str, value: str | None) -> None:
    """Set a topic's setting; None takes it back."""
    change = {name: ("DELETE", None) if value is None else value}
    with _admin(bootstrap) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, change)])


def _admin(bootstrap: str) -> Any:
    return closing(KafkaAdminClient(bootstrap_servers=bootstrap))


def _reader(bootstrap: str, **config: Any) -> Any:
    return KafkaConsumer(
        bootstrap_servers=bootstrap,
        isolation_level="read_committed",
        enable_auto_commit=False,
        reconnect_backoff_max_ms=_AGAIN_MS,
        max_poll_records=5000,
        **config,
    )


def _partitions(consumer: Any, topic: str) -> list[Any]:
    return [TopicPartition(topic, partition) for partition in sorted(consumer.partitions_for_topic(topic) or ())]
