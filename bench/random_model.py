"""A model with random weights: as fast as a trained one of its size, and as good as none."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from trainer.export.bundle import save_bundle
from trainer.memory.trained import TrainedModel
from trainer.models.settings import Gru4RecSettings, NetworkSettings
from trainer.training.networks import initial_network


def random_bundle(
    registry: Path,
    version: str,
    items: Sequence[str],
    *,
    units: int,
    seed: int,
    settings: NetworkSettings | None = None,
) -> Path:
    """Write a bundle for a catalogue of `items`, most popular first; a GRU4Rec of one layer without settings.

    Returns its folder.
    """
    settings = (settings or Gru4RecSettings()).model_copy(update={"hidden_size": units})
    network = initial_network(len(items), settings, torch.Generator().manual_seed(seed))
    return save_bundle(
        registry,
        version,
        TrainedModel(weights=network, item_ids=tuple(items), settings=settings),
        popularity=np.arange(len(items), 0, -1, dtype=np.int64),
        training={"settings": settings.model_dump()},
        metrics={},
        created_at=time.time_ns() // 1_000_000,
    )
