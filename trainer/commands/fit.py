"""``trainer fit``: files in; bundle, report and table out."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.console import Console

from schemas.messages.announcement import VERSION_PATTERN, is_version, version_name
from trainer.commands.options import (
    AsJson,
    Checkpoint,
    Device,
    Measure,
    PresetName,
    Settings,
    Threads,
    TieMode,
    Ties,
)
from trainer.commands.terminal import load_data, mistakes_answered, progress_bar, warn, write_report
from trainer.data.options import SESSIONS, SPLIT, DataOptions, reads_data
from trainer.errors import TrainingSettingsError
from trainer.models.registry import QuickFamily
from trainer.models.settings import LearnedSettings, TrainingSettings
from trainer.presets import chosen_settings

if TYPE_CHECKING:
    from trainer.data.datasets import Dataset
    from trainer.evaluation.protocol import Metrics, Scorer
    from trainer.models.base import Network
    from trainer.training.fit import FitResult


# Long: its arguments are the command's options, with their help.
@reads_data("train", "test", *SPLIT, *SESSIONS)
def fit(
    *,
    out: Annotated[Path, typer.Option(help="Folder that gets the model bundle, in a folder named by its version.")],
    report: Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")] = None,
    preset: PresetName = None,
    settings: Settings = None,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PATIENCE",
            help="Stop after so many epochs without a better one, and keep the best. Judged on the newest sessions of "
            "the training part, which are held out of it: as many days, or as great a share, as above.",
        ),
    ] = None,
    stop_by: Annotated[Measure, typer.Option(help="What makes an epoch better, at 20; both: the sum.")] = Measure.MRR,
    checkpoint: Checkpoint = None,
    options: DataOptions,
    version: Annotated[str | None, typer.Option(help="The bundle's name; by default the time.")] = None,
    warm_start: Annotated[Path | None, typer.Option(help="Bundle whose weights to start from.")] = None,
    ties: Ties = TieMode.CONSERVATIVE,
    with_baselines: Annotated[bool, typer.Option("--baselines/--no-baselines", help="Evaluate them too.")] = True,
    threads: Threads = 1,
    device: Device = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors and what was left out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model on clicks, evaluate it beside the baselines, and write a model bundle."""
    errors = Console(stderr=True)
    with mistakes_answered(errors):
        chosen = chosen_settings(preset, settings)
        _check_asked(
            chosen, {"--early-stopping": early_stopping, "--checkpoint": checkpoint, "--warm-start": warm_start}
        )
        created_at = time.time_ns() // 1_000_000
        version = version or version_name(created_at, chosen.model_dump_json().encode())
        _check_version(out, version)
        # After the settings: torch takes seconds to import, and a mistake must be answered at once.
        from trainer.data.targets import check_types
        from trainer.evaluation.protocol import NetworkScorer
        from trainer.evaluation.report import manifest_metrics, training_record
        from trainer.export.bundle import save_bundle
        from trainer.training.device import Hardware
        from trainer.training.early_stopping import EarlyStopping
        from trainer.training.report import fit_report
        from trainer.training.train import TOO_FEW_TO_REMEMBER, transitions_to_fit, transitions_to_learn
        from trainer.training.train import train as train_model

        hardware = Hardware(threads, device).set_up()
        data = load_data(errors, replace(options, holdout=early_stopping is not None), quiet=quiet)
        check_types(data.train, chosen.weight_of_type)
        stopping = None
        if early_stopping is not None and data.holdout is not None:
            stopping = EarlyStopping(data.holdout, patience=early_stopping, measure=stop_by.value)
        show = errors.is_terminal and not quiet
        total = transitions_to_fit(data.train, chosen) + transitions_to_learn(data.train, chosen)
        with progress_bar(errors, "training", total, show=show) as advance:
            result = train_model(
                data.train,
                chosen,
                warm_start=_start(warm_start, data.train.item_ids, chosen),
                early_stopping=stopping,
                checkpoint=checkpoint,
                progress=advance,
                hardware=hardware,
            )
        if chosen.memory and not result.memory and not quiet:
            warn(errors, TOO_FEW_TO_REMEMBER)
        scorer = NetworkScorer(result.weights, result.memory)
        metrics, found = _evaluated(scorer, data, with_baselines, ties, errors, show=show)
        with nullcontext() if quiet else errors.status("writing the bundle"):
            bundle = save_bundle(
                out,
                version,
                result,
                popularity=data.train.support(),
                training=training_record(result, data.train),
                metrics={
                    "model": manifest_metrics(metrics),
                    "champion": None,
                    "baselines": {name: manifest_metrics(of) for name, of in found.items()},
                },
                created_at=created_at,
            )
        summary = fit_report(result, metrics, found, data=data, ties=ties.value, threads=threads, bundle=bundle)
        write_report(report, summary)
    if as_json:
        typer.echo(json.dumps(summary))
    elif not quiet:
        _tell(result, metrics, found, bundle, stopped_early=stopping is not None)


def _evaluated(
    scorer: "Scorer", data: "Dataset", with_baselines: bool, ties: TieMode, errors: Console, *, show: bool
) -> "tuple[Metrics, dict[str, Metrics]]":
    """Of the model, and of each baseline by its name; one at a time, for each may hold tables of the log's size."""
    from trainer.evaluation.baselines import BaselineSpec
    from trainer.evaluation.protocol import evaluate

    specs = [BaselineSpec(name) for name in get_args(QuickFamily)] if with_baselines else []
    found = {}
    with progress_bar(errors, "evaluating", data.test.transitions * (1 + len(specs)), show=show) as advance:
        metrics = evaluate(scorer, data.test, ties=ties.value, progress=advance)
        for spec in specs:
            found[spec.name] = evaluate(spec.build(data.train), data.test, ties=ties.value, progress=advance)
    return metrics, found


def _tell(
    result: "FitResult", metrics: "Metrics", baselines: "dict[str, Metrics]", bundle: Path, *, stopped_early: bool
) -> None:
    from trainer.evaluation.report import metrics_table, types_table

    console = Console()
    family = result.settings.family
    console.print(metrics_table(family, metrics, baselines))
    if metrics.by_type:
        console.print(types_table({family: metrics}, max(metrics.recall)))
    if stopped_early:
        kept = f"epoch {result.best_epoch} of {len(result.epochs)} was the best and is kept"
        console.print(kept, highlight=False)
    speed = f"{result.transitions_per_second:,.0f} transitions/s; " if result.epochs else ""
    console.print(f"{speed}bundle in {bundle}", highlight=False)


def _check_asked(chosen: TrainingSettings, asked: Mapping[str, object]) -> None:
    """Are the options, by name, such that this family knows what to do with them?"""
    if isinstance(chosen, LearnedSettings):
        if chosen.epochs_planned and asked["--early-stopping"] is not None:
            raise TrainingSettingsError(
                f"--early-stopping: the learning rate of family={chosen.family} goes by a plan over all epochs, so "
                "stopping sooner leaves a model that is not finished; set epochs instead, or let trainer tune find them"
            )
        return
    for option, value in asked.items():
        if value is not None:
            raise TrainingSettingsError(
                f"{option}: a model of family={chosen.family} is made in one go and of the sessions alone; leave it out"
            )


def _start(bundle: Path | None, item_ids: Sequence[str], settings: TrainingSettings) -> "Network | None":
    """Where the weights come from, with --warm-start."""
    if bundle is None or not isinstance(settings, LearnedSettings):
        return None
    from trainer.export.bundle import read_bundle_network
    from trainer.training.warm_start import fits, warm_start

    weights, known = read_bundle_network(bundle)
    if not fits(weights, settings):
        raise TrainingSettingsError(
            f"--warm-start {bundle}: its {weights.family} has other sizes than these settings; set those that it was "
            "trained with (training.settings in its manifest), or leave it out"
        )
    return warm_start(weights, known, item_ids, settings)


def _check_version(out: Path, version: str) -> None:
    """Before hours of training: can the bundle get that name?"""
    if not is_version(version):
        raise TrainingSettingsError(f"--version {version}: names a folder, and must match {VERSION_PATTERN}")
    if (out / version).exists():
        raise TrainingSettingsError(f"--version {version}: {out} has it; bundles are immutable, choose another name")
