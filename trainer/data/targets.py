"""What each click weighs as a target, by its type."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from trainer.data.sessions import Int32s, SessionSet
from trainer.errors import TooFewSessionsError, TrainingSettingsError

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


def targets(sessions: SessionSet) -> Flags:
    """The clicks that are predicted, all but the first of each session: bool[clicks]."""
    found = np.ones(sessions.clicks, np.bool_)
    found[sessions.offsets[:-1][sessions.lengths > 0]] = False
    return found


def target_types(sessions: SessionSet) -> Int32s:
    """The type of each click that is predicted, by its place in ``type_names``: int32[predictions]."""
    if sessions.types is None:
        return np.zeros(sessions.transitions, np.int32)
    return sessions.types[targets(sessions)]


def target_weights(sessions: SessionSet, by_type: Mapping[str, float]) -> Floats | None:
    """What each click weighs where it is the target, float32[clicks]; None where all weigh the same.

    Types that are not named weigh 1. The mean over the sessions' targets is made 1, so that a learning rate means what
    it means without weights. Raises :class:`TooFewSessionsError` where no target weighs anything.
    """
    if not by_type:
        return None
    weight = np.array([by_type.get(name, 1.0) for name in sessions.type_names])
    counts = np.bincount(target_types(sessions), minlength=len(weight))
    there = weight[counts > 0]
    if len(there) and not there.any():
        raise TooFewSessionsError(
            f"nothing to predict: target_weights gives 0 to every type that sessions have ({_named(sessions)})"
        )
    if sessions.types is None or (there == there[:1]).all():
        return None
    mean = float(weight @ counts) / counts.sum()
    found: Floats = (weight / mean).astype(np.float32)[sessions.types]
    return found


def weighing(sessions: SessionSet, by_type: Mapping[str, float]) -> int:
    """How many of the sessions' targets weigh more than nothing."""
    counts = np.bincount(target_types(sessions), minlength=len(sessions.type_names))
    return int(sum(count for name, count in zip(sessions.type_names, counts, strict=True) if by_type.get(name, 1.0)))


def missing_types(sessions: SessionSet, by_type: Mapping[str, float]) -> list[str]:
    """The types with a weight that no click of the sessions has."""
    return sorted(by_type.keys() - set(_met(sessions)))


def check_types(sessions: SessionSet, by_type: Mapping[str, float]) -> None:
    """Raises :class:`TrainingSettingsError` for a type with a weight that no click of the sessions has."""
    if missing := missing_types(sessions, by_type):
        raise TrainingSettingsError(
            f"target_weights names {', '.join(missing)}, and the sessions have clicks of the types {_named(sessions)} "
            "alone: correct the name, or read more types (--types)"
        )


def _met(sessions: SessionSet) -> list[str]:
    if sessions.types is None:
        return [sessions.type_names[0]]
    counts = np.bincount(sessions.types, minlength=len(sessions.type_names))
    return [name for name, count in zip(sessions.type_names, counts.tolist(), strict=True) if count]


def _named(sessions: SessionSet) -> str:
    return ", ".join(sorted(_met(sessions)))
