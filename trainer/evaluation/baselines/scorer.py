"""A baseline as a scorer: no state, the session's clicks are all it looks at."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from trainer.data.lanes import Lanes
from trainer.data.sessions import Ints
from trainer.evaluation.protocol import Floats, Ties, ranks_among
from trainer.models.counting import LONGEST, CountingModel

__all__ = ["LONGEST", "Baseline", "Scores", "baseline_of"]

Scores = npt.NDArray[np.float32]


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


def baseline_of(name: str, model: CountingModel) -> Baseline:
    """A counting model as a baseline: it is shown what a worker's row of ``model.recent_size`` clicks tells."""

    def score(lanes: Lanes) -> Scores:
        # A longer row would be padding.
        return model.scores(*lanes.recent(min(int(lanes.clicks.max()), model.recent_size)))

    return Baseline(name, model.items, score)
