"""What the demo has shown so far, when it is over, and how long that still takes. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.messages.score import Totals


@dataclass(frozen=True)
class Plan:
    """How long things take, in seconds.

    Attributes:
        live: of live clicks; more when the new model has not answered enough by then.
        patience: how much more at most.
        retrain_every: from one training cycle to the next.
        new_sessions: that a cycle trains on at least.
        predictions: that a new model must have made, for its online Recall to say something.
        canary: share of the sessions that try a new model before it serves, in percent; None: the gate is enough.
        judged_sessions: that the guard needs of each model.
    """

    live: float = 165.0
    patience: float = 900.0
    retrain_every: float = 55.0
    new_sessions: int = 1500
    predictions: int = 2000
    canary: float | None = None
    judged_sessions: int = 500


def predictions_of_a_new_model(models: Mapping[str, Totals]) -> int:
    """Of the model that made the most, the first one left out; `models` in the order of their service."""
    return max((score.predictions for score in list(models.values())[1:]), default=0)


class Progress:
    """Follows the live clicks. `trained_in`: the seconds that the first model took."""

    def __init__(self, plan: Plan, *, trained_in: float) -> None:
        self._plan, self._trained_in = plan, trained_in
        self._elapsed, self._predictions = 0.0, 0
        self._swapped_at: float | None = None
        self._waits_for: str | None = None

    def update(self, elapsed: float, models: Mapping[str, Totals], waits_for: str | None = None) -> None:
        """What was served after so many seconds of live clicks, in the order of the models' service.

        `waits_for` is what else must come before it is over.
        """
        self._elapsed, self._predictions = elapsed, predictions_of_a_new_model(models)
        self._waits_for = waits_for
        if len(models) > 1 and self._swapped_at is None:
            self._swapped_at = elapsed

    @property
    def is_over(self) -> bool:
        """Whether the new model has shown what it can, or never will."""
        enough = self._predictions >= self._plan.predictions and self._waits_for is None
        return self._elapsed > self._plan.live + (0 if enough else self._plan.patience)

    @property
    def outlook(self) -> str:
        """How long it still takes, and for what."""
        plan, elapsed, made = self._plan, self._elapsed, self._predictions
        rest = max(0.0, plan.live - elapsed)
        if self._waits_for is not None and self._swapped_at is not None:
            return f"waiting for {self._waits_for}"
        if made >= plan.predictions:
            return f"about {rest:.0f} s left"
        if self._swapped_at is not None:
            counted = f"{made:,} of {plan.predictions:,} predictions of the new model"
            if not made:
                return counted
            missing = (plan.predictions - made) * (elapsed - self._swapped_at) / made
            return f"{counted}; about {max(rest, missing):.0f} s left"
        expected = plan.retrain_every + self._trained_in
        if elapsed < expected:
            return f"a new model in about {expected - elapsed:.0f} s"
        return f"still no new model; waiting for {plan.live + plan.patience - elapsed:.0f} s more at most"
