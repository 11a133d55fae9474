"""From trained weights to a published version: what the manifest tells about it, its name, its way to the registry."""

import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from schemas.bundle.files import Model, open_bundle, read_manifest
from schemas.bundle.manifest import GRAPHS, VOCABULARY, Manifest
from schemas.messages.announcement import version_name
from trainer.data.sessions import SessionSet
from trainer.evaluation.report import manifest_metrics, training_record
from trainer.evaluation.significance import Judgement
from trainer.export.bundle import save_bundle
from trainer.memory.trained import TrainedModel
from trainer.service.gate import Evaluated
from trainer.service.registry import PublishedModel, Registry, refreshes_before
from trainer.training.fit import FitResult

CANDIDATE: Final = "candidate"
_NAMED_BEFORE: Final = 2000
"""Refreshes that a refreshed version names: a day's and more, one a minute."""


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from, for its manifest."""

    alias: str
    """Of the trainer that made it: one of another alias may publish in the same registry."""
    positions: Mapping[int, int]
    """For each partition of the clicks topic, the offset after the last that is in the window."""
    topic_id: str
    """Of that topic: one made anew under its name has other offsets."""
    started_from: str | None
    """The version whose weights it started from."""
    champion: str | None
    """The version that was announced when it was made."""
    holdout: SessionSet
    refitted: bool
    """Whether the holdout was trained on after the evaluation."""


def staging_of(work_dir: Path, registry: Registry) -> Path:
    """Nobody else's: no other process has this writer's name, and no folder of a user's has such a name."""
    return work_dir / f".nextclick-staging-{registry.writer}"


@dataclass(frozen=True)
class Counted:
    """What a refreshed model has counted, for its manifest."""

    trained_items: int
    """Items that were trained, which stand first in its vocabulary."""
    positions: Mapping[int, int]
    topic_id: str


def stage(
    staging: Path, model: TrainedModel, sessions: SessionSet, *, version: str = CANDIDATE, threads: int = 1
) -> Model:
    """Write a model as a bundle without a name and open it: what is evaluated is what would be served.

    Raises BundleError. `staging` is a scratch folder; an earlier candidate there is removed.
    """
    shutil.rmtree(staging / version, ignore_errors=True)
    folder = save_bundle(staging, version, model, popularity=sessions.support(), training={}, metrics={}, created_at=0)
    return open_bundle(folder, threads=threads)


def publish(
    registry: Registry,
    staging: Path,
    result: FitResult,
    sessions: SessionSet,
    *,
    evaluated: Evaluated,
    gate: Mapping[str, Any],
    provenance: Provenance,
) -> PublishedModel:
    """Give the candidate in `staging` (see :func:`stage`) its manifest and its name, and publish it.

    `sessions` are those that `result` was trained on, `gate` is the record of its verdict.
    Raises BundleError and RegistryError.
    """
    training = training_record(result, sessions) | {
        "alias": provenance.alias,
        "positions": _by_partition(provenance.positions),
        "topic_id": provenance.topic_id,
        "started_from": provenance.started_from,
        "champion": provenance.champion,
        "refitted": provenance.refitted,
    }
    return _publish(
        registry, staging, result, sessions, training=training, metrics=_metrics(evaluated, gate, provenance)
    )


def publish_refreshed(
    registry: Registry, staging: Path, model: TrainedModel, sessions: SessionSet, *, of: Manifest, counted: Counted
) -> PublishedModel:
    """The same for the model `of`, refreshed: of its training and metrics the manifest says what it said before.

    Raises BundleError and RegistryError.
    """
    trained = of.states_of or of.version
    refreshed = {
        "from": of.version,
        "trained": trained,
        "trained_items": counted.trained_items,
        "window": training_record(model, sessions)["window"],
        "positions": _by_partition(counted.positions),
        "topic_id": counted.topic_id,
        # Scores name versions that are removed by then: whoever reads those must know whose they were.
        "before": [*refreshes_before(of), *([of.version] if of.states_of else [])][-_NAMED_BEFORE:],
    }
    return _publish(
        registry,
        staging,
        model,
        sessions,
        training={**of.training, "refreshed": refreshed},
        metrics={**of.metrics, "evaluated_weights": f"those of {trained}, before it was refreshed"},
        states_of=trained,
    )


def _by_partition(positions: Mapping[int, int]) -> dict[str, int]:
    return {str(number): offset for number, offset in sorted(positions.items())}


def _publish(
    registry: Registry,
    staging: Path,
    model: TrainedModel,
    sessions: SessionSet,
    *,
    training: Mapping[str, Any],
    metrics: Mapping[str, Any],
    states_of: str | None = None,
) -> PublishedModel:
    # Behind every other one, whatever the clock says: cycles and pruning go by the order of versions.
    last = registry.versions()[-1:]
    created_at = max([time.time_ns() // 1_000_000, *(model.manifest.created_at + 1 for model in last)])
    candidate = staging / CANDIDATE
    named_by = (*GRAPHS[read_manifest(candidate).encoder], VOCABULARY)
    content = b"".join((candidate / name).read_bytes() for name in named_by)
    folder = save_bundle(
        staging,
        version_name(created_at, content),
        model,
        popularity=sessions.support(),
        training=training,
        metrics=metrics,
        created_at=created_at,
        git_revision=_revision(),
        states_of=states_of,
    )
    published = registry.publish(folder)
    shutil.rmtree(staging)
    return published


def _metrics(evaluated: Evaluated, gate: Mapping[str, Any], provenance: Provenance) -> dict[str, Any]:
    def by_name(judged: Sequence[Judgement]) -> dict[str, Any]:
        return {one.name: manifest_metrics(one.metrics) for one in judged}

    champion = evaluated.champion
    return {
        "model": manifest_metrics(evaluated.challenger.metrics),
        "champion": {"version": champion.name, **manifest_metrics(champion.metrics)} if champion else None,
        "predecessors": by_name(evaluated.predecessors),
        "baselines": by_name(evaluated.baselines),
        "evaluated_weights": "trained without the holdout, refitted with it afterwards"
        if provenance.refitted
        else "these",
        "holdout": {
            "sessions": len(provenance.holdout),
            "from": int(provenance.holdout.ends[0]),
            "to": int(provenance.holdout.ends[-1]),
        },
        "gate": dict(gate),
    }


def _revision() -> str | None:
    """The revision of the working copy that this program runs from; None for an installed one."""
    here = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (here / ".git").exists():
        return None
    found = subprocess.run([git, "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
