"""What a network has to beat, all under its own protocol: the families that count, by name and options.

As a text an option follows its family: ``stan:neighbours=200,days=5``. Options are the family's own settings, and its
``window``, here as long as can be, and ``seed``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch

from trainer.data.lanes import Lanes
from trainer.data.sessions import Ints, SessionSet
from trainer.errors import TrainingSettingsError
from trainer.evaluation.protocol import Floats, Ties, ranks_among
from trainer.models.counting import LONGEST, CountingModel, CountingSettings, ItemCounts
from trainer.models.neighbours import SessionNeighbours
from trainer.models.registry import COUNTING, settings_class
from trainer.models.settings import assignments_of

Scores = npt.NDArray[np.float32]

BASELINES: Final = tuple(COUNTING)
_OF_ALL: Final = {"window": LONGEST, "seed": CountingSettings.model_fields["seed"].default}
"""Options that every baseline has, with their defaults."""


@dataclass(frozen=True)
class Baseline:
    """A counting model as a scorer: no state, the session's clicks are all it looks at."""

    name: str
    model: CountingModel

    @property
    def depth(self) -> int:
        return self.model.items

    def start(self, lanes: int) -> None:
        return None

    def advance(self, state: object, lanes: Lanes) -> None:
        return None

    def ranks(self, state: object, lanes: Lanes, targets: Ints, ties: Ties) -> Floats:
        return ranks_among(torch.from_numpy(self.score(lanes)), targets, ties, self.name)

    def score(self, lanes: Lanes) -> Scores:
        """Of the whole catalogue, from what a worker's row tells: Lanes of n sessions -> f32[n, I].

        Neighbours are found by the clicks themselves: a row does not know the order of repeats. That is the one
        difference between them and the model that is served.
        """
        longest = min(int(lanes.clicks.max()), self.model.recent_size)  # a longer row would be padding
        if isinstance(self.model, ItemCounts) and not self.model.own:
            longest = 1  # the last item alone decides
        if isinstance(self.model, SessionNeighbours):
            return self.model.scores_after(lanes.history(longest))
        return self.model.scores(*lanes.recent(longest))


@dataclass(frozen=True)
class BaselineSpec:
    """A baseline and the options that are asked for."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, given: Mapping[str, object]) -> Self:
        """From options as texts or values. Raises :class:`TrainingSettingsError`."""
        if name not in BASELINES:
            raise TrainingSettingsError(f"--baselines: no {name}; there are {', '.join(BASELINES)}")
        known = {**options_of(name), **_OF_ALL}
        for option in given:
            if option not in known:
                raise TrainingSettingsError(f"--baselines: {name} has no option {option}; it has {', '.join(known)}")
        try:
            settings = CountingSettings.parse({"family": name, **given})
        except TrainingSettingsError as error:
            raise TrainingSettingsError(f"--baselines: {name}: {error}") from error
        return cls(name, {option: getattr(settings, option) for option in known if option in given})

    def __str__(self) -> str:
        values = {
            name: str(value).lower() if isinstance(value, bool) else value for name, value in self.options.items()
        }
        return ":".join([self.name, *([",".join(f"{n}={v}" for n, v in values.items())] if values else [])])

    def build(self, train: SessionSet) -> Baseline:
        """The baseline, named by this text."""
        settings = CountingSettings.parse({"family": self.name, **_OF_ALL, **self.options})
        return Baseline(str(self), settings.count(train))


def baseline_of(settings: CountingSettings) -> BaselineSpec:
    """The baseline that counts as the model of these settings does."""
    options = {option: getattr(settings, option) for option in [*options_of(settings.family), *_OF_ALL]}
    return BaselineSpec(settings.family, {name: of for name, of in options.items() if _OF_ALL.get(name) != of})


def options_of(name: str) -> dict[str, Any]:
    """The settings that this family alone has, with their defaults."""
    fields = settings_class(name).model_fields
    return {option: of.default for option, of in fields.items() if option not in CountingSettings.model_fields}


def parse_baselines(text: str) -> tuple[BaselineSpec, ...]:
    """Names with commas between them, each with options of its own or without; ``all`` and ``none`` as well.

    Raises :class:`TrainingSettingsError`.
    """
    if text in {"all", "none"}:
        return tuple(map(BaselineSpec, BASELINES)) if text == "all" else ()
    specs = [BaselineSpec.of(name, assignments_of(options)) for name, options in _parts(text)]
    return tuple({str(spec): spec for spec in specs}.values())


def _parts(text: str) -> Iterator[tuple[str, Sequence[str]]]:
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
