"""``trainer run``: the periodic loop."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from schemas.errors import SettingsError
from trainer.commands.settings import Config, Json, logged_settings_of
from trainer.commands.stopping import stopping_on_signals


def run(
    *,
    every: Annotated[str | None, typer.Option(help="Time from cycle to cycle, as in 90s, 15m, 1h, 1d.")] = None,
    once: Annotated[bool, typer.Option("--once", help="One cycle, then exit.")] = False,
    config: Config = None,
    registry: Annotated[str | None, typer.Option(help="Folder or fsspec URL to publish to.")] = None,
    log_dir: Annotated[Path | None, typer.Option(help="The click log's folder.")] = None,
    log_format: Annotated[str | None, typer.Option(help="human or json.")] = None,
    json: Json = False,
) -> None:
    """Collect all the time, and every so often retrain, judge, publish and announce; until SIGTERM or Ctrl-C."""
    root = logged_settings_of(
        config,
        {
            "trainer.every": every,
            "trainer.registry": registry,
            "trainer.log_dir": log_dir,
            "trainer.log_format": log_format,
        },
    )
    settings = root.trainer
    if not once and settings.refresh_every >= settings.every:
        raise SettingsError(
            f"trainer.refresh_every is {settings.refresh_every:g} s: no refresh fits between two cycles, which are "
            f"{settings.every:g} s apart (trainer.every); take less, or 0 for none"
        )
    # After the settings: torch takes seconds to import, and a mistake must be answered at once.
    from trainer.service.loop import run as serve

    errors = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    with (
        stopping_on_signals() as stopping,
        Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar,
    ):
        tasks: dict[str, TaskID] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                for task in tasks.values():
                    bar.remove_task(task)
                tasks.clear()
                tasks[phase] = bar.add_task(phase, total=total)
            bar.advance(tasks[phase], done)

        result = serve(root, once=once, stopping=stopping, progress=progress)
    if json and result is not None:
        typer.echo(msgspec.json.encode(msgspec.to_builtins(result)).decode())
