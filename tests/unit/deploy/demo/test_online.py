"""Online hit rates: rankings in, scores out."""

from deploy.demo.online import OnlineScores
from schemas.messages.ranking import RankedItem, Ranking, RankingReason
from schemas.messages.source import Source


def ranking(session: str, clicked: str, items: list[str], *, offset: int, version: str = "v1") -> Ranking:
    ranked = tuple(RankedItem(item, 1.0 - n / 100) for n, item in enumerate(items))
    source = Source("clicks", 0, offset)
    return Ranking(session, None, clicked, version, ranked, source, 0, 0, RankingReason.MODEL)


def test_the_next_click_is_looked_for_in_the_ranking_before_it() -> None:
    scores = OnlineScores()
    scores.add(ranking("s", "a", ["b", "c"], offset=0))
    scores.add(ranking("s", "c", ["x", "y"], offset=1))  # second of the ranking before: a hit
    scores.add(ranking("s", "z", ["a"], offset=2))  # a miss
    score = scores.models["v1"]
    assert (score.rankings, score.predictions, score.hits) == (3, 2, 1)
    assert score.recall == 0.5
    assert score.mrr == 0.25


def test_only_the_first_twenty_items_count() -> None:
    scores = OnlineScores()
    scores.add(ranking("s", "a", [f"i{n}" for n in range(25)], offset=0))
    scores.add(ranking("s", "i20", [], offset=1))
    assert scores.models["v1"].hits == 0


def test_a_hit_belongs_to_the_model_that_ranked_not_to_the_one_that_serves_now() -> None:
    scores = OnlineScores()
    scores.add(ranking("s", "a", ["b"], offset=0, version="v1"))
    scores.add(ranking("s", "b", ["c"], offset=1, version="v2"))
    assert list(scores.models) == ["v1", "v2"]
    assert (scores.models["v1"].hits, scores.models["v2"].predictions) == (1, 0)


def test_a_duplicate_counts_once() -> None:
    scores = OnlineScores()
    first = ranking("s", "a", ["b"], offset=5)
    assert scores.add(first)
    assert not scores.add(first)
    assert scores.duplicates == 1
    assert scores.models["v1"].rankings == 1


def test_sessions_do_not_mix() -> None:
    scores = OnlineScores()
    scores.add(ranking("s", "a", ["b"], offset=0))
    scores.add(ranking("t", "b", ["c"], offset=1))
    assert scores.models["v1"].predictions == 0
    assert [one.session_id for one in scores.latest(5)] == ["t", "s"]
