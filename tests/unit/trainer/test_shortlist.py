"""The shortlist's best k are those of the whole catalogue, and it proves what it does not compute."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from schemas.golden import recent_items, same_ranking
from tests.unit.trainer.test_session_memory import whole_memory
from trainer import export, gru4rec
from trainer.session_memory import RECENT, remember
from trainer.settings import TrainingSettings
from trainer.shortlist import shortlist_graph

UNITS, K = 24, 10
UNPROVEN = "shortlist.unproven"

Floats = NDArray[np.float32]


def run(output: Floats, bias: Floats, hidden: Floats) -> tuple[NDArray[np.int64], Floats, int]:
    """Indices, scores, and how many sessions were computed again."""
    nodes, constants = shortlist_graph(output, bias, K)
    graph = helper.make_graph(
        nodes,
        "rank",
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", output.shape[1]])],
        [
            helper.make_tensor_value_info("top_index", TensorProto.INT64, ["batch", K]),
            helper.make_tensor_value_info("top_score", TensorProto.FLOAT, ["batch", K]),
            helper.make_tensor_value_info(UNPROVEN, TensorProto.INT64, ["unproven", 1]),
        ],
        [
            numpy_helper.from_array(output, "output"),
            numpy_helper.from_array(bias, "output_bias"),
            numpy_helper.from_array(np.array([K]), "k"),
            *constants,
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    index, score, unproven = session.run(None, {"hidden": hidden})
    return index, score, len(unproven)


def by_hand(output: Floats, bias: Floats, hidden: Floats) -> tuple[NDArray[np.int64], Floats]:
    scores = hidden @ output.T + bias
    index = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return index, np.take_along_axis(scores, index, axis=1)


def random(items: int, seed: int, *, sessions: int = 40) -> tuple[Floats, Floats, Floats]:
    rng = np.random.default_rng(seed)
    output = rng.standard_normal((items, UNITS)) * rng.lognormal(0, 0.5, (items, 1))  # popular items have longer rows
    bias = rng.standard_normal(items) * 0.5
    hidden = np.tanh(rng.standard_normal((sessions, UNITS)))
    return output.astype(np.float32), bias.astype(np.float32), hidden.astype(np.float32)


@pytest.mark.parametrize("items", [64, 100, 1024, 1025, 5_000])
def test_the_best_are_those_of_the_whole_catalogue(items: int) -> None:
    output, bias, hidden = random(items, seed=items)
    index, score, unproven = run(output, bias, hidden)
    assert same_ranking(by_hand(output, bias, hidden), (index, score))
    assert unproven < len(hidden)  # most are proven, or the shortlist would be in vain


def test_a_shortlist_that_proves_nothing_is_computed_again() -> None:
    """All items nearly alike: the integers cannot tell them apart, and the best are anywhere."""
    rng = np.random.default_rng(0)
    output, bias, hidden = random(2_000, seed=1)
    output = (output[:1] + 1e-4 * rng.standard_normal(output.shape)).astype(np.float32)
    index, score, unproven = run(output, np.zeros_like(bias), hidden)
    assert same_ranking(by_hand(output, np.zeros_like(bias), hidden), (index, score))
    assert unproven == len(hidden)


def test_only_the_sessions_without_proof_are_computed_again() -> None:
    """A state that is small beside the others is far from its rounded self."""
    output, bias, hidden = random(2_000, seed=2)
    output *= 4
    hidden[3] /= 500
    index, score, unproven = run(output, bias, hidden)
    assert same_ranking(by_hand(output, bias, hidden), (index, score))
    assert 0 < unproven < len(hidden)


def test_the_largest_products_do_not_overflow() -> None:
    """On processors whose integer products saturate the pairs of the extremes would."""
    output, bias, hidden = random(1_000, seed=3)
    output[7], hidden[:] = 2.0, 1.0
    index, score, _ = run(output, bias, hidden)
    assert same_ranking(by_hand(output, bias, hidden), (index, score))
    assert (index[:, 0] == np.argmax(output.sum(axis=1) + bias)).all()


def test_a_state_that_is_not_finite_is_not_hidden() -> None:
    output, bias, hidden = random(1_000, seed=4)
    hidden[1, 0] = np.nan
    _, score, unproven = run(output, bias, hidden)
    assert unproven >= 1
    assert not np.isfinite(score[1]).all()


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 1e3])
def test_states_of_any_size(size: float) -> None:
    """Those of a fresh model are small; those of one without a GRU are sums."""
    output, bias, hidden = random(1_000, seed=7)
    hidden *= np.float32(size)
    index, score, unproven = run(output, bias * np.float32(size), hidden)
    assert same_ranking(by_hand(output, bias * np.float32(size), hidden), (index, score))
    if size:
        assert unproven < len(hidden)


def test_rows_of_zeros_and_negative_scores() -> None:
    output, bias, hidden = random(1_000, seed=5)
    output[::2] = 0
    bias -= 1_000
    index, score, _ = run(output, bias, hidden)
    assert same_ranking(by_hand(output, bias, hidden), (index, score))


def test_the_session_memory_counts_for_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its terms move items up and down the list and depend on the scores themselves: all of it in float32."""
    items, sessions = 700, 60
    memory = whole_memory(items)
    weights = gru4rec.initial_weights(items, TrainingSettings(hidden_size=UNITS), torch.Generator().manual_seed(0))
    weights = replace(weights, output=weights.output * 6)
    monkeypatch.setattr(export, "LEAST_ITEMS", 1)
    session = ort.InferenceSession(export.export(weights, memory).rank, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    hidden = np.tanh(rng.standard_normal((sessions, UNITS))).astype(np.float32)
    hidden[5] /= 500  # lost in the integers' steps: computed again
    clicked = rng.integers(items, size=(6, sessions))
    recent, counts, clicks = recent_items(clicked, RECENT)
    recent[7] = -1
    z = torch.from_numpy(hidden @ weights.output.numpy().T + weights.output_bias.numpy())
    scores = remember(memory, z, *map(torch.from_numpy, (recent, counts, clicks))).numpy()
    inputs = {"hidden": hidden, "recent": recent, "counts": counts, "clicks": clicks}
    found = tuple(session.run(["top_index", "top_score"], inputs))
    k = found[0].shape[1]
    index = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert same_ranking((index, np.take_along_axis(scores, index, axis=1)), found)
    without = np.argsort(-z.numpy(), axis=1, kind="stable")[:, :k]
    assert (without[:, 0] != index[:, 0]).any()


def test_one_session_at_a_time_gives_the_same() -> None:
    output, bias, hidden = random(3_000, seed=6, sessions=8)
    together = run(output, bias, hidden)
    for lane in range(len(hidden)):
        alone = run(output, bias, hidden[lane : lane + 1])
        assert same_ranking((together[0][lane : lane + 1], together[1][lane : lane + 1]), (alone[0], alone[1]))
