"""Online scores once more, the plain way: the rankings of each session in a list, pair by pair."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from schemas.messages.ranking import Ranking
from schemas.messages.score import Score

HOUR_MS = 3_600_000

Window = tuple[str, str | None, str | None, int]


def recount(rankings: Iterable[Ranking], *, k: int, window_ms: int, idle_gap_ms: int) -> dict[Window, dict[str, Any]]:
    """Counts by model, variant, market and window, of rankings in the order of the topic, each partition's together."""
    sessions: dict[str, list[Ranking]] = defaultdict(list)
    for ranking in rankings:
        sessions[ranking.session_id].append(ranking)
    counts: dict[Window, dict[str, Any]] = defaultdict(
        lambda: {"rankings": defaultdict(int), "types": defaultdict(list), "reasons": defaultdict(list), "sessions": 0}
    )
    moments: dict[Window, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0, 0.0])

    def of(ranking: Ranking, at: int) -> Window:
        return ranking.model_version, ranking.variant, ranking.market, at - at % window_ms

    for session in sessions.values():
        seen: set[tuple[int, int]] = set()
        before: Ranking | None = None
        newest = 0
        unit: list[int] = []  # the place of each click in the ranking before; 0: not among the first k
        for ranking in session:
            if (identity := (ranking.source.partition, ranking.source.offset)) in seen:
                continue
            seen.add(identity)
            at = ranking.click_timestamp
            if before is None or at - newest > idle_gap_ms:
                unit, newest = [], at
            else:
                if max(at, newest) // HOUR_MS != newest // HOUR_MS:
                    unit = []
                newest = max(at, newest)
                listed = [item.item_id for item in before.items[:k]]
                place = listed.index(ranking.item_id) + 1 if ranking.item_id in listed else 0
                window = of(before, at)
                counts[window]["types"][ranking.type or "view"].append(place)
                counts[window]["reasons"][str(before.reason)].append(place)
                counts[window]["sessions"] += not unit
                old, unit = _products(unit), [*unit, place]
                moments[window] = [m + b - a for m, a, b in zip(moments[window], old, _products(unit), strict=True)]
                if of(before, 0) != of(ranking, 0):
                    unit = []
            counts[of(ranking, at)]["rankings"][str(ranking.reason)] += 1
            before = ranking
    return {window: _plain(found, moments[window]) for window, found in counts.items()}


def counted(scores: Iterable[Score]) -> dict[Window, dict[str, Any]]:
    """The same of published scores, partitions added up."""
    sums: dict[Window, dict[str, Any]] = {}
    for score in scores:
        window = score.model_version, score.variant, score.market, score.window_start
        found = sums.setdefault(
            window, {"rankings": {}, "types": {}, "reasons": {}, "sessions": 0, "moments": [0, 0, 0, 0.0, 0.0]}
        )
        for reason, count in score.rankings.items():
            found["rankings"][reason] = found["rankings"].get(reason, 0) + count
        for group, tallies in (("types", score.types), ("reasons", score.reasons)):
            for name, tally in tallies.items():
                old = found[group].get(name, (0, 0, 0.0))
                added = (tally.predictions, tally.hits, tally.reciprocal_ranks)
                found[group][name] = tuple(a + b for a, b in zip(old, added, strict=True))
        found["sessions"] += score.sessions
        of = score.moments
        found["moments"] = [a + b for a, b in zip(found["moments"], (of.nn, of.nh, of.hh, of.nr, of.rr), strict=True)]
    return {window: _rounded(found) for window, found in sums.items()}


def _products(unit: list[int]) -> list[float]:
    n, h, r = len(unit), sum(place > 0 for place in unit), sum(1 / place for place in unit if place)
    return [n * n, n * h, h * h, n * r, r * r]


def _plain(found: dict[str, Any], moments: list[float]) -> dict[str, Any]:
    def tally(places: list[int]) -> tuple[int, int, float]:
        return len(places), sum(place > 0 for place in places), sum(1 / place for place in places if place)

    plain: dict[str, Any] = _rounded(
        {
            "rankings": dict(found["rankings"]),
            "types": {name: tally(places) for name, places in found["types"].items()},
            "reasons": {name: tally(places) for name, places in found["reasons"].items()},
            "sessions": found["sessions"],
            "moments": moments,
        }
    )
    return plain


def _rounded(value: Any) -> Any:
    """Sums of fractions depend on their order, in the last digits."""
    match value:
        case dict():
            return {name: _rounded(one) for name, one in value.items()}
        case list() | tuple():
            return [_rounded(one) for one in value]
        case float():
            return round(value, 6)
        case _:
            return value
