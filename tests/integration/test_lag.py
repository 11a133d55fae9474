"""The lag that a worker shows, on a real Kafka: of partitions that stand still, that move on, and that move away."""

from pathlib import Path

from stream_app.kafka.lag import Lag
from tests.conftest import KafkaUnderTest
from tests.integration.workers import AppUnderTest, Group, running, until


def lag_of(worker: AppUnderTest, group: Group) -> Lag:
    lag = Lag(group.connection.librdkafka(), group=group.prefix, consumer=worker.consumer, every=0.1)
    lag.start()
    return lag


async def test_a_partition_that_stands_still_shows_and_one_that_moved_away_does_not(
    kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path
) -> None:
    group = Group(kafka.bootstrap_servers, topic_prefix)
    group.produce(50)
    async with running(group.settings(tmp_path / "a", chunk_clicks=10), by_hand=True) as worker:
        lag, hand = lag_of(worker, group), worker.hand
        hand.open.clear()  # as a model that does not answer
        await until(lambda: lag.behind() == {0: 50, 1: 0}, "all clicks wait", seen=lag.behind)
        # More than what waits here: fetches have ended, and with them the consumer's own news of the end.
        group.produce(200, start=50)
        group.produce(7, partition=1, session="t")
        await until(lambda: lag.behind() == {0: 250, 1: 7}, "the lag grows", seen=lag.behind)

        hand.open.set()
        await until(lambda: len(hand.offsets(0)) == 250 and len(hand.offsets(1)) == 7, "all handed over")
        assert lag.behind() == {0: 250, 1: 7}  # and not acknowledged
        for chunk, _ in hand.got:
            hand.acknowledge(chunk)
        assert lag.behind() == {0: 0, 1: 0}

        async with running(group.settings(tmp_path / "b"), by_hand=True) as other:
            others = lag_of(other, group)
            await until(lambda: len(lag.behind()) == len(others.behind()) == 1, "one partition each")
            assert lag.behind().keys() | others.behind().keys() == {0, 1}
            others.stop()
        await until(lambda: lag.behind() == {0: 0, 1: 0}, "both again", seen=lag.behind)
        lag.stop()


async def test_a_partition_that_is_being_recovered_shows_what_waits_for_it(
    kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path
) -> None:
    group = Group(kafka.bootstrap_servers, topic_prefix)
    group.produce(30)
    group.commit(0, 10)
    async with running(group.settings(tmp_path), by_hand=True) as worker:
        lag, consumer = lag_of(worker, group), worker.consumer
        await worker.ready()
        consumer._settled.clear()  # as long as it is not sought
        lag._ends.clear()
        await until(lambda: lag.behind() == {0: 20, 1: 0}, "from the committed offset on", seen=lag.behind)
        lag.stop()
