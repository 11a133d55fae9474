"""What the reader makes of librdkafka's messages, and how it keeps its distance, by clocks that the test moves."""

import asyncio
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition
from faust.types import TP
from structlog.testing import capture_logs

from stream_app.kafka import click_reader
from stream_app.kafka.click_reader import ClickReader, ClicksLostError, ClicksUnreadableError, Pace, Record
from tests.patience import PATIENCE

FIRST, SECOND = TP("clicks", 0), TP("clicks", 1)


@dataclass
class FakeMessage:
    """A click, or what librdkafka tells of its partition."""

    at: int
    tp: TP = FIRST
    code: int | None = None
    epoch: int | None = None

    def topic(self) -> str:
        return str(self.tp.topic)

    def partition(self) -> int:
        return int(self.tp.partition)

    def offset(self) -> int:
        return self.at

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_700_000_000_000 + self.at  # set by the broker

    def key(self) -> bytes:
        return b"s"

    def value(self) -> bytes:
        return b"%d" % self.at

    def leader_epoch(self) -> int | None:
        return self.epoch

    def error(self) -> KafkaError | None:
        return None if self.code is None else KafkaError(self.code)


@dataclass
class FakeConsumer:
    """librdkafka's, with a queue in the test's hands."""

    config: dict[str, Any]
    queue: deque[FakeMessage] = field(default_factory=deque)
    assigned: list[tuple[int, int]] = field(default_factory=list)
    leaders: dict[int, int] = field(default_factory=dict)
    """By partition, the epoch that it was assigned with."""
    polled: threading.Event = field(default_factory=threading.Event)
    answer: threading.Event = field(default_factory=threading.Event)
    begin: int = -1001
    end: int = -1001
    leaders_end: int = 0
    epochs: dict[int, int] = field(default_factory=dict)
    """Of the records of the first partition, by offset: what is looked up."""
    looked_up: list[int] = field(default_factory=list)
    silent: set[int] = field(default_factory=set)
    """Partitions whose leader does not answer a question for offsets."""
    closed: bool = False

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assigned = [(one.partition, one.offset) for one in partitions]
        self.leaders = {one.partition: one.leader_epoch for one in partitions if one.leader_epoch is not None}
        self.queue.clear()

    def look_up(self, offset: int) -> FakeMessage | None:
        self.looked_up.append(offset)
        there = [at for at in sorted(self.epochs) if at >= offset]
        return FakeMessage(there[0], epoch=self.epochs[there[0]]) if there else None

    def consume(self, most: int, _: float) -> list[FakeMessage]:
        return [self.queue.popleft() for _ in range(min(most, len(self.queue)))]

    def poll(self, _: float) -> FakeMessage | None:
        self.polled.set()
        assert self.answer.wait(PATIENCE)
        return self.queue.popleft() if self.queue else None

    def get_watermark_offsets(
        self, of: TopicPartition, *, cached: bool = False, timeout: float = 0.0
    ) -> tuple[int, int]:
        assert cached or timeout
        if self.closed:
            raise RuntimeError("Consumer closed")
        if of.partition in self.silent and not cached:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return self.begin, self.end if cached else self.leaders_end

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> list[FakeConsumer]:
    """The consumers that were made."""
    made: list[FakeConsumer] = []

    def make(config: dict[str, Any], **_: Any) -> FakeConsumer:
        made.append(FakeConsumer(config))
        return made[-1]

    def look_up(_: dict[str, Any], __: str, partition: int, offset: int, *, seconds: float) -> FakeMessage | None:
        if partition in made[-1].silent:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"no answer for {seconds:g} s"))
        return made[-1].look_up(offset)

    monkeypatch.setattr(click_reader, "Consumer", make)
    monkeypatch.setattr(click_reader, "first_from", look_up)
    return made


def reader_of(
    kafka: list[FakeConsumer], *, most: int = 100, expired: list[int] | None = None
) -> tuple[ClickReader, FakeConsumer]:
    lost = [] if expired is None else expired
    reader = ClickReader({}, most=most, on_look=lambda: None, on_expired=lost.append, patience=300.0)
    return reader, kafka[-1]


async def test_clicks_by_partition_in_order_and_never_more_than_asked_for(kafka: list[FakeConsumer]) -> None:
    reader, consumer = reader_of(kafka, most=3)
    await reader.assign({FIRST: 5, SECOND: None})
    assert consumer.assigned == [(0, 5), (1, OFFSET_BEGINNING)]
    consumer.queue += [FakeMessage(5), FakeMessage(0, SECOND), FakeMessage(6), FakeMessage(7)]
    found = await reader.read()
    assert {tp: [record.offset for record in records] for tp, records in found.items()} == {FIRST: [5, 6], SECOND: [0]}
    assert found[FIRST][0] == Record(5, 1_700_000_000_005, 1, b"s", b"5")
    assert [record.offset for record in (await reader.read())[FIRST]] == [7]
    assert reader.reads == 2  # the watchdog of an idle worker looks at it
    reader.close()


async def test_what_is_passed_over_behind_the_last_click(kafka: list[FakeConsumer]) -> None:
    """Marks of transactions, and clicks of aborted ones: the end comes without a click."""
    reader, consumer = reader_of(kafka)
    await reader.assign({FIRST: 5, SECOND: 3})
    consumer.queue += [FakeMessage(8, FIRST, KafkaError._PARTITION_EOF)]
    assert await reader.read() == {}
    assert reader.passed == {FIRST: (5, 8)}
    consumer.queue += [FakeMessage(8), FakeMessage(9, FIRST, KafkaError._PARTITION_EOF)]
    consumer.queue += [FakeMessage(3, SECOND), FakeMessage(6, SECOND, KafkaError._PARTITION_EOF)]
    await reader.read()
    assert reader.passed == {FIRST: (5, 8), SECOND: (4, 6)}  # there is nothing between 8 and 9 but the click
    await reader.assign({FIRST: 9})
    assert reader.passed == {}
    reader.close()


async def test_clicks_that_are_gone_are_told_of_and_those_that_are_left_are_read(kafka: list[FakeConsumer]) -> None:
    expired: list[int] = []
    reader, consumer = reader_of(kafka, expired=expired)
    await reader.assign({FIRST: 5, SECOND: None})
    consumer.begin, consumer.leaders_end = 30, 40
    consumer.queue += [FakeMessage(0, SECOND), FakeMessage(5, FIRST, KafkaError._AUTO_OFFSET_RESET)]
    await reader.read()
    with capture_logs() as logs:
        await reader.read()
    assert expired == [25]
    assert [(line["first"], line["last"]) for line in logs if "were lost" in line["event"]] == [(5, 29)]
    assert consumer.assigned == [(0, 30), (1, 1)]
    assert reader.passed == {FIRST: (5, 30)}
    consumer.queue += [FakeMessage(33, FIRST, KafkaError._PARTITION_EOF)]
    await reader.read()
    assert reader.passed == {FIRST: (5, 33)}
    consumer.queue += [FakeMessage(50, FIRST, KafkaError._AUTO_OFFSET_RESET)]
    await reader.assign({FIRST: 50})  # nothing of the old assignment counts any more
    consumer.queue += [FakeMessage(50, FIRST, KafkaError._AUTO_OFFSET_RESET)]
    await reader.read()
    with capture_logs() as logs:
        await reader.read()
    assert consumer.assigned == [(0, OFFSET_BEGINNING)]
    assert expired == [25]
    assert ["brokers lost records" in line["event"] for line in logs] == [True]
    reader.close()


async def test_clicks_are_read_on_from_where_a_later_leader_has_others(kafka: list[FakeConsumer]) -> None:
    reader, consumer = reader_of(kafka)
    consumer.begin, consumer.leaders_end = 30, 60
    consumer.epochs = {**dict.fromkeys(range(30, 41), 3), **dict.fromkeys(range(43, 60), 5)}
    for due, epoch, first in ((50, 3, 41), (70, 3, 41), (70, 5, 60), (41, 3, 41), (43, 3, 43)):
        await reader.assign({FIRST: due}, {FIRST: epoch})
        consumer.queue.append(FakeMessage(-1, FIRST, KafkaError._AUTO_OFFSET_RESET))
        await reader.read()
        with capture_logs() as logs:
            await reader.read()
        assert consumer.assigned == [(0, first)]
        lost = first != due
        assert reader.went_back == ({FIRST: first} if lost else {})
        assert ["brokers lost records" in line["event"] for line in logs] == [True] * lost
    reader.close()


async def test_a_leader_that_went_and_lost_nothing_costs_one_look_or_a_few_behind_the_mark_of_a_transaction(
    kafka: list[FakeConsumer],
) -> None:
    """Each took a tenth of a second, and every partition of a worker that started after its brokers had some twenty."""
    reader, consumer = reader_of(kafka)
    consumer.begin, consumer.leaders_end = 0, 30_000
    before, later = dict.fromkeys(range(20_000), 3), dict.fromkeys(range(20_000, 30_000), 5)
    for mark, looks in ((None, [19_999]), (19_999, [19_999, 19_997, 19_998, 19_999])):
        consumer.epochs = {offset: epoch for offset, epoch in (before | later).items() if offset != mark}
        consumer.looked_up.clear()
        await reader.assign({FIRST: 20_000}, {FIRST: 3})
        consumer.queue.append(FakeMessage(20_000, epoch=5))
        await reader.read()
        await reader.read()
        assert (consumer.looked_up, reader.went_back, consumer.assigned) == (looks, {}, [(0, 20_000)])
    consumer.epochs = before | dict.fromkeys(range(777, 30_000), 5)
    consumer.looked_up.clear()
    await reader.assign({FIRST: 20_000}, {FIRST: 3})
    consumer.queue.append(FakeMessage(20_000, epoch=5))
    await reader.read()
    await reader.read()
    assert reader.went_back == {FIRST: 777}
    assert len(consumer.looked_up) < 32
    reader.close()


async def test_others_are_read_between_two_looks_for_the_way_of_many_partitions(
    kafka: list[FakeConsumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the watchdog takes a worker that has to look for long for one that stands still, and so the next one."""
    monkeypatch.setattr(click_reader, "_TURN_SECONDS", 0.0)
    reader, consumer = reader_of(kafka)
    third = TP("clicks", 2)
    await reader.assign({FIRST: 5, SECOND: 6, third: 7})
    consumer.begin, consumer.leaders_end = 30, 40
    consumer.queue += [FakeMessage(5, tp, KafkaError._AUTO_OFFSET_RESET) for tp in (FIRST, SECOND)]
    await reader.read()
    await reader.read()
    assert consumer.assigned == [(0, 30), (1, 6), (2, 7)]
    reader._find_from += 60.0
    consumer.queue.append(FakeMessage(7, third))
    assert list(await reader.read()) == [third]
    reader._find_from = 0.0
    await reader.read()
    assert consumer.assigned == [(0, 30), (1, 30), (2, 8)]
    reader.close()


async def test_the_first_click_of_a_later_leader_is_looked_at(kafka: list[FakeConsumer]) -> None:
    reader, consumer = reader_of(kafka)
    consumer.begin, consumer.leaders_end = 0, 60
    for changed_at in (40, 50):  # before the click, and at it
        consumer.epochs = {**dict.fromkeys(range(changed_at), 3), **dict.fromkeys(range(changed_at, 60), 5)}
        await reader.assign({FIRST: 50, SECOND: 7}, {FIRST: 3, SECOND: 3})
        assert consumer.leaders == {0: 3, 1: 3}  # librdkafka may find out by itself
        consumer.queue += [FakeMessage(50, epoch=5), FakeMessage(7, SECOND, epoch=3), FakeMessage(8, SECOND, epoch=5)]
        assert [record.offset for record in (await reader.read())[SECOND]] == [7, 8]
        await reader.read()
        assert consumer.assigned == [(0, changed_at), (1, 9)]
        assert reader.went_back == ({FIRST: 40} if changed_at == 40 else {})
        consumer.queue.append(FakeMessage(changed_at, epoch=5))
        assert [record.offset for record in (await reader.read())[FIRST]] == [changed_at]
    reader.close()


async def test_a_worker_that_starts_at_the_end_goes_back_once_a_click_tells_that_others_lie_before_it(
    kafka: list[FakeConsumer],
) -> None:
    """As many have come as were lost. None of them is on its way, so there is no reason to end."""
    reader, consumer = reader_of(kafka)
    consumer.begin, consumer.leaders_end = 0, 51
    consumer.epochs = {**dict.fromkeys(range(41), 3), **dict.fromkeys(range(41, 51), 5)}
    await reader.assign({FIRST: 50}, {FIRST: 3})
    consumer.queue.append(FakeMessage(50, FIRST, KafkaError._PARTITION_EOF))
    assert await reader.read() == {}
    consumer.queue.append(FakeMessage(50, epoch=5))
    assert await reader.read() == {}
    assert await reader.read() == {}
    assert (reader.went_back, consumer.assigned) == ({FIRST: 41}, [(0, 41)])
    reader.close()


async def test_an_end_behind_clicks_that_are_to_be_read_again_passes_none_of_them_over(
    kafka: list[FakeConsumer],
) -> None:
    """Or the next commit would name it, and nobody would rank them once the worker were killed."""
    reader, consumer = reader_of(kafka)
    consumer.begin, consumer.leaders_end = 0, 60
    for changed_at in (40, 50):  # before the first of them, and at it
        consumer.epochs = {**dict.fromkeys(range(changed_at), 3), **dict.fromkeys(range(changed_at, 60), 5)}
        await reader.assign({FIRST: 50}, {FIRST: 3})
        consumer.queue += [*(FakeMessage(at, epoch=5) for at in range(50, 60))]
        consumer.queue.append(FakeMessage(60, FIRST, KafkaError._PARTITION_EOF))
        assert await reader.read() == {}
        assert reader.passed == {}
        assert await reader.read() == {}
        assert consumer.assigned == [(0, changed_at)]
        consumer.queue += [FakeMessage(at, epoch=5) for at in range(changed_at, 60)]
        assert len((await reader.read())[FIRST]) == 60 - changed_at
    reader.close()


async def test_a_worker_that_had_read_clicks_that_kafka_has_lost_ends(kafka: list[FakeConsumer]) -> None:
    """Its next start has none of them on their way."""
    reader, consumer = reader_of(kafka)
    consumer.begin, consumer.leaders_end = 0, 8
    for read in (FakeMessage(9, epoch=4), FakeMessage(9, FIRST, KafkaError._PARTITION_EOF)):
        await reader.assign({FIRST: 9})
        consumer.queue.append(read)
        await reader.read()
        consumer.queue.append(FakeMessage(-1, FIRST, KafkaError._AUTO_OFFSET_RESET))
        await reader.read()
        with pytest.raises(ClicksLostError, match=r"clicks partition 0 was read up to offset .*ends at 8"):
            await reader.read()
    assert reader.epochs == {}
    await reader.assign({FIRST: 9})
    consumer.queue.append(FakeMessage(9, epoch=4))
    await reader.read()
    assert reader.epochs == {FIRST: 4}
    reader.close()


async def test_a_partition_whose_leader_is_away_keeps_no_other_from_being_read(
    kafka: list[FakeConsumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    expired: list[int] = []
    reader, consumer = reader_of(kafka, expired=expired)
    third = TP("clicks", 2)
    await reader.assign({FIRST: 5, SECOND: 0, third: 7})
    consumer.begin, consumer.leaders_end, consumer.silent = 30, 40, {0}
    consumer.queue += [FakeMessage(at, tp, KafkaError._AUTO_OFFSET_RESET) for tp, at in ((FIRST, 5), (third, 7))]
    await reader.read()
    await reader.read()  # no answer
    consumer.queue.append(FakeMessage(0, SECOND))
    assert list(await reader.read()) == [SECOND]
    assert expired == []
    monkeypatch.setattr(click_reader, "_FIND_AGAIN_SECONDS", 0.0)
    reader._find_from = 0.0
    await reader.read()
    assert (expired, consumer.assigned) == ([23], [(0, 5), (1, 1), (2, 30)])
    consumer.silent.clear()
    await reader.read()
    assert (expired, consumer.assigned) == ([23, 25], [(0, 30), (1, 1), (2, 30)])
    reader.close()


async def test_what_is_passed_over_bit_by_bit_is_one_gap(kafka: list[FakeConsumer]) -> None:
    """Or commits would stay before it as long as no click comes."""
    reader, consumer = reader_of(kafka)
    await reader.assign({FIRST: 5, SECOND: None})
    for begin in (30, 50):  # retention goes on while nothing is read
        consumer.begin, consumer.leaders_end = begin, 60
        consumer.queue.append(FakeMessage(5, FIRST, KafkaError._AUTO_OFFSET_RESET))
        await reader.read()
        await reader.read()
    for end in (55, 60):
        consumer.queue.append(FakeMessage(end, FIRST, KafkaError._PARTITION_EOF))
        await reader.read()
    assert reader.passed == {FIRST: (5, 60)}
    consumer.queue.append(FakeMessage(-1, SECOND, KafkaError._AUTO_OFFSET_RESET))
    with capture_logs() as logs:
        await reader.read()
        await reader.read()
    assert logs == []  # its beginning moved while it was looked for: nothing was lost
    assert consumer.assigned == [(0, 50), (1, OFFSET_BEGINNING)]
    reader.close()


async def test_a_thread_waits_where_clicks_are_few_and_its_click_is_not_lost_with_who_waits(
    kafka: list[FakeConsumer],
) -> None:
    reader, consumer = reader_of(kafka)
    await reader.assign({FIRST: 0})
    reading = asyncio.create_task(reader.read())
    assert await asyncio.to_thread(consumer.polled.wait, PATIENCE)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    consumer.queue += [FakeMessage(0), FakeMessage(1)]
    consumer.answer.set()
    offsets: list[int] = []
    async with asyncio.timeout(PATIENCE):
        while len(offsets) < 2:
            offsets += [record.offset for record in (await reader.read()).get(FIRST, [])]
    assert sorted(offsets) == [0, 1]
    reader.close()


async def test_a_click_that_a_thread_waited_for_and_those_behind_it_are_no_more_than_asked_for(
    kafka: list[FakeConsumer],
) -> None:
    reader, consumer = reader_of(kafka, most=3)
    await reader.assign({FIRST: 0})
    reading = asyncio.create_task(reader.read())
    assert await asyncio.to_thread(consumer.polled.wait, PATIENCE)
    consumer.queue += [FakeMessage(at) for at in range(5)]
    consumer.answer.set()
    assert [record.offset for record in (await reading)[FIRST]] == [0, 1, 2]
    reader.close()


async def test_partitions_change_only_when_the_thread_has_ended_and_its_click_is_forgotten(
    kafka: list[FakeConsumer],
) -> None:
    reader, consumer = reader_of(kafka)
    await reader.assign({FIRST: 0})
    reading = asyncio.create_task(reader.read())
    assert await asyncio.to_thread(consumer.polled.wait, PATIENCE)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    consumer.queue.append(FakeMessage(7))
    changing = asyncio.create_task(reader.assign({FIRST: 3}))
    await asyncio.sleep(0)
    assert consumer.assigned == [(0, 0)]  # it would have assigned others by now, had it not to wait
    consumer.answer.set()
    await changing
    assert consumer.assigned == [(0, 3)]
    consumer.queue.append(FakeMessage(3))
    assert [record.offset for record in (await reader.read())[FIRST]] == [3]
    reader.close()


async def test_clicks_of_partitions_that_are_gone_are_nobodys(kafka: list[FakeConsumer]) -> None:
    reader, consumer = reader_of(kafka)
    await reader.assign({FIRST: 0})
    consumer.queue += [FakeMessage(4, SECOND), FakeMessage(5, SECOND, KafkaError._PARTITION_EOF), FakeMessage(0)]
    assert list(await reader.read()) == [FIRST]
    assert reader.passed == {}
    reader.close()


async def test_clicks_that_may_not_be_read_end_the_worker_and_other_errors_are_told(kafka: list[FakeConsumer]) -> None:
    reader, consumer = reader_of(kafka)
    await reader.assign({FIRST: 0})
    consumer.queue.append(FakeMessage(-1, FIRST, KafkaError.UNKNOWN_TOPIC_OR_PART))
    with capture_logs() as told:
        assert await reader.read() == {}
        consumer.config["error_cb"](KafkaError(KafkaError._ALL_BROKERS_DOWN))
    assert len(told) == 2
    consumer.queue.append(FakeMessage(-1, FIRST, KafkaError.TOPIC_AUTHORIZATION_FAILED))
    with pytest.raises(ClicksUnreadableError, match="does not let this worker read clicks"):
        await reader.read()
    reader.close()


async def test_the_end_of_a_partition_as_it_was_last_told(kafka: list[FakeConsumer]) -> None:
    reader, consumer = reader_of(kafka)
    await reader.assign({FIRST: 0})
    assert reader.end_offset(FIRST) is None
    consumer.end = 12
    assert (reader.end_offset(FIRST), reader.end_offset(SECOND)) == (12, None)
    reader.close()
    assert reader.end_offset(FIRST) is None, "somebody asks for the lag while the worker stops"


async def test_what_stands_behind_an_offset_is_not_the_record_at_it(kafka: list[FakeConsumer]) -> None:
    """A row whose click is gone would be taken for that of a later one."""
    reader, consumer = reader_of(kafka)
    consumer.epochs = {5: 0, 7: 0}
    found = [reader.record_at(FIRST, offset) for offset in (5, 6, 7, 8)]
    assert [one and one.offset for one in found] == [5, None, 7, None]
    reader.close()


async def test_a_record_is_waited_for_as_long_as_an_outage_may_last(kafka: list[FakeConsumer]) -> None:
    """After a rebalance that an outage follows, the worker ended with an error after ten seconds of it."""
    reader, consumer = reader_of(kafka)
    consumer.silent = {FIRST.partition}
    waits, ask = list[int](), reader._first_from

    def asked(*arguments: Any, **more: Any) -> Any:
        waits.append(reader.looks_up)
        return ask(*arguments, **more)

    reader._first_from = asked  # type: ignore[assignment]
    with pytest.raises(ClicksUnreadableError, match="no answer for 300 s"):
        reader.record_at(FIRST, 7)
    assert (waits, reader.looks_up) == ([1], 0)  # the watchdog looks at it
    reader.close()


async def test_a_closed_reader_has_nothing(kafka: list[FakeConsumer]) -> None:
    reader, consumer = reader_of(kafka)
    await reader.assign({FIRST: 0})
    consumer.queue.append(FakeMessage(0))
    await asyncio.to_thread(reader.close)
    assert await reader.read() == {}
    assert consumer.closed
    await reader.prepare("clicks")  # a rebalance may still come
    await reader.assign({SECOND: 4})
    assert consumer.assigned == [(0, 0)]


class Clocks:
    """Time, and processor time."""

    def __init__(self) -> None:
        self.now = self.spent = 0.0
        self.pace = Pace(lambda: self.now, lambda: self.spent)

    def batches(self, count: int, seconds: float, clicks: int = 0) -> None:
        """So many batches of this cost."""
        for _ in range(count):
            self.pace.batch(clicks, full=False)
            self.spent += seconds


def test_batches_keep_the_shortest_distance_while_they_are_cheap() -> None:
    clocks = Clocks()
    clocks.now = 100.0
    assert clocks.pace.wait() == 0.0  # the first look at once
    assert clocks.pace.wait() == pytest.approx(click_reader._SHORTEST_PACE_SECONDS)
    clocks.batches(100, 0.0001)
    assert clocks.pace.seconds == click_reader._SHORTEST_PACE_SECONDS


@pytest.mark.parametrize("clicks", [0, click_reader._BASE, 10 * click_reader._BASE])
def test_dear_batches_are_fewer_whatever_their_clicks_cost(clicks: int) -> None:
    clocks = Clocks()
    clocks.batches(200, 0.001 * (1 + clicks / click_reader._BASE), clicks)
    assert clocks.pace.seconds == pytest.approx(0.005, rel=0.01)


def test_there_is_a_limit_and_cheap_batches_are_more_again() -> None:
    clocks = Clocks()
    clocks.batches(200, 0.1)
    assert clocks.pace.seconds == click_reader._LONGEST_PACE_SECONDS
    clocks.batches(400, 0.0)
    assert clocks.pace.seconds == click_reader._SHORTEST_PACE_SECONDS


def test_a_backlog_is_not_waited_for() -> None:
    clocks = Clocks()
    clocks.pace.wait()
    clocks.pace.batch(512, full=True)
    assert clocks.pace.wait() == 0.0
    clocks.pace.batch(1, full=False)
    assert clocks.pace.wait() > 0.0
