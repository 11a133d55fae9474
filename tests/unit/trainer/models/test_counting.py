"""The counting families: what a worker's row tells is all that they look at, and it is what the baselines say."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bundle.golden import recent_items
from tests.unit.trainer.builders import random_sessions, sessions_of
from trainer.data.lanes import Lanes
from trainer.errors import TrainingSettingsError
from trainer.evaluation.baselines import BASELINES, Baseline, BaselineSpec
from trainer.models.counting import CountingModel, CountingSettings, ItemCounts, item_knn, markov_chain, s_pop
from trainer.models.neighbours import SessionIndex, SessionNeighbours, stan, vs_knn
from trainer.models.registry import FAMILIES, settings_class
from trainer.models.settings import TrainingSettings

ITEMS = 30
TRAIN = random_sessions(150, ITEMS, seed=2)
QUICK = {"bpr-mf": {"factors": 4, "epochs": 1}, "vs-knn": {"newest": 20, "neighbours": 5}, "stan": {"newest": 20}}
OF_CLICKS = ("vs-knn", "stan")
"""Baselines that look at the order of repeats."""


def settings_of(name: str, **options: object) -> CountingSettings:
    settings = TrainingSettings.parse({"family": name, **QUICK.get(name, {}), **options})
    assert isinstance(settings, CountingSettings)
    return settings


MODELS: dict[str, CountingModel] = {name: settings_of(name).count(TRAIN) for name in BASELINES}
JUDGED: dict[str, Baseline] = {name: BaselineSpec.of(name, QUICK.get(name, {})).build(TRAIN) for name in BASELINES}


def of_row(model: CountingModel, clicks: list[int]) -> list[float]:
    row = recent_items(np.array(clicks, np.int64).reshape(-1, 1), model.recent_size)
    scores: list[float] = model.scores(*row)[0].tolist()
    return scores


def of_baseline(baseline: Baseline, clicks: list[int]) -> list[float]:
    lanes = Lanes(sessions_of([clicks], items=ITEMS), np.array([len(clicks) - 1]), np.array([0]))
    scores: list[float] = baseline.score(lanes)[0].tolist()
    return scores


def test_whatever_counts_is_a_baseline() -> None:
    assert [name for name in FAMILIES if issubclass(settings_class(name), CountingSettings)] == list(BASELINES)


def test_options_reach_the_model() -> None:
    assert settings_of("s-pop", window=7).count(TRAIN).recent_size == 7
    few, many = (settings_of("item-knn", neighbours=n).count(TRAIN) for n in (1, 5))
    assert len(few.tensors()["table.items"]) < len(many.tensors()["table.items"])
    same, linear = (settings_of("vs-knn", weighting=name).count(TRAIN) for name in ("same", "linear"))
    assert of_row(same, [1, 2, 3]) != of_row(linear, [1, 2, 3])
    with pytest.raises(TrainingSettingsError, match="weighting"):
        settings_of("vs-knn", weighting="odd")
    with pytest.raises(TrainingSettingsError, match="unknown training setting 'epochs'"):
        settings_of("pop", epochs=3)


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in OF_CLICKS])
@given(clicks=st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=30))
def test_a_row_tells_what_the_baseline_is_judged_by(name: str, clicks: list[int]) -> None:
    assert of_row(MODELS[name], clicks) == pytest.approx(of_baseline(JUDGED[name], clicks), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", OF_CLICKS)
@given(clicks=st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=30, unique=True))
def test_neighbours_are_the_baselines_where_nothing_is_clicked_again(name: str, clicks: list[int]) -> None:
    assert of_row(MODELS[name], clicks) == of_baseline(JUDGED[name], clicks)


@pytest.mark.parametrize("name", OF_CLICKS)
def test_neighbours_take_repeats_for_one_click(name: str) -> None:
    assert of_row(MODELS[name], [4, 5, 5, 4, 6, 6]) == of_row(MODELS[name], [5, 4, 6])
    assert of_baseline(JUDGED[name], [4, 5, 5, 4, 6, 6]) != of_baseline(JUDGED[name], [5, 4, 6])


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_session_of_nothing_known_has_scores(name: str) -> None:
    scores = np.array(of_row(MODELS[name], [-1, -1]))
    assert scores.shape == (ITEMS,)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_models_tensors_are_arrays_by_name(name: str) -> None:
    tensors = MODELS[name].tensors()
    assert tensors
    assert all(isinstance(array, np.ndarray) for array in tensors.values())


@pytest.mark.parametrize("model", [s_pop(TRAIN), markov_chain(TRAIN), item_knn(TRAIN)])
def test_counts_survive_as_tensors(model: ItemCounts) -> None:
    again = ItemCounts.of_tensors(model.tensors(), model.recent_size)
    assert of_row(again, [3, 4, 3]) == of_row(model, [3, 4, 3])


@pytest.mark.parametrize("maker", [vs_knn, stan])
@pytest.mark.parametrize("newest", [1, 3, 1000])
def test_what_the_index_leaves_out_is_never_among_the_newest(
    maker: Callable[..., SessionNeighbours], newest: int
) -> None:
    model = maker(TRAIN, newest=newest)
    whole = SessionIndex.of(TRAIN)
    factor = np.ones(len(TRAIN)) if maker is vs_knn else 1.0 / np.sqrt(TRAIN.lengths)
    complete = replace(model, index=whole, factor=factor)
    rng = np.random.default_rng(0)
    for size in range(1, 9):
        clicks = rng.integers(ITEMS, size=size).tolist()
        assert of_row(model, clicks) == of_row(complete, clicks)
    assert np.diff(model.index.postings).max() <= newest
