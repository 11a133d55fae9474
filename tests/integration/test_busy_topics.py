"""Topics that somebody always writes to: a fetch always finds something there, and their end is never told."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Final

import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import NewTopic

from schemas.config.settings import KafkaConnection
from stream_app.kafka.plain_consumer import plain_consumer
from stream_app.serve.following import TopicFollower
from stream_app.serve.metrics import Metrics
from tests.admin import create_topics, delete_topics
from tests.conftest import KafkaUnderTest
from tests.patience import PATIENCE

BEFORE: Final = 500
FAR_BEYOND: Final = 100_000
"""Records; whoever only wants what was there never reads so many."""

pytestmark = pytest.mark.usefixtures("busy")


@pytest.fixture(scope="module")
def topic() -> str:
    return "busy-topic"


@pytest.fixture(scope="module")
def busy(kafka: KafkaUnderTest, topic: str) -> Iterator[None]:
    """One record after the other, each as soon as the one before is stored."""
    create_topics({"bootstrap.servers": kafka.bootstrap_servers}, NewTopic(topic, 1, 1))
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 0})
    for number in range(BEFORE):
        producer.produce(topic, key=b"before", value=b"%d" % number)
    producer.flush()
    stop = threading.Event()

    def write() -> None:
        for number in count():
            if stop.is_set():
                return
            producer.produce(topic, key=b"since", value=b"%d" % number)
            producer.flush()

    writer = threading.Thread(target=write)
    writer.start()
    yield
    stop.set()
    writer.join()
    delete_topics({"bootstrap.servers": kafka.bootstrap_servers}, topic)


def test_a_history_ends_where_the_topic_ended(
    kafka: KafkaUnderTest, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with plain_consumer(KafkaConnection(bootstrap_servers=kafka.bootstrap_servers), topic, name="look") as records:
        told: list[dict[int, int]] = []
        ends = records.ends

        def asked(partitions: Sequence[int]) -> dict[int, int]:
            told.append(ends(partitions))
            return told[-1]

        monkeypatch.setattr(records, "ends", asked)
        read = list(islice(records.history(0), FAR_BEYOND))
    assert [record.offset() for record in read] == list(range(*(end[0] for end in told)))


class Follower(TopicFollower):
    def _take_in(self, records: list[Message]) -> None:
        self.taken = getattr(self, "taken", 0) + len(records)
        if self.is_ready or self.taken > FAR_BEYOND:
            self._stopping.set()


@contextmanager
def following(kafka: KafkaUnderTest, topic: str, on_fatal: Callable[[BaseException], None]) -> Iterator[Follower]:
    connection = KafkaConnection(bootstrap_servers=kafka.bootstrap_servers)
    follower = Follower(
        consumer_config=connection.plain_consumer("look", to_the_end=True),
        what="records",
        topics=[topic],
        metrics=Metrics(),
        on_fatal=on_fatal,
    )
    follower.start()
    yield follower
    follower.stop()


def test_a_worker_begins_though_its_items_change_all_the_time(kafka: KafkaUnderTest, topic: str) -> None:
    fatal: list[BaseException] = []
    with following(kafka, topic, fatal.append) as follower:
        assert follower._stopping.wait(PATIENCE)
    assert follower.is_ready
    assert follower.taken >= BEFORE
    assert not fatal
