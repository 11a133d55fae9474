"""The command line ``trainer``."""

import typer

from trainer.commands.fit import fit

app = typer.Typer(
    help="Train, evaluate and publish the models that the workers serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(fit)


@app.callback()
def _commands() -> None:
    """Keep ``fit`` a command of its own even where it is the only one."""


def main() -> None:
    """The console command."""
    app()


if __name__ == "__main__":
    main()
