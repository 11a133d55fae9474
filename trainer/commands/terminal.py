"""What commands show beside their results: mistakes in one line, and how far long work is."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from schemas.errors import SchemaError
from trainer.errors import TrainerError, TrainingDivergedError

if TYPE_CHECKING:
    from schemas.click_files.read import FileRead
    from trainer.data.datasets import Dataset
    from trainer.data.options import DataOptions
    from trainer.data.sessions import SessionSet

BAD_INPUT = 2
FEW_PREDICTIONS = 500  # two standard errors of a Recall of .5 are .045 then
FAILED = 1


@contextmanager
def mistakes_answered(errors: Console) -> Iterator[None]:
    """Tell what the operator can mend in one line and exit: with 2, or with 1 where training itself failed."""
    try:
        yield
    except (TrainerError, SchemaError, OSError) as error:
        errors.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(FAILED if isinstance(error, TrainingDivergedError) else BAD_INPUT) from error


@contextmanager
def progress_bar(console: Console, what: str, total: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar of so many steps, or nothing; yields what moves it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not show) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def warn(errors: Console, message: str) -> None:
    errors.print(f"warning: {message}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def load_data(errors: Console, options: "DataOptions", *, quiet: bool = False) -> "Dataset":
    """What `options` name, which may take minutes to read; told of by `tell_data`. Raises what reading files raises."""
    from trainer.data.datasets import load

    with nullcontext() if quiet else errors.status("reading clicks"):
        data = load(options)
    tell_data(errors, data, quiet=quiet)
    return data


def tell_data(errors: Console, data: "Dataset", *, quiet: bool = False) -> None:
    """What the files were taken for, how little is evaluated on, and, if quiet as well, what was left out."""
    tell_files(errors, data.files, quiet=quiet)
    tell_few(errors, data.test.transitions, len(data.test), quiet=quiet)
    tell_few_of_a_type(errors, data.test, quiet=quiet)


def tell_files(errors: Console, files: "Sequence[FileRead]", *, quiet: bool = False) -> None:
    """What the files were taken for and, if quiet as well, what was left out."""
    taken_for: dict[str, list[Path]] = {}
    for file in files:
        taken_for.setdefault(file.described, []).append(file.path)
    for described, paths in taken_for.items() if not quiet else ():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        errors.print(f"{paths[0]}{more}: {described}", highlight=False, markup=False, soft_wrap=True)
    for file in files:
        if file.bad_rows:
            warn(errors, f"{file.path}: left out {file.bad_rows_told()}")
        for warning in file.warnings if not quiet else ():
            warn(errors, f"{file.path}: {warning}")


def tell_few(errors: Console, predictions: int, sessions: int, *, quiet: bool = False) -> None:
    """A warning where so few predictions, in so many sessions, say little."""
    if predictions < FEW_PREDICTIONS and not quiet:
        warn(
            errors,
            f"only {predictions} prediction{'s' if predictions > 1 else ''} in {sessions} "
            f"session{'s' if sessions > 1 else ''} to evaluate on: every figure below may be off by "
            f"{2 * 0.5 / predictions**0.5:.2f} and more; hold out more, and look for rows with a wrong clock",
        )


def tell_few_of_a_type(errors: Console, sessions: "SessionSet", *, quiet: bool = False) -> None:
    """A warning for each type of clicks of which few are predicted."""
    from trainer.evaluation.protocol import predictions_by_type  # torch takes seconds to import

    for name, mask in predictions_by_type(sessions).items() if not quiet else ():
        if (predictions := int(mask.sum())) < FEW_PREDICTIONS:
            warn(
                errors,
                f"only {predictions} of the predictions are of the type {name}: its figures may be off by "
                f"{2 * 0.5 / predictions**0.5:.2f} and more",
            )


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    """The report as a JSON file, where one is wanted."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
