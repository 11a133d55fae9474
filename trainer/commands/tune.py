"""``trainer tune``: clicks in, the best settings found on their newest part out."""

import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainer.commands.options import (
    AsJson,
    Measure,
    Out,
    PresetName,
    Settings,
)
from trainer.commands.stopping import stopping_on_signals
from trainer.commands.terminal import load_data, mistakes_answered, write_report
from trainer.data.options import SESSIONS, SPLIT, DataOptions, reads_data
from trainer.errors import StopRequested, TrainingSettingsError
from trainer.presets import Split, load_preset

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_INTERRUPTED = 130
_NAMES = {Measure.MRR: "mrr@20", Measure.RECALL: "recall@20", Measure.BOTH: "recall@20 + mrr@20"}


# Long: its arguments are the command's options, with their help.
@reads_data("train", *SPLIT, *SESSIONS)
def tune(
    *,
    study: Annotated[
        Path, typer.Option(help="SQLite file of the search; where it exists already, the search goes on from it.")
    ],
    trials: Annotated[
        int, typer.Option(min=1, help="Finished trials to stop at, those of earlier runs among them.")
    ] = 50,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time, each on a core; by default as many as there are.")
    ] = None,
    by: Annotated[Measure, typer.Option(help="What makes a trial better, at 20; both: the sum.")] = Measure.MRR,
    patience: Annotated[
        int,
        typer.Option(
            min=1,
            help="Epochs without a better one after which a trial stops; a family whose learning rate goes by a plan "
            "trains all its epochs.",
        ),
    ] = 2,
    preset: PresetName = None,
    settings: Settings = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=RANGE",
            help="Search this as well, or otherwise than usual: hidden_size=64..512:32, learning_rate=0.01..0.3:log, "
            "loss=cross-entropy|bpr-max.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the best settings here, as a preset (.toml).")] = None,
    report: Out = None,
    options: DataOptions,
    seed: Annotated[int, typer.Option(help="Of the search's draws; with one job it repeats.")] = 42,
    as_json: AsJson = False,
) -> None:
    """Search for the best settings, judged on the newest sessions of --train, which no trial trains on.

    Ctrl-C and kills leave a search that the same command goes on with.
    """
    errors = Console(stderr=True)
    with mistakes_answered(errors):
        if out is not None and out.suffix != ".toml":
            raise TrainingSettingsError(f"--out {out}: a preset's name ends with .toml")
        if importlib.util.find_spec("optuna") is None:
            raise TrainingSettingsError("needs optuna, which is not installed: pip install 'nextclick[tune]'")
        base = load_preset(preset).settings if preset else {}
        # Here, because torch takes seconds to import.
        from trainer.search.searches import model_search
        from trainer.search.trial_worker import Judging
        from trainer.search.tuning import best, finished, opened_study
        from trainer.search.tuning import tune as try_out
        from trainer.search.tuning_report import tuned_preset, tuning_report, tuning_table

        planned = model_search(base, settings or [], search or [], seed=seed)
        data = load_data(errors, options)
        judging = Judging(data.train, data.test, by.value, patience)
        with opened_study(study, planned, judging) as opened, _bar(errors) as bar:
            task = bar.add_task("searching", total=trials, completed=len(finished(opened)))

            def show(_: "FrozenTrial") -> None:
                leader = max((one.value or 0.0 for one in finished(opened) if "recall" in one.user_attrs), default=0.0)
                bar.update(task, completed=len(finished(opened)), description=f"best {_NAMES[by]} {leader:.4f}")

            try:
                # Not KeyboardInterrupt: raised inside a finalizer, of which SQLAlchemy has many, it would be lost.
                with stopping_on_signals() as stopping:
                    try_out(
                        opened,
                        planned,
                        judging,
                        trials=trials,
                        jobs=jobs or len(os.sched_getaffinity(0)),
                        on_trial=show,
                        stopping=stopping,
                    )
            except StopRequested:
                bar.stop()
                done = len(finished(opened))
                errors.print(f"stopped after {done} of {trials} trials; the same command goes on", highlight=False)
                raise typer.Exit(_INTERRUPTED) from None
            winner = best(opened, planned)
            summary = tuning_report(planned, winner, finished(opened), data, measure=_NAMES[by])
        write_report(report, summary)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            split = Split(core=options.core, collapse_repeats=options.collapse_repeats)
            sources = " and ".join(path.name for path in options.train)
            text = tuned_preset(planned, winner, data, split, measure=_NAMES[by], source=sources)
            out.write_text(text, encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(summary))
        return
    Console().print(tuning_table(planned, winner, summary))
    if "baselines" in summary["best"]:
        typer.echo(summary["best"]["baselines"])  # on one line, to be copied


def _bar(console: Console) -> Progress:
    """Trials, not transitions: how many epochs a trial will have is not known."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
