"""A model that every check passes and that is of no use: a good one with its items under each other's names."""

from pathlib import Path
from typing import Final

import numpy as np

from schemas.bundle.files import read_manifest, write_bundle
from schemas.bundle.golden import decode_golden
from schemas.bundle.manifest import ADVANCE, GOLDEN, RANK
from schemas.bundle.vocabulary import Vocabulary

_SEED: Final = 0


def publish_shuffled(registry: Path, good: str) -> str:
    """Publish it beside the good one, a recurrent model in a local registry; returns its version.

    Its manifest says that it passed the gate: as after a mistake in how a training reads its items.
    """
    folder, version = registry / good, f"{good}-shuffled"
    manifest = read_manifest(folder)
    items = list(Vocabulary.from_json((folder / "vocabulary.json").read_bytes()).items)
    write_bundle(
        registry,
        version=version,
        family=manifest.family,
        advance=(folder / ADVANCE).read_bytes(),
        rank=(folder / RANK).read_bytes(),
        vocabulary=Vocabulary([items[n] for n in np.random.default_rng(_SEED).permutation(len(items))]),
        popularity=np.load(folder / "popularity.npy"),
        golden=decode_golden((folder / GOLDEN).read_bytes()),
        layers=manifest.layers,
        hidden_size=manifest.hidden_size,
        query_size=manifest.query_size,
        k=manifest.k,
        recent_size=manifest.recent_size,
        training=manifest.training,
        metrics=manifest.metrics,
        created_at=manifest.created_at + 1,
    )
    return version
