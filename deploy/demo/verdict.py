"""The demo's last line: every session computed anew and compared, and what the models reached."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from confluent_kafka import Message

from deploy.demo.oracle import Position, Published, mismatches, read_topic, recompute, stored_rows
from schemas.bundle.files import open_bundle
from schemas.messages.ranking import decode_ranking
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
    """

    result: dict[str, Any]
    wrong_rankings: int
    wrong_rows: list[str]
    needed: int

    @property
    def faults(self) -> list[str]:
        """What is not as it should be, a line each: nothing lost or wrong, and a new model that served for a while."""
        lost, made = (
            self.result["lost"],
            max((m["online"]["predictions"] for m in self.result["models"][1:]), default=0),
        )
        return [
            *([f"{lost} clicks have no ranking"] if lost else []),
            *([f"{self.wrong_rankings} rankings are wrong"] if self.wrong_rankings else []),
            *([f"{len(self.wrong_rows)} rows are wrong"] if self.wrong_rows else []),
            *(["no new model came into service"] if not self.result["swaps"] else []),
            *(
                [f"the new model made {made:,} predictions, too few to judge it: {self.needed:,} are needed"]
                if self.result["swaps"] and made < self.needed
                else []
            ),
        ]


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
    """

    def clicks() -> Iterator[Message]:
        for record in read_topic(kafka, topics["clicks"]):
            if record.offset() >= since[record.partition()]:
                yield record

    appended: dict[Position, int] = {
        (record.partition(), record.offset()): record.timestamp()[1] for record in clicks()
    }
    rankings = list(read_topic(kafka, topics["rankings"]))
    latencies = []
    for record in rankings:
        source = decode_ranking(record.value() or b"").source
        latencies.append(record.timestamp()[1] - appended[source.partition, source.offset])
    published = Published.of(rankings)
    versions = {ranking.model_version for ranking in published.last.values()}
    models = {version: open_bundle(registry / version) for version in versions}
    expected = recompute(clicks(), published, models, check_every=_CHECKED_RANKINGS)
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
        "models": [_told(version, score, *offline[version]) for version, score in served.items()],
        "latency_ms": {"p50": float(p50), "p99": float(p99)},
        "clicks_per_second": len(appended) / seconds,
    }
    return Verdict(result, len(expected.wrong_rankings), wrong, needed)


def _told(version: str, score: Totals, recall: float, mrr: float) -> dict[str, object]:
    return {
        "version": version,
        "offline": {"recall@20": recall, "mrr@20": mrr},
        "online": {"recall@20": score.recall, "mrr@20": score.mrr, "predictions": score.predictions},
    }
