"""Settings of a command: one TOML file a deployment, and environment variables that win over it.

A file has the tables in `SECTIONS`; a command reads its own, a part of some, and passes over the other's.
The variable of `kafka.bootstrap_servers` is NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS, and so on. An empty variable counts as
not set, because compose files pass on unset ones so. Precedence: command line, environment, file,
KAFKA_BOOTSTRAP_SERVERS (for `kafka.bootstrap_servers` alone), default. Anything unknown refuses to start.

    class WorkerRoot(RootSettings):
        kafka: KafkaConnection = KafkaConnection()
        topics: TopicSettings = TopicSettings()
        worker: WorkerSettings = WorkerSettings()

    settings = load_settings(WorkerRoot, config=None, environ=os.environ, overrides={"worker.log_format": "json"})
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, get_origin

from pydantic import BaseModel, PrivateAttr, SecretStr, ValidationError

from schemas.config.bundle_settings import BundleSettings
from schemas.config.click_settings import ClickSettings
from schemas.config.schema_registry_settings import SchemaRegistrySettings
from schemas.config.settings_keys import (
    PREFIX,
    Key,
    alternatives,
    dotted_keys,
    field_type,
    keys,
    known_part,
    nest,
    section_of,
    variable_of,
)
from schemas.config.toml import parse_toml
from schemas.errors import SettingsError
from schemas.kafka.connection import KafkaConnection, Section, TopicSettings
from schemas.masking import MASK, masked

__all__ = [
    "BundleSettings",
    "ClickSettings",
    "KafkaConnection",
    "RootSettings",
    "SchemaRegistrySettings",
    "Section",
    "SettingInForce",
    "TopicSettings",
    "describe",
    "describe_json",
    "load_settings",
]

CONFIG_VARIABLE: Final = "NEXTCLICK_CONFIG"
DEFAULT_FILE: Final = Path("nextclick.toml")
SECTIONS: Final = (
    "kafka", "topics", "clicks", "schema_registry", "bundles", "worker", "scores", "api", "sink", "telemetry",
    "trainer", "guard",
)  # fmt: skip
"""The tables that a deployment's file may have, whichever command reads it."""
_FALLBACK_VARIABLE: Final = "KAFKA_BOOTSTRAP_SERVERS"


class RootSettings(Section):
    """Base of a command's settings: its fields are the sections that the command owns."""

    _origins: dict[Key, str] = PrivateAttr(default_factory=dict)


T = TypeVar("T", bound=RootSettings)


@dataclass(frozen=True, slots=True)
class SettingInForce:
    """One setting as `stream-app settings` shows it."""

    key: str
    value: Any
    """As JSON can hold it; secrets masked."""
    origin: str
    """`default`, a file, an environment variable, or the command line."""


@dataclass
class _Collected:
    """Values and problems while the sources are read, lowest precedence first."""

    root: type[RootSettings]
    foreign: frozenset[str]
    values: dict[Key, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, key: Key, value: Any, origin: str) -> None:
        self.values[key] = value
        self.origins[key] = origin


def load_settings(
    root_model: type[T],
    *,
    config: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any] | None = None,
    sections: tuple[str, ...] = SECTIONS,
) -> T:
    """The settings of a command, complete and valid.

    `config` is the file that the command line names, else NEXTCLICK_CONFIG does, else ./nextclick.toml is read if it is
    there. `overrides` are values of the command line by dotted key; None means not given. `sections` are all tables
    that may exist: those that are no field of `root_model` belong to another command and are not looked into. Raises
    SettingsError with every problem found; secrets are never in it.
    """
    collected = _Collected(root_model, frozenset(sections) - root_model.model_fields.keys())
    if environ.get(_FALLBACK_VARIABLE) and "kafka" in root_model.model_fields:
        collected.put(("kafka", "bootstrap_servers"), environ[_FALLBACK_VARIABLE], f"environment {_FALLBACK_VARIABLE}")
    file = _config_file(config, environ)
    if file is not None:
        _read_table(collected, root_model, _parse(file), (), f"file {file}")
    _read_environment(collected, environ)
    for dotted, value in (overrides or {}).items():
        key = tuple(dotted.split("."))
        if field_type(root_model, key) is None:
            raise SettingsError(f"{dotted}: no such setting{_close(dotted, dotted_keys(root_model))}")
        if value is not None:
            collected.put(key, value, "command line")
    if collected.problems:
        raise SettingsError(_message(collected.problems))
    try:
        settings = root_model.model_validate(nest(root_model, collected.values))
    except ValidationError as error:
        raise SettingsError(_message(_value_problems(collected, error))) from None  # pydantic's holds the input
    settings._origins.update(collected.origins)
    return settings


def given(key: str, *, config: Path | None, environ: Mapping[str, str]) -> str | None:
    """What the environment or the file gives for one dotted key, unchecked: for whoever must know it to read the rest.

    Raises SettingsError for a file that cannot be read.
    """
    names = tuple(key.split("."))
    if environ.get(variable_of(names)):
        return environ[variable_of(names)]
    file = _config_file(config, environ)
    found: Any = _parse(file) if file is not None else {}
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return None if found is None else str(found)


def describe(settings: RootSettings) -> list[SettingInForce]:
    """Every setting in force and where it came from; secrets are masked."""
    return [
        SettingInForce(".".join(key), value, settings._origins.get(key, "default"))
        for key, value in _leaves(settings, ())
    ]


def describe_json(settings: RootSettings) -> str:
    """`describe` as a JSON array of objects with `key`, `value` and `origin`."""
    shown = [{"key": one.key, "value": one.value, "origin": one.origin} for one in describe(settings)]
    return json.dumps(shown, indent=2)


def _config_file(config: Path | None, environ: Mapping[str, str]) -> Path | None:
    if config is not None:
        return config
    if environ.get(CONFIG_VARIABLE):
        return Path(environ[CONFIG_VARIABLE])
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def _parse(file: Path) -> dict[str, Any]:
    try:
        return parse_toml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{file}: cannot be read ({error.strerror}); name another with --config or {CONFIG_VARIABLE}"
        ) from error
    except ValueError as error:  # UTF-8's is one, too
        raise SettingsError(f"{file}: not TOML: {error}") from error


def _read_table(
    collected: _Collected, model: type[BaseModel], table: Mapping[str, Any], prefix: Key, origin: str
) -> None:
    for name, value in table.items():
        if not prefix and name in collected.foreign:
            continue
        key = (*prefix, name)
        if name not in model.model_fields:
            if _is_part(model):
                continue
            known = list(model.model_fields) if prefix else [*model.model_fields, *sorted(collected.foreign)]
            there = map(".".join, _elsewhere(name, known, collected.root))
            hint = _meant(there) or _close(name, known)
            collected.problems.append(f"{'.'.join(key)} ({origin}): no such setting{hint}")
            continue
        inner = section_of(model.model_fields[name].annotation)
        if inner is None:
            collected.put(key, value, origin)
        elif isinstance(value, Mapping):
            _read_table(collected, inner, value, key, origin)
        else:
            collected.problems.append(f"{'.'.join(key)} ({origin}): must be a table, [{'.'.join(key)}]")


def _read_environment(collected: _Collected, environ: Mapping[str, str]) -> None:
    known = {variable_of(key): key for key in keys(collected.root, ())}
    for variable in sorted(environ):
        if not variable.upper().startswith(PREFIX) or variable == CONFIG_VARIABLE:
            continue
        section = variable[len(PREFIX) :].split("__")[0].lower()
        if section in collected.foreign:
            continue
        key = known.get(variable)
        if key is None:
            found = collected.root.model_fields.get(section)
            if found is not None and _is_part(section_of(found.annotation)):
                continue
            name = variable.rpartition("__")[2].lower()
            here = [key[-1] for key in known.values() if key[0] == section]
            there = map(variable_of, _elsewhere(name, here, collected.root))
            hint = _meant(there) or _close(variable, [*known])
            collected.problems.append(f"environment {variable}: no such setting{hint}")
        elif environ[variable] != "":
            value, problem = _from_text(field_type(collected.root, key), environ[variable])
            if problem:
                collected.problems.append(f"environment {variable}: {problem}")
            collected.put(key, value, f"environment {variable}")


def _is_part(model: type[BaseModel] | None) -> bool:
    """Whether the table has keys that are another command's."""
    return model is not None and issubclass(model, Section) and not model.whole


def _from_text(annotation: Any, text: str) -> tuple[Any, str | None]:
    """A variable's value: JSON where the setting is a list or a mapping, else the text for pydantic to read."""
    if not any(get_origin(one) in (list, tuple, dict, set, frozenset) for one in alternatives(annotation)):
        return text, None
    try:
        return json.loads(text), None
    except (ValueError, RecursionError) as error:
        return None, f"must be JSON (a list or an object): {error}"


def _value_problems(collected: _Collected, error: ValidationError) -> list[str]:
    problems = []
    for found in error.errors(include_url=False, include_input=False, include_context=False):
        key = known_part(collected.root, found["loc"])
        message = found["msg"].removeprefix("Value error, ")
        origin = collected.origins.get(key)
        if origin is not None:
            problems.append(f"{'.'.join(key)} ({origin}){_shown_value(collected, key)}: {message}")
        elif found["type"] == "missing":
            table = f"`{key[-1]}` in the table [{'.'.join(key[:-1])}] of the file"
            problems.append(f"{'.'.join(key)}: not set; set {variable_of(key)}, or {table}")
        else:
            given = sorted({origin for at, origin in collected.origins.items() if at[: len(key)] == key})
            where = f"[{'.'.join(key)}] " if key else ""
            problems.append(f"{where}({', '.join(given) or 'default'}): {message}")
    return problems


def _shown_value(collected: _Collected, key: Key) -> str:
    if any(inner is SecretStr for inner in alternatives(field_type(collected.root, key))):
        return ""
    try:
        return masked(f" is {collected.values[key]!r}")[:200]
    except ValueError:  # a number of more digits than Python writes
        return ""


def _message(problems: list[str]) -> str:
    if len(problems) == 1:
        return f"setting refused: {problems[0]}"
    return f"{len(problems)} settings refused:\n" + "\n".join(f"  {problem}" for problem in problems)


def _close(name: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return _meant(matches) or f"; known are {', '.join(sorted(known)[:40])}"


def _elsewhere(name: str, here: list[str], root: type[BaseModel]) -> list[Key]:
    """The settings of other tables that somebody meant, none when it is one of `here` misspelt."""
    there = [key for key in keys(root, ()) if key[-1] == name]
    if not there and not difflib.get_close_matches(name, here):
        there = [key for key in keys(root, ()) if difflib.get_close_matches(name, key[-1:], cutoff=0.7)]
    return there[:3]


def _meant(names: Iterable[str]) -> str:
    meant = " or ".join(names)
    return f"; did you mean {meant}?" if meant else ""


def _leaves(model: BaseModel, prefix: Key) -> Iterator[tuple[Key, Any]]:
    shown = model.model_dump(mode="json")
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), _shown(value, shown[name])


def _shown(value: Any, as_json: Any) -> Any:
    """What is shown of a setting's value."""
    if isinstance(value, SecretStr):
        return MASK
    return masked(as_json) if isinstance(as_json, str) else as_json
