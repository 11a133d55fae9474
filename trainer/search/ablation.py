"""What each part of the model is worth: the same training with a part left out or exchanged, a row each."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from trainer.errors import TrainingSettingsError
from trainer.models.registry import settings_class
from trainer.models.settings import DEFAULT_FAMILY, Ablation, NetworkSettings, TrainingSettings

BASE: Final = "base"


_BASE: Final = Ablation(BASE, {}, "the settings as they are")
_MEMORY: Final = (
    Ablation("no-memory", {"memory": "none"}, "the session memory: the model alone"),
    Ablation("memory-repeat", {"memory": "repeat"}, "of the memory, the items of the session itself"),
    Ablation("memory-repeat-cooccurrence", {"memory": "repeat,cooccurrence"}, "and what shares sessions with them"),
)
_NETWORK: Final = (
    Ablation("loss-cross-entropy", {"loss": "cross-entropy"}, "the loss, with its usual activation and logQ"),
    Ablation("loss-bpr", {"loss": "bpr"}, "the loss, with its usual activation"),
    Ablation("loss-top1", {"loss": "top1"}, "the loss, with its usual activation"),
    Ablation("loss-bpr-max", {"loss": "bpr-max"}, "the loss, with its usual activation"),
    Ablation("loss-top1-max", {"loss": "top1-max"}, "the loss, with its usual activation"),
    Ablation("one-member", {"members": 1}, "the other networks whose scores are added"),
    Ablation("units-100", {"hidden_size": 100}, "the number of units"),
    Ablation("units-1000", {"hidden_size": 1000}, "the number of units"),
)


def rows_of(kind: type[TrainingSettings]) -> tuple[Ablation, ...]:
    """Every row that there is for a family, the base first. One of it alone stands with its settings."""
    return (_BASE, *_MEMORY, *kind.ablations, *(_NETWORK if issubclass(kind, NetworkSettings) else ()))


ROWS: Final = rows_of(settings_class(DEFAULT_FAMILY))
"""Those of the default family."""


@dataclass(frozen=True)
class Planned:
    """A row with the settings to train."""

    row: Ablation
    settings: TrainingSettings


def planned(base: Mapping[str, Any], only: Collection[str] = ()) -> tuple[Planned, ...]:
    """The rows to train for settings by name, the base first.

    Rows that change nothing are left out, and so are those that do not go with the settings, such as a thousand units
    for more members than the limit of all units allows; unless ``only``, which names some of the rows, asks for one.
    Raises :class:`TrainingSettingsError`.
    """
    settings = TrainingSettings.parse(base)
    rows = rows_of(type(settings))
    names = [row.name for row in rows]
    if unknown := [name for name in only if name not in names]:
        raise TrainingSettingsError(f"--only: no {', '.join(unknown)}; there are {', '.join(names)}")
    rest = []
    for row in rows[1:]:
        if only and row.name not in only:
            continue
        try:
            one = Planned(row, changed(base, row.changes))
        except TrainingSettingsError:
            if row.name in only:
                raise
            continue
        if one.settings != settings:
            rest.append(one)
    if not rest:
        raise TrainingSettingsError("--only: these rows change nothing in the settings")
    return (Planned(_BASE, settings), *rest)


def changed(base: Mapping[str, Any], changes: Mapping[str, object]) -> TrainingSettings:
    """The settings with a row's changes, and with what these bring along."""
    values = dict(base)
    start = TrainingSettings.parse(base)
    if isinstance(start, NetworkSettings) and changes.get("loss", start.loss) != start.loss:
        for name in ("activation", "logq"):  # of the other loss: each has its own
            values.pop(name, None)
    values |= changes
    if changes.get("layers") == 0 and base.get("embedding") == "one-hot":
        values["embedding"] = "separate"  # a one-hot item has no row to score by
    return TrainingSettings.parse(values)
