from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from schemas.bundle.files import Model, open_bundle
from tests.contract.tiny_model import TinyFailing, TinyModel, TinyOutside
from tests.unit.trainer.builders import random_sessions, sessions_of
from trainer.data import lanes
from trainer.data.sessions import SessionSet, encode
from trainer.evaluation.model_scorer import ModelScorer
from trainer.evaluation.protocol import NetworkScorer, evaluate, ranks_of
from trainer.export.bundle import read_bundle_network, save_bundle
from trainer.models.settings import Gru4RecSettings, TrainingSettings
from trainer.training.fit import FitResult, fit

TRAIN = random_sessions(120, items=50, seed=1)


@pytest.fixture(scope="module")
def result() -> FitResult:
    chosen = {"hidden_size": 12, "batch_size": 8, "n_sample": 20, "epochs": 3, "layers": 2}
    return fit(TRAIN, Gru4RecSettings.parse(chosen))


@pytest.fixture(scope="module")
def bundle(result: FitResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(
        tmp_path_factory.mktemp("models"),
        "v1",
        result,
        popularity=TRAIN.support(),
        training={},
        metrics={},
        created_at=0,
    )


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return open_bundle(bundle)


def test_a_bundle_scores_as_the_network_does(result: FitResult, model: Model) -> None:
    sessions = random_sessions(300, items=50, seed=2)
    wanted, found = evaluate(NetworkScorer(result.weights), sessions), evaluate(ModelScorer(model, sessions), sessions)
    assert found.predictions == wanted.predictions
    for k in wanted.recall:
        assert found.recall[k] == pytest.approx(wanted.recall[k], abs=2e-3)
        assert found.mrr[k] == pytest.approx(wanted.mrr[k], abs=2e-3)


def test_a_bundle_scores_sessions_of_any_vocabulary(model: Model) -> None:
    sessions = random_sessions(40, items=50, seed=3)
    shuffled = encode(sessions, tuple(np.random.default_rng(0).permutation(sessions.item_ids).tolist()))
    same = evaluate(ModelScorer(model, sessions), sessions)
    assert evaluate(ModelScorer(model, shuffled), shuffled) == same


@pytest.mark.parametrize("length", [1, 40, 50, 1000])
def test_a_model_ranks_as_many_items_as_its_training_says(result: FitResult, tmp_path: Path, length: int) -> None:
    told = replace(result, settings=result.settings.model_copy(update={"list_length": length}))
    save_bundle(tmp_path, "v1", told, popularity=TRAIN.support(), training={}, metrics={}, created_at=0)
    model, sessions = open_bundle(tmp_path / "v1"), random_sessions(40, items=50, seed=3)
    assert model.k == min(length, 50)
    if length >= 50:  # all there are: any k can be measured, whatever else was clicked
        metrics = evaluate(ModelScorer(model, with_unknown()), with_unknown(), ks=(20, 100))
        assert metrics.recall[20] <= metrics.recall[100] < 1
    else:
        with pytest.raises(ValueError, match=f"ranks {length} items"):
            evaluate(ModelScorer(model, sessions), sessions, ks=(length,))


def with_unknown() -> SessionSet:
    return sessions_of([[50, 3, 50, 4, 5], [3, 50], [50, 51]], items=52)


def test_an_unknown_click_is_no_step_and_an_unknown_target_a_miss(model: Model) -> None:
    ranks = ranks_of(ModelScorer(model, with_unknown()), with_unknown())
    known = sessions_of([[3, 4, 5]], items=52)
    after_3, after_4 = ranks_of(ModelScorer(model, known), known).tolist()
    popularity = np.argsort(-TRAIN.support(), kind="stable").tolist()
    tied = int((TRAIN.support() >= TRAIN.support()[3]).sum())
    assert popularity.index(3) < tied
    before_any = tied if tied <= model.k else np.inf
    assert ranks.tolist() == [before_any, np.inf, after_3, after_4, np.inf, np.inf]


@pytest.mark.parametrize("kind", [TinyFailing, TinyOutside])
def test_sessions_without_an_answer_get_the_most_popular_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[TinyFailing] | type[TinyOutside]
) -> None:
    """As in a worker: it ends no cycle, takes no other session's answer, and a challenger that has any is refused."""
    monkeypatch.setattr(lanes, "_LANES", 3)  # the first session at its end beside others at their beginning
    sessions = sessions_of([[0, 1, 2, 3, 4, 5, 6, 7, 8], *[[3, 4, 5], [6, 7, 8]] * 4], items=12)
    plain, faulty = TinyModel(items=sessions.item_ids), kind(items=sessions.item_ids, longest=6.5)
    right, scorer = (
        ModelScorer(open_bundle(tiny.write(tmp_path, tiny.__class__.__name__)), sessions) for tiny in (plain, faulty)
    )
    found, wanted = ranks_of(scorer, sessions), ranks_of(right, sessions)
    assert (scorer.not_finite, right.not_finite) == (2, 0)
    assert np.delete(found, [6, 7]).tolist() == np.delete(wanted, [6, 7]).tolist()


def test_weights_come_back_from_the_graphs(result: FitResult, bundle: Path) -> None:
    weights, item_ids = read_bundle_network(bundle)
    assert item_ids == result.item_ids
    found = weights.tensors()
    assert found.keys() == result.network.tensors().keys()
    assert all((found[name] == tensor).all() for name, tensor in result.network.tensors().items())


@pytest.mark.parametrize("family", ["sasrec", "s-pop"])
def test_where_all_that_the_model_looks_back_on_is_unknown_the_most_popular_are_shown(
    tmp_path: Path, family: str
) -> None:
    """As a worker does, whatever was clicked before that."""
    small = {"hidden_size": 8, "epochs": 1, "memory": "none"} if family == "sasrec" else {}
    fitted = fit(TRAIN, TrainingSettings.parse({"family": family, "window": 2, **small}))
    save_bundle(tmp_path, "v1", fitted, popularity=TRAIN.support(), training={}, metrics={}, created_at=0)
    model, popular = open_bundle(tmp_path / "v1"), int(np.argsort(-TRAIN.support(), kind="stable")[4])
    sessions = sessions_of([[50, popular], [3, 50, popular], [3, 50, 51, popular]], items=52)
    ranks = ranks_of(ModelScorer(model, sessions), sessions)
    of_nothing, after_3, later = ranks[[0, 2, 5]]
    assert later == of_nothing == (TRAIN.support() >= TRAIN.support()[popular]).sum()
    assert after_3 != of_nothing
