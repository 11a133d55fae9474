"""What a follower makes of topics that it reads whole: what librdkafka tells in, records and reasons to wait out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message
from structlog.testing import capture_logs

from schemas.messages.refused import RecordRefusedError, RefuseReason
from stream_app.serve import following
from stream_app.serve.following import FollowedTopicError, TopicFollower
from stream_app.serve.metrics import Metrics

AWAY = KafkaException(KafkaError(KafkaError._TRANSPORT))


@dataclass
class Record:
    """A record, the end of a topic, or an error in the place of one."""

    at: int
    of: str = "items"
    problem: int | None = None

    def topic(self) -> str:
        return self.of

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.at

    def key(self) -> bytes | None:
        return None

    def error(self) -> KafkaError | None:
        return None if self.problem is None else KafkaError(self.problem)


def end(at: int, of: str = "items") -> Record:
    return Record(at, of, KafkaError._PARTITION_EOF)


class Follower(TopicFollower):
    """Keeps the offsets of what it takes in, and refuses those that it is told to."""

    refuses: frozenset[int] = frozenset()
    misses: str | None = None
    breaks = False

    def _take_in(self, records: list[Message]) -> None:
        if self.breaks:
            raise MemoryError("no room for an item")
        self.taken = [*getattr(self, "taken", []), *((one.topic(), one.offset()) for one in records)]
        for one in records:
            if one.offset() in self.refuses:
                self._refuse(one, RecordRefusedError(RefuseReason.NOT_JSON, "no"))

    def _missing(self) -> str | None:
        return self.misses


@dataclass
class Story:
    """What a consumer is told, fetch by fetch; at its end the follower stops."""

    fetches: Sequence[Sequence[Record] | Callable[[Follower], object]]
    topics: list[int | Exception] = field(default_factory=lambda: [1, 1])
    """The number of partitions that each question for a topic finds, or an error in the place of an answer."""
    ends: list[int | Exception] = field(default_factory=lambda: [2, 2])
    pauses: list[float] = field(default_factory=list)
    waited_for: list[str | None] = field(default_factory=list)
    """At each question, and before each fetch."""
    fatal: list[BaseException] = field(default_factory=list)
    closed: bool = False

    def follow(self, monkeypatch: pytest.MonkeyPatch, **changed: Any) -> Follower:
        monkeypatch.setattr(following, "Consumer", lambda *_, **__: self)
        self.follower = Follower(
            consumer_config={}, what="items", topics=["items", "rules"], metrics=Metrics(), on_fatal=self.fatal.append
        )
        for name, value in changed.items():
            setattr(self.follower, name, value)
        monkeypatch.setattr(self.follower._stopping, "wait", self.pauses.append)
        self.fetches = list(self.fetches)
        self.follower._run()
        assert self.closed
        return self.follower

    def _next(self, answers: list[int | Exception]) -> int:
        self.waited_for.append(self.follower.waiting_for)
        if not answers:
            self.follower._stopping.set()
            raise AWAY
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def list_topics(self, topic: str, **_: Any) -> Any:
        return SimpleNamespace(
            topics={topic: SimpleNamespace(partitions=dict.fromkeys(range(self._next(self.topics))), error=None)}
        )

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        return 0, self._next(self.ends)

    def assign(self, places: Sequence[Any]) -> None:
        self.assigned = [(place.topic, place.partition) for place in places]
        self.waited_for.clear()

    def consume(self, *_: Any) -> Sequence[Record]:
        self.waited_for.append(self.follower.waiting_for)
        if not self.fetches:
            self.follower._stopping.set()
            return []
        fetch, *self.fetches = self.fetches
        if callable(fetch):
            fetch(self.follower)
            return []
        return fetch

    def close(self) -> None:
        self.closed = True


def test_a_worker_waits_until_all_is_read_that_was_there_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the last items is as likely as any to be sold out."""
    story = Story([[Record(0)], [Record(1)], [Record(0, "rules"), end(2)], [end(2, "rules")], [Record(2)]])
    follower = story.follow(monkeypatch)
    unread = "items have not been read yet"
    assert story.waited_for == [unread, unread, unread, unread, None, None]
    assert follower.taken == [("items", 0), ("items", 1), ("rules", 0), ("items", 2)]
    assert story.assigned == [("items", 0), ("rules", 0)]
    assert story.fatal == []


def test_what_is_missing_is_waited_for_once_all_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def come(follower: Follower) -> None:
        follower.misses = None

    story = Story([[end(2), end(2, "rules")], [], come, []])
    story.follow(monkeypatch, misses="no item yet")
    assert story.waited_for[1:] == ["no item yet", "no item yet", None, None]


def test_brokers_and_topics_that_are_away_are_asked_again_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes at once, such as a lost connection, must not take the processor from those who rank."""
    story = Story([], topics=[AWAY, AWAY, 0, 1, 1], ends=[2, AWAY, 2, 2])
    monkeypatch.setattr(Story, "assign", lambda *_: None)
    story.follow(monkeypatch)
    assert story.pauses == [following._RETRY_SECONDS] * 4
    missing = "the topic items does not exist; create it with `stream-app topics`"
    assert [reason for reason in dict.fromkeys(story.waited_for) if reason and "read yet" not in reason] == [
        f"the brokers do not answer: {AWAY.args[0].str()}",
        missing,
    ]
    assert story.fatal == []


@pytest.mark.parametrize("asked", [{"topics": []}, {"ends": []}], ids=["for the topics", "for their ends"])
def test_a_follower_that_is_stopped_before_brokers_answer_ends(monkeypatch: pytest.MonkeyPatch, asked: Any) -> None:
    story = Story([], **asked)
    assert not story.follow(monkeypatch).is_ready
    assert story.fatal == []


def test_a_topic_without_one_order_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story([], topics=[1, 3])
    story.follow(monkeypatch)
    assert [type(error) for error in story.fatal] == [FollowedTopicError]
    assert "topic rules has 3 partitions and must have 1" in str(story.fatal[0])


def test_an_error_in_the_place_of_a_record_is_told_and_read_past(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Record(-1, problem=KafkaError._ALL_BROKERS_DOWN)
    with capture_logs() as told:
        follower = Story([[away, Record(0), end(1)]]).follow(monkeypatch)
    assert follower.taken == [("items", 0)]
    assert [line["log_level"] for line in told] == ["warning"]


def test_a_follower_that_cannot_go_on_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would rank by items and rules of then, for ever."""
    story = Story([[Record(0)]])
    story.follow(monkeypatch, breaks=True)
    assert [str(error) for error in story.fatal] == ["no room for an item"]


def test_many_refused_records_are_all_counted_and_the_first_of_them_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_MOST_TOLD", 2)
    with capture_logs() as logs:
        follower = Story([[Record(at) for at in range(5)]]).follow(monkeypatch, refuses=frozenset({0, 2, 3}))
    told = [(line["offset"], line["more"]) for line in logs if line["log_level"] == "error"]
    assert told == [(0, None), (2, "further ones are only counted")]
    assert follower._metrics.refused_records.labels(topic="items", reason="not-json")._value.get() == 3
