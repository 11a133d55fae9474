"""``trainer settings``, and how every command of the Kafka side gets its own."""

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from schemas.config.settings import describe, describe_json, given, load_settings
from schemas.logs import configure_logs
from trainer.models.settings import DEFAULT_FAMILY
from trainer.service.settings import TrainerRoot, root_of

Config = Annotated[Path | None, typer.Option("--config", help="The settings file; ./nextclick.toml when it is there.")]
Json = Annotated[bool, typer.Option("--json", help="For programs: JSON instead of a table.")]


def settings_of(config: Path | None, overrides: dict[str, Any] | None = None) -> TrainerRoot:
    """The settings in force. Raises SettingsError, and TrainingSettingsError for a family that does not exist."""
    family = given("trainer.training.family", config=config, environ=os.environ) or DEFAULT_FAMILY
    return load_settings(root_of(family), config=config, environ=os.environ, overrides=overrides or {})


def logged_settings_of(config: Path | None, overrides: dict[str, Any] | None = None) -> TrainerRoot:
    """The same; and from now on warnings go to standard error, beside a table or JSON on standard output."""
    root = settings_of(config, overrides)
    # librdkafka tells each lost connection at error level; those that matter reach us as errors of our calls.
    configure_logs(
        root.trainer.log_format,
        root.trainer.log_level,
        quiet={"librdkafka": logging.CRITICAL, "httpx2": logging.WARNING},
    )
    return root


def show_settings(config: Config = None, json: Json = False) -> None:
    """Show the settings in force and where each came from; secrets are masked."""
    settings = settings_of(config)
    if json:
        typer.echo(describe_json(settings))
        return
    table = Table(*(Column(name, overflow="fold") for name in ("setting", "value", "from")))
    for one in describe(settings):
        table.add_row(one.key, str(one.value), one.origin)
    Console().print(table)
