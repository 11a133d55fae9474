"""A partition of the rankings topic: records in, rows in RocksDB."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.messages.ranking import RankedItem, Ranking, RankingReason, encode_ranking
from schemas.messages.source import Source
from stream_app.core.scoring import PartitionScores, ScoringRules
from stream_app.score.partition import Partition
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
