"""Runs that differ in nothing but their seed, and what they have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.evaluation.protocol import Metrics
from trainer.evaluation.report import metrics_report
from trainer.training.fit import FitResult


@dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    metrics: Metrics
    result: FitResult
    windows: tuple[Metrics, ...] = ()
    """Of each window, where it was judged in windows."""

    def report(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "seed": self.result.settings.seed,
            **metrics_report(self.metrics),
            "windows": [{**metrics_report(one), "predictions": one.predictions} for one in self.windows],
            "losses": [epoch.loss for epoch in self.result.epochs],
            "transitions_per_second": self.result.transitions_per_second,
        }


def mean_and_spread(runs: Sequence[Metrics]) -> tuple[Metrics, Metrics | None]:
    """Of the same predictions: means, and standard deviations over the seeds; None of a single run."""

    def over(runs_of: Callable[[list[float]], float]) -> Metrics:
        recall = {k: runs_of([run.recall[k] for run in runs]) for k in runs[0].recall}
        mrr = {k: runs_of([run.mrr[k] for run in runs]) for k in runs[0].mrr}
        ndcg = {k: runs_of([run.ndcg[k] for run in runs]) for k in runs[0].ndcg}
        return Metrics(recall, mrr, ndcg, runs[0].predictions)

    mean = over(lambda values: float(np.mean(values)))
    return mean, over(lambda values: float(np.std(values, ddof=1))) if len(runs) > 1 else None
