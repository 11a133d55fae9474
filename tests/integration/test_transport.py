"""What the chunk-wise transport relies on in Faust's private interface, on a real Kafka.

The chunks come out of a real Faust app into the test's hands, which acknowledges them, or does not.
"""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from aiokafka.consumer.fetcher import OffsetResetStrategy
from aiokafka.structs import TopicPartition
from confluent_kafka import Producer
from faust.types import TP

from schemas.kafka.topics import topic_table
from schemas.messages.click import ClickLimits, decode_click
from stream_app.serve.app import _QUEUED_FETCHES
from stream_app.state.topic_identity import topic_ids
from tests.admin import delete_topics, ensure_topics
from tests.committed import instances
from tests.conftest import KafkaUnderTest
from tests.integration.workers import BEGAN, SESSION_TIMEOUT, AppUnderTest, Group, contiguous, running, until
from tests.patience import PATIENCE

CODECS = ("gzip", "snappy", "lz4", "zstd")


@pytest.fixture
def group(kafka: KafkaUnderTest, topic_prefix: str) -> Group:
    return Group(kafka.bootstrap_servers, topic_prefix)


def transactional(group: Group) -> Producer:
    """A producer that has begun a transaction: whatever its end, a mark of it takes an offset and is no record."""
    producer = group.producer(**{"transactional.id": group.prefix})
    producer.init_transactions(PATIENCE)
    producer.begin_transaction()
    return producer


def produce_in_transactions(group: Group, transactions: int, count: int, *, start: int) -> None:
    producer = transactional(group)
    for n in range(transactions):
        group.produce(count, start=start + n * count, producer=producer)
        producer.commit_transaction(PATIENCE)
        producer.begin_transaction()


async def test_one_chunk_a_partition_and_fetch_with_every_record_in_order(group: Group, tmp_path: Path) -> None:
    for n, codec in enumerate(CODECS):
        group.produce(30, start=30 * n, producer=group.producer(**{"compression.type": codec}))
    produce_in_transactions(group, 3, 10, start=120)
    group.produce(40, partition=1, session="other")
    fetched: list[tuple[TP, list[int]]] = []
    async with running(group.settings(tmp_path, chunk_clicks=25), by_hand=True) as worker:
        read = worker.consumer.reader.read

        async def observed() -> Any:
            found = await read()
            fetched.extend((tp, [record.offset for record in records]) for tp, records in found.items())
            return found

        worker.consumer.reader.read = observed  # type: ignore[method-assign]
        hand = worker.hand
        await until(lambda: len(hand.offsets(0)) == 150 and len(hand.offsets(1)) == 40, "every click handed over")

        assert [(chunk.tp, [record.offset for record in chunk.records]) for chunk, _ in hand.got] == fetched
        assert max(len(offsets) for _, offsets in fetched) == 25  # worker.chunk_clicks
        clicks = [
            decode_click(record.key, record.value, now_ms=BEGAN, limits=ClickLimits())
            for chunk in hand.chunks(0)
            for record in chunk.records
        ]
        assert [click.timestamp for click in clicks] == list(range(BEGAN, BEGAN + 150))
        assert hand.offsets(0) == [*range(130), *range(131, 141), *range(142, 152)]
        assert worker.consumer.end_offset(hand.chunks(0)[0].tp) == 153

        # The marks' offsets will never be acknowledged; commits go on past them.
        for chunk in hand.chunks(0):
            assert hand.acknowledge(chunk)
        await until(lambda: worker.consumer.settled(TP(group.topics.clicks, 0)) == 153, "the last mark passed over")
        await worker.consumer.commit()
        assert group.committed(0) == 153
        group.produce(5, start=150)
        await until(lambda: len(hand.offsets(0)) == 155, "the next clicks")
        for chunk in hand.chunks(0):
            hand.acknowledge(chunk)
        await worker.consumer.commit()
        assert group.committed(0) == 158
        assert not worker.consumer._gap.get(TP(group.topics.clicks, 0)), (
            "Faust would take clicks for gaps, and keep them"
        )
        assert group.committed(1) is None


async def test_aborted_clicks_are_nobodys_and_commits_reach_the_end_behind_them(group: Group, tmp_path: Path) -> None:
    """Partition 0: clicks, aborted, clicks, aborted. Partition 1: aborted ones alone."""
    producer = transactional(group)
    for n in range(2):
        group.produce(20, start=100 * n, producer=producer)
        producer.commit_transaction(PATIENCE)
        producer.begin_transaction()
        for partition in range(2):
            group.produce(20, start=100 * n + 50, partition=partition, producer=producer)
        producer.abort_transaction(PATIENCE)
        producer.begin_transaction()
    end, empty_end = group.marks(group.topics.clicks)[1], group.marks(group.topics.clicks, 1)[1]
    assert (end, empty_end) == (84, 42)
    async with running(group.settings(tmp_path, chunk_clicks=20), by_hand=True) as worker:
        consumer, hand, tps = worker.consumer, worker.hand, [TP(group.topics.clicks, n) for n in range(2)]
        await until(lambda: len(hand.offsets(0)) == 40 and consumer.settled(tps[1]) == empty_end, "all passed over")
        assert (hand.offsets(0), hand.offsets(1)) == ([*range(20), *range(42, 62)], [])
        await until(lambda: consumer.reader.passed == {tps[0]: (62, end), tps[1]: (0, empty_end)}, "read to the ends")
        await consumer.commit()
        assert group.committed(0) in (None, 0)  # a periodic commit may have said that nothing is acknowledged
        assert group.committed(1) == empty_end

        *before, last = hand.chunks(0)  # two, or more where a fetch brought fewer than it may
        for chunk in before:
            hand.acknowledge(chunk)
        await consumer.commit()
        passed = (before[-1].records[-1].offset + 1, last.records[0].offset)
        assert group.committed(0) in passed, "a click that is not acknowledged was passed over"
        hand.acknowledge(last)
        await until(lambda: consumer.settled(tps[0]) == end, "nothing left")

        # Marks that come when all is done; clicks of an open transaction are not there yet.
        group.produce(5, start=500, producer=producer)
        producer.abort_transaction(PATIENCE)
        await until(lambda: consumer.settled(tps[0]) == end + 6, "the mark passed over")
        producer.begin_transaction()
        group.produce(5, start=600, producer=producer)
        await worker.rebalance()
        assert group.committed(0) == end + 6
        producer.commit_transaction(PATIENCE)
        await until(lambda: len(hand.offsets(0)) == 45, "the clicks of the transaction that was open")
        assert hand.offsets(0)[40:] == list(range(end + 6, end + 11))
        assert consumer.settled(tps[0]) == end + 6
        assert hand.before_recovery == []


async def test_commits_reach_the_end_where_retention_has_removed_what_was_not_read(
    group: Group, tmp_path: Path
) -> None:
    group.produce(30)
    group.commit(0, 5)
    group.delete_records(group.topics.clicks, 30)
    tp = TP(group.topics.clicks, 0)
    async with running(group.settings(tmp_path), by_hand=True) as worker:
        await until(lambda: worker.consumer.settled(tp) == 30, "nothing is left of them")
        await worker.consumer.commit()
        assert group.committed(0) == 30
        assert worker.metrics.registry.get_sample_value("nextclick_expired_clicks_total") == 25


async def test_aiokafka_fetches_nothing_once_the_tables_are_recovered(group: Group, tmp_path: Path) -> None:
    """What Faust pauses it would fetch all the same, an idle worker's own changelog for ever."""
    async with running(group.settings(tmp_path), by_hand=True) as worker:
        await worker.ready()
        group.produce(5)
        await until(lambda: len(worker.hand.offsets(0)) == 5, "a fetch that was under way has ended")
        fetcher, fetched = worker.consumer._thread._ensure_consumer()._fetcher, []

        async def observed(assignment: Any, node_id: int, request: Any) -> bool:
            fetched.append(request)
            return False

        fetcher._proc_fetch_request = observed
        for n in range(3):
            group.produce(5, start=5 * n + 5)
            await until(lambda n=n: len(worker.hand.offsets(0)) == 5 * n + 10, "more clicks")  # type: ignore[misc]
        assert fetched == []


async def test_only_durable_chunks_are_committed_whoever_acknowledges_them(group: Group, tmp_path: Path) -> None:
    group.produce(40)
    async with running(group.settings(tmp_path, chunk_clicks=10), by_hand=True) as worker:
        hand = worker.hand
        await until(lambda: len(hand.offsets(0)) == 40, "four chunks")
        first, second, third, *_ = hand.chunks(0)  # four, or more where a fetch brought fewer than it may
        after_first, after_third = second.records[0].offset, third.records[-1].offset + 1
        await worker.consumer.commit()
        assert group.committed() is None

        assert hand.acknowledge(first)
        await worker.consumer.commit()
        assert group.committed() == after_first
        assert not hand.acknowledge(second, durable=False)
        await worker.consumer.commit()
        assert group.committed() == after_first

        # An agent that fails is started anew; Faust's own way to acknowledge a message moves nothing either.
        hand.fail_next = True
        group.produce(10, start=40)
        await until(lambda: len(hand.offsets(0)) == 50, "the chunk that the agent fails on")
        group.produce(10, start=50)
        await until(lambda: len(hand.offsets(0)) == 60, "a chunk after the agent was started anew")
        failed = hand.message(next(chunk for chunk in hand.chunks(0) if chunk.records[0].offset == 40))
        assert not failed.ack(worker.consumer)
        assert failed.refcount == 0
        await worker.consumer.commit()
        assert group.committed() == after_first

        assert hand.acknowledge(second)
        assert hand.acknowledge(third)
        assert not hand.acknowledge(third), "it is acknowledged already"
        await worker.consumer.commit()
        assert group.committed() == after_third


async def without_periodic_commits(worker: AppUnderTest) -> None:
    """What is committed from here on is committed by the rebalance."""
    worker.consumer.commit_interval = 3600.0
    await worker.ready()


async def test_a_rebalance_commits_what_is_acknowledged_and_loses_nothing(group: Group, tmp_path: Path) -> None:
    """Partition 0 has an acknowledged chunk and unacknowledged ones, partition 1 has never had a commit."""
    group.produce(60)
    async with running(group.settings(tmp_path, chunk_clicks=20), by_hand=True) as worker:
        await without_periodic_commits(worker)
        hand, before = worker.hand, worker.generation
        await until(lambda: len(hand.offsets(0)) == 60, "three chunks")
        first = hand.chunks(0)[0]
        hand.acknowledge(first)
        done = first.records[-1].offset + 1  # all that a fetch may bring, or fewer
        assert group.committed(0) is None

        # Shorter chunks than before: their offsets are below those that were handed over already.
        worker.consumer.reader._most = 7
        # Faust lets clicks go before the seek, looks for them at least once a second, and at last empties the queues.
        await worker.rebalance(lambda: group.produce(30, partition=1, session="other"), seek_seconds=1.3)
        now = worker.generation
        await until(lambda: hand.offsets(0, now)[-1:] == [59] and len(hand.offsets(1, now)) == 30, "all redelivered")

        assert group.committed(0) == done
        assert hand.offsets(0, now) == list(range(done, 60))
        assert hand.offsets(1, now) == list(range(30))
        assert hand.before_recovery == []
        assert {chunk.generation for chunk, _ in hand.got} == {before, now}

        # Whatever seeks back later: chunks below the last one are no news to Faust, and it would drop them.
        tp = TP(group.topics.clicks, 0)
        await worker.consumer._no_fetch.wait()
        await worker.consumer.reader.assign({tp: done})
        await until(lambda: hand.offsets(0, now) == 2 * list(range(done, 60)), "all of them once more")

        assert worker.consumer.owns(tp, now)
        assert not worker.consumer.owns(tp, before)
        assert not worker.consumer.owns(TP(group.topics.clicks, 7), now)
        joined = worker.consumer._thread.last_heartbeat  # as if the broker had said so when this worker asked to join
        assert worker.consumer.seconds_since_heartbeat() < SESSION_TIMEOUT
        await until(lambda: worker.consumer._thread.last_heartbeat > joined, "a heartbeat that is noticed")


async def test_a_second_rebalance_takes_an_uncommitted_partition_to_its_beginning(group: Group, tmp_path: Path) -> None:
    """Nothing is ever committed: aiokafka's own seek to the committed offsets leaves such partitions where they are."""
    group.produce(20)
    async with running(group.settings(tmp_path, chunk_clicks=10), by_hand=True) as worker:
        await without_periodic_commits(worker)
        for _ in range(2):
            await worker.rebalance(lambda: group.produce(10, partition=1, session="other"))
        hand, now = worker.hand, worker.generation
        await until(lambda: len(hand.offsets(0, now)) == 20 and len(hand.offsets(1, now)) == 20, "all redelivered")
        assert contiguous([0, *(offset + 1 for offset in hand.offsets(0, now))])
        assert contiguous([0, *(offset + 1 for offset in hand.offsets(1, now))])


async def test_a_rebalance_waits_for_chunks_in_flight_and_commits_them(group: Group, tmp_path: Path) -> None:
    group.produce(10)
    async with running(group.settings(tmp_path), by_hand=True) as worker:
        await without_periodic_commits(worker)
        hand, before = worker.hand, worker.generation
        await until(lambda: len(hand.offsets(0)) == 10, "a chunk")
        [chunk] = hand.chunks(0)
        hand.in_flight.chunks = 1
        hand.draining.clear()
        rebalance = asyncio.create_task(worker.rebalance())
        await hand.draining.wait()
        assert worker.generation == before
        assert worker.consumer.owns(chunk.tp, before)
        assert hand.acknowledge(chunk)
        hand.in_flight.chunks = 0
        await rebalance
        assert group.committed() == 10
        assert hand.chunks(0, worker.generation) == []


@pytest.mark.parametrize("late", [False, True], ids=["asked before it stops", "asked when it has stopped"])
async def test_a_worker_that_stops_in_the_middle_of_a_rebalance_leaves_its_group(
    group: Group, tmp_path: Path, late: bool
) -> None:
    """A rebalance asks the consumer's thread, which answers nothing any more: it was cancelled, or waited for ever."""
    async with running(group.settings(tmp_path), by_hand=True) as worker:
        await worker.ready()
        thread, asked = worker.consumer._thread, threading.Event()

        async def ask_late(*_: TP) -> Any:
            asked.set()
            while not thread.method_queue._stopped.is_set():
                await asyncio.sleep(0.01)
            return await thread.call_thread(asyncio.sleep, 0)

        async def answer_never(*_: TP) -> Any:
            asked.set()
            await asyncio.Event().wait()

        thread.__dict__.update({"highwaters": ask_late} if late else {"_highwaters": answer_never})
        thread.thread_loop.call_soon_threadsafe(thread._ensure_consumer()._coordinator.request_rejoin)
        await until(asked.is_set, "a rebalance under way")
    assert thread._shutdown.is_set()
    assert instances(group.connection.librdkafka(), group.prefix) == set()


async def test_a_partition_whose_position_is_being_sought_does_not_end_the_consumer(
    group: Group, tmp_path: Path
) -> None:
    group.produce(1)
    async with running(group.settings(tmp_path), by_hand=True) as worker:
        await until(lambda: bool(worker.hand.offsets(0)), "the click")
        subscription = worker.consumer._thread._ensure_consumer()._subscription.subscription
        state = subscription.assignment.state_value(TopicPartition(group.topics.clicks, 0))
        state.timestamp = 1  # else Faust looks no further
        state.await_reset(OffsetResetStrategy.EARLIEST)  # as a rebalance does, a moment before its seek
        await worker.consumer.verify_all_partitions_active()
        assert not state.has_valid_position


async def test_a_slow_pipeline_stops_the_fetching(group: Group, tmp_path: Path) -> None:
    """Otherwise a backlog is read into memory as fast as the broker sends it."""
    async with running(group.settings(tmp_path, chunk_clicks=10), by_hand=True) as worker:
        await worker.ready()
        hand, reader, tp = worker.hand, worker.consumer.reader, TP(group.topics.clicks, 0)
        read, fetched = reader.read, list[int]()

        async def observed() -> Any:
            found = await read()
            fetched.append(sum(map(len, found.values())))
            return found

        reader.read = observed  # type: ignore[method-assign]
        hand.open.clear()
        group.produce(400)
        [queue] = [one.queue for one in worker.app.topics._topics if group.topics.clicks in one.topics]
        await until(queue.full, "the agent's queue is full")
        group.produce(10, start=400)
        await until(lambda: reader.end_offset(tp) == 410, "the broker is asked for more, and the clicks wait there")
        # One fetch is in the pipeline's hands, and one waits for room in the queue.
        assert sum(fetched) <= 10 * (_QUEUED_FETCHES + 2)
        # Faust would stop fetching from a partition for up to a second instead; waiting for the queue is enough.
        assert worker.consumer._buffered_partitions == set()
        hand.open.set()
        await until(lambda: len(hand.offsets(0)) == 410, "all of the backlog")
        assert contiguous(hand.offsets(0))


@pytest.mark.parametrize(
    "noted", ["by hand", "x is the leader epoch of topic t", f"{'9' * 4000} is the leader epoch of topic t"]
)
async def test_what_others_note_beside_an_offset_says_nothing(group: Group, tmp_path: Path, noted: str) -> None:
    group.produce(5)
    group.commit(0, 2, noted)
    async with running(group.settings(tmp_path), by_hand=True) as worker:
        worker.app.clicks_id = "t"
        await until(lambda: bool(worker.errors) or len(worker.hand.offsets(0)) == 3, "the clicks behind it")
        assert (worker.errors, worker.hand.offsets(0)) == ([], [2, 3, 4])


async def test_clicks_of_a_topic_that_was_created_anew_are_read_from_its_beginning(
    group: Group, tmp_path: Path
) -> None:
    """A worker that ran meanwhile has committed what it had of the old one, to the new one, which grew past that."""
    clicks = group.topics.clicks

    def clicks_id() -> str:
        return topic_ids(group.connection, [clicks])[clicks]

    def create_anew() -> None:
        delete_topics(group.connection.librdkafka(), clicks)
        ensure_topics(group.connection, topic_table(group.topics, group.prefix, session_ttl_ms=group.session_ttl_ms))

    group.produce(50)
    async with running(group.settings(tmp_path / "first"), by_hand=True) as worker:
        worker.app.clicks_id = clicks_id()
        await until(lambda: len(worker.hand.offsets(0)) == 50, "the clicks of the old one")
        await asyncio.to_thread(create_anew)
        for chunk in worker.hand.chunks(0):
            worker.hand.acknowledge(chunk)
    assert group.committed(0) == 50
    group.produce(80, start=1000)

    async def read(offsets: range) -> None:
        async with running(group.settings(tmp_path / "second"), by_hand=True) as worker:
            worker.app.clicks_id, hand = clicks_id(), worker.hand
            await until(lambda: len(hand.offsets(0)) == len(offsets), "clicks", seen=lambda: hand.offsets(0)[:1])
            assert hand.offsets(0) == list(offsets)
            for chunk in hand.chunks(0):
                hand.acknowledge(chunk)
        assert group.committed(0) == offsets.stop

    await read(range(80))
    group.produce(10, start=2000)
    await read(range(80, 90))
