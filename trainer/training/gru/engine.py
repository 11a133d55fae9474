"""Who runs a training run's steps: the compiled code, or plain torch."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.data.batches import Schedule
from trainer.data.targets import Floats
from trainer.errors import TrainingSettingsError
from trainer.models.gru4rec import Weights
from trainer.models.settings import Gru4RecSettings
from trainer.training.device import CPU, LEAST_TRANSITIONS
from trainer.training.engine import EngineName
from trainer.training.gru.device_steps import DeviceSteps
from trainer.training.gru.optimizer import Optimizer
from trainer.training.gru.reference_steps import ReferenceSteps
from trainer.training.sampling import NegativeSampler


class Steps(Protocol):
    """Runs steps of an epoch; moves the weights and the optimizers' state in place."""

    def begin(self, items: npt.NDArray[np.int64], plan: Schedule, weights: Floats | None = None) -> None:
        """An epoch over clicks int64[clicks] by a schedule; ``weights`` float32[clicks] of each as a target."""
        ...

    def run(self, epoch: int, first: int, last: int) -> float:
        """The loss of the steps first..last of the epoch (from 0), summed over their lanes."""
        ...


def engine_of(settings: Gru4RecSettings, transitions: int, device: torch.device) -> EngineName:
    """Who will run a training with these settings and so many transitions an epoch on a device.

    The compiled code wherever it can and pays, torch elsewhere. Both learn the same, but not to the bit. Raises
    :class:`TrainingSettingsError` when what the settings ask for cannot be.
    """
    if settings.engine == "torch":
        return "torch"
    hindrance = _why_not_compiled(settings, device)
    if hindrance is None:
        pays = settings.engine == "compiled" or transitions >= LEAST_TRANSITIONS
        return "compiled" if pays else "torch"
    if settings.engine == "compiled":
        raise TrainingSettingsError(f"engine=compiled: {hindrance}; leave it out, or set engine=torch")
    return "torch"


def _why_not_compiled(settings: Gru4RecSettings, device: torch.device) -> str | None:
    if device != CPU:
        return f"the compiled code runs on the CPU, and device={device} was chosen"
    if settings.layers != 1:
        return f"the compiled code knows one layer, and these settings have {settings.layers}"
    return None


def steps_of(
    engine: EngineName,
    settings: Gru4RecSettings,
    weights: Weights,
    *,
    optimizers: Mapping[str, Optimizer],
    support: Tensor,
    sampler: NegativeSampler,
    device: torch.device,
    threads: int,
) -> Steps:
    """The steps of a run, by the engine that :func:`engine_of` named."""
    if device != CPU:
        return DeviceSteps(settings, weights, optimizers=optimizers, support=support, sampler=sampler, device=device)
    if engine == "torch":
        return ReferenceSteps(settings, weights, optimizers=optimizers, support=support, sampler=sampler)
    from trainer.training.gru.compiled.engine import CompiledSteps  # Numba takes half a second

    return CompiledSteps(settings, weights, optimizers=optimizers, support=support, sampler=sampler, threads=threads)
