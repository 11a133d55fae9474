"""What a search may try: ranges and choices by name, the usual ones of each model, and their form as texts."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from trainer.errors import TrainingSettingsError
from trainer.models.settings import LearnedSettings, NetworkSettings, TrainingSettings, assignments_of

Value = bool | int | float | str


class Trial(Protocol):
    """The part of Optuna's trial that draws values."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Range:
    """From ``low`` to ``high``, both included; whole numbers where both are. With ``log`` there is no ``step``."""

    name: str
    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.low, self.high

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: Trial) -> Value:
        if self.whole:
            step = int(self.step or 1)
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=step, log=self.log)
        value = trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)
        # Three digits are enough for a setting, and can be read. Steps come with rounding errors of their own.
        return round(value, 6) if self.step else float(f"{value:.3g}")

    def holds(self, value: object) -> bool:
        """Whether a search may come upon the value."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-6)

    def __str__(self) -> str:
        way = ":log" if self.log else "" if self.step is None else f":{self.step}"
        return f"{self.name}={self.low}..{self.high}{way}"


@dataclass(frozen=True)
class Choice:
    """One of these values."""

    name: str
    values: tuple[Value, ...]

    @property
    def ends(self) -> tuple[Value, ...]:
        return self.values

    def suggest(self, trial: Trial) -> Value:
        value: Value = trial.suggest_categorical(self.name, self.values)
        return value

    def holds(self, value: object) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return f"{self.name}={'|'.join(str(value).lower() for value in self.values)}"


Dimension = Range | Choice

_SAMPLES: Final = Range("sample_alpha", 0.0, 1.0, step=0.05)
_BPR_MAX: Final[tuple[Dimension, ...]] = (Range("bpreg", 0.0, 2.0, step=0.05), Choice("elu", (0.0, 0.5, 1.0)))


def model_space(settings: TrainingSettings, losses: Collection[object]) -> tuple[Dimension, ...]:
    """What is usually searched for a model: what costs no time. Units and samples are a budget.

    ``losses`` are those that are tried; where there are none, it is the settings' own.
    """
    if not isinstance(settings, LearnedSettings):
        return parse_dimensions(settings.searched)
    return tuple(
        replace(one, name=f"{table}.{one.name}" if table else one.name)
        for table, part in settings.parts.items()
        for one in _network_space(part, losses or {part.loss})
    )


def _network_space(settings: NetworkSettings, losses: Collection[object]) -> tuple[Dimension, ...]:
    return (
        *parse_dimensions(settings.searched),
        *((_SAMPLES,) if settings.n_sample else ()),
        *(_BPR_MAX if "bpr-max" in losses else ()),
    )


def changed(space: Iterable[Dimension], fixed: Iterable[str], asked: Iterable[Dimension]) -> tuple[Dimension, ...]:
    """The space without what is fixed, and with what is asked for in place of the usual."""
    wanted = {one.name: one for one in asked}
    fixed = set(fixed)
    if both := fixed & wanted.keys():
        raise TrainingSettingsError(f"{', '.join(sorted(both))}: is set and searched; leave one of them out")
    usual = {one.name: one for one in space if one.name not in fixed}
    return tuple((usual | wanted).values())


def parse_dimensions(texts: Iterable[str]) -> tuple[Dimension, ...]:
    """From ``name=low..high``, the same with ``:log`` or ``:step``, and ``name=a|b``. Raises TrainingSettingsError."""
    return tuple(_dimension(name, text) for name, text in assignments_of(texts).items())


def _dimension(name: str, text: str) -> Dimension:
    span, _, way = text.partition(":")
    low, dots, high = span.partition("..")
    if not dots:
        return Choice(name, tuple(_value(one.strip()) for one in text.split("|")))
    bounds = (_value(low), _value(high))
    if not all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds):
        raise TrainingSettingsError(f"--search {name}={text}: {span} is not a range of numbers")
    first, last = (bound for bound in bounds if isinstance(bound, int | float))
    step = None if way in {"", "log"} else _value(way)
    if step is not None and (isinstance(step, bool | str) or not 0 < step <= last - first):
        raise TrainingSettingsError(f"--search {name}={text}: '{way}' is neither log nor a step within the range")
    if not first < last or (way == "log" and first <= 0):
        raise TrainingSettingsError(f"--search {name}={text}: a range goes up, and with :log it begins above 0")
    found = Range(name, first, last, step, way == "log")
    if found.whole and isinstance(step, float):
        raise TrainingSettingsError(f"--search {name}={text}: whole numbers have whole steps")
    return found


def _value(text: str) -> Value:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:  # not of this kind; a text is the last one
            continue
    return text
