"""A baseline as a scorer: no state, the session's clicks are all it looks at."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from trainer.data.lanes import Lanes
from trainer.data.sessions import Ints, SessionSet
from trainer.evaluation.protocol import Floats, Ties, ranks_among

Scores = npt.NDArray[np.float32]

LONGEST: Final = 200
"""Clicks of a session that a baseline looks at, its newest: work and memory grow with their square, and beyond a few
hundred clicks it is a robot that walks through the catalogue. RSC15's sessions end at 200."""


@dataclass(frozen=True)
class Baseline:
    """A scorer without state of its own: what it needs of a session it finds in the session's clicks.

    ``score`` gives the scores of the whole catalogue, Lanes of n sessions -> f32[n, I].
    """

    name: str
    depth: int
    score: Callable[[Lanes], Scores]

    def start(self, lanes: int) -> None:
        return None

    def advance(self, state: object, lanes: Lanes) -> None:
        return None

    def ranks(self, state: object, lanes: Lanes, targets: Ints, ties: Ties) -> Floats:
        return ranks_among(torch.from_numpy(self.score(lanes)), targets, ties, self.name)


def newest_first(lanes: Lanes) -> Ints:
    """The last clicks that a baseline looks at, -1 where there are no more: int64[n, at most LONGEST]."""
    return lanes.history(min(int(lanes.clicks.max()), LONGEST))


def below_one(train: SessionSet) -> Scores:
    """Popularity in [0, 1): decides between equal counts and never against a greater one."""
    support = train.support()
    share: Scores = (support / (support.max(initial=0) + 1)).astype(np.float32)
    return share
