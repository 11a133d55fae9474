"""``trainer presets`` and ``trainer reproduce``: settings with published figures, and our figures beside them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trainer.commands.options import (
    AsJson,
    Checkpoint,
    Device,
    Out,
    Settings,
    Threads,
    TieMode,
    Ties,
)
from trainer.commands.terminal import mistakes_answered, progress_bar, tell_data, warn, write_report
from trainer.data.options import DataOptions, reads_data
from trainer.models.settings import TrainingSettings
from trainer.presets import Preset, Published, load_preset, preset_names

if TYPE_CHECKING:
    from trainer.data.datasets import Dataset
    from trainer.evaluation.protocol import Metrics


def presets(as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False) -> None:
    """List the presets: settings from the papers, and what they reached there."""
    found = [load_preset(name) for name in preset_names()]
    if as_json:
        typer.echo(json.dumps([_described(preset) for preset in found]))
        return
    table = Table(title="Published settings and results")
    table.add_column("preset", no_wrap=True)
    table.add_column("what")
    for title in ("units", "Recall@20", "MRR@20"):
        table.add_column(title, justify="right", no_wrap=True)
    for preset in found:
        for row, published in enumerate(preset.published):
            units = published.settings.get("hidden_size", preset.training.model_dump().get("hidden_size", ""))
            name, what = (preset.name, preset.title) if row == 0 else ("", "")
            table.add_row(name, what, str(units), f"{published.recall[20]:.4f}", f"{published.mrr[20]:.4f}")
    Console().print(table)


# Long: its arguments are the command's options, with their help.
@reads_data("train", "test", "idle_gap")
def reproduce(
    preset: Annotated[str, typer.Argument(help="A name of `trainer presets`, or a .toml file.")],
    *,
    settings: Settings = None,
    out: Out = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Train so many times, with seed, seed+1 and so on; ours are the means then.")
    ] = 1,
    checkpoint: Checkpoint = None,
    options: DataOptions,
    ties: Ties = TieMode.CONSERVATIVE,
    threads: Threads = 1,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train by a preset and print our figures beside the published ones.

    With --test both are taken as they are. Without it --train is the whole log: it is filtered and split as the
    preset says.
    """
    errors = Console(stderr=True)
    with mistakes_answered(errors):
        chosen = load_preset(preset)
        training = chosen.with_changes(settings or [])
        published = chosen.published_for(training)
        from trainer.data.datasets import load
        from trainer.evaluation.protocol import NetworkScorer, evaluate
        from trainer.evaluation.report import metrics_report
        from trainer.search.reproduction import Run, mean_and_spread
        from trainer.training.device import Hardware
        from trainer.training.train import train as train_model
        from trainer.training.train import transitions_to_fit, transitions_to_learn

        hardware = Hardware(threads, device).set_up()
        if not options.test:
            split = chosen.data
            options = replace(
                options, valid_days=split.test_days, collapse_repeats=split.collapse_repeats, core=split.core
            )
        data = load(options)
        tell_data(errors, data)
        total = transitions_to_fit(data.train, training) + transitions_to_learn(data.train, training)
        runs = []
        for seed in range(training.seed, training.seed + seeds):
            with progress_bar(errors, f"training, seed {seed}", total, show=errors.is_terminal) as advance:
                result = train_model(
                    data.train,
                    training.model_copy(update={"seed": seed}),
                    checkpoint=_of_seed(checkpoint, seed, seeds),
                    progress=advance,
                    hardware=hardware,
                )
            scorer = NetworkScorer(result.weights, result.memory)
            with progress_bar(errors, "evaluating", data.test.transitions, show=errors.is_terminal) as advance:
                metrics = evaluate(scorer, data.test, ties=ties.value, progress=advance)
            runs.append(Run(metrics, result))
        mean, spread = mean_and_spread([run.metrics for run in runs])
        report = {
            **_described(chosen),
            "settings": training.model_dump(),
            "published": published.model_dump(exclude={"settings"}) if published else None,
            "ours": _figures(mean, data),
            "spread": spread and metrics_report(spread),
            "ties": ties.value,
            "runs": [run.report() for run in runs],
        }
        write_report(out, report)
    if published is None and chosen.published:
        warn(errors, f"nothing is published for these settings: {_changes(chosen, training)}")
    if as_json:
        typer.echo(json.dumps(report))
    else:
        Console().print(_table(chosen, published, mean, spread))


def _of_seed(checkpoint: Path | None, seed: int, seeds: int) -> Path | None:
    """Each run has a file of its own."""
    if checkpoint is None or seeds == 1:
        return checkpoint
    return checkpoint.with_name(f"{checkpoint.name}.{seed}")


def _described(preset: Preset) -> dict[str, Any]:
    return {
        "preset": preset.name,
        "title": preset.title,
        "source": preset.source,
        "data": preset.data.model_dump(),
        "settings": preset.training.model_dump(),
        "published": [published.model_dump() for published in preset.published],
    }


def _figures(metrics: "Metrics", data: "Dataset") -> dict[str, Any]:
    from trainer.evaluation.report import files_report, metrics_report, size_of

    return {
        **metrics_report(metrics),
        "predictions": metrics.predictions,
        "items": len(data.train.item_ids),
        "train": size_of(data.train),
        "test": size_of(data.test),
        **files_report(data),
    }


def _changes(preset: Preset, settings: TrainingSettings) -> str:
    before, after = preset.training.model_dump(), settings.model_dump()
    return ", ".join(f"{name}={value}" for name, value in after.items() if value != before.get(name))


def _table(preset: Preset, published: Published | None, mean: "Metrics", spread: "Metrics | None") -> Table:
    """A measure a row: published, ours, and the difference, as far as there is something published."""
    table = Table(title=f"{preset.title}: {mean.predictions:,} predictions", caption=f"published: {preset.source}")
    table.add_column("", no_wrap=True)
    for title in ("published", "ours", *(["± over seeds"] if spread else []), "difference"):
        table.add_column(title, justify="right", no_wrap=True)
    for k in sorted(mean.recall):
        for name, of in (("Recall", "recall"), ("MRR", "mrr")):
            ours = getattr(mean, of)[k]
            theirs = getattr(published, of).get(k) if published else None
            known = ("", "") if theirs is None else (f"{theirs:.4f}", f"{ours - theirs:+.4f}")
            varies = [f"{getattr(spread, of)[k]:.4f}"] if spread else []
            table.add_row(f"{name}@{k}", known[0], f"{ours:.4f}", *varies, known[1])
    return table
