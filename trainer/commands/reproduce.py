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
    Retrain,
    Settings,
    Threads,
    TieMode,
    Ties,
    WindowHours,
    check_absent,
)
from trainer.commands.terminal import mistakes_answered, warn, write_report
from trainer.data.options import DataOptions, reads_data
from trainer.models.settings import TrainingSettings
from trainer.presets import Preset, Published, load_preset, preset_names

if TYPE_CHECKING:
    from trainer.commands.measured import Log
    from trainer.evaluation.protocol import Metrics

_TITLES = {"recall": "Recall", "mrr": "MRR", "ndcg": "NDCG"}


def presets(as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False) -> None:
    """List the presets: settings from the papers, and what they reached there."""
    found = [load_preset(name) for name in preset_names()]
    if as_json:
        typer.echo(json.dumps([_described(preset) for preset in found]))
        return
    table = Table(title="Published settings and results")
    table.add_column("preset", no_wrap=True)
    table.add_column("of")
    for title in ("Recall@20", "MRR@20", "NDCG@20"):
        table.add_column(title, justify="right", no_wrap=True)
    for preset in found:
        for row, published in enumerate(preset.published):
            figures = [published.recall, published.mrr, published.ndcg]
            cells = [f"{of[20]:.4f}" if 20 in of else "" for of in figures]
            table.add_row("" if row else preset.name, preset.name_of(published), *cells)
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
    window_hours: WindowHours = None,
    retrain: Retrain = None,
    options: DataOptions,
    ties: Ties = TieMode.CONSERVATIVE,
    threads: Threads = 1,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train by a preset and print our figures beside the published ones.

    With --test both are taken as they are. Without it --train is the whole log: it is filtered and split as the
    preset says. A preset of the protocol transformers4rec is always given the whole log.
    """
    errors = Console(stderr=True)
    with mistakes_answered(errors):
        chosen = load_preset(preset)
        training = chosen.with_changes(settings or [])
        in_windows = chosen.data.protocol == "transformers4rec"
        if not in_windows:
            asked = {"--window-hours": window_hours, "--retrain": retrain}
            check_absent(asked, f"it is for presets of the protocol transformers4rec, and {chosen.name} is none")
        published = chosen.published_for(training)
        from trainer.commands.measured import TwoParts, Windows
        from trainer.evaluation.report import metrics_report
        from trainer.search.reproduction import mean_and_spread
        from trainer.training.device import Hardware

        hardware = Hardware(threads, device).set_up()
        log: Log
        if in_windows:
            log = Windows(replace(options, core=chosen.data.core), errors, hours=window_hours, retrain=retrain)
        else:
            log = TwoParts(options, chosen.data, errors)
        runs = [
            log.run(
                training.model_copy(update={"seed": seed}),
                ties=ties.value,
                hardware=hardware,
                checkpoint=_of_seed(checkpoint, seed, seeds),
            )
            for seed in range(training.seed, training.seed + seeds)
        ]
        mean, spread = mean_and_spread([run.metrics for run in runs])
        report = {
            **_described(chosen),
            "settings": training.model_dump(),
            "published": published.model_dump(exclude={"settings"}, exclude_defaults=True) if published else None,
            "ours": {**metrics_report(mean), "predictions": mean.predictions, **log.report()},
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
        console = Console()
        console.print(_table(chosen, published, mean, spread))
        for line in (*chosen.differs, *filter(None, [published and published.differs])) if published else ():
            console.print(f"differs: {line}", highlight=False, markup=False, soft_wrap=True)


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
        "differs": list(preset.differs),
        "settings": preset.training.model_dump(),
        "published": [published.model_dump() for published in preset.published],
    }


def _changes(preset: Preset, settings: TrainingSettings) -> str:
    before, after = preset.training.model_dump(), settings.model_dump()
    return ", ".join(f"{name}={value}" for name, value in after.items() if value != before.get(name))


def _table(preset: Preset, published: Published | None, mean: "Metrics", spread: "Metrics | None") -> Table:
    """A measure a row: published, ours, and the difference, as far as there is something published."""
    source = published.source if published and published.source else preset.source
    of = f"{published.model}, " if published and published.model else ""
    table = Table(title=f"{preset.title}: {mean.predictions:,} predictions", caption=f"published: {of}{source}")
    table.add_column("", no_wrap=True)
    for title in ("published", "ours", *(["± over seeds"] if spread else []), "difference"):
        table.add_column(title, justify="right", no_wrap=True)
    shown = ["recall", "mrr", *(["ndcg"] if published and published.ndcg else [])]
    for k in sorted(mean.recall):
        for measure in shown:
            ours = getattr(mean, measure)[k]
            theirs = getattr(published, measure).get(k) if published else None
            known = ("", "") if theirs is None else (f"{theirs:.4f}", f"{ours - theirs:+.4f}")
            varies = [f"{getattr(spread, measure)[k]:.4f}"] if spread else []
            table.add_row(f"{_TITLES[measure]}@{k}", known[0], f"{ours:.4f}", *varies, known[1])
    return table
