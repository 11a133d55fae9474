"""Options that several commands have, with the same words of help."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trainer.models.settings import TrainingSettings

MANY_DAYS = 36_500  # a hundred years: what is more is not a number of days


class TieMode(StrEnum):
    """The tie modes of the evaluation, as choices of the command line."""

    CONSERVATIVE = "conservative"
    STANDARD = "standard"
    MEDIAN = "median"


class Measure(StrEnum):
    """What makes a model better, as choices of the command line."""

    MRR = "mrr"
    RECALL = "recall"
    BOTH = "both"


Train = Annotated[
    list[Path],
    typer.Option(
        help="Click file (text, JSON lines or Parquet, packed or not), folder of Parquet files, or a public log as it "
        "is downloaded. Several are read one after the other as one log."
    ),
]
Test = Annotated[
    list[Path] | None,
    typer.Option(
        help="Clicks to evaluate on, one file or several. Without it the newest sessions of --train are held out."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help=f"Training setting; NAME is one of {', '.join(TrainingSettings.model_fields)}.",
    ),
]
PresetName = Annotated[
    str | None, typer.Option("--preset", help="Settings to begin with: a name of `trainer presets`, or a .toml file.")
]
ValidFraction = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the sessions to hold out, newest first, without --test.")
]
ValidDays = Annotated[
    float | None,
    typer.Option(min=0, max=MANY_DAYS, help="Hold out by time instead: last click within so many days of the newest."),
]
TestDays = Annotated[
    float | None,
    typer.Option(min=0, max=MANY_DAYS, help="Leave out the sessions of the last days: they are for the evaluation."),
]
TestFraction = Annotated[
    float,
    typer.Option(min=0, max=1, help="Leave out this newest share of the sessions: .2 beside .1 held out is 70/10/20."),
]
IdleGap = Annotated[
    float | None,
    typer.Option(min=0, max=1440 * MANY_DAYS, help="Minutes without a click after which a session id starts anew."),
]
MinSupport = Annotated[int, typer.Option(min=1, help="Clicks that an item of the vocabulary has at least.")]
Core = Annotated[
    int, typer.Option(min=1, help="Before the split, drop items of fewer clicks and short sessions, repeatedly.")
]
CollapseRepeats = Annotated[bool, typer.Option(help="Before the split, keep one of the same clicks in a row.")]
Ties = Annotated[TieMode, typer.Option(help="Whether an equal score ranks before the target.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the arithmetic; with one, runs repeat to the bit.")]
Device = Annotated[
    str,
    typer.Option(
        help="Where the network is trained: cpu, cuda, cuda:1 and so on; "
        "auto takes a GPU where torch has one and it pays."
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="File that holds the run after each epoch; a run that finds it there goes on from it."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
Out = Annotated[Path | None, typer.Option(help="Write the report here, as JSON.")]
Plot = Annotated[Path | None, typer.Option(help="Draw the table into this file: .png, .svg or .pdf.")]
Resamples = Annotated[int, typer.Option(min=100, help="Draws of the bootstrap and of the paired test.")]
