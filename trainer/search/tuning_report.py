"""What a search says about itself: a JSON report, a preset of its best settings, and a table."""

from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial
from rich.table import Table

from trainer.data.datasets import Dataset
from trainer.evaluation.baselines import baseline_of
from trainer.evaluation.report import files_report, size_of
from trainer.models.counting import CountingSettings
from trainer.models.settings import TrainingSettings
from trainer.presets import Split, preset_text
from trainer.search.searches import Search
from trainer.search.tuning import Found


def tuning_report(
    search: Search, winner: Found, trials: Sequence[FrozenTrial], data: Dataset, *, measure: str
) -> dict[str, Any]:
    best: dict[str, Any] = {"trial": winner.number, "recall@20": winner.recall, "mrr@20": winner.mrr}
    settings = tuned_settings(winner)
    best |= {"epoch": winner.epoch, "settings": settings.model_dump()}
    if isinstance(settings, CountingSettings):
        best["baselines"] = str(baseline_of(settings))
    return {
        "best": best,
        "by": measure,
        "search": [str(one) for one in search.dimensions],
        "trials": [
            {
                "trial": trial.number,
                "pruned": trial.state.name == "PRUNED",
                "values": trial.user_attrs["values"],
                **{f"{name}@20": trial.user_attrs.get(name) for name in ("recall", "mrr")},
                "epoch": trial.user_attrs.get("epoch"),
                "diverged": trial.user_attrs.get("diverged"),
            }
            for trial in trials
        ],
        "data": {"train": size_of(data.train), "validation": size_of(data.test), **files_report(data.files)},
    }


def tuned_settings(winner: Found) -> TrainingSettings:
    """The best trial's, with as many epochs as were best."""
    return TrainingSettings.parse({**winner.values, **({"epochs": winner.epoch} if winner.epoch else {})})


def tuned_preset(search: Search, winner: Found, data: Dataset, split: Split, *, measure: str, source: str) -> str:
    """The best settings as a preset's text, ``source`` the file or files of clicks."""
    trained, judged = f"{len(data.train):,}", f"{len(data.test):,}"
    comments = [
        f"The best by {measure} on the newest {judged} sessions of {source}, trained on the {trained} before them:",
        f"Recall@20 {winner.recall:.4f}, MRR@20 {winner.mrr:.4f}"
        f"{f' after {winner.epoch} epochs' if winner.epoch else ''}. Searched:",
        *map(str, search.dimensions),
    ]
    return preset_text(f"Tuned on {source}", "trainer tune", tuned_settings(winner), data=split, comments=comments)


def tuning_table(search: Search, winner: Found, summary: dict[str, Any]) -> Table:
    """The best values beside what they were searched in."""
    validation = summary["data"]["validation"]["transitions"]
    table = Table(
        "setting",
        "searched",
        "best",
        title=f"Recall@20 {winner.recall:.4f}, MRR@20 {winner.mrr:.4f} on {validation:,} predictions of validation",
    )
    for one in search.dimensions:
        table.add_row(one.name, str(one).partition("=")[2], str(winner.values[one.name]))
    if winner.epoch and not any(one.name == "epochs" for one in search.dimensions):
        table.add_row("epochs", "as set" if search.epochs_planned else "early stopping", str(winner.epoch))
    return table
