"""Maximum likelihood of the memory's weights: the shortcut against the whole softmax, and what it must find."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.trainer.builders import random_sessions, sessions_of
from trainer.memory import fit as memory_fit
from trainer.memory.features import Predictions, Touched, touch
from trainer.memory.fit import fit_memory, maximise, memory_of, objective_of
from trainer.memory.tables import ItemTable, cooccurrence, transitions
from trainer.memory.terms import SessionMemory, remember
from trainer.models.gru4rec import Weights, initial_weights
from trainer.models.settings import Gru4RecSettings

ITEMS, RECENT = 50, 6


def network(seed: int = 0, *, sure: float = 3.0) -> Weights:
    weights = initial_weights(ITEMS, Gru4RecSettings(hidden_size=8), torch.Generator().manual_seed(seed))
    weights.output.mul_(sure)
    return weights


def tables() -> dict[str, ItemTable]:
    seen = random_sessions(200, ITEMS, seed=1)
    return {"cooccurrence": cooccurrence(seen, width=5, longest=30), "transitions": transitions(seen, width=3)}


def problem(*, repeat: bool = True) -> tuple[Weights, Predictions, Touched]:
    weights = network()
    predictions = Predictions.of(weights, random_sessions(60, ITEMS, seed=2), RECENT)
    with torch.inference_mode():
        return weights, predictions, touch(weights, predictions, tables(), repeat=repeat)


def scores_with(memory: SessionMemory, weights: Weights, of: Predictions) -> Tensor:
    return remember(memory, weights.scores(of.query), of.recent, of.counts, of.clicks)


def losses(weights: Weights, of: Predictions, alpha: float, theta: np.ndarray) -> Tensor:
    """-ln p(target) [P] by the whole softmax, with the terms as the model applies them."""
    scores = alpha * scores_with(memory_of(theta / alpha, tables(), repeat=True), weights, of).double()
    return torch.nn.functional.cross_entropy(scores, of.targets, reduction="none")


def points(touched: Touched, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        np.append(rng.uniform(*touched.span), rng.normal(size=touched.features.shape[1]) * 0.3) for _ in range(count)
    ]


def test_the_shortcut_is_the_likelihood_of_the_whole_catalogue() -> None:
    weights, predictions, touched = problem()
    scale = memory_fit.scale_of(touched.features)
    for x in points(touched, 6):
        ridge = memory_fit.RIDGE / len(predictions) * float(x[1:] @ x[1:])
        loss = losses(weights, predictions, float(x[0]), x[1:] / scale)  # [P]
        assert objective_of(touched, 0.0)(x)[0] - ridge == pytest.approx(float(loss.mean()), rel=1e-4)
        raised = float((1 - torch.exp(-0.5 * loss)).mean() / 0.5)
        assert objective_of(touched, 0.5)(x)[0] - ridge == pytest.approx(raised, rel=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.25, 1.0])
def test_its_gradient_is_that_of_finite_differences(power: float) -> None:
    _, _, touched = problem()
    objective = objective_of(touched, power)
    for x in points(touched, 2, seed=1):
        _, gradient = objective(x)
        for i in range(len(x)):
            step = np.zeros_like(x)
            step[i] = 1e-5
            slope = (objective(x + step)[0] - objective(x - step)[0]) / 2e-5
            assert gradient[i] == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.25])
def test_a_prediction_counts_as_often_as_its_weight_says(power: float) -> None:
    """Each prediction alone, by a weight that leaves the others out: weighed and added up they are the loss."""
    _, predictions, touched = problem()
    count = len(predictions)
    weight = np.random.default_rng(3).uniform(0, 3, count)
    (x,) = points(touched, 1, seed=4)
    ridge = memory_fit.RIDGE / count * float(x[1:] @ x[1:])
    loss, gradient = objective_of(replace(touched, weight=weight), power)(x)
    alone = [objective_of(replace(touched, weight=np.eye(1, count, at)[0]), power)(x) for at in range(count)]
    assert loss - ridge == pytest.approx(sum(w * (of - ridge) for w, (of, _) in zip(weight, alone, strict=True)))
    of_ridge = np.append(0.0, 2 * memory_fit.RIDGE / count * x[1:])
    expected = sum(w * (of - of_ridge) for w, (_, of) in zip(weight, alone, strict=True))
    np.testing.assert_allclose(gradient - of_ridge, expected, rtol=1e-9, atol=1e-12)
    assert objective_of(replace(touched, weight=np.ones(count)), power)(x)[0] == objective_of(touched, power)(x)[0]


def test_predictions_have_the_weights_of_their_targets() -> None:
    sessions = sessions_of([[0, 1, 2], [3, 4, 5]], items=ITEMS)
    typed = replace(sessions, types=(sessions.items % 3).astype(np.int32), type_names=("view", "cart", "purchase"))
    found = Predictions.of(network(), typed, RECENT, weight_of_type={"purchase": 3.0})
    assert found.weights is not None
    assert dict(zip(found.targets.tolist(), found.weights.tolist(), strict=True)) == {1: 0.5, 2: 1.5, 4: 0.5, 5: 1.5}
    assert Predictions.of(network(), sessions, RECENT, weight_of_type={"purchase": 3.0}).weights is None


def test_what_weighs_nothing_is_no_prediction() -> None:
    """Purchases are few, and the newest thousands of clicks may hold none: the weights were learned from nothing."""
    sessions = sessions_of([[0, 1, 2], [3, 4, 8], *[[0, 1]] * 20], items=ITEMS)
    rare = replace(sessions, types=(sessions.items == 8).astype(np.int32), type_names=("view", "purchase"))
    found = Predictions.of(network(), rare, RECENT, most=4, weight_of_type={"view": 0.0})
    assert found.weights is not None
    assert (found.targets.tolist(), found.weights.tolist()) == ([8], [1.0])
    assert found.recent[0, :2].tolist() == [4, 3]
    fitted = fit_memory(network(), rare, {}, repeat=True, recent_size=RECENT, weight_of_type={"view": 0.0})
    assert fitted.repeat is not None


def test_the_likelihood_itself_is_convex() -> None:
    _, _, touched = problem()
    objective = objective_of(touched, 0.0)
    some = points(touched, 20, seed=2)
    for a, b in pairwise(some):
        assert objective((a + b) / 2)[0] < (objective(a)[0] + objective(b)[0]) / 2


def test_what_is_found_is_a_maximum() -> None:
    _, _, touched = problem()
    alpha, theta = maximise(touched)
    found = np.append(alpha, theta * memory_fit.scale_of(touched.features))
    best, gradient = objective_of(touched, memory_fit.POWER)(found)
    assert np.abs(gradient[1:]).max() < 1e-3
    assert all(objective_of(touched, memory_fit.POWER)(x)[0] > best for x in points(touched, 20, seed=3))


def test_a_network_that_is_too_sure_is_believed_less() -> None:
    """Targets are drawn as one network predicts them; another gives the same scores, times five."""
    right = network(sure=2.0)
    sure = replace(right, output=right.output * 5)
    some = Predictions.of(right, random_sessions(300, ITEMS, seed=2), RECENT)
    with torch.inference_mode():
        p = torch.softmax(right.scores(some.query), dim=1)
        targets = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(0)).squeeze(1)
        some = replace(some, targets=targets)
        alphas = [maximise(touch(weights, some, {}, repeat=True))[0] for weights in (right, sure)]
    assert 0.8 < alphas[0] < 1.8  # 1 by the logarithm; hopeless draws count less
    assert alphas[1] == pytest.approx(alphas[0] / 5, rel=0.01)


def test_the_newest_predictions_are_taken() -> None:
    sessions = sessions_of([[0, 1, 2], [3, 4], [5, 6, 7, 8]], items=ITEMS)
    found = Predictions.of(network(), sessions, RECENT, most=4)
    assert sorted(found.targets.tolist()) == [4, 6, 7, 8]
    assert sorted(Predictions.of(network(), sessions, RECENT, most=1).targets.tolist()) == [6, 7, 8]


def test_a_catalogue_that_is_touched_as_a_whole() -> None:
    weights = initial_weights(4, Gru4RecSettings(hidden_size=3), torch.Generator().manual_seed(0))
    sessions = random_sessions(60, 4, seed=5)
    found = {"cooccurrence": cooccurrence(sessions, width=9, longest=9)}
    memory = fit_memory(weights, sessions, found, repeat=True, recent_size=RECENT)
    assert memory.repeat is not None
    assert memory.cooccurrence is not None
    assert torch.isfinite(memory.repeat.place).all()
    assert torch.isfinite(memory.cooccurrence.weights).all()


def test_a_habit_is_learned() -> None:
    """Sessions that go back and forth between two items, which a network without training knows nothing of."""
    rng = np.random.default_rng(0)
    clicks = [(rng.choice(ITEMS, 2, replace=False).tolist() * 3)[: int(rng.integers(3, 7))] for _ in range(300)]
    weights = network(sure=0.1)
    memory = fit_memory(weights, sessions_of(clicks, ITEMS), {}, repeat=True, recent_size=RECENT)
    assert memory.repeat is not None
    assert memory.repeat.place[1] - memory.repeat.place[0] > 3  # the last but one, not the last
    some = Predictions.of(weights, sessions_of([[7, 9, 7], [3, 1, 3]], ITEMS), RECENT)
    best = scores_with(memory, weights, some).argmax(dim=1).tolist()
    assert best[2:] == [7, 3]
