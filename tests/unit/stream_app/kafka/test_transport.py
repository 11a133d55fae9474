"""What a consumer counts as done, and as its own; what it does on a real Kafka is in the integration tests."""

import asyncio
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
from faust.types import TP

from stream_app.kafka.click_reader import Record
from stream_app.kafka.transport import Chunk, ChunkConsumer, Fetch, _ChunkConsumerThread, _ReadOffsets

CLICKS, CHANGELOG = TP("clicks", 0), TP("changelog", 0)
GENERATION = 5


class Thread:
    """aiokafka's, as far as a consumer asks it."""

    generation = GENERATION
    partitions: frozenset[TP] = frozenset({CLICKS, CHANGELOG})
    is_started = True

    def group_generation(self) -> int:
        return self.generation

    def assigned(self) -> frozenset[TP]:
        return self.partitions


def consumer_of(thread: Thread | None = None) -> Any:
    """A consumer that reads nothing."""
    consumer: Any = ChunkConsumer.__new__(ChunkConsumer)
    consumer.app = SimpleNamespace(
        clicks_topic="clicks",
        consumer_generation_id=GENERATION,
        sessions=SimpleNamespace(changelog_topic_name="changelog"),
        topics=SimpleNamespace(acks_enabled_for=lambda _: True),
    )
    consumer.reader = SimpleNamespace(passed={})
    consumer._thread = thread or Thread()
    consumer._settled = {}
    consumer._committed_offset = defaultdict(lambda: None)
    consumer._acked, consumer._acked_index = defaultdict(list), defaultdict(set)
    consumer._unacked_messages, consumer._waiting_for_ack, consumer._n_acked = set(), None, 0
    return consumer


def records_at(*offsets: int) -> list[Record]:
    return [Record(offset, timestamp=0, timestamp_type=0, key=b"s", value=b"") for offset in offsets]


def acknowledge(consumer: Any, *offsets: int, durable: bool = True) -> bool:
    of, message = consumer._chunk(CLICKS, records_at(*offsets), GENERATION)
    of.durable = durable
    return bool(consumer.ack(message))


def test_a_chunk_is_done_with_its_last_click_once_it_is_durable() -> None:
    consumer = consumer_of()
    assert consumer.settled(CLICKS) is None
    assert not acknowledge(consumer, 3, 4, durable=False)
    assert consumer.settled(CLICKS) is None
    assert acknowledge(consumer, 3, 4)
    assert consumer.settled(CLICKS) == 5
    assert acknowledge(consumer, 0, 1, 2)  # redelivered
    assert consumer.settled(CLICKS) == 5
    assert consumer._new_offset(CLICKS) == 5


def test_a_fetch_is_never_done_whatever_faust_makes_of_its_end() -> None:
    consumer = consumer_of()
    [(_, message)] = consumer._messages({CLICKS: records_at(3, 4)}, GENERATION)
    assert isinstance(message.value, Fetch)
    assert not consumer.ack(message)
    assert consumer.settled(CLICKS) is None


@pytest.mark.parametrize(
    ("settled", "done"),
    [
        (None, None),
        (3, 3),  # clicks before what was passed over are on their way
        (5, 8),
        (6, 8),
        (8, 8),
        (9, 9),
    ],
)
def test_what_was_passed_over_is_done_with_the_click_before_it(settled: int | None, done: int | None) -> None:
    """Not sooner: a commit behind clicks in flight would lose them with the worker."""
    consumer = consumer_of()
    consumer.reader.passed = {CLICKS: (5, 8)}
    consumer._settled = {} if settled is None else {CLICKS: settled}
    assert consumer.settled(CLICKS) == done


async def test_clicks_that_are_read_again_count_as_done_no_more() -> None:
    """Kafka had lost what was acknowledged: a commit that stays behind those that came since would lose these."""

    async def nothing(*_: Any) -> dict[TP, Any]:
        return {}

    consumer, second = consumer_of(), TP("clicks", 1)
    consumer.app.tables = SimpleNamespace(actives_ready=True)
    consumer.app.pipeline = SimpleNamespace(wants_more=nothing)
    consumer._thread.reading = nullcontext
    consumer.reader = SimpleNamespace(read=nothing, went_back={CLICKS: 41}, passed={second: (5, 8)})
    consumer._settled, consumer._committed_offset = {CLICKS: 50, second: 5}, {CLICKS: 50, second: 5}
    assert await consumer._fetch({CLICKS, second}, 0.1) == {}
    assert consumer.reader.went_back == {}
    assert consumer._filter_committable_offsets(consumer._filter_tps_with_pending_acks()) == {CLICKS: 41, second: 8}
    assert acknowledge(consumer, 41, 42)
    assert consumer.settled(CLICKS) == 43


@pytest.mark.parametrize(
    "lost", [{"generation": GENERATION + 1}, {"generation": -1}, {"partitions": frozenset({CHANGELOG})}]
)
def test_a_partition_is_a_workers_own_as_long_as_the_group_says_so(lost: dict[str, Any]) -> None:
    thread = Thread()
    consumer = consumer_of(thread)
    assert consumer.owns(CLICKS, GENERATION)
    assert not consumer.owns(CLICKS, GENERATION - 1)
    for name, value in lost.items():
        setattr(thread, name, value)
    assert not consumer.owns(CLICKS, GENERATION)
    vars(thread).clear()
    consumer.app.consumer_generation_id += 1
    assert not consumer.owns(CLICKS, GENERATION)


def test_the_clicks_of_a_fetch_are_one_message_and_others_one_a_chunk_or_record() -> None:
    consumer = consumer_of()
    consumer._to_message = lambda tp, record: (tp, record.offset)
    other, second = TP("other", 0), TP("clicks", 1)
    records = {
        CHANGELOG: records_at(1, 2),
        CLICKS: records_at(3, 4),
        second: records_at(7),
        other: records_at(8, 9),
        TP("clicks", 2): [],
    }
    (tp, clicks), (_, rows), *others = consumer._messages(records, GENERATION)
    assert (tp, [one.tp for one, _ in clicks.value.chunks]) == (CLICKS, [CLICKS, second])
    assert [message.offset for _, message in clicks.value.chunks] == [4, 7]
    assert {one.generation for one, _ in clicks.value.chunks} == {GENERATION}
    assert isinstance(rows.value, Chunk)
    assert others == [(other, (other, 8)), (other, (other, 9))]


def test_clicks_that_are_read_again_in_shorter_chunks_are_not_dropped() -> None:
    read = _ReadOffsets("clicks")
    read[CLICKS] = read[CHANGELOG] = 9
    assert (read[CLICKS], read[CHANGELOG]) == (None, 9)


async def test_a_generation_begins_when_the_fetch_of_the_last_one_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clicks would come behind the seek, and the position of the next fetch behind them."""
    happened: list[str] = []

    async def prepare(_: str) -> None:
        happened.append("read anew")

    async def assigned(*_: Any) -> None:
        happened.append("assigned")

    monkeypatch.setattr("faust.transport.consumer.Consumer.on_partitions_assigned", assigned)
    consumer = consumer_of()
    consumer.reader = SimpleNamespace(prepare=prepare)
    consumer._no_fetch = asyncio.Event()
    beginning = asyncio.create_task(consumer.on_partitions_assigned({CLICKS}, GENERATION + 1))
    for _ in range(5):
        await asyncio.sleep(0)
    assert happened == []
    consumer._no_fetch.set()
    await beginning
    assert happened == ["read anew", "assigned"]


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_worker_that_fails_keeps_its_place_for_its_next_start(
    monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    async def stopped(_: Any) -> None: ...

    monkeypatch.setattr("faust.transport.drivers.aiokafka.AIOKafkaConsumerThread.on_thread_stop", stopped)
    thread, left = _ChunkConsumerThread.__new__(_ChunkConsumerThread), list[bool]()
    thread.app = SimpleNamespace(leaves_group=leaves)
    thread.membership = cast(Any, SimpleNamespace(leave=lambda: left.append(True)))
    await thread.on_thread_stop()
    assert left == [True] * leaves


@pytest.mark.parametrize(("fenced", "generation"), [(False, GENERATION), (True, -1)])
def test_a_worker_whose_place_another_has_is_of_no_generation(fenced: bool, generation: int) -> None:
    """aiokafka remembers the last one for a while."""
    thread = _ChunkConsumerThread.__new__(_ChunkConsumerThread)
    thread.membership = cast(Any, SimpleNamespace(fenced=fenced))
    coordinator = SimpleNamespace(generation=GENERATION)
    thread._ensure_consumer = lambda: cast(Any, SimpleNamespace(_coordinator=coordinator))
    assert thread.group_generation() == generation
