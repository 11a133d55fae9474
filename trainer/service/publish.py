"""From trained weights to a published version: what the manifest tells about it, its name, its way to the registry."""

import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from schemas.bundle.files import Model, open_bundle, read_manifest
from schemas.bundle.manifest import GRAPHS, VOCABULARY
from schemas.messages.announcement import version_name
from trainer.data.sessions import SessionSet
from trainer.evaluation.report import manifest_metrics, training_record
from trainer.evaluation.significance import Judgement
from trainer.export.bundle import save_bundle
from trainer.service.gate import Evaluated
from trainer.service.registry import PublishedModel, Registry
from trainer.training.fit import FitResult

_CANDIDATE: Final = "candidate"


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from, for its manifest."""

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


def stage(staging: Path, result: FitResult, sessions: SessionSet) -> Model:
    """Write the weights as a bundle without a name and open it: what is evaluated is what would be served.

    Raises BundleError. `staging` is a scratch folder; an earlier candidate there is removed.
    """
    shutil.rmtree(staging / _CANDIDATE, ignore_errors=True)
    folder = save_bundle(
        staging, _CANDIDATE, result, popularity=sessions.support(), training={}, metrics={}, created_at=0
    )
    return open_bundle(folder)


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
    created_at = time.time_ns() // 1_000_000
    candidate = staging / _CANDIDATE
    named_by = (*GRAPHS[read_manifest(candidate).encoder], VOCABULARY)
    content = b"".join((candidate / name).read_bytes() for name in named_by)
    folder = save_bundle(
        staging,
        version_name(created_at, content),
        result,
        popularity=sessions.support(),
        training=training_record(result, sessions)
        | {
            "positions": {str(number): offset for number, offset in sorted(provenance.positions.items())},
            "topic_id": provenance.topic_id,
            "started_from": provenance.started_from,
            "champion": provenance.champion,
            "refitted": provenance.refitted,
        },
        metrics=_metrics(evaluated, gate, provenance),
        created_at=created_at,
        git_revision=_revision(),
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
