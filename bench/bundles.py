"""Models of any size, made once a run: as fast as trained ones, and as good as none."""

from pathlib import Path

from bench.clicks import item_ids
from bench.random_model import random_bundle

UNITS = 100


def bundle(folder: Path, items: int, *, seed: int = 0) -> Path:
    """The bundle for a catalogue of `items`, made if it is not there yet."""
    registry, version = folder / "registry", f"items-{items}-{seed}"
    if not (registry / version).exists():
        random_bundle(registry, version, item_ids(items), units=UNITS, seed=seed)
    return registry / version
