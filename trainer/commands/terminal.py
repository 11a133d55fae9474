"""What commands show beside their results: mistakes in one line, and how far long work is."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from schemas.errors import SchemaError
from trainer.errors import TrainerError, TrainingDivergedError

if TYPE_CHECKING:
    from trainer.datasets import Dataset

BAD_INPUT = 2
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


def tell_bad_rows(errors: Console, data: "Dataset") -> None:
    """Rows that were left out are never silent."""
    from trainer.readers import bad_rows_told

    for name, examples in data.bad_examples.items():
        warn(errors, f"{name}: left out {bad_rows_told(data.bad_rows[name], examples)}")


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    """The report as a JSON file, where one is wanted."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
