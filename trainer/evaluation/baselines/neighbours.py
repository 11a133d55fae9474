"""The families of :mod:`trainer.models.neighbours` as baselines: of the clicks themselves, repeats in their order.

A worker's row does not know the order of repeats; that is the one difference between a baseline and the family.
"""

from trainer.data.lanes import Lanes
from trainer.data.sessions import SessionSet
from trainer.evaluation.baselines.scorer import Baseline, Scores
from trainer.models import neighbours as families
from trainer.models.counting import LONGEST
from trainer.models.neighbours import SessionIndex, SessionNeighbours

__all__ = ["SessionIndex", "stan", "vs_knn"]


def vs_knn(
    train: SessionSet, *, neighbours: int = 100, newest: int = 1000, idf: bool = True, weighting: str = "linear"
) -> Baseline:
    """See :func:`trainer.models.neighbours.vs_knn`."""
    model = families.vs_knn(train, neighbours=neighbours, newest=newest, idf=idf, weighting=weighting, window=LONGEST)
    return _of_clicks("vs-knn", model)


def stan(
    train: SessionSet,
    *,
    neighbours: int = 500,
    newest: int = 2500,
    recency: float = 1.0,
    days: float = 10.0,
    reach: float = 2.0,
) -> Baseline:
    """See :func:`trainer.models.neighbours.stan`."""
    model = families.stan(
        train, neighbours=neighbours, newest=newest, recency=recency, days=days, reach=reach, window=LONGEST
    )
    return _of_clicks("stan", model)


def _of_clicks(name: str, model: SessionNeighbours) -> Baseline:
    def score(lanes: Lanes) -> Scores:
        return model.scores_after(lanes.history(min(int(lanes.clicks.max()), model.recent_size)))

    return Baseline(name, model.items, score)
