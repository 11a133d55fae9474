"""The network in torch and the exported graphs in ONNX Runtime are one model, click by click."""

from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.bundle import Model, open_bundle, recent_items
from tests.unit.trainer.builders import random_sessions
from trainer import gru4rec
from trainer.export import read_weights, save_bundle
from trainer.fit import FitResult, fit
from trainer.readers import read_clicks
from trainer.sessions import SessionSet, drop_short, encode, group_sessions, vocabulary_of
from trainer.settings import TrainingSettings

# (embedding, layers, deep_input, input_decay)
ARCHITECTURES = [
    ("shared", 1, False, 0.0),
    ("shared", 3, False, 0.0),
    ("shared", 3, True, 0.0),
    ("separate", 1, False, 0.0),
    ("separate", 2, True, 0.0),
    ("one-hot", 1, False, 0.0),
    ("one-hot", 2, False, 0.0),
    ("shared", 1, False, 0.5),
    ("separate", 2, True, 0.9),
    ("one-hot", 2, False, 0.7),
    ("shared", 0, False, 0.0),
    ("separate", 0, False, 0.8),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def opened(result: FitResult, sessions: SessionSet, folder: Path) -> Model:
    bundle = save_bundle(folder, "v1", result, popularity=sessions.support(), training={}, metrics={}, created_at=0)
    return open_bundle(bundle)


def assert_same_answers(result: FitResult, model: Model, sessions: SessionSet, lanes: int) -> int:
    """Follow whole sessions in both, ``lanes`` at a time; returns the clicks compared."""
    compared = 0
    bounds = sessions.offsets.tolist()
    for first in range(0, len(sessions), lanes):
        group = [sessions.items[bounds[i] : bounds[i + 1]] for i in range(first, min(first + lanes, len(sessions)))]
        group.sort(key=len, reverse=True)
        hidden = torch.zeros(model.layers, len(group), model.hidden_size)
        served = model.initial_hidden(len(group))
        for step in range(len(group[0])):
            n = sum(len(session) > step for session in group)
            items = np.array([session[step] for session in group[:n]])
            hidden = gru4rec.advance(result.weights, torch.from_numpy(items), hidden[:, :n])
            served = model.advance(items, np.ascontiguousarray(served[:, :n]))  # its own state: errors may add up
            np.testing.assert_allclose(served, hidden.numpy(), rtol=1e-4, atol=1e-5)
            scores = gru4rec.scores(result.weights, hidden[-1]).numpy()
            so_far = np.stack([session[: step + 1] for session in group[:n]], axis=1)
            index, score = model.rank(served[-1], *recent_items(so_far, model.recent_size))
            assert index.shape == (n, model.k)
            # Each listed item has the score that torch gives it, and the list is the best of all.
            np.testing.assert_allclose(score, np.take_along_axis(scores, index, axis=1), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(score, -np.sort(-scores, axis=1)[:, : model.k], rtol=1e-3, atol=1e-4)
            assert all(len(set(row)) == model.k for row in index.tolist())
            compared += n
    return compared


@pytest.mark.parametrize(("embedding", "layers", "deep_input", "input_decay"), ARCHITECTURES)
@pytest.mark.parametrize("lanes", [1, 7])
def test_whole_sessions(
    tmp_path: Path, *, embedding: str, layers: int, deep_input: bool, input_decay: float, lanes: int
) -> None:
    sessions = random_sessions(40, items=60, longest=30)
    chosen = {"embedding": embedding, "layers": layers, "hidden_size": 10, "n_sample": 20, "batch_size": 8}
    result = fit(sessions, TrainingSettings.parse(chosen | {"deep_input": deep_input, "input_decay": input_decay}))
    read = read_weights(
        save_bundle(tmp_path, "v0", result, popularity=sessions.support(), training={}, metrics={}, created_at=0)
    )
    assert {name: t.tolist() for name, t in read.tensors().items()} == {
        name: t.tolist() for name, t in result.weights.tensors().items()
    }
    assert assert_same_answers(result, opened(result, sessions, tmp_path), sessions, lanes) == sessions.clicks


def test_a_catalogue_smaller_than_the_list(tmp_path: Path) -> None:
    sessions = random_sessions(20, items=5)
    result = fit(sessions, TrainingSettings.parse({"hidden_size": 4, "n_sample": 3, "epochs": 1}))
    model = opened(result, sessions, tmp_path)
    assert model.k == 5
    assert_same_answers(result, model, sessions, lanes=3)


@pytest.mark.parametrize(("embedding", "layers"), [("shared", 1), ("separate", 2)])
def test_real_sessions(shared_data: Path, tmp_path: Path, embedding: str, layers: int) -> None:
    sessions = drop_short(group_sessions(read_clicks(shared_data / "rsc15_100k.tsv.gz")))
    sessions = encode(sessions, vocabulary_of(sessions))
    chosen = {"embedding": embedding, "layers": layers, "epochs": 1, "n_sample": 256}
    result = fit(sessions, TrainingSettings.parse(chosen))
    some = sessions.select(np.arange(len(sessions)) % 40 == 0)
    assert assert_same_answers(result, opened(result, sessions, tmp_path), some, lanes=64) == some.clicks
