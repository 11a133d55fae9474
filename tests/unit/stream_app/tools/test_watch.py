"""Records of the rankings topic in, what is shown out."""

from confluent_kafka import Message

from schemas.messages.ranking import RankedItem, Ranking, RankingReason, encode_ranking
from schemas.messages.source import Source
from stream_app.tools.watch import as_line, rankings
from tests.unit.records import record


def ranking(session_id: str, offset: int, *, items: int = 2, reason: RankingReason = RankingReason.MODEL) -> Ranking:
    return Ranking(
        session_id=session_id,
        event_id=None,
        item_id=f"clicked-{offset}",
        model_version="v1",
        items=tuple(RankedItem(f"i{n}", 1.0 - n / 100) for n in range(items)),
        source=Source("clicks", 0, offset),
        click_timestamp=0,
        produced_at=0,
        reason=reason,
    )


def records(*told: Ranking | bytes | None) -> list[Message]:
    return [
        record(at, one.session_id.encode(), encode_ranking(one))
        if isinstance(one, Ranking)
        else record(at, b"s", one, partition=3)
        for at, one in enumerate(told)
    ]


def watched(told: list[Message], *, session_id: str | None = None, limit: int | None = None) -> list[int]:
    warnings: list[str] = []
    seen = [one.source.offset for one in rankings(told, session_id=session_id, limit=limit, warn=warnings.append)]
    assert warnings == []
    return seen


def test_all_rankings_as_they_come() -> None:
    assert watched(records(ranking("s", 1), ranking("t", 2), ranking("s", 3))) == [1, 2, 3]


def test_of_one_session() -> None:
    told = records(ranking("s", 1), ranking("ü", 2), ranking("s2", 3), ranking("ü", 4))
    assert watched(told, session_id="ü") == [2, 4]


def test_a_limit_counts_what_is_shown_and_reads_no_further() -> None:
    told = iter(records(ranking("s", 1), ranking("t", 2), ranking("s", 3), ranking("s", 4)))
    warnings: list[str] = []
    seen = [one.source.offset for one in rankings(told, session_id="s", limit=2, warn=warnings.append)]
    assert seen == [1, 3]
    assert next(told).offset() == 3


def test_what_is_no_ranking_is_told_and_passed_over_and_the_mark_of_a_forgotten_session_in_silence() -> None:
    warnings: list[str] = []
    told = records(b"{}", None, ranking("s", 7))
    assert [one.source.offset for one in rankings(told, session_id=None, limit=1, warn=warnings.append)] == [7]
    assert [warning.split(": not a ranking")[0] for warning in warnings] == ["partition 3, offset 0"]


def test_a_line() -> None:
    assert as_line(ranking("s", 4)).plain == "s  clicked clicked-4  next: i0, i1  (v1)"


def test_a_line_shows_the_best_items_and_how_many_more() -> None:
    assert as_line(ranking("s", 4, items=20)).plain.endswith("next: i0, i1, i2, i3, i4 and 15 more  (v1)")


def test_a_line_tells_why_a_ranking_is_not_the_models_own() -> None:
    assert as_line(ranking("s", 4, reason=RankingReason.POPULARITY)).plain.endswith("(v1, popular items)")
    assert as_line(ranking("s", 4, reason=RankingReason.UNKNOWN_ITEM)).plain.endswith("(v1, item unknown)")


def test_an_id_cannot_take_the_terminal_over() -> None:
    assert as_line(ranking("[red]\x1b[2Js", 4)).plain.startswith("[red]\N{REPLACEMENT CHARACTER}[2Js  clicked")
