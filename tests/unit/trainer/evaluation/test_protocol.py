import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from tests.unit.trainer.builders import random_sessions, sessions_of
from trainer.data.lanes import Lanes
from trainer.data.sessions import Ints
from trainer.errors import NonFiniteScoresError
from trainer.evaluation.protocol import (
    MOST_TYPES,
    Floats,
    Metrics,
    NetworkScorer,
    Ties,
    evaluate,
    of_last_clicks,
    predictions_by_type,
    ranks_among,
    ranks_in_top,
    ranks_of,
)
from trainer.evaluation.significance import judge
from trainer.models.gru4rec import Weights, advance, initial_weights
from trainer.models.settings import Gru4RecSettings

TIES: list[tuple[Ties, list[float]]] = [
    ("conservative", [1, 4, 4, 4, 5]),
    ("standard", [1, 2, 2, 2, 5]),
    ("median", [1, 3, 3, 3, 5]),
]


def weights_of(items: int, **chosen: object) -> Weights:
    settings = Gru4RecSettings.parse({"hidden_size": 5, **chosen})
    start = initial_weights(items, settings, torch.Generator().manual_seed(0))
    return Weights.of_tensors({name: 3 * t + 0.1 * torch.randn_like(t) for name, t in start.tensors().items()})


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("ties", ["conservative", "standard", "median"])
def test_every_prefix_of_every_session_is_a_prediction_from_a_state_of_zero(layers: int, ties: Ties) -> None:
    torch.manual_seed(0)
    weights = weights_of(30, layers=layers)
    sessions = random_sessions(700, items=30, longest=6)  # more sessions than lanes
    expected = []
    for start, stop in zip(sessions.offsets[:-1].tolist(), sessions.offsets[1:].tolist(), strict=True):
        hidden = torch.zeros(layers, 1, 5)
        for click, target in zip(sessions.items[start : stop - 1], sessions.items[start + 1 : stop], strict=True):
            hidden = advance(weights, torch.tensor([click]), hidden)
            found = weights.scores(hidden[-1])[0]
            expected.append(1.0 + int((found > found[target]).sum()))
    ranks = ranks_of(NetworkScorer(weights), sessions, ties=ties)
    assert len(ranks) == sessions.transitions
    # Sums in another order may swap two items of nearly equal score.
    assert float((ranks == np.array(expected)).mean()) > 0.999


def test_metrics_are_told_by_the_type_of_the_click_that_is_predicted() -> None:
    sessions = sessions_of([[0, 1, 2], [3], [4, 5, 5, 5, 6]])
    types = np.array([0, 2, 1, 0, 1, 1, 1, 1, 0], np.int32)
    typed = replace(sessions, types=types, type_names=("view", "cart", "wishlist", "purchase"))
    masks = predictions_by_type(typed)
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "cart": [False, True, True, True, True, False],
        "view": [False, False, False, False, False, True],
        "wishlist": [True, False, False, False, False, False],
    }
    assert list(masks) == ["cart", "view", "wishlist"]  # a type of which nothing is predicted has no figures
    metrics = Metrics.of_ranks(np.array([9.0, 1, 2, 3, 4, 5]), (3,), masks)
    assert metrics.by_type["cart"] == Metrics.of_ranks(np.array([1.0, 2, 3, 4]), (3,))
    assert sum(of.predictions for of in metrics.by_type.values()) == metrics.predictions == 6
    scorer = NetworkScorer(weights_of(7))
    assert evaluate(scorer, typed, ks=(3,)).by_type.keys() == masks.keys()
    assert evaluate(scorer, sessions, ks=(3,)).by_type == {}
    ranks = {"model": ranks_of(scorer, typed)}
    assert judge(ranks, typed, ks=(3,), resamples=10)[0].metrics == evaluate(scorer, typed, ks=(3,))
    of_last = {name: ranks[of_last_clicks(typed)] for name, ranks in ranks.items()}
    (judged,) = judge(of_last, typed, ks=(3,), last_clicks=True, resamples=10)
    assert {name: of.predictions for name, of in judged.metrics.by_type.items()} == {"cart": 1, "view": 1}


def test_only_the_most_frequent_types_have_figures_of_their_own() -> None:
    sessions = sessions_of([[0] * 40])
    types = np.minimum(np.arange(40), 30).astype(np.int32)
    typed = replace(sessions, types=types, type_names=tuple(f"t{number}" for number in range(31)))
    assert list(predictions_by_type(typed)) == ["t30", *(f"t{number}" for number in range(1, MOST_TYPES))]


def test_metrics_are_means_over_predictions() -> None:
    metrics = Metrics.of_ranks(np.array([1.0, 2.0, 4.0, 21.0]), ks=(1, 2, 20))
    assert metrics.recall == {1: 0.25, 2: 0.5, 20: 0.75}
    assert metrics.mrr == {1: 0.25, 2: 0.375, 20: pytest.approx((1 + 1 / 2 + 1 / 4) / 4)}
    # By hand: the ranks 1, 2, 4 count 1 / log2(2), 1 / log2(3) and 1 / log2(5); rank 21 is beyond all k.
    assert metrics.ndcg == {
        1: 0.25,
        2: pytest.approx((1 + 0.6309298) / 4),
        20: pytest.approx((1 + 0.6309298 + 0.4306766) / 4),
    }
    assert metrics.predictions == 4


def test_a_target_that_is_in_no_list_counts_nothing() -> None:
    metrics = Metrics.of_ranks(np.array([math.inf, 1.0]), ks=(20,))
    assert (metrics.recall, metrics.mrr, metrics.ndcg) == ({20: 0.5}, {20: 0.5}, {20: 0.5})


def test_the_predictions_of_last_clicks_are_one_a_session() -> None:
    sessions = sessions_of([[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]])
    assert of_last_clicks(sessions).tolist() == [False, True, True, False, False, True]


def test_a_long_session_weighs_by_its_predictions() -> None:
    # Item 1 always scores best: right in each step of the long session, wrong in the short ones.
    table = torch.zeros(3, 5)
    weights = weights_of(3)
    weights = Weights(None, weights.layers, table, torch.tensor([0.0, 1.0, 0.0]))
    metrics = evaluate(NetworkScorer(weights), sessions_of([[1] * 9, [0, 2], [2, 0]]), ks=(1,))
    assert metrics.recall[1] == pytest.approx(8 / 10)


@pytest.mark.parametrize(("ties", "expected"), TIES)
def test_tie_modes(ties: Ties, expected: list[float]) -> None:
    found = torch.tensor([[9.0, 5.0, 5.0, 5.0, 1.0]]).repeat(5, 1)
    assert ranks_among(found, np.arange(5), ties, "m").tolist() == expected


@pytest.mark.parametrize(("ties", "expected"), TIES)
def test_ranks_of_scores_that_lie_in_columns(ties: Ties, expected: list[float]) -> None:
    found = torch.tensor([[9.0, 5.0, 5.0, 5.0, 1.0]]).repeat(5, 1).T.contiguous().T
    assert ranks_among(found, np.arange(5), ties, "m").tolist() == expected
    found[2, 3] = math.inf
    with pytest.raises(NonFiniteScoresError):
        ranks_among(found, np.arange(5), ties, "m")


@pytest.mark.parametrize("columns", [1, 15, 64, 1000])
def test_ranks_are_counted_to_the_last_column(columns: int) -> None:
    found = torch.randn(20, columns, generator=torch.Generator().manual_seed(columns)).mul(4).round()  # with ties
    targets = np.arange(20) % columns
    own = found[torch.arange(20), torch.from_numpy(targets)].unsqueeze(1)
    assert ranks_among(found, targets, "conservative", "m").tolist() == (found >= own).sum(1).tolist()
    assert ranks_among(found, targets, "standard", "m").tolist() == ((found > own).sum(1) + 1).tolist()


@pytest.mark.parametrize(("ties", "expected"), TIES)
def test_tie_modes_in_lists_of_the_best(ties: Ties, expected: list[float]) -> None:
    index = np.array([[7, 8, 9, 3, 5]]).repeat(6, 0)
    score = np.array([[9, 5, 5, 5, 1]], dtype=np.float32).repeat(6, 0)
    ranks = ranks_in_top(index, score, np.array([7, 8, 9, 3, 5, 4]), ties, "m")
    assert ranks.tolist() == [*expected, math.inf]


def test_a_constant_model_hits_nothing_by_default() -> None:
    weights = weights_of(40)
    flat = Weights(None, weights.layers, torch.zeros(40, 5), torch.zeros(40))
    sessions = random_sessions(50, items=40)
    assert evaluate(NetworkScorer(flat), sessions).recall[20] == 0.0
    assert evaluate(NetworkScorer(flat), sessions, ties="standard").recall[1] == 1.0


@pytest.mark.parametrize("where", ["output", "output_bias", "layer0.u"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_is_no_number_is_refused(where: str, value: float) -> None:
    weights = weights_of(40)
    weights.tensors()[where].view(-1)[3] = value
    if where == "layer0.u" and value == math.inf:
        weights.tensors()[where].fill_(math.nan)  # an infinity there only saturates a gate
    with pytest.raises(NonFiniteScoresError):
        evaluate(NetworkScorer(weights), random_sessions(50, items=40))


def test_a_list_with_nan_is_refused() -> None:
    with pytest.raises(NonFiniteScoresError):
        ranks_in_top(np.array([[0, 1]]), np.array([[math.nan, 1.0]], np.float32), np.array([1]), "standard", "m")


@dataclass
class Recorder:
    """A scorer that remembers what it was shown."""

    seen: list[tuple[list[int], int]] = field(default_factory=list)
    name: str = "recorder"
    depth: int = 30

    def start(self, lanes: int) -> None:
        return None

    def advance(self, state: object, lanes: Lanes) -> None:
        return None

    def ranks(self, state: object, lanes: Lanes, targets: Ints, ties: Ties) -> Floats:
        for row, target in zip(lanes.history(9).tolist(), targets.tolist(), strict=True):
            self.seen.append(([item for item in reversed(row) if item >= 0], target))
        assert (lanes.clicks == (lanes.history(9) >= 0).sum(1)).all()
        return np.ones(len(targets))


def test_a_scorer_sees_the_clicks_before_the_target_and_no_others() -> None:
    recorder = Recorder()
    evaluate(recorder, sessions_of([[4, 5, 4], [6, 7]], items=30), ks=(1,))
    assert sorted(recorder.seen) == [([4], 5), ([4, 5], 4), ([6], 7)]


def test_metrics_beyond_the_depth_of_a_list_are_refused() -> None:
    with pytest.raises(ValueError, match="ranks 20 items"):
        evaluate(Recorder(depth=20), random_sessions(9, items=30), ks=(20,))


def test_progress_counts_predictions() -> None:
    heard: list[int] = []
    sessions = random_sessions(20, items=30)
    evaluate(Recorder(), sessions, ks=(1,), progress=heard.append)
    assert sum(heard) == sessions.transitions
