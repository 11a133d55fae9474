"""What the evaluation ranks is what the worker answers: the same sessions through both, to the last bit."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.bundle.files import open_bundle
from schemas.bundle.runtime import Model
from schemas.messages.click import Click
from stream_app.core.plan import SourcedClick
from stream_app.core.ranked import RankedClick
from stream_app.core.recommend import recommend
from stream_app.core.session import SessionRules, SessionState
from stream_app.core.state_codec import decode_state, encode_state
from tests.unit.models import (
    exact_model,
    no_encoder_model,
    own_query_model,
    sick_model,
    sick_own_query_model,
    sick_window_model,
    window_model,
)
from tests.unit.trainer.builders import random_sessions, sessions_of
from trainer.data.lanes import Lanes, follow
from trainer.data.sessions import SessionSet
from trainer.evaluation.model_scorer import ModelScorer
from trainer.evaluation.protocol import ranks_of
from trainer.export.bundle import save_bundle
from trainer.models.settings import Gru4RecSettings
from trainer.training.train import train

ITEMS, UNKNOWN = 60, 5
KNOWN = tuple(f"i{item}" for item in range(ITEMS))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def sessions_to_serve() -> SessionSet:
    """As long as twice what a row keeps, with repeats, and a tenth of the clicks on items that no model knows."""
    rng = np.random.default_rng(4)
    clicks = [rng.integers(ITEMS + UNKNOWN, size=length).tolist() for length in (2, 5, 31, 66, 40, 3)]
    # Some keep coming back to few items, of which a memory counts more clicks than others remember.
    clicks += [rng.integers(5, size=50).tolist(), [7] * 45]
    clicks += [[ITEMS, ITEMS + 1, 3, 4], [ITEMS, 1, 1, 2, 1, 0]]  # begin with unknown ones
    # More unknown ones in a row than a model looks back on.
    clicks += [[3, ITEMS, ITEMS + 1, 4, ITEMS, 5, 6], [7, *range(ITEMS, ITEMS + UNKNOWN), *[ITEMS] * 4, 8, 9, 9]]
    return sessions_of(clicks, ITEMS + UNKNOWN)


def served(model: Model, sessions: SessionSet, steps: Iterable[Lanes], rules: SessionRules) -> np.ndarray:
    """The rank of every prediction, in the order of the clicks; rows are written and read again after each step."""
    ranks = np.zeros(sessions.clicks)
    rows: dict[str, bytes] = {}
    for lanes in steps:
        chunk = []
        for position, start in zip(lanes.position.tolist(), lanes.start.tolist(), strict=True):
            item_id = sessions.item_ids[sessions.items[position]]
            chunk.append(SourcedClick(Click(f"s{start}", item_id, 1000 + position), position))
        states: dict[str, SessionState] = {key: decode_state(row) for key, row in rows.items()}
        answer = recommend(states, chunk, model, rules)
        rows |= {key: encode_state(state) for key, state in answer.rows.items()}
        for ranked in answer.ranked:
            ranks[ranked.offset] = rank_of(ranked, sessions.item_ids[sessions.items[ranked.offset + 1]], model)
    predicted = np.ones(sessions.clicks, dtype=np.bool_)
    predicted[sessions.offsets[1:] - 1] = False
    return ranks[predicted]


def rank_of(ranked: RankedClick, target: str, model: Model) -> float:
    listed = [model.vocabulary.item(index) for index in ranked.top_index]
    if target not in listed:
        return np.inf
    score = ranked.top_score[listed.index(target)]
    return float(1 + sum(other > score for other in ranked.top_score))


@pytest.mark.parametrize("kept", [30, 31, 255])
@pytest.mark.parametrize("memory", ["none", "all"])
def test_of_a_trained_model(tmp_path: Path, memory: str, kept: int) -> None:
    learned = random_sessions(300, ITEMS)
    chosen = {"hidden_size": 8, "n_sample": 20, "batch_size": 32, "epochs": 1, "memory_holdout": 0.4, "memory": memory}
    result = train(learned, Gru4RecSettings.parse(chosen))
    assert bool(result.memory) == (memory == "all")
    folder = save_bundle(tmp_path, "v1", result, popularity=learned.support(), training={}, metrics={}, created_at=0)
    model, sessions = open_bundle(folder), sessions_to_serve()
    evaluated = ranks_of(ModelScorer(model, sessions), sessions, ties="standard")
    # In the evaluation's batches: sums of other batches may differ in their last bits.
    answered = served(model, sessions, follow(sessions), SessionRules(recent_items=kept))
    assert np.isfinite(evaluated).sum() > 60
    np.testing.assert_array_equal(answered, evaluated)


MODELS = pytest.mark.parametrize(
    "model",
    [
        exact_model("v1", KNOWN, layers=2, recent_size=7),
        sick_model("sick", KNOWN),  # some of its answers are not finite
        own_query_model("own", KNOWN, recent_size=7),
        sick_own_query_model("sick own", KNOWN, recent_size=7),
        window_model("window", KNOWN, recent_size=7, window=5),
        window_model("short", KNOWN, recent_size=1, window=1),
        sick_window_model("sick window", KNOWN),
        no_encoder_model("none", KNOWN, recent_size=2),
    ],
    ids=lambda model: model.version,
)


@MODELS
def test_of_a_model_whose_answers_are_exact_in_any_batch(model: Model) -> None:
    sessions = sessions_to_serve()
    scorer = ModelScorer(model, sessions)
    evaluated = ranks_of(scorer, sessions, ties="standard")
    one_by_one = (
        Lanes(sessions, step.position[lane : lane + 1], step.start[lane : lane + 1])
        for step in follow(sessions)
        for lane in range(len(step.position))
    )
    # A query that no row keeps is recomputed from the items that a row does keep: of all these sessions.
    rules = SessionRules(recent_items=255) if model.own_query else SessionRules()
    answered = served(model, sessions, one_by_one, rules)
    assert np.isfinite(evaluated).sum() > 10
    np.testing.assert_array_equal(answered, evaluated)
    assert bool(scorer.not_finite) == model.version.startswith("sick")


@MODELS
def test_clicks_that_move_no_session_on_are_as_if_they_had_not_been(model: Model) -> None:
    """A worker that sees them, at any time, answers the others as the evaluation of sessions without them does."""
    sessions = sessions_to_serve()
    evaluated = ranks_of(ModelScorer(model, sessions), sessions, ties="standard")
    rules = SessionRules(recent_items=255 if model.own_query else 30, advance_on=frozenset({"view"}))
    rng = np.random.default_rng(8)
    answered, rows, offset = [], dict[str, bytes](), 0
    for number, (start, end) in enumerate(zip(sessions.offsets[:-1], sessions.offsets[1:], strict=True)):
        for position in range(start, end):
            chunk = []
            for _ in range(rng.integers(3)):
                item_id = sessions.item_ids[rng.integers(ITEMS + UNKNOWN)]
                other = Click(f"s{number}", item_id, int(rng.integers(10**9)), type="purchase")
                chunk.append(SourcedClick(other, offset := offset + 1))
            item_id = sessions.item_ids[sessions.items[position]]
            chunk.append(SourcedClick(Click(f"s{number}", item_id, 1000 + int(position)), offset := offset + 1))
            done = recommend({key: decode_state(row) for key, row in rows.items()}, chunk, model, rules)
            rows |= {key: encode_state(state) for key, state in done.rows.items()}
            assert (len(done.ranked), done.unmoved) == (len(chunk), len(chunk) - 1)
            if position + 1 < end:
                answered.append(rank_of(done.ranked[-1], sessions.item_ids[sessions.items[position + 1]], model))
    np.testing.assert_array_equal(answered, evaluated)
