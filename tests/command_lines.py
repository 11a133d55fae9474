"""Command lines of ours, as pages and files write them, held against the programs that they start."""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import typer
from typer._click.exceptions import UsageError  # Typer has a copy of click to itself
from typer.core import TyperGroup
from typer.main import get_command

from deploy.demo.__main__ import demo
from deploy.kafka.__main__ import run as run_kafka
from deploy.strimzi.__main__ import run as strimzi
from stream_app.__main__ import app as stream_app
from trainer.__main__ import app as trainer

PROGRAMS: Final = {"stream-app": stream_app, "trainer": trainer}
MODULES: Final[dict[str, Callable[..., None]]] = {
    "deploy.kafka": run_kafka,
    "deploy.demo": demo,
    "deploy.strimzi": strimzi,
}
"""For `python -m`."""


def is_command(words: list[str]) -> str | None:
    """None when these words are one of the programs or modules with arguments that it has, else what is wrong.

    Nothing is run, and no value is looked at; nor is the help printed, which takes a tenth of a second.
    """
    command, rest = _command(words[0]), words[1:]
    try:
        while True:
            context = typer.Context(command)
            _, rest, _ = command.make_parser(context).parse_args(rest)
            if not rest or not isinstance(command, TyperGroup):
                break
            _, command, rest = command.resolve_command(context, rest)
    except UsageError as error:
        return error.format_message()
    return f"Got unexpected arguments: {rest}" if rest else None


@cache
def _command(name: str) -> Any:
    if name in PROGRAMS:
        return get_command(PROGRAMS[name])
    app = typer.Typer()
    app.command()(MODULES[name])
    return get_command(app)
