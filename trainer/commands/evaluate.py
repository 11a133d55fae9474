"""``trainer evaluate``: bundles and baselines on the same held-out clicks; table, report and plot out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType

from trainer.commands.options import (
    AsJson,
    Device,
    Out,
    Plot,
    PresetName,
    ProtocolName,
    Resamples,
    Retrain,
    Settings,
    Threads,
    TieMode,
    Ties,
    WindowHours,
    check_absent,
)
from trainer.commands.terminal import load_data, mistakes_answered, warn, write_report
from trainer.data.options import SESSIONS, DataOptions, reads_data
from trainer.errors import TrainingSettingsError
from trainer.presets import chosen_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from schemas.bundle.runtime import Model
    from trainer.data.datasets import Dataset
    from trainer.evaluation.protocol import Scorer
    from trainer.models.settings import TrainingSettings


# Long: its arguments are the command's options, with their help.
@reads_data("train", "test", "valid_fraction", "valid_days", "test_fraction", *SESSIONS)
def evaluate(
    *,
    model: Annotated[list[Path] | None, typer.Option(help="Model bundle; several are compared with the first.")] = None,
    baselines: Annotated[
        str,
        typer.Option(
            help="Names with commas between them, options after a colon: stan:neighbours=200,days=5,vs-knn; "
            "`all` or `none`."
        ),
    ] = "all",
    protocol: Annotated[
        ProtocolName,
        typer.Option(
            help="What is predicted: the click after every prefix of a session; its last click alone; or that, window "
            "after window of time, by models that are trained on the windows before (Transformers4Rec)."
        ),
    ] = ProtocolName.EVERY_PREFIX,
    preset: PresetName = None,
    settings: Settings = None,
    window_hours: WindowHours = None,
    retrain: Retrain = None,
    device: Device = "auto",
    out: Out = None,
    plot: Plot = None,
    options: DataOptions,
    k: Annotated[int, typer.Option(min=1, help="The k of the table and of the tests.")] = 20,
    ties: Ties = TieMode.CONSERVATIVE,
    resamples: Resamples = 2000,
    seed: Annotated[int, typer.Option(help="Of those draws.")] = 42,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Compare model bundles and baselines on held-out clicks, with intervals and paired significance.

    By the protocol transformers4rec no bundle is judged: a model is trained along the windows, by --preset and --set.
    """
    errors = Console(stderr=True)
    with mistakes_answered(errors):
        table: RenderableType
        if protocol is ProtocolName.TRANSFORMERS4REC:
            bundles_aside = {"--model": model, "--plot": plot}
            check_absent(bundles_aside, "this protocol trains its models along the windows, and makes a table")
            chosen = chosen_settings(preset, settings)
            report, table = _in_windows(
                chosen,
                baselines,
                options,
                hours=window_hours,
                retrain=retrain,
                k=k,
                ties=ties,
                threads=threads,
                device=device,
                errors=errors,
            )
        else:
            asked = {"--preset": preset, "--set": settings, "--retrain": retrain, "--window-hours": window_hours}
            check_absent(asked, "bundles are trained already; it is for --protocol transformers4rec")
            last = protocol is ProtocolName.LAST_CLICK
            report, table = _of_bundles(
                model or [],
                baselines,
                options,
                last=last,
                k=k,
                ties=ties,
                resamples=resamples,
                seed=seed,
                threads=threads,
                plot=plot,
                errors=errors,
            )
        write_report(out, report)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        Console().print(table)


# Long: it names what it is given, and one thing follows the other.
def _of_bundles(
    models: "Sequence[Path]",
    baselines: str,
    options: DataOptions,
    *,
    last: bool,
    k: int,
    ties: TieMode,
    resamples: int,
    seed: int,
    threads: int,
    plot: Path | None,
    errors: Console,
) -> "tuple[dict[str, Any], RenderableType]":
    """Bundles and baselines on the same held-out clicks: report and table."""
    # Here, because torch takes seconds to import.
    from schemas.bundle.files import open_bundle
    from trainer.evaluation.baselines import parse_baselines
    from trainer.evaluation.comparison import comparison_report, comparison_table
    from trainer.evaluation.model_scorer import ModelScorer
    from trainer.evaluation.plot import check_plot, plot_comparison
    from trainer.evaluation.protocol import DEFAULT_KS, of_last_clicks, ranks_of, ties_undecided
    from trainer.evaluation.report import types_table
    from trainer.evaluation.significance import judge
    from trainer.training.device import Hardware

    specs = parse_baselines(baselines)
    check_plot(plot)
    bundles = [open_bundle(path, threads=threads) for path in models]
    if not bundles and not specs:
        raise TrainingSettingsError("nothing to evaluate: name a --model, or some --baselines")
    Hardware(threads).set_up()
    data = load_data(errors, replace(options, part="test" if options.test_fraction else "valid"))

    def scorers() -> "Iterator[Scorer]":
        """One at a time: a baseline may hold tables of the size of the log."""
        for bundle in bundles:
            yield ModelScorer(bundle, data.test)
        for spec in specs:
            yield spec.build(data.train)

    ranks = {}
    for scorer in scorers():
        if k >= scorer.depth and ties_undecided(scorer, data.test):
            raise TrainingSettingsError(f"--k {k}: {scorer.name} ranks {scorer.depth} items, and needs more than k")
        if scorer.name in ranks:
            raise TrainingSettingsError(f"--model: {scorer.name} is named twice")
        with errors.status(f"evaluating {scorer.name}"):
            found = ranks_of(scorer, data.test, ties=ties.value)
            ranks[scorer.name] = found[of_last_clicks(data.test)] if last else found
        if isinstance(scorer, ModelScorer) and scorer.not_finite:
            warn(
                errors,
                f"{scorer.not_finite:,} answers of {scorer.name} are no finite numbers; judged is what a worker "
                "shows in their place, the most popular items",
            )
    ks = sorted({k, *(one for one in DEFAULT_KS if one < k)})
    with errors.status(f"comparing, {resamples:,} resamples"):
        judged = judge(ranks, data.test, ks=ks, last_clicks=last, resamples=resamples, seed=seed)
    seen = [bundle.version for bundle in bundles if _has_seen(bundle, data)]
    report = comparison_report(
        judged,
        data,
        protocol="last-click" if last else "every-prefix",
        k=k,
        ties=ties.value,
        resamples=resamples,
        seed=seed,
        seen=seen,
    )
    if plot is not None:
        title = f"{report['predictions']:,} predictions in {len(data.test):,} sessions"
        plot_comparison(judged, plot, k=k, title=title)
    for name in seen:
        warn(errors, f"{name} was trained on sessions as late as the ones it is evaluated on; its figures flatter it")
    table = comparison_table(judged, data, k)
    metrics = {one.name: one.metrics for one in judged}
    return report, Group(table, types_table(metrics, k)) if judged[0].metrics.by_type else table


def _in_windows(
    chosen: "TrainingSettings",
    baselines: str,
    options: DataOptions,
    *,
    hours: float | None,
    retrain: int | None,
    k: int,
    ties: TieMode,
    threads: int,
    device: str,
    errors: Console,
) -> "tuple[dict[str, Any], Table]":
    """A model of these settings and baselines, trained and judged along the windows of a log: report and table."""
    from trainer.commands.measured import Windows, compared
    from trainer.evaluation.baselines import parse_baselines
    from trainer.training.device import Hardware

    specs = parse_baselines(baselines)
    if chosen.family in map(str, specs):
        raise TrainingSettingsError(f"--baselines: {chosen.family} is the family that is trained; name it once")
    hardware = Hardware(threads, device).set_up()
    log = Windows(options, errors, hours=hours, retrain=retrain)
    return compared(log, chosen, specs, k=k, ties=ties.value, hardware=hardware)


def _has_seen(bundle: "Model", data: "Dataset") -> bool:
    """Whether the bundle's training window reaches into the held-out sessions, as far as both have times."""
    window = bundle.manifest.training.get("window")
    last = window.get("to") if isinstance(window, dict) else None
    return data.test.timed and isinstance(last, int) and last >= int(data.test.ends[0])
