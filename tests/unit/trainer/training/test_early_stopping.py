import pytest
import torch

from tests.unit.trainer.builders import random_sessions
from trainer.evaluation.protocol import NetworkScorer, evaluate
from trainer.models.settings import Gru4RecSettings
from trainer.training.early_stopping import EarlyStopping, Epoch, Measure, best_epoch
from trainer.training.fit import fit

SESSIONS = random_sessions(60, items=30)
HOLDOUT = random_sessions(20, items=30, seed=9)
# Learns in a few epochs, then wanders: the last epoch is not the best.
SETTINGS = Gru4RecSettings.parse(
    {"hidden_size": 8, "batch_size": 4, "n_sample": 6, "epochs": 30, "learning_rate": 0.5, "dropout_hidden": 0.5}
)


def epochs_of(*scores: float | None) -> list[Epoch]:
    return [Epoch(i + 1, 0.0, 1, 1.0, score) for i, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "best"),
    [((0.1,), 1), ((0.1, 0.3, 0.2), 2), ((0.3, 0.3), 1), ((0.0, 0.0), 1), ((None, None, None), 3)],
)
def test_the_best_epoch_is_the_first_of_the_greatest_scores(scores: tuple[float | None, ...], best: int) -> None:
    assert best_epoch(epochs_of(*scores)) == best


@pytest.mark.parametrize(
    ("scores", "over"),
    [((), False), ((0.1,), False), ((0.2, 0.1), False), ((0.2, 0.1, 0.2), True), ((0.2, 0.1, 0.3), False)],
)
def test_is_over_after_so_many_epochs_without_a_better_one(scores: tuple[float, ...], over: bool) -> None:
    assert EarlyStopping(HOLDOUT, patience=2).is_over(epochs_of(*scores)) == over


def test_a_patience_of_no_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="patience=0"):
        EarlyStopping(HOLDOUT, patience=0)


@pytest.mark.parametrize("measure", ["mrr", "recall", "both"])
def test_stops_and_keeps_the_best_epochs_weights(measure: Measure) -> None:
    stopping = EarlyStopping(HOLDOUT, patience=2, measure=measure, k=5)
    result = fit(SESSIONS, SETTINGS, early_stopping=stopping)
    assert len(result.epochs) == result.best_epoch + 2 < SETTINGS.epochs
    # What is kept is what scored best, and what a run of so many epochs gives.
    metrics = evaluate(NetworkScorer(result.network), HOLDOUT, ks=(5,))
    found = {"mrr": metrics.mrr[5], "recall": metrics.recall[5], "both": metrics.recall[5] + metrics.mrr[5]}
    assert found[measure] == max(epoch.score or 0.0 for epoch in result.epochs)
    short = fit(SESSIONS, SETTINGS.model_copy(update={"epochs": result.best_epoch})).network
    assert all(torch.equal(tensor, short.tensors()[name]) for name, tensor in result.network.tensors().items())


def test_judging_does_not_change_the_run() -> None:
    settings = SETTINGS.model_copy(update={"epochs": 3})
    judged = fit(SESSIONS, settings, early_stopping=EarlyStopping(HOLDOUT, patience=3))
    assert [e.loss for e in judged.epochs] == [e.loss for e in fit(SESSIONS, settings).epochs]
    assert all(epoch.score is not None for epoch in judged.epochs)


def test_epochs_that_tell_nothing_yet_are_not_judged() -> None:
    heard: list[Epoch] = []
    judging = EarlyStopping(HOLDOUT, stops=False, first=3)
    fit(SESSIONS, SETTINGS.model_copy(update={"epochs": 4}), early_stopping=judging, on_epoch=heard.append)
    assert [epoch.score is None for epoch in heard] == [True, True, False, False]
