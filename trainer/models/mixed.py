"""Networks of several families as one model: each trained as its family is, and their scores added up.

Families see different things in a session, and so their mistakes are different ones: a sum of scores forgives more of
them than one of the same family from several seeds. The whole is a window network
(:mod:`trainer.models.window`), in which a recurrent member goes over the window click by click
(:mod:`trainer.models.unrolled`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, Self

import torch
from pydantic import Field, create_model, model_validator

from schemas.bundle.manifest import ENCODE
from schemas.config.settings_keys import section_of
from trainer.models import window
from trainer.models.base import Network
from trainer.models.gru4rec import Weights, initial_weights
from trainer.models.settings import (
    MOST_UNITS,
    MOST_WINDOW,
    Gru4RecSettings,
    LearnedSettings,
    NetworkSettings,
    TrainingSettings,
    WindowSettings,
    window_numbers,
)
from trainer.models.unrolled import Unrolled, rolled, unrolled
from trainer.models.window import WindowNetwork

_WEIGHT: Final[Any] = (
    float,
    Field(1.0, gt=0, le=1000, description="weight of this family's scores in the sum of several families"),
)


class MixedSettings(LearnedSettings):
    """What is told to a model of several families: what is one for all of them, and a table for each.

    A table has every setting of its family, and the ``weight`` of its scores. What is one for all is handed down.
    """

    epochs_planned: ClassVar[bool] = True
    encoder_file: ClassVar[str] = ENCODE

    window: int = Field(
        30, ge=2, le=MOST_WINDOW, description="clicks that the model looks back on, a recurrent family's as well"
    )

    @model_validator(mode="before")
    @classmethod
    def _handed_down(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        tables = {}
        for name, kind in _tables(cls).items():
            given = values.get(name, {})
            shared = {one: values[one] for one in _of_all(kind) if one in values}
            tables[name] = shared | given if isinstance(given, dict) else given
        return values | tables

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for table, part in self.parts.items():
            for name in _of_all(type(part)):
                if getattr(part, name) != getattr(self, name):
                    raise ValueError(f"{table}.{name}: is one for all families; set {name}")
        if self.units > MOST_UNITS:
            raise ValueError(f"{self.units} units of all members together are above {MOST_UNITS}: lower hidden_size")
        return self

    @property
    def parts(self) -> Mapping[str, NetworkSettings]:
        return {name: getattr(self, name) for name in _tables(type(self))}

    def changed(self, change: Callable[[NetworkSettings], Mapping[str, object]]) -> Self:
        return self.model_copy(update={name: part.changed(change) for name, part in self.parts.items()})

    def encoder_numbers(self, items: int) -> int:
        return sum(window_numbers(part, self.window, items) for part in self.parts.values())

    @property
    def members(self) -> list[NetworkSettings]:
        """Of each network in the order of training, which is theirs in the model."""
        return [part for part in self.parts.values() for _ in range(part.members)]


def mixed_settings(families: Mapping[str, type[NetworkSettings]]) -> type[MixedSettings]:
    """The class of the settings of these families as one."""
    name = "+".join(families)
    tables: dict[str, Any] = {"family": (Literal[name], name)}
    for family, kind in families.items():
        table = create_model(kind.__name__, __base__=kind, weight=_WEIGHT)
        tables[family.replace("-", "_")] = (table, Field(default_factory=table))
    return create_model("MixedSettings", __base__=MixedSettings, **tables)


def initial_mixed(items: int, settings: MixedSettings, generator: torch.Generator) -> WindowNetwork:
    """All members that the settings ask for, as one network: drawn one after the other."""

    def drawn(part: NetworkSettings) -> Network:
        match part:
            case Gru4RecSettings():
                return initial_weights(items, part, generator)
            case WindowSettings():
                return window.initial_network(items, part, generator)
        raise TypeError(f"no network of {type(part).__name__}")

    return joined([drawn(part) for part in settings.members], settings)


def joined(members: Sequence[Network], settings: MixedSettings) -> WindowNetwork:
    """Networks in the order of ``settings.members`` as one: its scores are the sum of theirs, each times its weight."""

    def windowed(member: Network, part: NetworkSettings) -> WindowNetwork:
        match member, part:
            case WindowNetwork(), WindowSettings():
                return member
            case Weights(), Gru4RecSettings():
                return unrolled(member, part, settings.window)
        raise TypeError(f"{type(member).__name__} is no network of {type(part).__name__}")

    windows = [windowed(member, part) for member, part in zip(members, settings.members, strict=True)]
    return window.joined(windows, settings, [getattr(part, "weight", 1.0) for part in settings.members])


def split(network: WindowNetwork, settings: MixedSettings) -> list[Network]:
    """The inverse of :func:`joined`, but for the bias (:func:`trainer.models.window.split`)."""
    found: list[Network] = []
    for member, part in zip(window.split(network), settings.members, strict=True):
        if isinstance(member.encoder, Unrolled) and isinstance(part, Gru4RecSettings):
            found.append(rolled(member, part))
        else:
            found.append(
                WindowNetwork(part, member.window, member.encoder, member.input, member.output, member.output_bias)
            )
    return found


def _tables(kind: type[MixedSettings]) -> dict[str, type[NetworkSettings]]:
    """The class of each family's table, by its name."""
    found = {name: section_of(info.annotation) for name, info in kind.model_fields.items()}
    return {name: table for name, table in found.items() if table is not None and issubclass(table, NetworkSettings)}


def _of_all(kind: type[NetworkSettings]) -> list[str]:
    """The settings of a family that are one for all."""
    return [
        name for name in (*TrainingSettings.model_fields, "window") if name in kind.model_fields and name != "family"
    ]
