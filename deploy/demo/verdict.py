"""The demo's last line: every session computed anew and compared, and what the models reached."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from confluent_kafka import Message

from deploy.demo.oracle import Position, Published, mismatches, read_topic, recompute, stored_rows
from deploy.demo.stock import SoldOut
from deploy.demo.trials import Trials
from schemas.bundle.files import open_bundle
from schemas.messages.ranking import Ranking, decode_ranking
from schemas.messages.score import Totals

_CHECKED_RANKINGS: Final = 25
"""The oracle compares every n-th ranking item by item; rows, and that there is a ranking, for all clicks."""


@dataclass(frozen=True)
class Verdict:
    """What came of the live clicks.

    Attributes:
        result: the object that is printed as JSON.
        wrong_rankings: clicks whose ranking is not what their session leads to, among those that were compared.
        wrong_rows: one line a session whose row is not what its clicks lead to.
        needed: predictions that a new model must have made.
        with_trials: whether a canary was to be promoted, and a bad model to be rolled back.
    """

    result: dict[str, Any]
    wrong_rankings: int
    wrong_rows: list[str]
    needed: int
    with_trials: bool = False

    @property
    def faults(self) -> list[str]:
        """What is not as it should be, a line each: nothing lost or wrong, and a new model that served for a while."""
        lost, made = (
            self.result["lost"],
            max((m["online"]["predictions"] for m in self.result["models"][1:]), default=0),
        )
        sold_out = self.result["sold_out"]
        return [
            *([f"{lost} clicks have no ranking"] if lost else []),
            *(
                []
                if sold_out and sold_out["rankings_meanwhile"]
                else ["no ranking was made while an item was sold out"]
            ),
            *([f"a sold-out item was shown: {sold_out}"] if sold_out and sold_out["shown_meanwhile"] else []),
            *([f"{self.wrong_rankings} rankings are wrong"] if self.wrong_rankings else []),
            *([f"{len(self.wrong_rows)} rows are wrong"] if self.wrong_rows else []),
            *(["the guard promoted no canary"] if self.with_trials and not self.result["canary"] else []),
            *(["the guard rolled no bad model back"] if self.with_trials and not self.result["rolled_back"] else []),
            *(["no new model came into service"] if not self.result["swaps"] else []),
            *(
                [f"the new model made {made:,} predictions, too few to judge it: {self.needed:,} are needed"]
                if self.result["swaps"] and made < self.needed
                else []
            ),
        ]


# Long: one figure of the result after the other.
def judge(
    kafka: Mapping[str, object],
    topics: Mapping[str, str],
    since: Mapping[int, int],
    *,
    seconds: float,
    registry: Path,
    data_dir: Path,
    served: Mapping[str, Totals],
    offline: Mapping[str, tuple[float, float]],
    needed: int,
    sold_out: SoldOut | None,
    trials: Trials | None,
) -> Verdict:
    """Judge a run whose worker has stopped.

    Args:
        kafka: librdkafka's configuration.
        topics: names of `clicks`, `rankings` and `rejected`.
        since: by partition, the offset of the first live click.
        seconds: for how long live clicks came.
        registry: where the bundles of the models are that served.
        data_dir: the worker's.
        served: online scores by version, in the order of their service.
        offline: Recall@20 and MRR@20 on the holdout, by version.
        needed: predictions that a new model must have made.
        sold_out: the item that was out of stock for a while.
        trials: what became of the canary and of the bad model; None where there was neither.
    """

    def clicks() -> Iterator[Message]:
        for record in read_topic(kafka, topics["clicks"]):
            if record.offset() >= since[record.partition()]:
                yield record

    appended: dict[Position, int] = {
        (record.partition(), record.offset()): record.timestamp()[1] for record in clicks()
    }
    rankings = list(read_topic(kafka, topics["rankings"]))
    latencies = _latencies(rankings, appended)
    published = Published.of(rankings)
    versions = {ranking.model_version for ranking in published.last.values()}
    models = {version: open_bundle(registry / version) for version in versions}
    missing = partial(_missing, sold_out)
    expected = recompute(clicks(), published, models, check_every=_CHECKED_RANKINGS, missing=missing)
    wrong = mismatches(expected.rows, stored_rows(data_dir))
    p50, p99 = np.percentile(latencies, [50, 99]) if latencies else (0.0, 0.0)
    result = {
        "clicks": len(appended),
        "rankings": len(rankings),
        "rejected": sum(1 for _ in read_topic(kafka, topics["rejected"])),
        "duplicates": published.duplicates,
        "lost": len(expected.lost),
        "state_mismatches": len(wrong),
        "swaps": max(0, len(served) - 1),
        "sold_out": None if sold_out is None else _while_sold_out(sold_out, published),
        "canary": trials and trials.canary,
        "rolled_back": trials and trials.rolled_back,
        "models": [_told(version, score, *offline[version]) for version, score in served.items()],
        "latency_ms": {"p50": float(p50), "p99": float(p99)},
        "clicks_per_second": len(appended) / seconds,
    }
    return Verdict(result, len(expected.wrong_rankings), wrong, needed, with_trials=trials is not None)


def _latencies(rankings: Sequence[Message], appended: Mapping[Position, int]) -> list[int]:
    """From the time at which each click was appended to its topic to that of its ranking, ms."""
    found = []
    for record in rankings:
        source = decode_ranking(record.value() or b"").source
        found.append(record.timestamp()[1] - appended[source.partition, source.offset])
    return found


def _missing(sold_out: SoldOut | None, ranking: Ranking) -> str | None:
    """The item that a ranking must not hold."""
    return sold_out.item_id if sold_out is not None and sold_out.counts_for(ranking) else None


def _while_sold_out(sold_out: SoldOut, published: Published) -> dict[str, object]:
    """How many rankings held the item, and how many were made by workers that knew it sold out."""
    rankings = published.last.values()
    meanwhile = [ranking for ranking in rankings if sold_out.counts_for(ranking)]
    shown = sum(map(sold_out.holds, meanwhile))
    return {
        "item_id": sold_out.item_id,
        "shown": sum(map(sold_out.holds, rankings)) - shown,
        "rankings_meanwhile": len(meanwhile),
        "shown_meanwhile": shown,
    }


def _told(version: str, score: Totals, recall: float, mrr: float) -> dict[str, object]:
    return {
        "version": version,
        "offline": {"recall@20": recall, "mrr@20": mrr},
        "online": {"recall@20": score.recall, "mrr@20": score.mrr, "predictions": score.predictions},
    }
