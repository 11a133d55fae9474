"""Models side by side, as a JSON report and as a table; :mod:`trainer.evaluation.plot` has the picture."""

from collections.abc import Collection, Sequence
from typing import Any

from rich.table import Table

from trainer.data.datasets import Dataset
from trainer.evaluation.report import files_report, metrics_report, size_of
from trainer.evaluation.significance import LEVEL, Difference, Interval, Judgement


def comparison_report(
    judged: Sequence[Judgement],
    data: Dataset,
    *,
    protocol: str = "every-prefix",
    k: int,
    ties: str,
    resamples: int,
    seed: int,
    seen: Collection[str] = (),
) -> dict[str, Any]:
    """Everything, ready for JSON. ``seen`` are models that have been trained on sessions as late as the test's."""
    return {
        "models": {
            one.name: {
                **metrics_report(one.metrics),
                "intervals": {measure: _interval(of) for measure, of in one.intervals.items()},
                "against_first": {measure: _difference(of) for measure, of in one.against_first.items()},
                "trained_on_test": one.name in seen,
            }
            for one in judged
        },
        "first": judged[0].name,
        "protocol": protocol,
        "k": k,
        "ties": ties,
        "level": LEVEL,
        "resamples": resamples,
        "seed": seed,
        "predictions": judged[0].metrics.predictions,
        "data": {
            "items": len(data.train.item_ids),
            "train": size_of(data.train),
            "test": size_of(data.test),
            **files_report(data.files),
        },
    }


def _interval(of: Interval) -> list[float]:
    return [of.low, of.high]


def _difference(of: Difference) -> dict[str, Any]:
    return {
        "value": of.value,
        "interval": _interval(of.interval),
        "standard_error": of.error,
        "p": of.p,
        "p_adjusted": of.p_adjusted,
    }


def comparison_table(judged: Sequence[Judgement], data: Dataset, k: int) -> Table:
    """One model a row, at k: its metrics, their intervals, and the differences from the first model."""
    predictions = judged[0].metrics.predictions
    table = Table(
        title=f"{predictions:,} predictions in {len(data.test):,} sessions",
        caption=f"{LEVEL:.0%} intervals over sessions; difference from {judged[0].name}, p after Holm",
    )
    table.add_column("model", overflow="fold")  # names with options are long, and figures must not be cut
    for title in (f"Recall@{k}", "difference", f"MRR@{k}", "difference"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in judged:
        cells = []
        for measure, value in ((f"recall@{k}", one.metrics.recall[k]), (f"mrr@{k}", one.metrics.mrr[k])):
            interval, against = one.intervals[measure], one.against_first.get(measure)
            cells.append(f"{value:.4f}\n{interval.low:.3f}-{interval.high:.3f}")
            cells.append(f"{against.value:+.4f}\np {against.p_adjusted:.4f}" if against else "")
        table.add_row(one.name, *cells)
    return table
