"""``trainer fit``: files in; bundle, report and table out."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from schemas.announcement import VERSION_PATTERN, is_version
from schemas.errors import SchemaError
from trainer.errors import TrainerError, TrainingDivergedError, TrainingSettingsError
from trainer.settings import TrainingSettings
from trainer.versions import version_at

_BAD_INPUT = 2
_FAILED = 1


class TieMode(StrEnum):
    """The tie modes of the evaluation, as choices of the command line."""

    CONSERVATIVE = "conservative"
    STANDARD = "standard"
    MEDIAN = "median"


def fit(
    *,
    train: Annotated[
        Path, typer.Option(help="Click file (TSV or CSV with a header, gzip or not), Parquet file or folder of them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder that gets the model bundle, in a folder named by its version.")],
    test: Annotated[
        Path | None, typer.Option(help="Clicks to evaluate on. Without it the newest sessions of --train are held out.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help=f"Training setting; NAME is one of {', '.join(TrainingSettings.model_fields)}.",
        ),
    ] = None,
    valid_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the sessions to hold out, newest first, without --test.")
    ] = 0.1,
    valid_days: Annotated[
        float | None,
        typer.Option(min=0, help="Hold out by time instead: last click within so many days of the newest."),
    ] = None,
    idle_gap: Annotated[
        float | None, typer.Option(min=0, help="Minutes without a click after which a session id starts anew.")
    ] = None,
    min_support: Annotated[int, typer.Option(min=1, help="Clicks that an item of the vocabulary has at least.")] = 1,
    skip_bad_rows: Annotated[bool, typer.Option(help="Count rows that are no clicks, and go on.")] = False,
    version: Annotated[str | None, typer.Option(help="The bundle's name; by default the time.")] = None,
    warm_start: Annotated[Path | None, typer.Option(help="Bundle whose weights to start from.")] = None,
    ties: Annotated[
        TieMode, typer.Option(help="Whether an equal score ranks before the target.")
    ] = TieMode.CONSERVATIVE,
    with_baselines: Annotated[bool, typer.Option("--baselines/--no-baselines", help="Evaluate them too.")] = True,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of the arithmetic; with one, runs repeat to the bit.")
    ] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Train GRU4Rec on clicks, evaluate it beside the baselines, and write a model bundle."""
    errors = Console(stderr=True)
    try:
        chosen = TrainingSettings.from_assignments(settings or [])
        created_at = time.time_ns() // 1_000_000
        version = version or version_at(created_at)
        _check_version(out, version)
        # After the settings: torch takes seconds to import, and a mistake must be answered at once.
        from trainer import baselines as counting
        from trainer.datasets import DataOptions, load
        from trainer.evaluate import GruScorer, evaluate
        from trainer.export import read_bundle_weights, save_bundle
        from trainer.fit import fit as fit_model
        from trainer.fit import use_threads
        from trainer.report import fit_report, manifest_metrics, metrics_table, training_record
        from trainer.warm_start import warm_start as start_from

        use_threads(threads)
        data = load(
            DataOptions(train, test, valid_fraction, valid_days, idle_gap, min_support, skip_bad_rows=skip_bad_rows)
        )
        start = None
        if warm_start is not None:
            start = start_from(*read_bundle_weights(warm_start), data.train.item_ids, chosen)
        show = errors.is_terminal and not quiet
        with _progress(errors, "training", data.train.transitions * chosen.epochs, show=show) as advance:
            result = fit_model(data.train, chosen, warm_start=start, progress=advance)
        makers = counting.all_baselines(data.train) if with_baselines else ()
        found = {}
        with _progress(errors, "evaluating", data.test.transitions * (1 + len(makers)), show=show) as advance:
            metrics = evaluate(GruScorer(result.weights), data.test, ties=ties.value, progress=advance)
            for make in makers:
                baseline = make()
                found[baseline.name] = evaluate(baseline, data.test, ties=ties.value, progress=advance)
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
        if report is not None:
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    except (TrainerError, SchemaError, OSError) as error:
        errors.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(_FAILED if isinstance(error, TrainingDivergedError) else _BAD_INPUT) from error
    if as_json:
        typer.echo(json.dumps(summary))
    elif not quiet:
        console = Console()
        console.print(metrics_table(metrics, found))
        console.print(f"{result.transitions_per_second:,.0f} transitions/s; bundle in {bundle}", highlight=False)


def _check_version(out: Path, version: str) -> None:
    """Before hours of training: can the bundle get that name?"""
    if not is_version(version):
        raise TrainingSettingsError(f"--version {version}: names a folder, and must match {VERSION_PATTERN}")
    if (out / version).exists():
        raise TrainingSettingsError(f"--version {version}: {out} has it; bundles are immutable, choose another name")


@contextmanager
def _progress(console: Console, what: str, total: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar of so many transitions, or nothing; yields what moves it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not show) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
