"""The command line `stream-app`."""

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from schemas.click_files.options import ReadOptions, reads_click_files
from schemas.config.settings import describe, describe_json, load_settings
from schemas.errors import SchemaError
from schemas.masking import masked, masked_traceback
from schemas.messages.click import RejectReason
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
    from schemas.logs import configure_logs
    from stream_app.serve.worker import main as serve

    settings = settings_of(
        config, {"worker.data_dir": data_dir, "worker.web_port": web_port, "worker.log_format": log_format}
    )
    configure_logs(
        settings.worker.log_format,
        settings.worker.log_level,
        # At info these tell each rebalance in dozens of lines.
        quiet=dict.fromkeys(("faust", "mode", "aiokafka", "aiohttp", "httpx2", "librdkafka"), logging.WARNING),
        # Said at every start for what is meant so: topics are made by `stream-app topics`.
        unsaid=("Topic creation disabled!",),
    )
    serve(settings, config)


@app.command(hidden=True)
def shadows(config: Config = None, data_dir: Path | None = None) -> None:
    """The process of a worker's shadow models; workers start it."""
    from schemas.logs import configure_logs
    from stream_app.serve.shadow_process import main as rank

    settings = settings_of(config, {"worker.data_dir": data_dir})
    configure_logs(
        settings.worker.log_format,
        settings.worker.log_level,
        quiet=dict.fromkeys(("faust", "mode", "aiokafka", "aiohttp", "httpx2", "librdkafka"), logging.WARNING),
    )
    rank(settings)


@app.command()
def topics(config: Config = None, json: Json = False) -> None:
    """Create the topics that are missing and compare the others with what they should be."""
    import msgspec

    from schemas.kafka.admin import ensure_topics

    settings = settings_of(config)
    specs = settings.topic_specs()
    report = ensure_topics(settings.kafka, specs)
    if json:
        print(msgspec.json.encode(msgspec.to_builtins(report)).decode())
    else:
        facts = (Column(name, no_wrap=True) for name in ("partitions", "replication", "cleanup", ""))
        table = Table(Column("topic", overflow="fold"), *facts, title="Topics", box=box.SIMPLE_HEAD, pad_edge=False)
        for spec in specs:
            state = "created" if spec.name in report.created else "present"
            cleanup = spec.config.get("cleanup.policy", "")
            table.add_row(spec.name, str(spec.partitions), str(spec.replication), cleanup, state)
        out.print(table)
        for difference in report.differs:
            err.print(f"[yellow]{difference}[/]")
    if any(difference.fatal for difference in report.differs):
        raise typer.Exit(1)


@app.command()
@reads_click_files
def replay(
    file: Annotated[Path, typer.Argument(help="Click file, a public log as it is downloaded, or Parquet.")],
    *,
    reading: ReadOptions,
    config: Config = None,
    json: Json = False,
    speed: Annotated[
        float, typer.Option(min=1e-6, max=1e9, help="1 is real time, 60 a minute's clicks each second.")
    ] = 1.0,
    as_fast_as_possible: Annotated[bool, typer.Option("--as-fast-as-possible", help="Wait for nothing.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="The first clicks only.")] = None,
    rebase: Annotated[
        bool, typer.Option(help="Give each click the time at which it is sent; else it keeps the file's.")
    ] = True,
    max_gap: Annotated[
        float,
        typer.Option(min=0.001, max=1e9, metavar="SECONDS", help="Shorten longer gaps between two clicks of the file."),
    ] = 3600.0,
    topic: Annotated[str | None, typer.Option(help="Instead of topics.clicks.")] = None,
    event_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Else event_id, or the number of the line.")
    ] = None,
) -> None:
    """Publish a click file as live clicks."""
    from stream_app.tools.replay import replay as publish

    code = publish(
        file,
        settings_of(config),
        reading=replace(reading, event_column=event_column),
        speed=None if as_fast_as_possible else speed,
        limit=limit,
        rebased=rebase,
        max_gap_ms=round(max_gap * 1000),
        topic=topic,
        json=json,
        out=out,
        err=err,
    )
    raise typer.Exit(code)


@app.command()
def items(
    file: Annotated[Path, typer.Argument(help="JSON lines, or CSV by a name that ends in .csv.")],
    config: Config = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="The file is the whole catalogue: what is not in it is gone.")
    ] = False,
) -> None:
    """Publish the items of a catalogue."""
    from stream_app.tools.publish_catalogue import ITEMS, publish_file

    raise typer.Exit(publish_file(file, settings_of(config), ITEMS, complete=complete, out=out))


@app.command()
def rules(
    file: Annotated[Path, typer.Argument(help="JSON lines.")],
    config: Config = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="The file has all rules: those that are not in it end.")
    ] = False,
) -> None:
    """Publish rules."""
    from stream_app.tools.publish_catalogue import RULES, publish_file

    raise typer.Exit(publish_file(file, settings_of(config), RULES, complete=complete, out=out))


@app.command()
def watch(
    config: Config = None,
    json: Json = False,
    session: Annotated[str | None, typer.Option(help="Of one session only.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many rankings.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Those that are there already, too.")
    ] = False,
) -> None:
    """Show rankings as they are published, until Ctrl-C."""
    from stream_app.tools.watch import watch as follow

    code = follow(
        settings_of(config), session_id=session, limit=limit, from_beginning=from_beginning, json=json, out=out, err=err
    )
    raise typer.Exit(code)


@app.command()
def inspect(
    session: Annotated[str, typer.Argument(help="The session's id.")], config: Config = None, json: Json = False
) -> None:
    """Show a session's row: its model, last clicks and state."""
    from stream_app.tools.inspect_session import inspect_session

    raise typer.Exit(inspect_session(session, settings_of(config), json=json, out=out, err=err))


@app.command()
def explain(
    session: Annotated[str, typer.Argument(help="The session's id.")],
    *,
    item: Annotated[str | None, typer.Option(help="One item, and what each of the session's items adds to it.")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Show what adds up to the places of a session's ranking: network, session memory, the session's own items."""
    from stream_app.tools.explain import explain_session

    raise typer.Exit(explain_session(session, settings_of(config), item_id=item, json=json, out=out, err=err))


@app.command("replay-session")
def replay_session(
    session: Annotated[str, typer.Argument(help="The session's id.")],
    *,
    at: Annotated[
        int | None, typer.Option(min=0, metavar="OFFSET", help="Of the click on its partition; the newest without.")
    ] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Compute a session's row and ranking at an earlier click anew, and compare with what was published."""
    from stream_app.tools.replay_session import replay_session as replay_one

    raise typer.Exit(replay_one(session, settings_of(config), at=at, json=json, out=out, err=err))


@app.command()
def forget(
    session: Annotated[str, typer.Argument(help="The session's id.")], config: Config = None, json: Json = False
) -> None:
    """Delete a session's row, and leave its clicks out of every later training."""
    from stream_app.tools.forget import forget as ask

    raise typer.Exit(ask(session, settings_of(config), json=json, out=out))


@app.command()
def rejected(
    place: Annotated[
        str | None, typer.Argument(metavar="[PARTITION:OFFSET]", help="One record, shown in full.")
    ] = None,
    *,
    reason: Annotated[list[RejectReason] | None, typer.Option(help="Of this reason only; may be repeated.")] = None,
    topic: Annotated[str | None, typer.Option(help="Rejected on this topic only.")] = None,
    last: Annotated[str | None, typer.Option(help="Rejected lately only, as in 30m, 6h, 1d.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The newest so many.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write those that were not sent again to a file of JSON lines, to be repaired.")
    ] = None,
    send: Annotated[Path | None, typer.Option(help="Send the records of such a file to their topic.")] = None,
    resend: Annotated[bool, typer.Option("--resend", help="Send all that match to their topic as they are.")] = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Look at rejected records, and send them again, repaired or as they were; none is sent twice."""
    from stream_app.tools.rejected import Filters, place_of, show, show_one
    from stream_app.tools.resend import send_file, send_matching

    last_ms = _milliseconds(last)
    filters = Filters(reason or (), topic, last_ms, limit)
    ways = {"PARTITION:OFFSET": place, "--export": export, "--send": send, "--resend": resend or None}
    if len(given := [name for name, value in ways.items() if value is not None]) > 1:
        raise typer.BadParameter("are two different things; run the command for each", param_hint=" and ".join(given))
    if filters != Filters() and (place or send):
        raise typer.BadParameter("takes neither --reason, --topic, --last nor --limit", param_hint=given[0])
    if json and given and place is None:
        raise typer.BadParameter("is for records that are shown", param_hint="--json")
    settings = settings_of(config)
    if place is not None:
        code = show_one(place_of(place), settings, json=json, out=out, err=err)
    elif send is not None:
        code = send_file(send, settings, out=out, err=err)
    elif resend:
        code = send_matching(filters, settings, out=out, err=err)
    else:
        code = show(settings, filters, export=export, json=json, out=out, err=err)
    raise typer.Exit(code)


@app.command()
def score(
    config: Config = None,
    shadows: Annotated[bool, typer.Option("--shadows", help="Of shadow models, in place of those that serve.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Local state; one folder a scorer.")] = None,
    web_port: Annotated[int | None, typer.Option(help="Health and metrics; 0 takes any free port.")] = None,
    log_format: Annotated[str | None, typer.Option(help="human or json.")] = None,
) -> None:
    """Judge rankings by the clicks after them: online Recall and MRR of every model, until SIGTERM or Ctrl-C."""
    from schemas.logs import configure_logs
    from stream_app.score.service import main as keep_scores

    settings = settings_of(
        config, {"scores.data_dir": data_dir, "scores.web_port": web_port, "scores.log_format": log_format}
    )
    configure_logs(
        settings.scores.log_format,
        settings.scores.log_level,
        quiet=dict.fromkeys(("aiohttp", "httpx2", "librdkafka"), logging.WARNING),
    )
    raise typer.Exit(keep_scores(settings, shadows=shadows))


@app.command()
def api(
    config: Config = None,
    data_dir: Annotated[Path | None, typer.Option(help="Local state; one folder a process.")] = None,
    port: Annotated[int | None, typer.Option(help="Where to listen; 0 takes any free port.")] = None,
    log_format: Annotated[str | None, typer.Option(help="human or json.")] = None,
) -> None:
    """Answer over HTTP: latest rankings, clicks, explanations, models and scores, until SIGTERM or Ctrl-C."""
    from schemas.logs import configure_logs

    settings = settings_of(config, {"api.data_dir": data_dir, "api.port": port, "api.log_format": log_format})
    configure_logs(
        settings.api.log_format,
        settings.api.log_level,
        quiet=dict.fromkeys(("uvicorn", "asyncio", "httpx2", "librdkafka"), logging.WARNING),
    )
    try:
        from stream_app.api.service import main as serve
    except ModuleNotFoundError as error:
        raise _without_extra(error) from error
    raise typer.Exit(serve(settings))


@app.command()
def sink(
    store: Annotated[
        str | None,
        typer.Argument(metavar="URL", help="Redis or Valkey, as in redis://host:6379/0; else api.store_url."),
    ] = None,
    config: Config = None,
    data_dir: Annotated[Path | None, typer.Option(help="Local state; one folder a sink.")] = None,
    web_port: Annotated[int | None, typer.Option(help="Health and metrics; 0 takes any free port.")] = None,
    log_format: Annotated[str | None, typer.Option(help="human or json.")] = None,
) -> None:
    """Keep the latest ranking of each session in Redis or Valkey, until SIGTERM or Ctrl-C."""
    from schemas.logs import configure_logs

    settings = settings_of(
        config,
        {
            "api.store_url": store,
            "sink.data_dir": data_dir,
            "sink.web_port": web_port,
            "sink.log_format": log_format,
        },
    )
    configure_logs(
        settings.sink.log_format,
        settings.sink.log_level,
        quiet=dict.fromkeys(("aiohttp", "httpx2", "librdkafka"), logging.WARNING),
    )
    try:
        from stream_app.api.sink import main as copy
    except ModuleNotFoundError as error:
        raise _without_extra(error) from error
    raise typer.Exit(copy(settings))


@app.command()
def scores(
    config: Config = None,
    json: Json = False,
    by: Annotated[
        list[str] | None, typer.Option(help="Also by variant, market, window, type or reason; may be repeated.")
    ] = None,
    last: Annotated[str | None, typer.Option(help="Of the newest clicks only, as in 30m, 6h, 1d.")] = None,
) -> None:
    """Show how good the models have been online."""
    from stream_app.tools.scores import GROUPS, OF_PREDICTIONS, print_scores

    groups = tuple(dict.fromkeys(by or ()))
    if unknown := [name for name in groups if name not in GROUPS]:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(GROUPS)}", param_hint="--by")
    if len(set(groups) & set(OF_PREDICTIONS)) > 1:
        raise typer.BadParameter("type and reason are counted apart; ask for one of them", param_hint="--by")
    last_ms = _milliseconds(last)
    raise typer.Exit(print_scores(settings_of(config), by=groups, last_ms=last_ms, json=json, out=out, err=err))


@app.command("settings")
def show_settings(config: Config = None, json: Json = False) -> None:
    """Show the settings in force and where each came from; secrets are masked."""
    settings = settings_of(config)
    if json:
        print(describe_json(settings))
        return
    table = Table(*(Column(name, overflow="fold") for name in ("setting", "value", "from")))
    for one in describe(settings):
        table.add_row(one.key, str(one.value), one.origin)
    out.print(table)


def _milliseconds(last: str | None) -> int | None:
    """What `--last` says."""
    from schemas.config.duration import parse_duration

    try:
        return None if last is None else round(float(str(parse_duration(last))) * 1000)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--last") from error


def _without_extra(error: ModuleNotFoundError) -> SchemaError:
    return SchemaError(f"this command needs {error.name}, which is not installed: pip install 'nextclick[api]'")


def main() -> None:
    """Entry point: what the operator can mend is told in one message, without a traceback."""
    from confluent_kafka import KafkaException

    from stream_app.errors import StreamError

    try:
        app()
    except (SchemaError, StreamError) as error:
        message = str(error)
    except KafkaException as error:  # a client that cannot even be made: a certificate that is not there, for example
        message = f"the settings in [kafka] are not usable: {masked(error.args[0].str())}"
    except Exception:  # noqa: BLE001 - the process's edge: as Python would, less the logins in it
        sys.stderr.write(masked_traceback())
        sys.exit(1)
    else:
        return
    err.print(f"[bold red]stream-app:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()
