"""Where a training run's arithmetic happens: on the CPU, or on a GPU that torch has."""

import os
import re
from dataclasses import dataclass

import torch

from trainer.errors import TrainingSettingsError
from trainer.models.settings import NetworkSettings

CPU = torch.device("cpu")
LEAST_PRODUCTS = 50_000_000
"""Multiplications of a step from which `auto` takes the GPU.

A step is 130 operations of torch, and a GPU takes a few µs to begin each, whatever its size: most of a millisecond, in
which one core does this many multiplications. Smaller steps are no faster there. Reckoned, not measured on a GPU.
"""
LEAST_TRANSITIONS = 50_000
"""An epoch of fewer is over before code is compiled for it (:mod:`trainer.training.gru.engine`), or a GPU is ready."""


@dataclass(frozen=True)
class Hardware:
    """What a process trains on. Raises :class:`TrainingSettingsError` for what is unknown, or not there.

    Attributes:
        threads: of the arithmetic; with one, runs repeat to the bit.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
    """

    threads: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        there = len(os.sched_getaffinity(0))
        if not 1 <= self.threads <= there:
            raise TrainingSettingsError(f"threads={self.threads}: this process may use 1 to {there} processors")
        match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", self.device)
        if match is None:
            raise TrainingSettingsError(f"device={self.device}: must be auto, cpu, cuda, or cuda: and a number")
        if not self.device.startswith("cuda"):
            return
        if not torch.cuda.is_available():
            raise TrainingSettingsError(
                f"device={self.device}: torch {torch.__version__} finds no GPU here; set cpu or auto, or see to the "
                "driver and to a torch built for it"
            )
        count = torch.cuda.device_count()
        if int(match[1] or 0) >= count:
            raise TrainingSettingsError(f"device={self.device}: there is no such GPU, the last one is cuda:{count - 1}")

    def set_up(self) -> "Hardware":
        """Set up torch's arithmetic of this process. Call it once, before any training."""
        torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)  # numbers below 1e-38 are slow, and zero to any purpose here
        return self

    def device_of(self, settings: NetworkSettings, transitions: int) -> torch.device:
        """Where a training with these settings and so many transitions an epoch will run."""
        if self.device != "auto":
            return torch.device(self.device)
        pays = transitions >= LEAST_TRANSITIONS and settings.products_of_a_step() >= LEAST_PRODUCTS
        if settings.needs_cpu or not pays or not torch.cuda.is_available():
            return CPU
        return torch.device("cuda")


def device_identity(device: torch.device) -> dict[str, str]:
    """What of a device decides a run's bits: its kind, not which of several."""
    return {} if device == CPU else {"device": torch.cuda.get_device_name(device)}
