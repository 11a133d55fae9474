"""What the scorer measures, as Prometheus has it."""

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from schemas.messages.score import MOST_TYPES, OTHERS, Score, Tally

_SPAN_MS: Final = 3_600_000


class ScoreMetrics:
    """One registry a scorer. Sums over scorers are sums: divide them, do not average quotients."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.predictions = Gauge(
            "nextclick_online_predictions",
            "Rankings of the last hour whose session clicked again.",
            ["version", "variant", "type"],
            registry=registry,
        )
        self.hits = Gauge(
            "nextclick_online_hits",
            "Those with the next click among their first k items.",
            ["version", "variant", "type"],
            registry=registry,
        )
        self.reciprocal_ranks = Gauge(
            "nextclick_online_reciprocal_ranks",
            "Sum of 1 / rank over them.",
            ["version", "variant", "type"],
            registry=registry,
        )
        self.rankings = Gauge(
            "nextclick_online_rankings",
            "Rankings of the last hour, by what they came from.",
            ["version", "variant", "reason"],
            registry=registry,
        )
        self.counted = Counter("nextclick_scores_rankings", "Rankings read and counted.", registry=registry)
        self.repeated = Counter(
            "nextclick_scores_repeated", "Rankings that were published before, not counted again.", registry=registry
        )
        self.late = Counter(
            "nextclick_scores_late", "Counts left out because their window is forgotten.", registry=registry
        )
        self.unreadable = Counter(
            "nextclick_scores_unreadable", "Records of the rankings topic that are no ranking.", registry=registry
        )
        self.expired = Counter(
            "nextclick_scores_expired", "Offsets that retention removed before they were read.", registry=registry
        )
        self.lag = Gauge(
            "nextclick_scores_lag", "Rankings not counted yet in a partition.", ["partition"], registry=registry
        )

    def show(self, scores: Iterable[Score]) -> None:
        """Set the gauges to what the windows of the last hour hold, by the newest window there is."""
        kept = list(scores)
        newest = max((score.window_start for score in kept), default=0)
        tallies: dict[tuple[str, str, str], Tally] = {}
        types: dict[tuple[str, str], set[str]] = {}
        rankings: dict[tuple[str, str, str], int] = {}
        for score in kept:
            if score.window_start <= newest - _SPAN_MS:
                continue
            model = score.model_version, score.variant or ""  # for Prometheus an empty label is none
            own = types.setdefault(model, set())
            for of_type, tally in score.types.items():
                # Each window has types of its own.
                name = of_type if of_type in own or len(own) < MOST_TYPES else OTHERS
                own.add(name)
                tallies.setdefault((*model, name), Tally()).add(tally)
            for reason, count in score.rankings.items():
                key = *model, reason
                rankings[key] = rankings.get(key, 0) + count
        for gauge in (self.predictions, self.hits, self.reciprocal_ranks, self.rankings):
            gauge.clear()  # of models that rank no more
        for labels, tally in tallies.items():
            self.predictions.labels(*labels).set(tally.predictions)
            self.hits.labels(*labels).set(tally.hits)
            self.reciprocal_ranks.labels(*labels).set(tally.reciprocal_ranks)
        for labels, count in rankings.items():
            self.rankings.labels(*labels).set(count)
