"""The command line ``trainer``."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from schemas.errors import SchemaError
from schemas.masking import masked, masked_traceback
from trainer.commands.ablate import ablate
from trainer.commands.collect import collect
from trainer.commands.evaluate import evaluate
from trainer.commands.fit import fit
from trainer.commands.guard import guard
from trainer.commands.models import models, promote, rollback
from trainer.commands.refresh import refresh
from trainer.commands.reproduce import presets, reproduce
from trainer.commands.run import run
from trainer.commands.settings import show_settings
from trainer.commands.sign import sign
from trainer.commands.split import shadow, split
from trainer.commands.tune import tune
from trainer.errors import TrainerError

app = typer.Typer(
    help="Train, evaluate and publish the models that the workers serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    fit,
    evaluate,
    tune,
    ablate,
    presets,
    reproduce,
    collect,
    run,
    refresh,
    guard,
    models,
    promote,
    rollback,
    sign,
    split,
    shadow,
):
    app.command()(command)
app.command("settings")(show_settings)


def main() -> None:
    """The console command: what the operator can mend is told in one message, without a traceback."""
    from confluent_kafka import KafkaException

    try:
        app()
    except (SchemaError, TrainerError) as error:
        message = str(error)
    except KafkaException as error:  # a client that cannot even be made: a certificate that is not there, for example
        message = f"the settings in [kafka] are not usable: {masked(error.args[0].str())}"
    except OSError as error:  # a full disk, a folder without permission: the message names it
        message = masked(str(error))
    except Exception:  # noqa: BLE001 - the process's edge: as Python would, less the logins in it
        sys.stderr.write(masked_traceback())
        sys.exit(1)
    else:
        return
    Console(stderr=True).print(f"[bold red]trainer:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
