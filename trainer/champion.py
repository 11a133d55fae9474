"""Promote and roll back: registry, history and models topic put together, in an order that survives a kill anywhere.

The models topic decides who is champion. The history entry is written before the announcement; when it never follows,
the next command finds the entry newer than the topic's last announcement and drops it.
"""

import time
from dataclasses import dataclass
from typing import Protocol

import structlog

from schemas.announcement import ModelAnnouncement
from trainer.history import Action, Entry, line_of, settle
from trainer.registry import PublishedModel, Registry
from trainer.service_errors import RegistryError

log = structlog.get_logger(__name__)

HISTORY_KEPT = 200
"""Entries of the history: each command lists them all."""


class Announcements(Protocol):
    """The announcements of one alias: `trainer.announce.ModelsTopic`, or a list in a test."""

    @property
    def alias(self) -> str: ...

    def current(self) -> ModelAnnouncement | None: ...

    def announce(self, announcement: ModelAnnouncement) -> None: ...


@dataclass(frozen=True)
class Standing:
    """Who is champion, and what came before."""

    champion: ModelAnnouncement | None
    entries: tuple[Entry, ...]

    @property
    def line(self) -> list[str]:
        """Champion and predecessors, the champion last."""
        return line_of(self.entries)

    def was_announced(self, version: str) -> bool:
        return any(entry.version == version for entry in self.entries)


class Championship:
    """The alias of a registry. One process announces at a time, or the later announcement counts."""

    def __init__(self, registry: Registry, topic: Announcements) -> None:
        self._registry = registry
        self._topic = topic

    def standing(self) -> Standing:
        """Ask the models topic and the history. Raises AnnounceError and RegistryError."""
        champion = self._topic.current()
        entries = self._registry.history(self._topic.alias)
        current = None if champion is None else (champion.announced_at, champion.version)
        return Standing(champion, tuple(settle(entries, current)))

    def promote(self, model: PublishedModel, why: str) -> ModelAnnouncement:
        """Verify a version as a worker would and announce it. Raises BundleError, AnnounceError and RegistryError."""
        return self._announce(model, "promoted", why, self.standing())

    def roll_back(self) -> ModelAnnouncement:
        """Announce the nearest predecessor of the champion that is still published."""
        standing = self.standing()
        if standing.champion is None:
            raise RegistryError("there is no champion to roll back from; announce a version with `trainer promote`")
        predecessors = [version for version in standing.line[:-1] if version != standing.champion.version]
        for version in reversed(predecessors):
            model = self._registry.find(version)
            if model is not None:
                why = f"rolled back from {standing.champion.version}"
                return self._announce(model, "rolled-back", why, standing)
            log.warning("a predecessor is not published any more", version=version)
        raise RegistryError(
            f"{standing.champion.version} has no published predecessor; announce another with `trainer promote`"
        )

    def _announce(self, model: PublishedModel, action: Action, why: str, standing: Standing) -> ModelAnnouncement:
        self._registry.open(model)
        alias = self._topic.alias
        written = self._registry.history(alias)
        for orphan in set(written) - set(standing.entries):
            log.info("dropped from the history: it was never announced", version=orphan.version)
            self._registry.remove_history(alias, orphan)
        last = standing.champion.announced_at if standing.champion else 0
        announcement = ModelAnnouncement(
            alias=alias,
            version=model.version,
            uri=model.uri,
            manifest_sha256=model.manifest_sha256,
            announced_at=max(time.time_ns() // 1_000_000, last + 1),  # a clock set back must not turn the order round
            why=why[:4096],
        )
        for entry in standing.entries:  # announcements made by hand, which left no entry
            if entry not in written and standing.champion is not None:
                self._registry.add_history(alias, entry, standing.champion)
        self._registry.add_history(alias, Entry(announcement.announced_at, action, model.version), announcement)
        self._topic.announce(announcement)
        for old in sorted(written)[:-HISTORY_KEPT]:
            self._registry.remove_history(alias, old)
        return announcement
