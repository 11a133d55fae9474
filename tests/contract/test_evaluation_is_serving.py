"""What the evaluation ranks is what the worker answers: the same sessions through both, click by click."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.bundle import open_bundle
from schemas.click import Click
from stream_app.recommend import SourcedClick, recommend
from stream_app.session import SessionRules, SessionState
from tests.unit.trainer.builders import random_sessions, sessions_of
from trainer.evaluate import ranks_of
from trainer.export import save_bundle
from trainer.model_scorer import ModelScorer
from trainer.settings import TrainingSettings
from trainer.train import train

ITEMS, UNKNOWN = 60, 5


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("memory", ["none", "all"])
def test_with_long_sessions_and_unknown_items(tmp_path: Path, memory: str) -> None:
    learned = random_sessions(300, ITEMS)
    chosen = {"hidden_size": 8, "n_sample": 20, "batch_size": 32, "epochs": 1, "memory_holdout": 0.4, "memory": memory}
    result = train(learned, TrainingSettings.parse(chosen))
    assert bool(result.memory) == (memory == "all")
    folder = save_bundle(tmp_path, "v1", result, popularity=learned.support(), training={}, metrics={}, created_at=0)
    model = open_bundle(folder)
    rng = np.random.default_rng(4)
    # As long as twice what a row keeps, with repeats, and a tenth of the clicks on items that no model knows.
    clicks = [rng.integers(ITEMS + UNKNOWN, size=length).tolist() for length in (2, 5, 31, 66)]
    clicks.append([ITEMS, ITEMS + 1, 3, 4])  # begins with unknown ones
    sessions = sessions_of(clicks, ITEMS + UNKNOWN)
    evaluated = ranks_of(ModelScorer(model, sessions), sessions, ties="standard")

    served = []
    for number, session in enumerate(clicks):
        rows: dict[str, SessionState] = {}
        for offset, (item, target) in enumerate(pairwise(session)):
            click = Click(session_id=f"s{number}", item_id=f"i{item}", timestamp=1000 + offset)
            answer = recommend(rows, [SourcedClick(click, offset)], model, SessionRules())
            rows = answer.rows
            (ranked,) = answer.ranked
            index, score = np.asarray(ranked.top_index), np.asarray(ranked.top_score)
            found = index == target
            better = int((score > score[found]).sum()) if found.any() else np.inf
            served.append(1.0 + better)
    listed = np.isfinite(evaluated)
    assert listed.tolist() == np.isfinite(served).tolist()
    assert listed.sum() > 20
    # Batches are summed in another order, which may swap two items of all but the same score.
    assert np.abs(evaluated[listed] - np.array(served)[listed]).max() <= 1
    assert np.mean(evaluated[listed] == np.array(served)[listed]) > 0.95
