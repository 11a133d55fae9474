"""Producers of clicks and consumers of rankings in three languages, as docs/clients.md has them, with a real worker."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import pytest
from confluent_kafka import Message, Producer
from msgspec.structs import replace

from deploy.demo.oracle import read_topic
from schemas.messages import examples
from schemas.messages.click import Click, encode_click
from schemas.messages.ranking import Ranking, decode_ranking, encode_ranking
from schemas.messages.source import Source
from stream_app.kafka.plain_consumer import partition_of
from tests.conftest import KafkaUnderTest
from tests.faults.deployment import NEVER_TAKEN_FOR_DEAD, PARTITIONS, Deployment
from tests.integration.clients import LANGUAGES, Clients, lacking
from tests.patience import PATIENCE

ITEMS = tuple(f"item-{n}" for n in range(40))
SESSIONS = tuple(f"s-{n}-{'ü' * (n % 5)}" for n in range(20))
"""Of keys of any length modulo 4, in bytes, and with some that are no ASCII."""
MANY = tuple(ITEMS[n * 7 % 40] for n in range(100))
"""Items that one session clicks, in this order."""


@dataclass
class Scene:
    """What the programs did.

    Attributes:
        placed: by language, the partition that each session's click went to.
    """

    deployment: Deployment
    clients: Clients
    placed: dict[str, dict[str, int]]

    def rankings(self) -> list[tuple[Message, Ranking]]:
        connection, topic = self.deployment.connection.librdkafka(), self.deployment.topics.rankings
        return [
            (record, decode_ranking(value)) for record in read_topic(connection, topic) if (value := record.value())
        ]

    def shown(self, language: str, session: str) -> list[str]:
        """The lines of a session that its consumer shows."""
        return [line for line in self.clients.shown(language) if line.startswith(f"{session} ")]

    def publish(self, *records: tuple[int, bytes, bytes | None]) -> None:
        """Partition, key and value, on the topic of rankings."""
        producer = Producer(self.deployment.connection.librdkafka())
        for partition, key, value in records:
            producer.produce(self.deployment.topics.rankings, value, key, partition)
        assert producer.flush(PATIENCE) == 0


@pytest.fixture(scope="module")
def scene(kafka: KafkaUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Clicks from each producer that runs here: one of each session, and many of one more. Consumers follow."""
    root, prefix = tmp_path_factory.mktemp("clients"), f"clients-{time.time_ns()}"
    deployment = Deployment(kafka.bootstrap_servers, prefix, root, ITEMS, extra=NEVER_TAKEN_FOR_DEAD)
    clients = Clients(deployment, root)
    languages = [language for language in LANGUAGES if lacking(language) is None]
    try:
        deployment.announce(deployment.bundle("v1"))
        deployment.start()
        for language in languages:
            clients.follow(language)

        def click(language: str) -> dict[str, int]:
            one_each = [(session, ITEMS[LANGUAGES.index(language)]) for session in SESSIONS]
            return clients.clicks(language, [*one_each, *((ordered(language), item) for item in MANY)])

        with ThreadPoolExecutor() as pool:
            placed = dict(zip(languages, pool.map(click, languages), strict=True))
        yield Scene(deployment, clients, placed)
    finally:
        clients.stop()
        deployment.stop_all()


def ordered(language: str) -> str:
    """The session of which a producer sends many clicks."""
    return f"ordered-{language}"


def require(language: str) -> None:
    if (reason := lacking(language)) is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_session_is_in_the_same_partition_whoever_sends_it(scene: Scene, language: str) -> None:
    require(language)
    sessions = (*SESSIONS, ordered(language))
    expected = {session: partition_of(session.encode(), PARTITIONS) for session in sessions}
    assert scene.placed[language] == expected
    assert set(expected.values()) == set(range(PARTITIONS))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_clicks_of_a_session_lie_in_the_order_in_which_they_were_sent(scene: Scene, language: str) -> None:
    require(language)
    records = read_topic(scene.deployment.connection.librdkafka(), scene.deployment.topics.clicks)
    clicks = [msgspec.json.decode(record.value() or b"", type=Click) for record in records]
    assert [click.item_id for click in clicks if click.session_id == ordered(language)] == list(MANY)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_consumer_shows_each_ranking_once(scene: Scene, language: str) -> None:
    """A worker that crashes publishes some again; what comes from a partition after them shows that they were read."""
    require(language)
    clicks = len(SESSIONS) * len(scene.placed)

    def answered() -> list[str]:
        return [line for session in SESSIONS for line in scene.shown(language, session)]

    scene.deployment.wait(lambda: len(answered()) >= clicks, f"{language} shows every ranking")
    rankings = [(record, ranking) for record, ranking in scene.rankings() if ranking.session_id in SESSIONS]
    again = [(record.partition(), record.key(), record.value()) for record, _ in rankings[::3]]
    forgotten = [(partition, b"forgotten", None) for partition in range(PARTITIONS)]
    marker = f"after-{language}"
    scene.publish(*again, *forgotten, *((p, marker.encode(), marked(marker, p)) for p in range(PARTITIONS)))
    scene.deployment.wait(
        lambda: len(scene.shown(language, marker)) == PARTITIONS, f"{language} shows what comes after"
    )
    expected = {
        " ".join((ranking.session_id, ranking.item_id, "->", *(item.item_id for item in ranking.items[:3])))
        for _, ranking in rankings
    }
    assert len(expected) == clicks
    assert sorted(answered()) == sorted(expected)


def marked(session: str, partition: int) -> bytes:
    """A ranking of another click."""
    return encode_ranking(replace(examples.RANKING, session_id=session, source=Source(session, partition, 0)))


def test_a_click_in_another_partition_is_of_another_session(scene: Scene) -> None:
    """Nothing is lost and nothing refused, but the click is ranked without those before it."""
    home = partition_of(b"moved", PARTITIONS)
    elsewhere = (home + 1) % PARTITIONS
    clicks = [("moved", 1, home), ("moved", 2, home), ("moved", 2, elsewhere), ("new", 2, elsewhere)]
    producer = Producer(scene.deployment.connection.librdkafka())
    for session, item, partition in clicks:
        click = Click(session_id=session, item_id=ITEMS[item], timestamp=time.time_ns() // 1_000_000)
        producer.produce(scene.deployment.topics.clicks, encode_click(click), session.encode(), partition)
        assert producer.flush(PATIENCE) == 0
    found: dict[tuple[str, int, int], tuple[Message, Ranking]] = {}

    def ranked() -> bool:
        for record, ranking in scene.rankings():
            if ranking.session_id in ("moved", "new"):
                found[ranking.session_id, int(ranking.item_id[5:]), ranking.source.partition] = record, ranking
        return len(found) == len(clicks)

    scene.deployment.wait(ranked, "all are ranked")
    (_, before), (_, there), (_, new) = (found[click] for click in (clicks[1], clicks[2], clicks[3]))
    assert there.items == new.items != before.items
    assert [record.partition() for (session, *_), (record, _) in found.items() if session == "moved"] == [home] * 3
