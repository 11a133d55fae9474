"""``trainer guard``: watch the champion by its online scores."""

from typing import Annotated

import msgspec
import typer
from rich.console import Console

from trainer.commands.settings import Config, Json, logged_settings_of
from trainer.commands.stopping import stopping_on_signals
from trainer.service.guard import Decision


def guard(
    *,
    once: Annotated[bool, typer.Option("--once", help="One look, then exit.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and announce nothing.")] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Roll back a champion that is worse, promote a better challenger, end a worse one's share, raise alarms."""
    root = logged_settings_of(config)
    from trainer.service.guarding import guard as watch

    out = Console()

    def told(decision: Decision) -> None:
        if json:
            typer.echo(msgspec.json.encode(msgspec.to_builtins(decision)).decode())
            return
        verb = f"would {decision.action}" if dry_run and decision.action != "keep" else decision.action
        for line in (f"{verb} {decision.version}", *decision.reasons, *(decision.alarms or {}).values()):
            out.print(line, markup=False, highlight=False, soft_wrap=True)

    with stopping_on_signals() as stopping:
        watch(root, once=once, dry_run=dry_run, stopping=stopping, told=told)
