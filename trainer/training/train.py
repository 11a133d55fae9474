"""From sessions to a whole model: the network, and the session memory beside it.

The memory's weights must be learned where they will be used: on sessions that are newer than everything the network
and the tables know. So the newest sessions are held out, a network and tables that have not seen them serve to find the
weights, and then network and tables are made again from all sessions. No session outside ``sessions`` plays a part, so
whoever evaluates on others may trust the result.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trainer.data.sessions import SessionSet, encode, temporal_holdout, vocabulary_of
from trainer.data.targets import weighing
from trainer.errors import TooFewSessionsError
from trainer.export.bundle_size import check_bundle_size
from trainer.memory.fit import fit_memory
from trainer.memory.tables import ItemTable, cooccurrence, transitions
from trainer.memory.terms import NO_MEMORY, RECENT, SessionMemory
from trainer.models.base import Network, SessionModel
from trainer.models.settings import LearnedSettings, TrainingSettings
from trainer.training.device import Hardware
from trainer.training.early_stopping import EarlyStopping, Epoch
from trainer.training.fit import DEFAULT_HARDWARE, FitResult, fit

LEAST_PREDICTIONS = 500
"""Fewer held-out predictions say nothing about two dozen weights: the model then does without."""

TOO_FEW_TO_REMEMBER = "too few sessions to learn the session memory from: this model does without it"


def train(
    sessions: SessionSet,
    settings: TrainingSettings,
    *,
    memory: SessionMemory | None = None,
    warm_start: Network | None = None,
    early_stopping: EarlyStopping | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Callable[[int], None] | None = None,
    hardware: Hardware = DEFAULT_HARDWARE,
) -> FitResult:
    """:func:`trainer.training.fit.fit`, and the session memory that ``settings`` ask for.

    With ``memory`` the weights of its terms are taken over, and only its tables are made anew; without, they are
    learned. ``progress`` hears of that, too. Before anything is trained also raises what :func:`check_size` does.
    """
    check_size(sessions, settings)
    result = fit(
        sessions,
        settings,
        warm_start=warm_start,
        early_stopping=early_stopping,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
        progress=progress,
        hardware=hardware,
    )
    if memory is None:
        memory = learn_memory(sessions, result.again, checkpoint=checkpoint, progress=progress, hardware=hardware)
    return replace(result, memory=memory.with_tables(tables_of(sessions, settings)))


def learn_memory(
    sessions: SessionSet,
    settings: TrainingSettings,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[int], None] | None = None,
    hardware: Hardware = DEFAULT_HARDWARE,
) -> SessionMemory:
    """A session memory whose weights come from the newest of the sessions; its tables are of the older ones alone.

    Empty where the settings ask for none, and where there are too few sessions: with less than
    :data:`LEAST_PREDICTIONS` in the part that is held out. The network that serves for it has a checkpoint of its own,
    beside the one named.
    """
    if not settings.memory:
        return NO_MEMORY
    held_out = _hold_out(sessions, settings)
    if held_out is None:
        return NO_MEMORY
    older, newest = held_out
    # From scratch: weights that have seen the newest sessions would be too sure of themselves there.
    own = checkpoint.with_name(f"{checkpoint.name}.memory") if checkpoint else None
    network = fit(older, settings, checkpoint=own, progress=progress, hardware=hardware).weights
    return memory_beside(network, newest, older, settings, progress=progress)


def memory_beside(
    network: SessionModel,
    newest: SessionSet,
    older: SessionSet,
    settings: TrainingSettings,
    *,
    progress: Callable[[int], None] | None = None,
) -> SessionMemory:
    """The session memory of a network and the sessions that it has learned from, ``older``, fitted on newer ones.

    All are of one vocabulary.
    """
    return fit_memory(
        network,
        newest,
        tables_of(older, settings),
        repeat="repeat" in settings.memory,
        recent_size=RECENT,
        weight_of_type=settings.weight_of_type,
        tick=lambda: progress(0) if progress else None,  # whoever listens may want to stop
    )


def check_size(sessions: SessionSet, settings: TrainingSettings) -> None:
    """Raises :class:`TrainingSettingsError` where no bundle could hold what these sessions make."""
    check_bundle_size(sessions, settings, lambda: tables_of(sessions, settings))


def transitions_to_learn(sessions: SessionSet, settings: TrainingSettings) -> int:
    """How many transitions :func:`learn_memory` trains on, over all epochs."""
    held_out = _hold_out(sessions, settings) if settings.memory else None
    return transitions_to_fit(held_out[0], settings) if held_out else 0


def transitions_to_fit(sessions: SessionSet, settings: TrainingSettings) -> int:
    """How many transitions :func:`train` trains the networks on, over all epochs and members, the memory's aside."""
    if not isinstance(settings, LearnedSettings):
        return 0
    return sessions.transitions * sum(part.epochs * part.members for part in settings.parts.values())


def tables_of(sessions: SessionSet, settings: TrainingSettings) -> dict[str, ItemTable]:
    """The tables that the settings ask for, by the name of their term."""
    tables = {}
    if "cooccurrence" in settings.memory:
        tables["cooccurrence"] = cooccurrence(sessions, width=settings.table_width, longest=RECENT)
    if "transitions" in settings.memory:
        tables["transitions"] = transitions(sessions, width=settings.table_width)
    return tables


def _hold_out(sessions: SessionSet, settings: TrainingSettings) -> tuple[SessionSet, SessionSet] | None:
    """Older and newest sessions in the vocabulary of the older; None where there are too few."""
    try:
        older, newest = temporal_holdout(sessions, fraction=settings.memory_holdout)
        item_ids = vocabulary_of(older)
    except TooFewSessionsError:
        return None
    older, newest = encode(older, item_ids), encode(newest, item_ids)
    weights = settings.weight_of_type
    if weighing(newest, weights) < LEAST_PREDICTIONS or not weighing(older, weights):
        return None
    return older, newest
