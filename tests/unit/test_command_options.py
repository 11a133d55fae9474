"""All command lines: numbers that are none are refused, files are read with the same options, no setting is cut."""

import inspect
from collections.abc import Callable
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from deploy.demo.__main__ import demo
from schemas.click_files.options import ReadOptions
from stream_app.__main__ import app as stream_app
from trainer.__main__ import app as trainer

READERS = {"replay", "fit", "evaluate", "tune", "ablate", "reproduce"}
READING = set(ReadOptions.__dataclass_fields__) - {"event_column"}  # a matter of those who publish


def functions(app: Any) -> list[Callable[..., Any]]:
    inner = [found for group in app.registered_groups for found in functions(group.typer_instance)]
    return [command.callback for command in app.registered_commands] + inner


COMMANDS = {function.__name__: function for app in (stream_app, trainer) for function in functions(app)} | {
    "demo": demo
}


def numbers() -> dict[str, Any]:
    """The options that take a fraction, by command and name."""
    found = {}
    for name, function in COMMANDS.items():
        for option in inspect.signature(function, eval_str=True).parameters.values():
            kind, *about = get_args(option.annotation) or (None,)
            if about and (kind is float or float in get_args(kind)):
                found[f"{name} {option.name}"] = about[0]
    return found


def test_the_commands_are_found() -> None:
    assert COMMANDS.keys() > READERS
    assert {"replay speed", "fit valid_days", "fit idle_gap", "demo rate"} <= numbers().keys()


@pytest.mark.parametrize("option", numbers())
def test_a_fraction_has_bounds_and_so_is_a_number(option: str) -> None:
    about = numbers()[option]
    assert about.min is not None
    assert about.max is not None
    assert abs(about.max) < float("inf")


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "1e400"])
def test_what_is_no_number_lies_outside_all_bounds(number: str) -> None:
    refused = CliRunner().invoke(stream_app, ["replay", "nothing.csv", "--speed", number])
    assert (refused.exit_code, isinstance(refused.exception, SystemExit)) == (2, True)
    assert "--speed" in refused.output


@pytest.mark.parametrize("name", sorted(READERS))
def test_all_who_read_click_files_have_the_same_options(name: str) -> None:
    parameters = inspect.signature(COMMANDS[name]).parameters
    shared = inspect.signature(COMMANDS["replay"]).parameters
    assert {option: parameters[option].annotation for option in READING} == {
        option: shared[option].annotation for option in READING
    }


@pytest.mark.parametrize("app", [stream_app, trainer], ids=["stream-app", "trainer"])
def test_settings_are_shown_in_full_in_a_narrow_terminal(app: Any) -> None:
    servers = ",".join(f"broker-{n}.of-a-long-name.example:9092" for n in range(3))
    done = CliRunner().invoke(app, ["settings"], env={"KAFKA_BOOTSTRAP_SERVERS": servers, "COLUMNS": "80"})
    rows = [line.split("│") for line in done.stdout.splitlines() if line.startswith("│")]
    assert servers in "".join(row[2].strip() for row in rows)
