"""What each part of the model is worth: the same training with a part left out or exchanged, a row each."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from trainer.errors import TrainingSettingsError
from trainer.models.settings import TrainingSettings

BASE: Final = "base"


@dataclass(frozen=True)
class Ablation:
    """A row: what it changes in the settings, and what the difference from the base then tells."""

    name: str
    changes: Mapping[str, object]
    tells: str


ROWS: Final = (
    Ablation(BASE, {}, "the settings as they are"),
    Ablation("no-memory", {"memory": "none"}, "the session memory: GRU4Rec alone"),
    Ablation("memory-repeat", {"memory": "repeat"}, "of the memory, the items of the session itself"),
    Ablation("memory-repeat-cooccurrence", {"memory": "repeat,cooccurrence"}, "and what shares sessions with them"),
    Ablation("no-gru", {"layers": 0}, "everything before the last click, as far as the memory does not know it"),
    Ablation("no-gru-no-memory", {"layers": 0, "memory": "none"}, "everything before the last click"),
    Ablation(
        "no-regularisation",
        {"dropout_input": 0, "dropout_hidden": 0, "embedding_l2": 0},
        "dropout and L2 of the embedding",
    ),
    Ablation("loss-cross-entropy", {"loss": "cross-entropy"}, "the loss, with its usual activation and logQ"),
    Ablation("loss-bpr", {"loss": "bpr"}, "the loss, with its usual activation"),
    Ablation("loss-top1", {"loss": "top1"}, "the loss, with its usual activation"),
    Ablation("loss-bpr-max", {"loss": "bpr-max"}, "the loss, with its usual activation"),
    Ablation("loss-top1-max", {"loss": "top1-max"}, "the loss, with its usual activation"),
    Ablation("one-member", {"members": 1}, "the other networks whose scores are added"),
    Ablation("units-100", {"hidden_size": 100}, "the number of units"),
    Ablation("units-1000", {"hidden_size": 1000}, "the number of units"),
)
"""Every row there is; one more needs one more entry here."""


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
    names = [row.name for row in ROWS]
    if unknown := [name for name in only if name not in names]:
        raise TrainingSettingsError(f"--only: no {', '.join(unknown)}; there are {', '.join(names)}")
    settings = TrainingSettings.parse(base)
    rest = []
    for row in ROWS[1:]:
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
    return (Planned(ROWS[0], settings), *rest)


def changed(base: Mapping[str, Any], changes: Mapping[str, object]) -> TrainingSettings:
    """The settings with a row's changes, and with what these bring along."""
    values = dict(base)
    if (
        "loss" in changes
        and TrainingSettings.parse({"loss": changes["loss"]}).loss != TrainingSettings.parse(base).loss
    ):
        for name in ("activation", "logq"):  # of the other loss: each has its own
            values.pop(name, None)
    values |= changes
    if changes.get("layers") == 0 and TrainingSettings.parse(base).embedding == "one-hot":
        values["embedding"] = "separate"  # a one-hot item has no row to score by
    return TrainingSettings.parse(values)
