"""The name of what computes a training run's steps: compiled code, or plain torch."""

from importlib.metadata import version
from typing import Literal

import torch

from trainer.training.device import device_identity

EngineName = Literal["compiled", "torch"]


def engine_identity(engine: EngineName, device: torch.device, threads: int) -> dict[str, str | int]:
    """What of an engine, and of the device it runs on, decides a run's bits."""
    if engine == "torch":
        return {"engine": engine, "torch": torch.__version__, **device_identity(device)}
    return {"engine": engine, "threads": threads, **{name: version(name) for name in ("numba", "scipy", "torch")}}
