"""Promote and roll back: registry, history and models topic put together, in an order that survives a kill anywhere.

The models topic decides who is champion. The history entry is written before the announcement; when it never follows,
the next command finds the entry newer than the topic's last announcement and drops it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, Protocol

import structlog

from schemas.errors import BundleError
from schemas.messages.announcement import ModelAnnouncement
from trainer.errors import RegistryError
from trainer.service.history import Action, Entry, line_of, settle
from trainer.service.registry import PublishedModel, Registry

log = structlog.get_logger(__name__)

HISTORY_KEPT = 200
"""Entries of the history: each command lists them all."""

PREDECESSORS_KEPT = 3
"""Of each alias, to roll back to."""


class _Anyone(Enum):
    ANYONE = "anyone"


ANYONE: Final = _Anyone.ANYONE
"""Whoever is champion is replaced."""

Replaced = ModelAnnouncement | Literal[_Anyone.ANYONE] | None
"""The champion that a decision was about; None where there was none."""


class Announcements(Protocol):
    """The models topic and the alias announced on it: `trainer.service.announce.ModelsTopic`, or a list in a test."""

    @property
    def alias(self) -> str: ...

    def announced(self) -> Mapping[str, ModelAnnouncement]:
        """By alias, the announcement that counts."""
        ...

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

    @property
    def alias(self) -> str:
        """Whose champion it is."""
        return self._topic.alias

    def standing(self) -> Standing:
        """Ask the models topic and the history. Raises AnnounceError and RegistryError."""
        return self._standing(self._topic.alias, self._topic.announced())

    def announced(self) -> Mapping[str, ModelAnnouncement]:
        """By alias, what each one means now."""
        return self._topic.announced()

    def others(self) -> list[Standing]:
        """The same for each other alias than ours that is announced."""
        announced = self._topic.announced()
        return [self._standing(alias, announced) for alias in announced if alias != self._topic.alias]

    def protected(self) -> set[str]:
        """What each alias means now, and its last predecessors: of every alias, not of ours alone."""
        announced = self._topic.announced()
        return {
            version
            for alias in {*announced, *self._registry.aliases()}
            for version in self._standing(alias, announced).line[-1 - PREDECESSORS_KEPT :]
        }

    def _standing(self, alias: str, announced: Mapping[str, ModelAnnouncement]) -> Standing:
        champion = announced.get(alias)
        current = None if champion is None else (champion.announced_at, champion.version)
        return Standing(champion, tuple(settle(self._registry.history(alias), current)))

    def promote(
        self,
        model: PublishedModel,
        why: str,
        *,
        instead_of: Replaced = ANYONE,
        evidence: dict[str, Any] | None = None,
    ) -> ModelAnnouncement:
        """Verify a version as a worker would and announce it. Raises BundleError, AnnounceError and RegistryError.

        Nothing is announced, and RegistryError raised, when another one than `instead_of` is champion by then.
        """
        self._registry.open(model)
        standing = self.standing()
        _check_still(standing, instead_of)
        return self._announce(model, "promoted", why, standing, evidence)

    def refresh(self, model: PublishedModel, why: str, *, instead_of: Replaced = ANYONE) -> ModelAnnouncement:
        """The same for the champion itself, refreshed: it takes the champion's place, which is no predecessor."""
        self._registry.open(model)
        standing = self.standing()
        _check_still(standing, instead_of)
        return self._announce(model, "refreshed", why, standing)

    def roll_back(
        self,
        why: str = "",
        *,
        instead_of: Replaced = ANYONE,
        evidence: dict[str, Any] | None = None,
    ) -> ModelAnnouncement:
        """Announce the nearest predecessor of the champion that can still be served; `instead_of` as for `promote`."""
        standing = self.standing()
        _check_still(standing, instead_of)
        if standing.champion is None:
            raise RegistryError("there is no champion to roll back from; announce a version with `trainer promote`")
        predecessors = [version for version in standing.line[:-1] if version != standing.champion.version]
        for version in reversed(predecessors):
            try:
                model = self._registry.find(version)
                if model is not None:
                    self._registry.open(model)
            except BundleError as error:
                log.warning("a predecessor cannot be served any more, so it is passed over", error=str(error))
                continue
            if model is None:
                log.warning("a predecessor is not published any more, so it is passed over", version=version)
                continue
            if instead_of is not ANYONE:  # to verify a predecessor may have taken minutes
                _check_still(self.standing(), instead_of)
            told = f"rolled back from {standing.champion.version}{f': {why}' if why else ''}"
            return self._announce(model, "rolled-back", told, standing, evidence)
        raise RegistryError(
            f"{standing.champion.version} has no predecessor that can be served; announce another version with "
            "`trainer promote`"
        )

    def _announce(
        self,
        model: PublishedModel,
        action: Action,
        why: str,
        standing: Standing,
        evidence: dict[str, Any] | None = None,
    ) -> ModelAnnouncement:
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
            evidence=evidence,
        )
        for entry in standing.entries:  # announcements made by hand, which left no entry
            if entry not in written and standing.champion is not None:
                self._registry.add_history(alias, entry, standing.champion)
        self._registry.add_history(alias, Entry(announcement.announced_at, action, model.version), announcement)
        self._topic.announce(announcement)
        before = standing.entries[-1] if standing.entries else None
        # A refresh takes the place of the one before: by dozens a day they would fill the history.
        replaced = [before] if before and before.action == action == "refreshed" else []
        for old in {*replaced, *sorted(written)[:-HISTORY_KEPT]}:
            self._registry.remove_history(alias, old)
        return announcement


def _check_still(standing: Standing, expected: Replaced) -> None:
    """Raise RegistryError when another announcement counts than the one that a decision was about."""
    if expected is ANYONE or standing.champion == expected:
        return
    now = standing.champion.version if standing.champion else "nobody"
    if expected is None:
        raise RegistryError(f"{now} has become the champion meanwhile; nothing is announced")
    raise RegistryError(f"{expected.version} is no longer the champion, {now} is; nothing is announced")
