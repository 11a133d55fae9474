"""What a fit says about itself: a JSON report, the metrics of a manifest, and a table for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from schemas.click_files.read import FileRead
from trainer.data.sessions import SessionSet
from trainer.evaluation.protocol import Metrics
from trainer.memory.trained import TrainedModel


def metrics_report(metrics: Metrics) -> dict[str, Any]:
    """``recall``, ``mrr`` and ``ndcg``, each by k as text; the same ``by_type`` where the clicks have types."""
    report: dict[str, Any] = {
        "recall": {str(k): value for k, value in metrics.recall.items()},
        "mrr": {str(k): value for k, value in metrics.mrr.items()},
        "ndcg": {str(k): value for k, value in metrics.ndcg.items()},
    }
    if metrics.by_type:
        report["by_type"] = {
            name: {**metrics_report(of), "predictions": of.predictions} for name, of in metrics.by_type.items()
        }
    return report


def manifest_metrics(metrics: Metrics) -> dict[str, float]:
    """The form of a bundle's manifest: ``recall@20`` and so on, and ``predictions``."""
    flat = {f"recall@{k}": value for k, value in metrics.recall.items()}
    flat |= {f"mrr@{k}": value for k, value in metrics.mrr.items()}
    return flat | {"predictions": metrics.predictions}


def training_record(model: TrainedModel, train: SessionSet) -> dict[str, Any]:
    """What a manifest keeps about a fit: its settings, and the window of the sessions it learned from."""
    return {
        "settings": model.settings.record(),
        "window": {
            # Of the sessions' last clicks, in milliseconds since the epoch.
            "from": int(train.ends[0]) if train.timed else None,
            "to": int(train.ends[-1]) if train.timed else None,
            "sessions": len(train),
            "clicks": train.clicks,
        },
    }


def files_report(files: Sequence[FileRead]) -> dict[str, Any]:
    """By file: what it was taken for, warnings, how many rows were left out, and where the first ones are."""
    examples = {
        str(file.path): [{"place": row.place, "reason": row.reason} for row in file.bad_examples]
        for file in files
        if file.bad_rows
    }
    return {
        "read_as": {str(file.path): file.described for file in files},
        "warnings": {str(file.path): file.warnings for file in files if file.warnings},
        "bad_rows": {str(file.path): file.bad_rows for file in files},
        "bad_examples": examples,
    }


def size_of(sessions: SessionSet) -> dict[str, int]:
    return {"sessions": len(sessions), "clicks": sessions.clicks, "transitions": sessions.transitions}


def types_table(named: Mapping[str, Metrics], k: int) -> Table:
    """What each model's metrics at k are by the type of the click that is predicted."""
    table = Table(title="by type of the click that is predicted")
    table.add_column("model", overflow="fold")
    table.add_column("type", overflow="fold")
    for title in ("predictions", f"Recall@{k}", f"MRR@{k}"):
        table.add_column(title, justify="right", no_wrap=True)
    for model, metrics in named.items():
        for name, of in metrics.by_type.items():
            table.add_row(model, name, f"{of.predictions:,}", f"{of.recall[k]:.4f}", f"{of.mrr[k]:.4f}")
    return table


def metrics_table(family: str, metrics: Metrics, baselines: Mapping[str, Metrics]) -> Table:
    """Models side by side, the trained one of this family last, at the two greatest k."""
    table = Table(title=f"{metrics.predictions:,} predictions")
    table.add_column("model")
    ks = sorted(metrics.recall)[-2:]
    for k in ks:
        table.add_column(f"Recall@{k}", justify="right")
        table.add_column(f"MRR@{k}", justify="right")
    for name, of, style in (*((name, of, None) for name, of in baselines.items()), (family, metrics, "bold")):
        cells = [f"{value:.4f}" for k in ks for value in (of.recall[k], of.mrr[k])]
        table.add_row(name, *cells, style=style)
    return table
