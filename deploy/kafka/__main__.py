"""`python -m deploy.kafka`: a local Kafka in the foreground, until Ctrl-C or SIGTERM."""

import logging
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from deploy.kafka.cluster import LocalKafka
from deploy.kafka.errors import LocalKafkaError

LOOK_S = 1.0


def run(
    brokers: Annotated[int, typer.Option(help="1, or 3 with replication 3.")] = 1,
    port: Annotated[int, typer.Option(help="Port of the first broker; the others follow. 0 takes free ports.")] = 9092,
    data: Annotated[Path | None, typer.Option(help="Folder that keeps the data between runs; else temporary.")] = None,
) -> None:
    """Run a real Apache Kafka on this machine until Ctrl-C or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        # Only the first one interrupts; a second must not break the stopping off.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    ports = [port + i for i in range(brokers)] if port else None
    try:
        with LocalKafka(brokers, data_dir=data, ports=ports) as kafka:
            typer.echo(f"bootstrap servers: {kafka.bootstrap_servers}")
            typer.echo(f"data:              {kafka.data_dir}{'' if data else ' (removed at the end)'}")
            typer.echo(f"logs:              {kafka.log_dir}")
            typer.echo(f"use it:            export KAFKA_BOOTSTRAP_SERVERS={kafka.bootstrap_servers}")
            typer.echo("Ctrl-C stops it.")
            while True:
                kafka.check_alive()
                time.sleep(LOOK_S)
    except KeyboardInterrupt:
        typer.echo("Kafka is stopped.")
    except LocalKafkaError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(run)
    app(prog_name="python -m deploy.kafka")
