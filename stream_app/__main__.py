"""The command line `stream-app`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from schemas.errors import SchemaError
from schemas.settings import describe, describe_json, load_settings
from schemas.topics import topic_table
from stream_app.settings import StreamSettings

app = typer.Typer(
    name="stream-app",
    help="Clicks in, rankings out: the streaming half of nextclick.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Settings come from nextclick.toml (or --config) and from NEXTCLICK_<TABLE>__<KEY> in the environment.",
)
out = Console()
err = Console(stderr=True)

EXIT_USAGE = 2

Config = Annotated[Path | None, typer.Option("--config", help="The settings file; ./nextclick.toml when it is there.")]
Json = Annotated[bool, typer.Option("--json", help="For programs: JSON instead of a table.")]


def settings_of(config: Path | None, overrides: dict[str, Any] | None = None) -> StreamSettings:
    """The settings in force."""
    return load_settings(StreamSettings, config=config, environ=os.environ, overrides=overrides or {})


@app.command()
def worker(
    config: Config = None,
    data_dir: Annotated[Path | None, typer.Option(help="Local state; one folder a worker.")] = None,
    web_port: Annotated[int | None, typer.Option(help="Health and metrics; 0 takes any free port.")] = None,
    log_format: Annotated[str | None, typer.Option(help="human or json.")] = None,
) -> None:
    """Serve: read clicks, keep each session's state, publish rankings, until SIGTERM or Ctrl-C."""
    from stream_app.logs import configure_logs
    from stream_app.worker import main as serve

    settings = settings_of(
        config, {"worker.data_dir": data_dir, "worker.web_port": web_port, "worker.log_format": log_format}
    )
    configure_logs(settings.worker.log_format, settings.worker.log_level)
    serve(settings)


@app.command()
def topics(config: Config = None, json: Json = False) -> None:
    """Create the topics that are missing and compare the others with what they should be."""
    import msgspec

    from schemas.topics_admin import ensure_topics

    settings = settings_of(config)
    specs = topic_table(settings.topics, settings.worker.app_id, session_ttl_ms=int(settings.worker.session_ttl * 1000))
    report = ensure_topics(settings.kafka, specs)
    if json:
        print(msgspec.json.encode(msgspec.to_builtins(report)).decode())
    else:
        table = Table("topic", "key", "partitions", "replication", "cleanup", "", title="Topics")
        for spec in specs:
            state = "created" if spec.name in report.created else "present"
            cleanup = spec.config.get("cleanup.policy", "")
            table.add_row(spec.name, spec.key, str(spec.partitions), str(spec.replication), cleanup, state)
        out.print(table)
        for difference in report.differs:
            err.print(f"[yellow]{difference}[/]")
    if any(difference.fatal for difference in report.differs):
        raise typer.Exit(1)


@app.command("settings")
def show_settings(config: Config = None, json: Json = False) -> None:
    """Show the settings in force and where each came from; secrets are masked."""
    settings = settings_of(config)
    if json:
        print(describe_json(settings))
        return
    table = Table("setting", "value", "from")
    for one in describe(settings):
        table.add_row(one.key, str(one.value), one.origin)
    out.print(table)


def main() -> None:
    """Entry point: what the operator can mend is told in one message, without a traceback."""
    from stream_app.errors import StreamError

    try:
        app()
    except (SchemaError, StreamError) as error:
        err.print(f"[bold red]stream-app:[/] {error}", highlight=False, markup=True)
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()
