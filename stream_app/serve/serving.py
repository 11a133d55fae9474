"""Which model ranks for which sessions, in one batch: a snapshot that does not change while the batch is computed."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from confluent_kafka import murmur2

from schemas.bundle.runtime import Model
from schemas.messages.split import PLACES
from stream_app.core.plan import SourcedClick, SourcedForget

Records = list[SourcedClick | SourcedForget]


@dataclass(frozen=True, slots=True)
class Serves:
    """A model that serves.

    Attributes:
        variant: the alias under which it takes part in an experiment; None without one.
    """

    model: Model
    variant: str | None = None


def place_of(session_id: str, salt: str) -> int:
    """A session's place on the line of a split, 0 to `PLACES` - 1.

    The murmur2 of Java's partitioner, as librdkafka has it, its sign left out, modulo `PLACES`: the same everywhere.
    """
    return int(murmur2((salt + session_id).encode(), PLACES))


@dataclass(frozen=True, slots=True)
class Serving:
    """Models by the places of sessions.

    Attributes:
        models: all that serve; the first one serves the sessions of variants that have no model.
        ends: of each part of the line, the place behind it.
        owners: of each part, whose of `models` it is; None of a variant without a model.
    """

    models: tuple[Serves, ...]
    ends: tuple[int, ...] = ()
    owners: tuple[int | None, ...] = ()
    salt: str = ""

    @property
    def kind(self) -> str:
        """What calls of the same models have in common."""
        return " and ".join(serves.model.version for serves in self.models)

    def divided(self, clicks: Sequence[Records]) -> tuple[list[tuple[Serves, list[Records]]], int]:
        """The clicks of each partition by who ranks for them: the first model, and the others that have any.

        Second, the clicks that the first one ranks for because their variants have no model.
        """
        if not self.ends:
            return [(self.models[0], list(clicks))], 0
        theirs: list[list[Records]] = [[[] for _ in clicks] for _ in self.models]
        known: dict[str, int | None] = {}
        without = 0
        for part, records in enumerate(clicks):
            for one in records:
                session_id = one.session_id if isinstance(one, SourcedForget) else one.click.session_id
                if session_id not in known:
                    known[session_id] = self.owners[bisect_right(self.ends, place_of(session_id, self.salt))]
                owner = known[session_id]
                without += owner is None
                theirs[owner or 0][part].append(one)
        of_each = zip(self.models, theirs, strict=True)
        return [(serves, lists) for n, (serves, lists) in enumerate(of_each) if not n or any(lists)], without
