"""What a user can say about the clicks that a model is trained and evaluated on: options of several commands."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from schemas.click_files.options import ReadOptions, reads_click_files, with_options

MANY_DAYS = 36_500  # a hundred years: what is more is not a number of days


@dataclass(frozen=True)
class DataOptions:
    """Where the clicks are and how they become sessions.

    ``train`` and ``test`` are files, each read in this order as one log.

    Without ``test`` the newest sessions of ``train`` are held out: those of the last ``valid_days``, or else the last
    ``valid_fraction``. With ``test_fraction`` those after the held-out ones are set aside: 0.1 and 0.2 are the split
    70/10/20, of which ``part`` says what to evaluate on. ``idle_gap`` None: a session id is one session, but in formats
    that only know visitors an hour ends it. With ``test_days`` the sessions of the last days are set aside likewise,
    before anything is held out.

    With ``holdout`` the newest sessions of what is left to train on are held out once more, as many days or as great a
    share: for early stopping, which must not see those of the evaluation.

    The papers also filter the whole log before it is split: ``collapse_repeats`` keeps one of several clicks in a row
    on an item; ``core`` drops items with fewer clicks and sessions of one click until none is left. ``train_share``
    keeps the newest sessions of the training part alone, with that share of its transitions: 'Yoochoose 1/64'.
    """

    train: Annotated[
        list[Path],
        typer.Option(
            help="Click file (text, JSON lines or Parquet, packed or not), folder of Parquet files, or a public log as "
            "it is downloaded. Several are read one after the other as one log."
        ),
    ]
    test: Annotated[
        list[Path] | None,
        typer.Option(
            help="Clicks to evaluate on, one file or several. Without it the newest sessions of --train are held out."
        ),
    ] = None
    valid_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the sessions to hold out, newest first, without --test.")
    ] = 0.1
    valid_days: Annotated[
        float | None,
        typer.Option(
            min=0, max=MANY_DAYS, help="Hold out by time instead: last click within so many days of the newest."
        ),
    ] = None
    test_fraction: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Set the newest sessions aside for `trainer evaluate`: a share of .2 beside .1 held out is 70/10/20.",
        ),
    ] = 0.0
    test_days: Annotated[
        float | None,
        typer.Option(min=0, max=MANY_DAYS, help="Leave out the sessions of the last days, for an evaluation later."),
    ] = None
    idle_gap: Annotated[
        float | None,
        typer.Option(min=0, max=1440 * MANY_DAYS, help="Minutes without a click after which a session id starts anew."),
    ] = None
    min_support: Annotated[int, typer.Option(min=1, help="Clicks that an item of the vocabulary has at least.")] = 1
    core: Annotated[
        int, typer.Option(min=1, help="Before the split, drop items of fewer clicks and short sessions, repeatedly.")
    ] = 1
    collapse_repeats: Annotated[bool, typer.Option(help="Before the split, keep one of the same clicks in a row.")] = (
        False
    )
    reading: ReadOptions = field(default_factory=ReadOptions)
    holdout: bool = False
    train_share: float = 1.0
    part: Literal["valid", "test"] = "valid"


def reads_data(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command of typer these options, and those of click files, in place of its parameter `options`."""

    def expand(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_files(*, options: DataOptions, reading: ReadOptions, **others: Any) -> None:
            command(options=replace(options, reading=reading), **others)

        own = inspect.signature(command, eval_str=True)
        files = inspect.Parameter("reading", inspect.Parameter.KEYWORD_ONLY, annotation=ReadOptions)
        with_files.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*(one.replace(kind=files.kind) for one in own.parameters.values()), files]
        )
        return reads_click_files(with_options(with_files, "options", DataOptions, names))

    return expand


SPLIT: Sequence[str] = ("valid_fraction", "valid_days", "test_fraction", "test_days")
"""How to hold sessions out."""
SESSIONS: Sequence[str] = ("idle_gap", "min_support", "core", "collapse_repeats")
"""How clicks become sessions, and which count."""
