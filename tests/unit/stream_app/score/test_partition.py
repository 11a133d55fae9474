"""A partition of the rankings topic: records in, rows in RocksDB."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError
from structlog.testing import capture_logs

from schemas.messages.ranking import RankedItem, Ranking, RankingReason, encode_ranking
from schemas.messages.source import Source
from stream_app.core.scoring import PartitionScores, ScoringRules
from stream_app.score.partition import Partition
from stream_app.score.scorer import Scorer
from stream_app.state.database import StoreOptions, block_cache
from stream_app.state.last_rankings import LastRankings


class Told:
    """A record of the rankings topic."""

    def __init__(self, offset: int, key: str, value: bytes | None) -> None:
        self._offset, self._key, self._value = offset, key.encode(), value

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return self._key

    def value(self) -> bytes | None:
        return self._value


def ranking(offset: int, session: str, item: str, *, shadow: str | None = None, follows: int | None = None) -> Told:
    answer = Ranking(
        session_id=session, event_id=None, item_id=item, model_version="v1", items=(RankedItem("b", 1.0),),
        source=Source("clicks", 0, offset), click_timestamp=offset, produced_at=0, reason=RankingReason.MODEL,
        variant=shadow, follows=follows,
    )  # fmt: skip
    return Told(offset, session, encode_ranking(answer))


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[LastRankings]:
    opened = LastRankings(
        tmp_path / "rows", "topic", StoreOptions(), block_cache(StoreOptions()), setting="scores.data_dir"
    )
    yield opened
    opened.close()


@pytest.mark.parametrize("settled", [False, True])
def test_a_forgotten_session_leaves_no_row_and_begins_anew(rows: LastRankings, settled: bool) -> None:
    scores = PartitionScores(0, ScoringRules())
    part = Partition(0, scores, rows, position=0, committed=0)
    part.take([ranking(0, "s", "a"), ranking(1, "t", "a")])
    if settled:
        part.settle()
    part.take([Told(2, "s", None)])
    part.settle()
    assert [row is None for row in rows.rows([b"s", b"t"])] == [True, False]
    part.take([ranking(3, "s", "b"), ranking(4, "t", "b")])
    (score,) = scores.scores
    assert {name: tally.predictions for name, tally in score.types.items()} == {"view": 1}  # of t alone
    assert part.unreadable == 0


@pytest.mark.parametrize("settled", [False, True])
def test_several_shadows_of_a_session_are_scored_each_by_its_own_rankings(rows: LastRankings, settled: bool) -> None:
    scores = PartitionScores(0, ScoringRules())
    part = Partition(0, scores, rows, position=0, committed=0)
    for clicks in ([(0, "a", -1), (1, "b", 0)], [(2, "b", 1)]):
        for alias in ("shadow:b", "shadow:c"):  # as they come: a batch by one, then by the other
            part.take([ranking(at, "s", item, shadow=alias, follows=before) for at, item, before in clicks])
        if settled:
            part.settle()
    found = {score.variant: (score.rankings, score.types["view"].predictions) for score in scores.scores}
    assert found == {"shadow:b": ({"model": 3}, 2), "shadow:c": ({"model": 3}, 2)}
    assert scores.repeated == 0
    part.take([Told(9, "s", None)])
    part.settle()
    assert rows.row(b"s") is None


@pytest.mark.parametrize("settled", [False, True])
def test_rankings_at_offsets_that_brokers_lost_are_counted(rows: LastRankings, settled: bool) -> None:
    """Of 4 that were counted 2 are left, with a fifth behind them that was not read yet."""
    scores = PartitionScores(0, ScoringRules())
    part = Partition(0, scores, rows, position=0, committed=0)
    before = [ranking(at, "s", "b") for at in range(4)]
    part.take(before)
    if settled:
        part.published()
        part.settle()
    part.go_back(0, 3)
    part.take([*before[:2], moved(ranking(4, "s", "b"), 2)])
    assert (part.position, part.due) == (3, 3)
    part.take([moved(ranking(at, "s", "b"), at - 2) for at in range(5, 8)])
    (score,) = scores.scores
    assert score.rankings == {"model": 7}  # each once, but for the fifth
    assert score.types["view"].predictions == 6
    assert [score.next_offset for score in part.published()] == [6]
    assert scores.repeated == 0


@pytest.mark.parametrize(("end", "position", "due"), [(3, 0, 3), (9, 4, 4)])
def test_a_scorer_counts_on_from_where_a_topic_ends_that_brokers_have_cut(
    rows: LastRankings, end: int, position: int, due: int
) -> None:
    """Where it has as many again, nobody knows which of them are new."""
    scorer: Any = object.__new__(Scorer)
    scorer._consumer, scorer._rankings = Mock(**{"get_watermark_offsets.return_value": (0, end)}), "rankings"
    part = Partition(0, PartitionScores(0, ScoringRules()), rows, position=4, committed=4)
    scorer._partitions = {0: part}
    gone = Mock(**{"error.return_value": KafkaError(KafkaError._AUTO_OFFSET_RESET), "partition.return_value": 0})
    with capture_logs() as logs:
        scorer._take([gone])
    assert ["brokers lost records" in line["event"] for line in logs] == [True]
    assert (part.position, part.due) == (position, due)


def moved(told: Told, offset: int) -> Told:
    """The same ranking at another offset."""
    return Told(offset, told.key().decode(), told.value())


def test_only_what_was_not_counted_yet_is_lost(rows: LastRankings) -> None:
    part = Partition(0, PartitionScores(0, ScoringRules()), rows, position=10, committed=20)
    part.pass_over(15)  # read again, for rows alone
    assert (part.position, part.due, part.expired) == (15, 20, 0)
    part.pass_over(25)
    assert (part.position, part.due, part.expired) == (25, 25, 5)
    part.pass_over(3)  # brokers lost what they had confirmed, and have as many again
    assert (part.position, part.expired) == (25, 5)


def test_scores_that_were_not_published_when_brokers_lost_rankings_are_published_later(rows: LastRankings) -> None:
    part = Partition(0, PartitionScores(0, ScoringRules()), rows, position=0, committed=0)
    part.take([ranking(0, "s", "a"), ranking(1, "s", "b"), ranking(2, "t", "a")])
    part.go_back(0, 1)
    part.settle()  # as others are published
    part.take([ranking(0, "s", "a"), moved(ranking(400_000, "u", "c"), 1)])  # of another window
    assert sorted(score.rankings["model"] for score in part.published()) == [1, 3]
    part.settle()
    assert (part.published(), part.committed) == ([], 2)
