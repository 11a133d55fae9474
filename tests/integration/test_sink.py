"""`stream-app sink` with a real Redis or Valkey, on a real Kafka."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import Mock

import msgspec
import pytest
import redis
from confluent_kafka import Message, Producer

from schemas.messages.ranking import Ranking, decode_ranking, encode_ranking
from stream_app.api.latest import Latest
from stream_app.api.metrics import SinkMetrics
from stream_app.api.redis_rows import RedisRows
from stream_app.api.sink import EXIT_FAILED, Sink, group_of
from stream_app.kafka.plain_consumer import plain_consumer
from stream_app.settings import StreamSettings
from stream_app.state.topic_identity import topic_ids
from tests.admin import delete_topics
from tests.committed import Offsets, instances
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.faults.scorers import PARTITIONS, Scorers, shop_rankings
from tests.integration.api import running_api, wait_until
from tests.integration.redis_server import SERVER, RedisServer
from tests.patience import PATIENCE
from tests.retention import expire

pytestmark = pytest.mark.skipif(SERVER is None, reason="needs redis-server or valkey-server, of the distribution")


@dataclass
class Sinks:
    """Sink processes of one deployment's rankings."""

    site: Scorers
    server: RedisServer
    root: Path
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self, name: str = "a") -> "subprocess.Popen[bytes]":
        own = {"NEXTCLICK_SINK__SESSION_TIMEOUT": "6", "NEXTCLICK_SINK__GROUP_INSTANCE_ID": f"sink-{name}"}
        environment = self.site.environment() | own
        options = ["--data-dir", str(self.root / f"sink-{name}"), "--web-port", "0", "--log-format", "json"]
        with self.log(name).open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "stream_app", "sink", self.server.url, *options],
                cwd=REPOSITORY, env=environment, stdout=output, stderr=output,
            )  # fmt: skip
        self.started.append(process)
        return process

    def log(self, name: str = "a") -> Path:
        return self.root / f"sink-{name}.log"

    def expected(self) -> dict[str, bytes]:
        """What the topic comes to, one record after the other."""
        found: dict[str, Ranking] = {}
        values: dict[str, bytes] = {}
        with plain_consumer(self.site.connection, self.site.topics.rankings, name="look") as topic:
            for partition in topic.partitions:
                for record in topic.history(partition):
                    session, value = record.key().decode(), record.value()
                    if value is None:
                        found.pop(session, None)
                        values.pop(session, None)
                        continue
                    ranking = decode_ranking(value)
                    if session not in found or ranking.source.offset > found[session].source.offset:
                        found[session], values[session] = ranking, value
        return values

    def wait_until_equal(self) -> None:
        """Until the store is what the topic comes to."""
        expected = self.expected()
        wait_until(
            lambda: self.server.rankings() == expected,
            "the store equals the topic",
            seen=lambda: f"{len(self.server.rankings())} of {len(expected)}\n{self.log().read_text()[-3000:]}",
        )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def sinks(kafka: KafkaUnderTest, topic_prefix: str, server: RedisServer, tmp_path: Path) -> Iterator[Sinks]:
    sinks = Sinks(Scorers(kafka.bootstrap_servers, topic_prefix, tmp_path), server, tmp_path)
    yield sinks
    for process in sinks.started:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def test_killed_at_random_moments_the_store_equals_the_topic(sinks: Sinks) -> None:
    every, rng = shop_rankings(1500), random.Random(3)
    rankings, last = every[:-100], every[-100:]
    sink = sinks.start()
    done = threading.Event()

    def publish() -> None:
        for at in range(0, len(rankings), 100):
            sinks.site.publish(rankings[at : at + 100])
            if at % 500 == 0:
                forget(sinks, rankings[at].session_id)
            time.sleep(0.05)
        done.set()

    publishing = threading.Thread(target=publish)
    publishing.start()
    kills = 0
    while not done.is_set() or kills < 4:
        time.sleep(rng.uniform(0.2, 2.0))
        sink.kill()
        sink.wait()
        kills += 1
        sink = sinks.start()
    publishing.join()
    sinks.site.publish(last)  # or the sink that is stopped may not have begun yet
    sinks.wait_until_equal()
    assert len(sinks.server.rankings()) > 100
    sink.send_signal(signal.SIGTERM)
    assert sink.wait(120) == 0


def forget(sinks: Sinks, session_id: str) -> None:
    """The mark of a worker that forgot a session, behind its rankings."""
    config = {**sinks.site.connection.librdkafka(), "partitioner": "murmur2_random"}
    producer = Producer(config)
    producer.produce(sinks.site.topics.rankings, None, session_id.encode())
    assert producer.flush(PATIENCE) == 0


def test_a_frozen_sink_writes_nothing_and_a_store_that_lost_all_is_filled_again(sinks: Sinks) -> None:
    rankings = shop_rankings(600)
    half = len(rankings) // 2
    first = sinks.start("a")
    sinks.site.publish(rankings[:half])
    sinks.wait_until_equal()
    first.send_signal(signal.SIGSTOP)
    sinks.site.publish(rankings[half:])
    sinks.start("b")  # takes its partitions when Kafka has given it up
    sinks.wait_until_equal()
    first.send_signal(signal.SIGCONT)
    sinks.server.stop()
    sinks.server.start()  # empty
    sinks.site.publish(newer(rankings[-300:]))  # whatever is written shows where the store is
    sinks.wait_until_equal()
    assert {process.poll() for process in sinks.started} == {None}


def newer(rankings: list[Ranking]) -> list[Ranking]:
    """The same sessions' rankings of later clicks."""
    return [
        msgspec.structs.replace(
            ranking, source=msgspec.structs.replace(ranking.source, offset=ranking.source.offset + 1_000_000)
        )
        for ranking in rankings
    ]


def test_a_batch_counts_once_and_only_where_the_store_is(server: RedisServer) -> None:
    rows = RedisRows(server.client, "nextclick:", "topic", ttl_ms=60_000)
    now = time.time_ns() // 1_000_000

    def told(offset: int, value: bytes, *, anew: bool = False) -> dict[bytes, Latest]:
        return {b"s": Latest(0, offset, now, value, anew)}

    assert rows.position(3) is None
    assert rows.apply(3, told(5, b"five"), None, 10)
    assert not rows.apply(3, told(6, b"six"), None, 11)  # a second one that began before the first had written
    assert not rows.apply(3, told(6, b"six"), 9, 11)
    assert (rows.position(3), server.rankings()) == (10, {"s": b"five"})
    assert rows.apply(3, told(4, b"four"), 10, 11)  # published again, by a worker that crashed
    assert (rows.position(3), server.rankings()) == (11, {"s": b"five"})
    assert rows.apply(3, told(4, b"four", anew=True), 11, 12)  # forgotten, and clicked again
    assert server.rankings() == {"s": b"four"}
    assert rows.apply(3, told(-1, b"", anew=True), 12, 13)
    assert server.rankings() == {}


@pytest.fixture
def by_hand(server: RedisServer) -> Iterator[Sink]:
    """One whose first answer of the store is lost."""
    sink = Sink(StreamSettings(), SinkMetrics(), server.url, member="a", topic_id="topic", stopping=lambda: False)
    apply, stored = sink._rows.apply, list[bool]()

    def lost_once(partition: int, changes: Mapping[bytes, Latest], before: int | None, after: int) -> bool:
        stored.append(apply(partition, changes, before, after))
        if len(stored) == 1:
            raise redis.ConnectionError("lost")
        return stored[-1]

    sink._rows.apply = lost_once  # type: ignore[method-assign]
    yield sink
    sink._consumer.close()
    assert stored[:2] == [True, False]


def counted(sink: Sink, *names: str) -> list[float | None]:
    return [sink._metrics.registry.get_sample_value(f"nextclick_sink_{name}_total") for name in names]


def store(sink: Sink, ranking: Ranking, offset: int) -> None:
    """As it was read from the first partition."""
    value, now = encode_ranking(ranking), time.time_ns() // 1_000_000
    told = {"offset": offset, "key": ranking.session_id.encode(), "value": value, "timestamp": (1, now)}
    sink._store(0, [Mock(Message, **{f"{name}.return_value": what for name, what in told.items()})])


def test_a_batch_whose_answer_is_lost_counts_once_and_as_no_move(server: RedisServer, by_hand: Sink) -> None:
    ranking, *_ = shop_rankings(1)
    by_hand._positions[0] = None
    store(by_hand, ranking, 7)
    assert counted(by_hand, "rankings", "moved") == [1, 0]
    assert by_hand._next == {0: 8}
    assert server.rankings() == {ranking.session_id: encode_ranking(ranking)}


@pytest.mark.parametrize(("left", "expired"), [(12, 5), (3, 0)])
def test_the_store_goes_on_where_the_topic_does(
    server: RedisServer, by_hand: Sink, monkeypatch: pytest.MonkeyPatch, left: int, expired: int
) -> None:
    """Behind what retention removed, or, where brokers lost rankings, before others that have come to their offsets."""
    monkeypatch.setattr("stream_app.api.sink.oldest_left", lambda *_: (left, left))
    ranking, *_ = shop_rankings(1)
    server.client.set("nextclick:position:topic:0", 7)
    by_hand._positions[0] = by_hand._next[0] = 7
    by_hand._pass_over(0)
    store(by_hand, ranking, left)
    assert counted(by_hand, "expired", "rankings", "moved") == [expired, 1, 0]
    assert by_hand._next == {0: left + 1}
    assert server.rankings() == {ranking.session_id: encode_ranking(ranking)}


def test_rows_expire_with_their_sessions(sinks: Sinks) -> None:
    sinks.site.publish(shop_rankings(20))
    sinks.start()
    sinks.wait_until_equal()
    assert instances(sinks.site.connection.librdkafka(), group_of(sinks.site.group)) == {"sink-a"}
    lives = [sinks.server.client.pttl(key) for key in sinks.server.client.scan_iter("nextclick:ranking:*")]
    assert lives
    assert all(0 < life <= 6 * 3_600_000 for life in lives)
    assert [sinks.server.client.ttl(key) for key in sinks.server.client.scan_iter("nextclick:position:*")] == [-1] * 4


def test_rankings_that_retention_removed_are_told_of_once_and_the_others_stored(sinks: Sinks) -> None:
    """One that runs is in the test of the alerts; this one was away, and had stored none before."""
    topic, config, rankings = sinks.site.topics.rankings, sinks.site.connection.librdkafka(), shop_rankings(100)
    topic_id = topic_ids(sinks.site.connection, [topic])[topic]
    rows = RedisRows(sinks.server.client, "nextclick:", topic_id, ttl_ms=60_000)
    for partition in range(PARTITIONS):
        assert rows.apply(partition, {}, None, 0)
    sinks.site.publish(rankings[::2])
    expire(config, topic)
    firsts = {number: end for number, (_, end) in Offsets(config, "nobody").marks(topic).items()}
    sinks.site.publish(rankings[1::2])
    sinks.start()
    sinks.wait_until_equal()
    told = [json.loads(line) for line in sinks.log().read_text().splitlines() if "rankings were lost" in line]
    assert {line["partition"]: (line["first"], line["offsets"]) for line in told} == {
        number: (0, first) for number, first in firsts.items()
    }


def test_the_api_reads_what_the_sink_wrote(sinks: Sinks) -> None:
    rankings = shop_rankings(50)
    sinks.site.publish(rankings)
    sinks.start()
    sinks.wait_until_equal()
    session, value = next(iter(sinks.server.rankings().items()))
    with running_api(
        sinks.site.environment(), sinks.root, NEXTCLICK_API__STORE_URL=sinks.server.url.replace("redis:", "valkey:")
    ) as api:
        assert api.get(f"/v1/sessions/{session}/ranking").content == value
        assert api.get("/v1/sessions/nobody/ranking").status_code == 404
        sinks.server.stop()
        answer = api.get(f"/v1/sessions/{session}/ranking")
        assert (answer.status_code, answer.headers["Content-Type"]) == (503, "application/problem+json")
        assert json.loads(answer.content)["type"] == "urn:nextclick:problem:unavailable"
        sinks.server.start()
        assert api.get(f"/v1/sessions/{session}/ranking").status_code in (200, 404)


def test_a_store_that_is_not_named_is_refused() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NEXTCLICK_", "KAFKA_"))}
    done = subprocess.run(
        [sys.executable, "-m", "stream_app", "sink"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "stream-app sink redis://HOST:6379" in done.stderr


def test_rankings_of_a_topic_that_was_created_anew_are_stored_from_its_beginning(sinks: Sinks) -> None:
    """The new one has grown past the sink's offsets before it looks: it stored on from there."""
    site, rankings = sinks.site, shop_rankings(110)
    sink = sinks.start()
    site.publish(rankings[:50])
    sinks.wait_until_equal()
    delete_topics(site.connection.librdkafka(), site.topics.rankings)
    site.create_topics()
    site.publish(rankings[50:])
    assert sink.wait(PATIENCE) == EXIT_FAILED
    assert f"the topic {site.topics.rankings} was deleted and created again" in sinks.log().read_text()
    sinks.start()
    expected = sinks.expected().items()
    wait_until(lambda: expected <= sinks.server.rankings().items(), "all of the new one stored")
