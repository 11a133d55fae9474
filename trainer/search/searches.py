"""What a search tries: the usual ranges of a model, what is fixed in them, and what is asked for beside them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.errors import TrainingSettingsError
from trainer.models.settings import LearnedSettings, TrainingSettings, assignments_of, flattened
from trainer.search.search_space import Dimension, changed, model_space, parse_dimensions


@dataclass(frozen=True)
class Search:
    """What is searched: ``fixed`` are the values that every trial has, ``start`` those to try first."""

    dimensions: tuple[Dimension, ...]
    fixed: Mapping[str, Any]
    start: Mapping[str, Any]
    seed: int = 42
    epochs_planned: bool = False
    """Whether every trial has all of its epochs, by a plan over them."""

    @property
    def epochs(self) -> int | None:
        """Of every trial; None where they may differ."""
        found = None if any(one.name == "epochs" for one in self.dimensions) else self.start.get("epochs")
        return found if isinstance(found, int) else None

    def values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.fixed, **drawn}


def model_search(base: Mapping[str, Any], assignments: Iterable[str], ranges: Iterable[str], *, seed: int) -> Search:
    """Of a family's model, from the settings of a preset. ``assignments`` (name=value) are fixed.

    Raises :class:`TrainingSettingsError` for ranges with values that their setting cannot have.
    """
    given = assignments_of(assignments)
    base = {**base, **given}
    start = TrainingSettings.parse(base)
    asked = parse_dimensions(ranges)
    if any(one.name == "family" for one in asked):
        raise TrainingSettingsError("--search family: each family has settings of its own; search them one by one")
    losses: set[object] = {value for one in asked if one.name == "loss" for value in one.ends}
    dimensions = changed(model_space(start, losses), given, asked)
    if not dimensions:
        raise TrainingSettingsError(f"family={start.family}: has nothing to tune; name settings with --search")
    for one in dimensions:
        for value in one.ends:
            # What depends on the loss takes the loss's own default.
            of_loss = {"logq", "activation"} if one.name == "loss" else set()
            TrainingSettings.parse({**{name: of for name, of in base.items() if name not in of_loss}, one.name: value})
    searched = {one.name for one in dimensions}
    fixed = {name: value for name, value in base.items() if name not in searched}
    planned = isinstance(start, LearnedSettings) and start.epochs_planned
    return Search(dimensions, fixed, flattened(start.model_dump()), seed=seed, epochs_planned=planned)
