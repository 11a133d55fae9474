"""``trainer refresh``: newer counts and new items for the champion, without training."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from trainer.commands.settings import Config, Json, logged_settings_of
from trainer.commands.stopping import stopping_on_signals


def refresh(
    *,
    every: Annotated[
        str | None, typer.Option(help="Again and again, with this time from one to the next, as in 90s, 5m.")
    ] = None,
    config: Config = None,
    registry: Annotated[str | None, typer.Option(help="Folder or fsspec URL to publish to.")] = None,
    log_dir: Annotated[Path | None, typer.Option(help="The click log's folder.")] = None,
    log_format: Annotated[str | None, typer.Option(help="human or json.")] = None,
    json: Json = False,
) -> None:
    """Collect, count the champion's memory anew, give items that it does not know a row, and announce that."""
    root = logged_settings_of(
        config,
        {
            "trainer.refresh_every": every,
            "trainer.registry": registry,
            "trainer.log_dir": log_dir,
            "trainer.log_format": log_format,
        },
    )
    # After the settings: torch takes seconds to import, and a mistake must be answered at once.
    from trainer.service.loop import run

    with stopping_on_signals() as stopping:
        result = run(root, once=every is None, stopping=stopping, refreshing=True)
    if result is not None and (json or every is None):
        told = msgspec.json.encode(msgspec.to_builtins(result)).decode()
        typer.echo(told if json else f"{result.outcome}: {'; '.join(result.reasons)}")
