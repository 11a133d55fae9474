"""Scoring: rankings in, scores out."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages.ranking import RankedItem, Ranking, RankingReason, encode_ranking
from schemas.messages.score import MOST_MARKETS, MOST_TYPES, OTHERS, Score, decode_score, encode_score, totals_by_model
from schemas.messages.source import Source
from stream_app.core.scoring import (
    LastRanking,
    PartitionScores,
    ScoringRules,
    decode_ranking,
    decode_row,
    encode_row,
)
from stream_app.score.metrics import ScoreMetrics
from tests.recount import counted, recount

MINUTE = 60_000
RULES = ScoringRules(k=3, window_ms=5 * MINUTE, keep_ms=60 * MINUTE, idle_gap_ms=30 * MINUTE)


def ranking(session: str, clicked: str, items: Sequence[str], offset: int, at: int, **changed: Any) -> Ranking:
    ranked = tuple(RankedItem(item, 1.0 - n / 100) for n, item in enumerate(items))
    fields = {"model_version": "v1", "reason": RankingReason.MODEL} | changed
    return Ranking(
        session_id=session, event_id=None, item_id=clicked, items=ranked, source=Source("clicks", 0, offset),
        click_timestamp=at, produced_at=at, **fields,
    )  # fmt: skip


def score(
    rankings: Iterable[Ranking], scores: PartitionScores | None = None, *, counts_from: int = 0
) -> tuple[PartitionScores, dict[str, LastRanking]]:
    scores = scores or PartitionScores(0, RULES)
    rows: dict[str, LastRanking] = {}
    for offset, one in enumerate(rankings):
        row = rows.get(one.session_id)
        read = decode_ranking(encode_ranking(one))
        kept = decode_row(encode_row({"": row}))[""] if row is not None else None
        after = scores.apply(kept, read, offset, counts=offset >= counts_from)
        if after is not kept:
            rows[one.session_id] = after
    return scores, rows


def only(scores: PartitionScores) -> Score:
    (found,) = scores.scores
    return found


def test_the_next_click_is_looked_for_in_the_ranking_before_it() -> None:
    scores, _ = score(
        [
            ranking("s", "a", ["b", "c"], 0, 0),
            ranking("s", "c", ["x", "y"], 1, 1),  # second of the ranking before: a hit
            ranking("s", "z", ["a"], 2, 2),  # a miss
        ]
    )
    found = only(scores)
    assert (found.rankings, found.sessions) == ({"model": 3}, 1)
    assert (found.total.predictions, found.total.hits, found.total.reciprocal_ranks) == (2, 1, 0.5)
    assert (found.moments.nn, found.moments.nh, found.moments.hh) == (4, 2, 1)


def test_a_shadow_that_skipped_a_click_is_not_judged_by_the_one_after_that() -> None:
    scores, rows = score(
        [
            ranking("s", "a", ["b"], 0, 0, follows=-1),
            ranking("s", "b", ["c"], 1, 1, follows=0),  # a hit
            ranking("s", "c", ["d"], 7, 2, follows=5),  # it would be one, had nothing been clicked in between
            ranking("s", "d", ["e"], 9, 3, follows=7),  # a hit
        ]
    )
    found = only(scores)
    assert (found.rankings, found.sessions) == ({"model": 4}, 1)
    assert (found.total.predictions, found.total.hits, found.moments.hh) == (2, 2, 4)
    assert rows["s"].offset == 9


def test_only_the_first_k_items_count() -> None:
    scores, _ = score([ranking("s", "a", ["b", "c", "d", "e"], 0, 0), ranking("s", "e", [], 1, 1)])
    assert only(scores).total.hits == 0


def test_a_hit_belongs_to_the_model_that_ranked_and_to_the_type_of_the_click_after() -> None:
    first = ranking("s", "a", ["b"], 0, 0, variant="red", market="de", reason=RankingReason.UNKNOWN_ITEM)
    scores, _ = score([first, ranking("s", "b", ["c"], 1, 1, model_version="v2", type="purchase", market="at")])
    by_version = {one.model_version: one for one in scores.scores}
    old, new = by_version["v1"], by_version["v2"]
    assert (old.variant, old.market) == ("red", "de")
    assert old.types["purchase"].hits == old.reasons["unknown-item"].hits == 1
    assert (new.rankings, new.types, new.market) == ({"model": 1}, {}, "at")


def test_a_repeated_ranking_counts_once() -> None:
    first, second = ranking("s", "a", ["b"], 5, 0), ranking("s", "b", ["c"], 9, 1)
    scores, _ = score([first, first, second, first, second])  # a worker was killed, and began again before both
    assert (only(scores).total.predictions, only(scores).rankings) == (1, {"model": 2})
    assert scores.repeated == 3


def test_a_click_after_the_idle_gap_says_nothing_of_the_ranking_before() -> None:
    gap = RULES.idle_gap_ms
    scores, _ = score([ranking("s", "a", ["b"], 0, 0), ranking("s", "b", ["b"], 1, gap + 1)])
    assert all(not one.types for one in scores.scores)
    scores, _ = score([ranking("s", "a", ["b"], 0, 0), ranking("s", "b", ["b"], 1, gap)])
    assert sum(one.total.hits for one in scores.scores) == 1


def test_a_late_click_counts_in_its_window_as_long_as_that_is_kept() -> None:
    def of(late_by: int) -> PartitionScores:
        now = 10 * 60 * MINUTE
        return score(
            [ranking("t", "a", [], 0, now), ranking("s", "a", ["b"], 1, now - late_by), ranking("s", "b", [], 2, now)]
        )[0]

    kept, gone = of(RULES.keep_ms), of(RULES.keep_ms + RULES.window_ms)
    assert (kept.late, gone.late) == (0, 1)
    assert sum(sum(one.rankings.values()) for one in kept.scores) == 3
    assert sum(sum(one.rankings.values()) for one in gone.scores) == 2


def test_what_was_counted_before_is_not_counted_again() -> None:
    rankings = [ranking("s", "a", ["b"], 0, 0), ranking("s", "b", ["c"], 1, 1), ranking("s", "c", [], 2, 2)]
    first, _ = score(rankings[:2])
    published = [encode_score(one) for one in first.published(2)]
    again, _ = score(rankings, PartitionScores(0, RULES, map(decode_score, published)))  # the group forgot its offset
    whole, _ = score(rankings)
    assert counted(again.scores) == counted(whole.scores)
    rows_first, _ = score(rankings, PartitionScores(0, RULES, map(decode_score, published)), counts_from=2)
    assert counted(rows_first.scores) == counted(whole.scores)


def test_a_session_is_one_unit_over_windows_and_two_over_hours() -> None:
    rankings = [ranking("s", "a", ["a"], n, n * 10 * MINUTE) for n in range(7)]  # six hits, the last one an hour later
    scores, _ = score(rankings)
    total = totals_by_model(scores.scores)["v1"]
    assert (total.predictions, total.sessions) == (6, 2)
    assert total.moments.hh == 5**2 + 1


clicks = st.lists(
    st.tuples(
        st.sampled_from("stu"),  # session
        st.sampled_from("abcdef"),  # item clicked
        st.integers(0, 40 * MINUTE),  # time since the click before
        st.integers(-3 * MINUTE, 0),  # how late it comes
        st.sampled_from(["v1", "v2"]),
        st.sampled_from([None, "de"]),
        st.sampled_from([None, "cart", "purchase"]),
        st.sampled_from(list(RankingReason)),
        st.integers(0, 3),  # so many of the last rankings come again after it
    ),
    max_size=60,
)


def stream(drawn: Iterable[tuple[Any, ...]]) -> list[Ranking]:
    rankings: list[Ranking] = []
    made: list[Ranking] = []
    now = 1_700_000_000_000
    for offset, (session, clicked, later, late, version, market, of_type, reason, again) in enumerate(drawn):
        now += later
        items = ["abcdef"[(offset + n) % 6] for n in range(5)]
        made.append(
            ranking(
                session,
                clicked,
                items,
                offset,
                now + late,
                model_version=version,
                market=market,
                type=of_type,
                reason=reason,
            )
        )
        rankings += [made[-1], *(made[-again:] if again else [])]
    return rankings


@given(clicks, st.integers(0, 200))
def test_scores_equal_a_recount_wherever_it_was_interrupted(drawn: list[tuple[Any, ...]], cut: int) -> None:
    rankings = stream(drawn)
    rules = ScoringRules(k=3, window_ms=5 * MINUTE, keep_ms=10**12, idle_gap_ms=30 * MINUTE)
    cut = min(cut, len(rankings))
    before, _ = score(rankings[:cut], PartitionScores(0, rules))
    known = [decode_score(encode_score(one)) for one in before.published(cut)]
    scores, _ = score(rankings, PartitionScores(0, rules, known), counts_from=cut)
    expected = recount(rankings, k=3, window_ms=rules.window_ms, idle_gap_ms=rules.idle_gap_ms)
    assert counted(scores.scores) == expected


def test_optional_fields_of_a_ranking_cost_nothing_where_they_are_not_set() -> None:
    plain = ranking("s", "a", ["b"], 0, 0)
    assert not {"type", "market", "variant"} & msgspec.json.decode(encode_ranking(plain)).keys()
    marked = decode_ranking(encode_ranking(msgspec.structs.replace(plain, type="cart", market="de", variant="b")))
    assert (marked.type, marked.market, marked.variant) == ("cart", "de", "b")


def test_a_producer_that_makes_up_types_and_markets_fills_no_memory_and_no_count_is_lost() -> None:
    """Each type would grow the record until Kafka refuses it, and each market be a score that is kept for a day."""
    many = 3 * MOST_MARKETS
    rankings = [
        ranking("s", "a", ["a"], n, n, type=f"type {n}", market=None if n < many else f"market {n}")
        for n in range(2 * many)
    ]
    scores, _ = score(rankings)
    kept = list(scores.scores)
    assert len(kept) == MOST_MARKETS + 2  # the one without a market, and that of the others
    assert max(len(one.types) for one in kept) == MOST_TYPES + 1
    assert next(one for one in kept if one.market == OTHERS).types.keys() > {OTHERS}
    total = totals_by_model(kept)["v1"]
    assert (total.predictions, total.hits, total.rankings) == (2 * many - 1, 2 * many - 1, 2 * many)
    cut = many + MOST_MARKETS + 7
    before, _ = score(rankings[:cut])
    known = [decode_score(encode_score(one)) for one in before.published(cut)]
    again, _ = score(rankings, PartitionScores(0, RULES, known), counts_from=cut)
    assert counted(again.scores) == counted(kept)
    metrics = ScoreMetrics()
    metrics.show(kept)
    [predictions] = [one for one in metrics.registry.collect() if one.name == "nextclick_online_predictions"]
    assert len(predictions.samples) == MOST_TYPES + 1
    assert sum(sample.value for sample in predictions.samples) == total.predictions
