"""The command line ``trainer``."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from schemas.errors import SchemaError
from trainer.commands.collect import collect
from trainer.commands.evaluate import evaluate
from trainer.commands.fit import fit
from trainer.commands.models import models, promote, rollback
from trainer.commands.run import run
from trainer.commands.settings import show_settings
from trainer.errors import TrainerError

app = typer.Typer(
    help="Train, evaluate and publish the models that the workers serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (fit, evaluate, collect, run, models, promote, rollback):
    app.command()(command)
app.command("settings")(show_settings)


def main() -> None:
    """The console command: what the operator can mend is told in one message, without a traceback."""
    try:
        app()
    except (SchemaError, TrainerError) as error:
        Console(stderr=True).print(f"[bold red]trainer:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
