"""Options that several commands have, with the same words of help."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trainer.data.options import MANY_DAYS
from trainer.errors import TrainingSettingsError
from trainer.models.registry import FAMILIES, settings_class
from trainer.models.settings import DEFAULT_FAMILY


class TieMode(StrEnum):
    """The tie modes of the evaluation, as choices of the command line."""

    CONSERVATIVE = "conservative"
    STANDARD = "standard"
    MEDIAN = "median"


class ProtocolName(StrEnum):
    """What is judged of a session, and by which model, as choices of the command line."""

    EVERY_PREFIX = "every-prefix"
    LAST_CLICK = "last-click"
    TRANSFORMERS4REC = "transformers4rec"


class Measure(StrEnum):
    """What makes a model better, as choices of the command line."""

    MRR = "mrr"
    RECALL = "recall"
    BOTH = "both"


Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help=f"Training setting; `family` is one of {', '.join(FAMILIES)}, or several networks with + between them as "
        f"one model, {DEFAULT_FAMILY} where it is not set, whose NAMEs are "
        f"{', '.join(settings_class(DEFAULT_FAMILY).model_fields)}. Those of the others are in docs/settings.md and "
        "in the answer to an unknown one.",
    ),
]
PresetName = Annotated[
    str | None, typer.Option("--preset", help="Settings to begin with: a name of `trainer presets`, or a .toml file.")
]
Ties = Annotated[TieMode, typer.Option(help="Whether an equal score ranks before the target.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the arithmetic; with one, runs repeat to the bit.")]
Device = Annotated[
    str,
    typer.Option(
        help="Where the network is trained: cpu, cuda, cuda:1 and so on; "
        "auto takes a GPU where torch has one and it pays."
    ),
]
WindowHours = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=24.0 * MANY_DAYS,
        help="Of the protocol transformers4rec: hours of a window, by default 24; the paper takes 1 for news.",
    ),
]
Retrain = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="WINDOWS",
        help="Of the protocol transformers4rec: train anew for each window, on so many windows before it (0: on all), "
        "in place of going on from the last window's weights.",
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


def check_absent(asked: Mapping[str, object], why: str) -> None:
    """Raises :class:`TrainingSettingsError` for the first of these options that has a value."""
    for option, value in asked.items():
        if value is not None and value != []:
            raise TrainingSettingsError(f"{option}: {why}; leave it out")
