"""A model with random weights: as fast as a trained one of its size, and as good as none."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from schemas.bundle.files import write_bundle
from schemas.bundle.vocabulary import Vocabulary
from trainer.export.bundle import export
from trainer.models.gru4rec import initial_weights
from trainer.models.settings import TrainingSettings


def random_bundle(registry: Path, version: str, items: Sequence[str], *, units: int, seed: int) -> Path:
    """Write a bundle for a catalogue of `items`, most popular first, with one layer of `units`; returns its folder."""
    weights = initial_weights(len(items), TrainingSettings(hidden_size=units), torch.Generator().manual_seed(seed))
    exported = export(weights)
    return write_bundle(
        registry,
        version=version,
        advance=exported.advance,
        rank=exported.rank,
        vocabulary=Vocabulary(tuple(items)),
        popularity=np.arange(len(items), 0, -1, dtype=np.int64),
        golden=exported.golden,
        layers=1,
        hidden_size=units,
        k=exported.golden.top_index.shape[1],
        recent_size=exported.golden.recent.shape[1],
        training={},
        metrics={},
        created_at=time.time_ns() // 1_000_000,
    )
