"""Between two trainings: the champion refreshed, published as a version of its own, and announced in its place.

A refresh trains nothing, so it needs no gate: the network is the champion's to the bit, and what is new are the counts
and the rows of items that it does not know (:mod:`trainer.training.refresh`).
"""

import shutil
from collections.abc import Callable
from typing import Final

import structlog

from schemas.bundle.manifest import Manifest
from trainer.errors import TooFewSessionsError
from trainer.export.parity import check_parity
from trainer.service.champion import Championship
from trainer.service.click_log import ClickLogFolder, LogState
from trainer.service.cycle import CycleResult
from trainer.service.publish import Counted, publish_refreshed, stage, staging_of
from trainer.service.registry import Registry
from trainer.service.settings import TrainerRoot
from trainer.service.window import Seen, window_of
from trainer.training.refresh import as_trained, refreshed

log = structlog.get_logger(__name__)


class Refresh:
    """The steps of a refresh over one click log, registry and alias."""

    name: Final = "refresh"

    def __init__(
        self,
        root: TrainerRoot,
        folder: ClickLogFolder,
        registry: Registry,
        championship: Championship,
        *,
        may_write: Callable[[], None] = lambda: None,
    ) -> None:
        """`may_write` is asked before the registry is changed and before the announcement; it raises to forbid them."""
        self._root = root
        self._folder = folder
        self._registry = registry
        self._championship = championship
        self._may_write = may_write
        self._staging = staging_of(root.trainer.work_dir, registry)

    def run(self, collected: LogState | None = None) -> CycleResult:
        """One refresh, on what the click log holds now, or held when `collected` was read of it.

        Raises the errors of its steps; nothing is half done then, and the next refresh may succeed.
        """
        self._may_write()
        shutil.rmtree(self._staging, ignore_errors=True)
        collected = collected or self._folder.scan()
        champion = self._championship.standing().champion
        if champion is None:
            return _skipped("no champion is announced yet: `trainer run` makes a first one")
        manifest = self._registry.open_announced(champion).manifest
        if manifest.encoder == "none":
            return _skipped(f"the champion's family, {manifest.family}, counts: a cycle of `trainer run` counts anew")
        window = window_of(self._root, self._folder, collected, last=_counted_by(manifest), champion=Seen())
        if window is None or not window.new.any():
            return _skipped("no session has new clicks")
        trained = as_trained(self._registry.read_announced(champion))
        try:
            model, sessions = refreshed(trained, window.sessions, min_support=self._root.trainer.min_support)
        except TooFewSessionsError as error:
            return _skipped(str(error))
        if 2 * len(sessions) < (before := _sessions_counted(manifest)):
            return _skipped(
                f"the window holds {len(sessions):,} sessions and the champion has counted {before:,}: it would know "
                "less than now; a refresh needs half as many"
            )
        candidate = stage(self._staging, model, sessions, threads=self._root.trainer.threads)
        check_parity(model.weights, candidate, sessions, memory=model.memory)
        counted = Counted(len(trained.item_ids), window.positions, window.topic_id)
        self._may_write()
        published = publish_refreshed(self._registry, self._staging, model, sessions, of=manifest, counted=counted)
        new = len(model.item_ids) - len(trained.item_ids)
        why = (
            f"refreshed {manifest.states_of or manifest.version} by {len(sessions)} sessions: {new} items that it was "
            "not trained on"
        )
        self._may_write()
        # A rollback may have come meanwhile: what was rolled back must not come back as its own refresh.
        self._championship.refresh(published, why, instead_of=champion)
        return CycleResult("announced", (why,), published.version)


def _counted_by(manifest: Manifest) -> Seen:
    """Which clicks the model's tables have counted."""
    counted = manifest.training.get("refreshed")
    return Seen.by(manifest) if counted is None else Seen.of(counted, manifest.created_at)


def _sessions_counted(manifest: Manifest) -> int:
    """How many sessions the model's tables have counted; 0 where its manifest does not tell."""
    record = manifest.training.get("refreshed") or manifest.training
    window = record.get("window") if isinstance(record, dict) else None
    sessions = window.get("sessions") if isinstance(window, dict) else None
    return sessions if isinstance(sessions, int) else 0


def _skipped(why: str) -> CycleResult:
    return CycleResult("skipped", (why,))
