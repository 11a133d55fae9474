"""What a fit says about itself, as JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.data.datasets import Dataset
from trainer.evaluation.protocol import Metrics, Ties
from trainer.evaluation.report import files_report, metrics_report, size_of
from trainer.training.fit import FitResult


def fit_report(
    result: FitResult,
    metrics: Metrics,
    baselines: Mapping[str, Metrics],
    *,
    data: Dataset,
    ties: Ties,
    threads: int,
    bundle: Path,
) -> dict[str, Any]:
    """The whole report, ready for JSON."""
    return {
        **metrics_report(metrics),
        "predictions": metrics.predictions,
        "ties": ties,
        "transitions_per_second": result.transitions_per_second,
        "engine": result.engine,
        "device": str(result.device),
        "threads": threads,
        "epochs": len(result.epochs),
        "best_epoch": result.best_epoch,
        "scores": [epoch.score for epoch in result.epochs] if data.holdout is not None else None,
        "losses": [epoch.loss for epoch in result.epochs],
        "seconds": sum(epoch.seconds for epoch in result.epochs),
        "settings": result.settings.model_dump(),
        "baselines": {name: metrics_report(of) for name, of in baselines.items()},
        "data": {
            "items": len(result.item_ids),
            "train": size_of(data.train),
            "test": size_of(data.test),
            "holdout": size_of(data.holdout) if data.holdout is not None else None,
            **files_report(data.files),
        },
        "version": bundle.name,
        "bundle": str(bundle),
    }
