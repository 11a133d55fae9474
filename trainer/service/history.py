"""What was announced, in order: the models topic is compacted and forgets, and a rollback must know what came before.

An entry is an empty name's worth of knowledge: `<announced at>-<action>-<version>.json`. Entries are written *before*
they are announced, so one may tell of an announcement that never happened; the topic's newest announcement decides.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, cast

Action = Literal["promoted", "rolled-back", "refreshed"]

_NAME: Final = re.compile(r"(\d{15})-(promoted|rolled-back|refreshed)-([A-Za-z0-9][A-Za-z0-9._-]*)\.json")


@dataclass(frozen=True, order=True)
class Entry:
    """One announcement of an alias, made or intended."""

    announced_at: int
    action: Action
    version: str

    @property
    def name(self) -> str:
        return f"{self.announced_at:015d}-{self.action}-{self.version}.json"

    @classmethod
    def of_name(cls, name: str) -> "Entry | None":
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(int(match[1]), cast(Action, match[2]), match[3])


def settle(entries: Iterable[Entry], current: tuple[int, str] | None) -> list[Entry]:
    """The entries that count, oldest first, given the time and version of the topic's newest announcement.

    Later entries than that were never announced and drop out. An announcement that has no entry (made by hand) counts
    as a promotion. Without any announcement (a new topic) the history stands as it is.
    """
    ordered = sorted(entries)
    if current is None:
        return ordered
    at, version = current
    happened = [entry for entry in ordered if entry.announced_at <= at]
    if not any((entry.announced_at, entry.version) == current for entry in happened):
        happened.append(Entry(at, "promoted", version))
    return happened


def line_of(entries: Iterable[Entry]) -> list[str]:
    """The champion and its predecessors, the champion last: what each rollback would return to.

    A promotion puts a version on top; a rollback takes off everything above the version that it returned to, so that
    a model that was rolled back is not returned to by the next rollback. A refreshed model takes the place of the one
    that it is: to roll back is to return to another one.
    """
    line: list[str] = []
    for entry in entries:
        if entry.action == "rolled-back" and entry.version in line:
            del line[len(line) - line[::-1].index(entry.version) :]
        elif entry.action == "refreshed" and line:
            line[-1] = entry.version
        elif not line or line[-1] != entry.version:
            line.append(entry.version)
    return line
