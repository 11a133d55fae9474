"""When to stop training, and which epoch to keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.data.sessions import SessionSet
from trainer.evaluation.protocol import NetworkScorer, evaluate
from trainer.models.base import SessionModel

Measure = Literal["recall", "mrr", "both"]


@dataclass(frozen=True)
class Epoch:
    """What an epoch did. ``loss`` is the mean over its transitions, ``score`` what early stopping found, if asked."""

    number: int
    loss: float
    transitions: int
    seconds: float
    score: float | None = None


@dataclass(frozen=True)
class EarlyStopping:
    """Judge the model after each epoch on sessions that are not trained on; stop when it no longer gets better.

    holdout   sessions in the vocabulary of the training part, newer than it (trainer.data.sessions.temporal_holdout);
              not those of the final evaluation, whose figures would then be chosen rather than found
    patience  epochs in a row without a better one, after which to stop
    measure   what makes an epoch better, at ``k`` and with conservative ties; ``both``: the sum of the two
    stops     without, epochs are judged for whoever hears of them alone: all are trained, and the last one is kept
    first     the first epoch that is judged; those before tell nothing yet
    """

    holdout: SessionSet
    patience: int = 2
    measure: Measure = "mrr"
    k: int = 20
    stops: bool = True
    first: int = 1

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(
                f"patience={self.patience}: at least one epoch must be waited for; leave it out to not stop"
            )

    def score(self, network: SessionModel) -> float:
        """The measure on the holdout. Raises NonFiniteScoresError."""
        metrics = evaluate(NetworkScorer(network), self.holdout, ks=(self.k,))
        return value_of(self.measure, recall=metrics.recall[self.k], mrr=metrics.mrr[self.k])

    def is_over(self, epochs: Sequence[Epoch]) -> bool:
        """Whether these epochs, judged by :meth:`score`, are enough."""
        return bool(epochs) and len(epochs) - best_epoch(epochs) >= self.patience


def value_of(measure: Measure, *, recall: float, mrr: float) -> float:
    """The one number that the measure goes by."""
    return {"recall": recall, "mrr": mrr, "both": recall + mrr}[measure]


def best_epoch(epochs: Sequence[Epoch]) -> int:
    """Number of the epoch with the greatest score, the first of equals; of the last epoch where none has a score."""
    scored = [epoch for epoch in epochs if epoch.score is not None]
    if not scored:
        return epochs[-1].number
    return max(scored, key=lambda epoch: (epoch.score or 0.0, -epoch.number)).number
