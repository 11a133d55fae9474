"""``trainer ablate``: one training a row, each without a part of the model, side by side."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trainer.commands.options import (
    AsJson,
    Device,
    Out,
    Plot,
    PresetName,
    Resamples,
    Settings,
    Threads,
    TieMode,
    Ties,
)
from trainer.commands.terminal import load_data, mistakes_answered, progress_bar, write_report
from trainer.data.options import SESSIONS, SPLIT, DataOptions, reads_data
from trainer.models.settings import assignments_of
from trainer.presets import load_preset
from trainer.search.ablation import ROWS, planned


# Long: its arguments are the command's options, with their help.
@reads_data("train", "test", *SPLIT, *SESSIONS)
def ablate(
    *,
    preset: PresetName = None,
    settings: Settings = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Some of the rows: {', '.join(row.name for row in ROWS[1:])}. Another family may have others: those "
            "that there are stand in the answer to one that there is not."
        ),
    ] = None,
    out: Out = None,
    plot: Plot = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder that holds each row's run; the same command goes on from there.")
    ] = None,
    options: DataOptions,
    ties: Ties = TieMode.CONSERVATIVE,
    resamples: Resamples = 2000,
    threads: Threads = 1,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train once as it is and once for each part that is left out or exchanged, and compare with significance."""
    errors = Console(stderr=True)
    with mistakes_answered(errors):
        base = {**(load_preset(preset).settings if preset else {}), **assignments_of(settings or [])}
        rows = planned(base, only or ())
        # After the settings: torch takes seconds to import, and a mistake must be answered at once.
        from trainer.evaluation.comparison import comparison_report, comparison_table
        from trainer.evaluation.plot import check_plot, plot_comparison
        from trainer.evaluation.protocol import NetworkScorer, ranks_of
        from trainer.evaluation.significance import judge
        from trainer.training.device import Hardware
        from trainer.training.train import check_size, transitions_to_fit, transitions_to_learn
        from trainer.training.train import train as train_model

        check_plot(plot)
        hardware = Hardware(threads, device).set_up()
        data = load_data(errors, options)
        for one in rows:
            check_size(data.train, one.settings)
        ranks, about = {}, {}
        for number, one in enumerate(rows, start=1):
            name = one.row.name
            total = transitions_to_fit(data.train, one.settings) + transitions_to_learn(data.train, one.settings)
            checkpoint = checkpoints / f"{name}.safetensors" if checkpoints is not None else None
            with progress_bar(errors, f"{number}/{len(rows)} {name}", total, show=errors.is_terminal) as advance:
                result = train_model(
                    data.train, one.settings, checkpoint=checkpoint, progress=advance, hardware=hardware
                )
            with errors.status(f"{number}/{len(rows)} {name}, evaluating"):
                ranks[name] = ranks_of(NetworkScorer(result.weights, result.memory), data.test, ties=ties.value)
            about[name] = {
                "changes": dict(one.row.changes),
                "tells": one.row.tells,
                "settings": one.settings.model_dump(),
                "losses": [epoch.loss for epoch in result.epochs],
                "transitions_per_second": result.transitions_per_second,
            }
        with errors.status(f"comparing, {resamples:,} resamples"):
            judged = judge(ranks, data.test, resamples=resamples)
        report = comparison_report(judged, data, k=20, ties=ties.value, resamples=resamples, seed=42)
        for name, described in about.items():
            report["models"][name] |= described
        write_report(out, report)
        if plot is not None:
            title = f"{report['predictions']:,} predictions in {len(data.test):,} sessions"
            plot_comparison(judged, plot, k=20, title=title)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        Console().print(comparison_table(judged, data, 20))
