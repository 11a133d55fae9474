"""Where kinds of networks are told apart: which training each has, how a fit begins with it, and members as one."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from trainer.data.sessions import SessionSet
from trainer.models import mixed, window
from trainer.models.base import Network
from trainer.models.gru4rec import Weights
from trainer.models.mixed import MixedSettings, initial_mixed
from trainer.models.settings import Gru4RecSettings, LearnedSettings, NetworkSettings, WindowSettings
from trainer.models.window import WindowNetwork, initial_windows
from trainer.training.checkpoint import Checkpoint
from trainer.training.early_stopping import Epoch
from trainer.training.engine import EngineName
from trainer.training.gru import members as gru
from trainer.training.gru.engine import engine_of
from trainer.training.gru.members import initial_members
from trainer.training.gru.training import GruTraining
from trainer.training.windows.training import WindowTraining


def initial_network(items: int, settings: LearnedSettings, generator: torch.Generator) -> Network:
    """Of all members that the settings ask for, drawn one after the other."""
    match settings:
        case Gru4RecSettings():
            return initial_members(items, settings, generator)
        case WindowSettings():
            return initial_windows(items, settings, generator)
        case MixedSettings():
            return initial_mixed(items, settings, generator)
    raise TypeError(f"no network of {type(settings).__name__}")


def seed_of(seed: int, member: int) -> int:
    """A member's seed: the run's own for the first, 0; those of runs with neighbouring seeds have nothing in common."""
    return int(np.random.SeedSequence([seed, member]).generate_state(1)[0]) if member else seed


def joined(members: Sequence[Network], settings: LearnedSettings) -> Network:
    """All members that the settings ask for as one network whose scores are the sum of theirs."""
    match settings:
        case Gru4RecSettings():
            return gru.joined([member for member in members if isinstance(member, Weights)])
        case WindowSettings():
            return window.joined([member for member in members if isinstance(member, WindowNetwork)])
        case MixedSettings():
            return mixed.joined(members, settings)
    raise TypeError(f"no network of {type(settings).__name__}")


def split(network: Network, settings: LearnedSettings) -> Sequence[Network]:
    """The inverse of :func:`joined`, but for the bias: each member gets an equal share."""
    match network, settings:
        case Weights(), Gru4RecSettings():
            return gru.split(network, settings.members)
        case WindowNetwork(), WindowSettings():
            return window.split(network)
        case WindowNetwork(), MixedSettings():
            return mixed.split(network, settings)
    raise TypeError(f"no members of {type(network).__name__} for {type(settings).__name__}")


class Run(Protocol):
    """The moving parts of a fit."""

    @property
    def weights(self) -> Network:
        """As they are now, on the CPU."""
        ...

    def state(self, identity: str, epochs: tuple[Epoch, ...], best: Network | None, mean: Network | None) -> Checkpoint:
        """Everything that the next epoch depends on; shares memory with this object."""
        ...

    def restore(self, saved: Checkpoint) -> None:
        """The inverse of :meth:`state`, for an object of the same sessions and settings."""
        ...

    def epoch(self, number: int, progress: Callable[[int], None]) -> Epoch:
        """Train on every transition once. Raises :class:`TrainingDivergedError`."""
        ...


def engine_for(settings: NetworkSettings, transitions: int, device: torch.device) -> EngineName:
    """What will compute a training's steps. Raises :class:`TrainingSettingsError` for an engine that cannot."""
    return engine_of(settings, transitions, device) if isinstance(settings, Gru4RecSettings) else "torch"


def training_of(
    sessions: SessionSet,
    settings: NetworkSettings,
    warm_start: Network | None,
    *,
    engine: EngineName,
    device: torch.device,
    threads: int,
) -> Run:
    """The training of one network, from a start where there is one."""
    match settings, warm_start:
        case WindowSettings(), None | WindowNetwork():
            return WindowTraining(sessions, settings, warm_start, device=device)
        case Gru4RecSettings(), None | Weights():
            return GruTraining(sessions, settings, warm_start, engine=engine, device=device, threads=threads)
    raise TypeError(f"{type(settings).__name__} do not go with {type(warm_start).__name__} to start from")
