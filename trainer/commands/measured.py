"""What a model is trained and judged on, as two protocols have it: a log in two parts, or in windows of time."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from trainer.commands.terminal import load_data, progress_bar, tell_few, tell_files
from trainer.data.options import DataOptions
from trainer.errors import TrainingSettingsError
from trainer.evaluation.baselines import BaselineSpec
from trainer.evaluation.protocol import DEFAULT_KS, NetworkScorer, Ties, evaluate
from trainer.evaluation.report import files_report, metrics_report, size_of
from trainer.models.settings import TrainingSettings
from trainer.presets import Split
from trainer.search.reproduction import Run
from trainer.search.windows import BaselineLearner, FamilyLearner, Learner, OverTime, over_time, read_windows
from trainer.training.device import Hardware
from trainer.training.train import train, transitions_to_fit, transitions_to_learn

_DAY = 24.0  # hours


class Log(Protocol):
    """A log that settings can be measured on."""

    def run(self, settings: TrainingSettings, *, ties: Ties, hardware: Hardware, checkpoint: Path | None) -> Run:
        """Train and judge once."""
        ...

    def report(self) -> dict[str, Any]:
        """What it is made of, ready for JSON."""
        ...


class TwoParts:
    """Trained on the older part, judged on every prefix of the newer one."""

    def __init__(self, options: DataOptions, split: Split, errors: Console) -> None:
        """With a file to test on both are taken as they are, else the log is filtered and split."""
        if not options.test:
            options = replace(
                options,
                valid_days=split.test_days,
                collapse_repeats=split.collapse_repeats,
                core=split.core,
                train_share=split.train_share,
            )
        self._data, self._errors = load_data(errors, options), errors

    def run(self, settings: TrainingSettings, *, ties: Ties, hardware: Hardware, checkpoint: Path | None) -> Run:
        data, show = self._data, self._errors.is_terminal
        total = transitions_to_fit(data.train, settings) + transitions_to_learn(data.train, settings)
        with progress_bar(self._errors, f"training, seed {settings.seed}", total, show=show) as advance:
            result = train(data.train, settings, checkpoint=checkpoint, progress=advance, hardware=hardware)
        scorer = NetworkScorer(result.weights, result.memory)
        with progress_bar(self._errors, "evaluating", data.test.transitions, show=show) as advance:
            return Run(evaluate(scorer, data.test, ties=ties, progress=advance), result)

    def report(self) -> dict[str, Any]:
        data = self._data
        return {
            "items": len(data.train.item_ids),
            "train": size_of(data.train),
            "test": size_of(data.test),
            **files_report(data.files),
        }


class Windows:
    """Trained on the windows so far, judged on the last clicks of the next one (:mod:`trainer.search.windows`)."""

    def __init__(self, options: DataOptions, errors: Console, *, hours: float | None, retrain: int | None) -> None:
        """Windows of a day where no ``hours`` are named."""
        _check_whole_log(options)
        self._errors, self._hours, self.retrain = errors, hours or _DAY, retrain
        with errors.status("reading clicks"):
            self._windows, self._files = read_windows(options, self._hours)
        tell_files(errors, self._files)
        judged = sum(map(len, self._windows[1:]))
        tell_few(errors, judged, judged)

    def run(self, settings: TrainingSettings, *, ties: Ties, hardware: Hardware, checkpoint: Path | None) -> Run:
        if checkpoint is not None:
            raise TrainingSettingsError("--checkpoint: a training in windows keeps none; leave it out")
        learner = FamilyLearner(settings, self.retrain, hardware=hardware)
        found = self.judge(f"{settings.family}, seed {settings.seed}", learner, ties=ties, ks=DEFAULT_KS)
        assert learner.result is not None  # there are two windows at least
        return Run(found.mean, learner.result, found.windows)

    def judge(self, name: str, learner: Learner, *, ties: Ties, ks: Sequence[int]) -> OverTime:
        """Let a learner of any kind go through the windows."""
        windows = len(self._windows) - 1
        with progress_bar(self._errors, f"{name}, windows", windows, show=self._errors.is_terminal) as advance:
            return over_time(self._windows, learner, ks=ks, ties=ties, tell=lambda _: advance(1))

    def report(self) -> dict[str, Any]:
        return {
            "protocol": "transformers4rec",
            "window_hours": self._hours,
            "retrain": self.retrain,
            # Of each window: when the first of its sessions ended, in milliseconds since the epoch, and its size.
            "windows": [{"from": int(one.ends[0]), **size_of(one)} for one in self._windows],
            **files_report(self._files),
        }


def compared(
    log: Windows,
    settings: TrainingSettings,
    baselines: Sequence[BaselineSpec],
    *,
    k: int,
    ties: Ties,
    hardware: Hardware,
) -> tuple[dict[str, Any], Table]:
    """A model of these settings and baselines of other names, in the same windows: report and table."""
    learners: dict[str, Learner] = {settings.family: FamilyLearner(settings, log.retrain, hardware=hardware)}
    learners |= {str(spec): BaselineLearner(spec) for spec in baselines}
    ks = sorted({k, *(one for one in DEFAULT_KS if one < k)})
    found = {name: log.judge(name, learner, ties=ties, ks=ks) for name, learner in learners.items()}
    report = {
        "models": {
            name: {
                **metrics_report(of.mean),
                "windows": [{**metrics_report(one), "predictions": one.predictions} for one in of.windows],
            }
            for name, of in found.items()
        },
        "k": k,
        "ties": ties,
        "predictions": found[settings.family].mean.predictions,
        "settings": settings.model_dump(),
        "data": log.report(),
    }
    return report, _table(found, k)


def _table(found: Mapping[str, OverTime], k: int) -> Table:
    first = next(iter(found.values()))
    table = Table(
        title=f"{first.mean.predictions:,} last clicks in {len(first.windows)} windows",
        caption="means of the windows; each is judged by models of the windows before it",
    )
    table.add_column("model", overflow="fold")
    for title in (f"NDCG@{k}", f"Recall@{k}", f"MRR@{k}"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, of in found.items():
        table.add_row(name, *(f"{values[k]:.4f}" for values in (of.mean.ndcg, of.mean.recall, of.mean.mrr)))
    return table


def _check_whole_log(options: DataOptions) -> None:
    """Raises :class:`TrainingSettingsError` for options that split a log in another way."""
    usual = DataOptions(train=options.train)
    for name in ("test", "valid_fraction", "valid_days", "test_fraction", "test_days", "min_support"):
        if (getattr(options, name) or None) != (getattr(usual, name) or None):
            raise TrainingSettingsError(
                f"--{name.replace('_', '-')}: the protocol transformers4rec takes a whole log and splits it itself; "
                "leave it out"
            )
