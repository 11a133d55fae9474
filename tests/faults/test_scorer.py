"""Scorers that are killed, frozen and joined: the published counts are those of a recount of the topic."""

import json
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_app.score.scorer import group_of
from stream_app.score.service import EXIT_FAILED
from tests.admin import delete_topics
from tests.committed import Offsets, instances
from tests.conftest import KafkaUnderTest
from tests.faults.scorers import PARTITIONS, Scorers, shop_rankings
from tests.patience import PATIENCE
from tests.retention import expire


@pytest.fixture
def scorers(kafka: KafkaUnderTest, topic_prefix: str, tmp_path: Path) -> Iterator[Scorers]:
    scorers = Scorers(kafka.bootstrap_servers, topic_prefix, tmp_path)
    yield scorers
    scorers.stop_all()


def test_killed_at_random_moments(scorers: Scorers) -> None:
    rankings, rng = shop_rankings(2500), random.Random(3)
    scorer = scorers.start()
    done = threading.Event()

    def publish() -> None:
        for at in range(0, len(rankings), 100):
            scorers.publish(rankings[at : at + 100])
            time.sleep(0.02)
        done.set()

    publishing = threading.Thread(target=publish)
    publishing.start()
    kills = 0
    while not done.is_set() or kills < 4:
        time.sleep(rng.uniform(0.1, 1.5))
        scorer.kill()
        kills += 1
        if kills % 2 == 0:
            shutil.rmtree(scorer.data_dir)  # its rows are lost, and its place in the group
        scorer = scorers.start()
    publishing.join()
    scorers.wait_until_counted()
    assert scorer.stop() == 0


def test_one_to_two_to_one_scorers(scorers: Scorers) -> None:
    rankings = shop_rankings(1500)
    third = len(rankings) // 3
    first = scorers.start("a")
    scorers.publish(rankings[:third])
    second = scorers.start("b")  # half of the partitions come to it
    scorers.publish(rankings[third : 2 * third])
    scorers.wait(lambda: "counting rankings" in second.log.read_text(), "partitions of the second scorer")
    scorers.wait_until_counted()
    assert first.stop() == 0
    scorers.publish(rankings[2 * third :])
    scorers.wait_until_counted()


def test_a_frozen_scorer_that_wakes_publishes_nothing_of_what_it_lost(scorers: Scorers) -> None:
    rankings = shop_rankings(1000)
    half, rest = len(rankings) // 2, len(rankings) - 500
    first = scorers.start("a")
    scorers.publish(rankings[:half])
    scorers.wait_until_counted()
    first.process.send_signal(signal.SIGSTOP)
    scorers.publish(rankings[half:rest])
    scorers.start("b")
    scorers.wait_until_counted()
    first.process.send_signal(signal.SIGCONT)
    scorers.wait(lambda: "partitions were lost" in first.log.read_text(), "the frozen scorer told")
    scorers.publish(rankings[rest:])
    scorers.wait_until_counted()


def test_of_two_scorers_with_one_identity_the_older_one_ends(scorers: Scorers) -> None:
    """A supervisor starts it again, or people learn that the name was given twice."""
    older = scorers.start("a", NEXTCLICK_SCORES__GROUP_INSTANCE_ID="scorer-1")
    scorers.started.remove(older)  # of which nobody may give up
    try:
        scorers.start("b", NEXTCLICK_SCORES__GROUP_INSTANCE_ID="scorer-1")
        assert older.process.wait(PATIENCE) == EXIT_FAILED
    finally:
        older.process.kill()
    assert "cannot be read any more" in older.log.read_text()
    scorers.publish(shop_rankings(50))
    scorers.wait_until_counted()


def test_what_is_no_ranking_is_counted_and_passed_over(scorers: Scorers) -> None:
    scorer = scorers.start(NEXTCLICK_SCORES__GROUP_INSTANCE_ID="scorer-1")
    assert instances(scorers.connection.librdkafka(), group_of(scorers.group)) == {"scorer-1"}
    for value in (b"no JSON", None, b"{}", b"[" * 9_000, b'{"session_id": "\xff"}'):  # None: a forgotten session
        scorers.put(value)
    scorers.publish(shop_rankings(50))

    scorers.wait(lambda: scorer.metric("nextclick_scores_unreadable_total") == 4, "unreadable records counted")
    scorers.wait(lambda: any(any(score.rankings.values()) for score in scorers.scores()), "the others are scored")


def test_rankings_that_retention_removed_are_told_of_once_and_the_others_counted(scorers: Scorers) -> None:
    """One that runs is in the test of the alerts; this one was away."""
    rankings = shop_rankings(100)
    third = len(rankings) // 3
    before, gone, after = rankings[:third], rankings[third : 2 * third], rankings[2 * third :]
    scorer = scorers.start()
    scorers.publish(before)
    scorers.wait_until_counted()
    assert scorer.stop() == 0
    scorers.publish(gone)
    expire(scorers.connection.librdkafka(), scorers.rankings)
    scorers.publish(after)
    scorer = scorers.start()
    scorers.wait(lambda: scorer.metric("nextclick_scores_rankings_total") == len(after), "the others counted")
    assert scorer.metric("nextclick_scores_expired_total") == len(gone)
    told = [json.loads(line) for line in scorer.log.read_text().splitlines() if "rankings were lost" in line]
    assert sorted(line["partition"] for line in told) == list(range(PARTITIONS))
    assert sum(line["offsets"] for line in told) == len(gone)
    offsets = Offsets(scorers.connection.librdkafka(), group_of(scorers.group))
    ends = [end for _, end in offsets.marks(scorers.rankings).values()]
    assert offsets.committed(scorers.rankings, PARTITIONS) == ends  # the next start tells of none


@pytest.mark.parametrize("away", [True, False], ids=["when it is away", "while it counts"])
def test_rankings_of_a_topic_that_was_created_anew_are_counted_from_its_beginning(
    scorers: Scorers, *, away: bool
) -> None:
    """The new one grows past the old offsets before anybody looks: what lay below them was never counted."""
    rankings = list({one.source: one for one in shop_rankings(400)}.values())  # each once
    few, many = rankings[: len(rankings) // 4], rankings[len(rankings) // 4 :]
    scorer = scorers.start()
    scorers.publish(few)
    scorers.wait_until_counted()
    if away:
        assert scorer.stop() == 0
    delete_topics(scorers.connection.librdkafka(), scorers.rankings)
    scorers.create_topics()
    scorers.publish(many)
    if not away:
        assert scorer.process.wait(PATIENCE) == EXIT_FAILED
        assert f"the topic {scorers.rankings} was deleted and created again" in scorer.output()
        scorers.started.remove(scorer)
    scorer = scorers.start()
    scorers.wait(lambda: scorer.metric("nextclick_scores_rankings_total") == len(many), "all of the new one counted")
    assert scorer.stop() == 0
    counts = sum(sum(score.rankings.values()) for score in scorers.scores())
    # What the one that ran counted of the new topic, for some seconds, is counted once more.
    assert counts == len(rankings) if away else counts >= len(rankings)
