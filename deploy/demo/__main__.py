"""`make demo`: the whole system on this machine, with live clicks, until it ends by itself."""

import json
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.demo.processes import CommandFailedError
from deploy.demo.progress import Plan
from deploy.demo.sources import HISTORY_SESSIONS, click_file, shop
from deploy.demo.story import Demo, DemoError
from deploy.kafka import LocalKafkaError
from schemas.errors import SchemaError

CANARY_PERCENT = 20.0
EXIT_WRONG = 1
EXIT_FAILED = 2
EXIT_INTERRUPTED = 130

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# Long: one option after the other, each with its help.
def demo(
    *,
    clicks: Annotated[Path | None, typer.Option(help="Replay a click file instead of the simulated shop.")] = None,
    seconds: Annotated[float, typer.Option(help="How long live clicks come at least.", min=20, max=86_400)] = 165.0,
    patience: Annotated[
        float, typer.Option(help="Seconds more at most, until a new model made its predictions.", min=0, max=86_400)
    ] = 900.0,
    predictions: Annotated[int, typer.Option(help="Predictions that a new model must make.", min=1)] = 2000,
    rate: Annotated[
        float, typer.Option(help="Clicks a second of the simulated shop; fewer on a slow machine.", min=10, max=100_000)
    ] = 1000.0,
    retrain_every: Annotated[float, typer.Option(help="Seconds between training cycles.", min=5, max=86_400)] = 55.0,
    new_sessions: Annotated[int, typer.Option(help="New sessions that a training cycle needs.", min=1)] = 1500,
    canary: Annotated[
        float | None,
        typer.Option(
            help="Percent of the sessions that try a new model until the guard promotes it; then a bad one is "
            "announced, which the guard rolls back. 0: the gate is enough, as with a click file. Default: 20.",
            min=0,
            max=99,
        ),
    ] = None,
    judged_sessions: Annotated[int, typer.Option(help="Sessions of each model that the guard needs.", min=50)] = 500,
    history: Annotated[
        int, typer.Option(help="Sessions of the simulated shop that the first model learns from.", min=500)
    ] = HISTORY_SESSIONS,
    seed: Annotated[int, typer.Option(help="Of the simulated shop.")] = 7,
    page: Annotated[
        bool, typer.Option(help="Serve the page of `stream-app api`, to look at the demo and to click in the shop.")
    ] = True,
    keep: Annotated[Path | None, typer.Option(help="Keep logs, models and the table in this folder.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Write what the screen shows when the clicks end into this file, as SVG.")
    ] = None,
) -> None:
    """Kafka, a worker, a trainer and a shop: clicks in, rankings out, a model retrained and swapped under load.

    The last line on standard output is one JSON object; the exit code is 0 only when no click was lost, no row is wrong
    and a new model came into service and made enough predictions there to judge it.
    """
    console = Console(stderr=True)
    try:
        source = click_file(clicks) if clicks else shop(clicks_per_second=rate, seed=seed, history=history)
        share = (None if clicks else CANARY_PERCENT) if canary is None else canary or None
        plan = Plan(
            live=seconds,
            patience=patience,
            retrain_every=retrain_every,
            new_sessions=new_sessions,
            predictions=predictions,
            canary=share,
            judged_sessions=judged_sessions,
        )
        verdict = Demo(source, plan, page=page, keep=keep, picture=picture).run()
    except KeyboardInterrupt:
        console.print("interrupted; everything that the demo started is stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (DemoError, CommandFailedError, LocalKafkaError, SchemaError) as error:
        console.print(f"demo: {error}", markup=False, highlight=False, style="red")
        raise typer.Exit(EXIT_FAILED) from error
    print(json.dumps(verdict.result), flush=True)
    for fault in verdict.faults:
        console.print(f"demo: {fault}", markup=False, highlight=False, style="red")
    if verdict.faults:
        raise typer.Exit(EXIT_WRONG)


def _interrupt(*_: object) -> None:
    # Once: what follows stops what was started, and a second Ctrl-C must not leave the rest of it running.
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    """Entry point; SIGTERM ends the demo as Ctrl-C does, and so does the end of its terminal."""
    for number in _ENDS:
        # A script that runs us in the background has SIGINT ignored, and still may send it; SIGHUP is ignored by nohup.
        if number != signal.SIGHUP or signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(demo)
    app()


if __name__ == "__main__":
    main()
