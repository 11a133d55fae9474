"""Sessions followed side by side, click by click: in evaluation, in the session memory's fit, in the parity check."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.bundle.golden import recent_items
from trainer.data.batches import schedule
from trainer.data.sessions import Ints, SessionSet

_LANES = 256
_SCORES = 1 << 26
"""Scores held at once, a quarter of a gigabyte: fewer sessions are followed side by side in a greater catalogue."""


@dataclass(frozen=True)
class Lanes:
    """The sessions being followed in a step, n of them.

    position  int64[n]  index of the last click in ``sessions.items``
    start     int64[n]  index of the session's first click
    """

    sessions: SessionSet
    position: Ints
    start: Ints

    @property
    def items(self) -> Ints:
        """The last clicked items, int64[n]."""
        return self.sessions.items[self.position]

    @property
    def fresh(self) -> npt.NDArray[np.bool_]:
        """Whether that click is the session's first, bool[n]."""
        return np.equal(self.position, self.start)

    @property
    def clicks(self) -> Ints:
        """Clicks of each session so far, int64[n]."""
        return self.position - self.start + 1

    def only(self, rows: Ints) -> "Lanes":
        """Those of these numbers, 0..n - 1."""
        return Lanes(self.sessions, self.position[rows], self.start[rows])

    def history(self, length: int) -> Ints:
        """The last clicks of each session, newest first, -1 where there are no more: int64[n, length]."""
        at = self.position[:, None] - np.arange(length)
        return np.where(at >= self.start[:, None], self.sessions.items[np.maximum(at, 0)], np.int64(-1))

    def recent(
        self, size: int, index: Ints | None = None
    ) -> tuple[Ints, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """What a worker's rows tell of the sessions: the last ``size`` clicks, and how many there were.

        Inputs of a bundle's rank graph: distinct items int64[n, size], their clicks f32[n, size], clicks f32[n].
        ``index`` int64[items] is the model's number of each item, -1 for one that it does not know.
        """
        history = self.history(size)
        if index is not None:
            history = np.where(history >= 0, index[history], -1)
        items, counts, _ = recent_items(history.T[::-1], size)
        return items, counts, self.clicks.astype(np.float32)


def follow(sessions: SessionSet) -> Iterator[Lanes]:
    """Every click that has a successor, once: some sessions side by side, whose number only ever falls."""
    plan = schedule(sessions, max(1, min(_LANES, _SCORES // max(1, len(sessions.item_ids)))))
    starts = np.repeat(sessions.offsets[:-1], sessions.lengths)
    for step, n in enumerate(plan.alive.tolist()):
        position = plan.position[step, :n].astype(np.int64)
        yield Lanes(sessions, position, starts[position])
