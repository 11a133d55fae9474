"""Baselines by name and options, as texts: ``stan:neighbours=200,days=5``."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from trainer.data.sessions import SessionSet
from trainer.errors import TrainingSettingsError
from trainer.evaluation.baselines.scorer import Baseline
from trainer.models.settings import assignments_of

Maker = Callable[..., Baseline]
_MAY_BE_ZERO: Final = {"regularisation", "seed"}


@dataclass(frozen=True)
class BaselineSpec:
    """A baseline and the options of its that are not the defaults."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        values = {
            name: str(value).lower() if isinstance(value, bool) else value for name, value in self.options.items()
        }
        return ":".join([self.name, *([",".join(f"{n}={v}" for n, v in values.items())] if values else [])])

    def build(self, makers: Mapping[str, Maker], train: SessionSet) -> Baseline:
        """The baseline, named by this text."""
        return replace(makers[self.name](train, **self.options), name=str(self))


def options_of(maker: Maker) -> dict[str, Any]:
    """The options that a baseline takes, with their defaults."""
    parameters = inspect.signature(maker).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}


def parse_baselines(text: str, makers: Mapping[str, Maker]) -> tuple[BaselineSpec, ...]:
    """Names with commas between them, each with options of its own or without; ``all`` and ``none`` as well.

    Raises :class:`TrainingSettingsError`.
    """
    if text in {"all", "none"}:
        return tuple(BaselineSpec(name) for name in makers) if text == "all" else ()
    specs = [_spec(name, options, makers) for name, options in _parts(text)]
    return tuple({str(spec): spec for spec in specs}.values())


def _parts(text: str) -> Iterator[tuple[str, list[str]]]:
    """Names and their options: a part with a sign of equality and no name belongs to the name before it."""
    name: str | None = None
    options: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if not part:
            continue
        begins = part.partition("=")[0].partition(":")
        if "=" in part and not begins[1]:
            if name is None:
                raise TrainingSettingsError(f"--baselines: '{part}' belongs to no baseline; begin with a name")
            options.append(part)
            continue
        if name is not None:
            yield name, options
        name, _, first = part.partition(":")
        options = [first] if first else []
    if name is not None:
        yield name, options


def _spec(name: str, options: Sequence[str], makers: Mapping[str, Maker]) -> BaselineSpec:
    if name not in makers:
        raise TrainingSettingsError(f"--baselines: no {name}; there are {', '.join(makers)}")
    known = options_of(makers[name])
    given = {}
    for option, text in assignments_of(options).items():
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise TrainingSettingsError(f"--baselines: {name} has no option {option}; {has}")
        given[option] = _value(f"{name}:{option}", text, known[option])
    return BaselineSpec(name, {option: given[option] for option in known if option in given})


def _value(where: str, text: str, default: Any) -> Any:
    """The text as a value of the default's type."""
    if isinstance(default, bool):
        if text.lower() not in {"true", "false"}:
            raise TrainingSettingsError(f"--baselines: {where}={text}: true or false is expected")
        return text.lower() == "true"
    if isinstance(default, str):
        return text
    try:
        value = type(default)(text)
    except ValueError as error:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise TrainingSettingsError(f"--baselines: {where}={text}: {kind} is expected") from error
    option = where.partition(":")[2]
    if not (0 < value < float("inf") or (value == 0 and option in _MAY_BE_ZERO)):
        raise TrainingSettingsError(f"--baselines: {where}={text}: must be above 0")
    return value
