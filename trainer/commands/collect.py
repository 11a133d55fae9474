"""``trainer collect``: clicks from Kafka into the click log."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from trainer.commands.settings import Config, Json, logged_settings_of
from trainer.commands.stopping import stopping_on_signals


def collect(
    once: Annotated[bool, typer.Option("--once", help="Stop at the present end of the topic.")] = False,
    config: Config = None,
    log_dir: Annotated[Path | None, typer.Option(help="The click log's folder.")] = None,
    json: Json = False,
) -> None:
    """Collect clicks from Kafka into the Parquet click log, each offset exactly once, until SIGTERM or Ctrl-C."""
    from trainer.service.assembly import collect as collect_clicks

    root = logged_settings_of(config, {"trainer.log_dir": log_dir})
    errors = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TaskProgressColumn(show_speed=True),
        TimeElapsedColumn(),
    )
    with (
        stopping_on_signals() as stopping,
        Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar,
    ):
        task = bar.add_task("collecting", total=None)
        collected = collect_clicks(
            root, once=once, stopping=stopping, on_records=lambda records: bar.advance(task, records)
        )
    if json:
        typer.echo(msgspec.json.encode(msgspec.to_builtins(collected)).decode())
        return
    typer.echo(f"{collected.clicks:,} clicks in {collected.files} files in {root.trainer.log_dir}")
    for reason, count in sorted(collected.rejected.items()):
        typer.echo(f"{count:,} records are no clicks: {reason}")
    if collected.lost:
        typer.echo(f"{collected.lost:,} offsets were lost: retention removed them before they were collected", err=True)
