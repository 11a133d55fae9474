"""The shortlist's best k are those of the whole catalogue, and it proves what it does not compute."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from schemas.bundle.golden import recent_items, same_ranking
from tests.unit.trainer.memory.test_terms import whole_memory
from trainer.export import bundle as export
from trainer.export import shortlist, shortlist_catalogue
from trainer.export.adjust import Adjust
from trainer.export.graph import constant, new_graph, serialized
from trainer.export.shortlist import UNPROVEN, best_of_shortlist
from trainer.export.shortlist_catalogue import Catalogue
from trainer.export.shortlist_scores import Head
from trainer.memory.terms import NO_MEMORY, PLACES, RECENT, RepeatTerm, SessionMemory, remember
from trainer.models import gru4rec
from trainer.models.gru4rec import Weights
from trainer.models.settings import Gru4RecSettings

UNITS, K = 24, 10

Floats = NDArray[np.float32]
Ranking = tuple[NDArray[np.int64], Floats]


def session_of(graph: bytes) -> ort.InferenceSession:
    """On one thread, as a worker has it by default: another would wait in a loop for work that never comes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run(output: Floats, bias: Floats, hidden: Floats) -> tuple[NDArray[np.int64], Floats, int]:
    return ranked(Catalogue(output, bias), hidden)


def ranked(catalogue: Catalogue, hidden: Floats) -> tuple[NDArray[np.int64], Floats, int]:
    """Indices, scores, and how many sessions were computed again."""
    output, bias = catalogue.output, catalogue.bias
    with new_graph("rank") as op:
        head = Head(
            op.builder.input("hidden", ir.DataType.FLOAT, ["batch", output.shape[1]]),
            constant(op, "output", output),
            constant(op, "output_bias", bias),
            constant(op, "k", np.array([K])),
            Adjust.input(op),
        )
        top_index, top_score = best_of_shortlist(op, head, catalogue)
        unproven = next(value for node in op.builder.graph for value in node.outputs if value.name == UNPROVEN)
        model = serialized(op, {"top_index": top_index, "top_score": top_score, UNPROVEN: unproven})
    session = session_of(model)
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


@pytest.mark.parametrize("items", [640, 1024, 1025, 5_000])
def test_blocks_and_pieces_of_a_larger_catalogue(items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist_catalogue, "_LARGE", 100)
    monkeypatch.setattr(shortlist, "_PIECE", 512)
    output, bias, hidden = random(items, seed=items)
    index, score, unproven = run(output, bias, hidden)
    assert same_ranking(by_hand(output, bias, hidden), (index, score))
    assert unproven < len(hidden)


def test_items_alike_are_all_found() -> None:
    """Ties across the end of the list: any of them will do, none may be missing for an item that is worse."""
    output, bias, hidden = random(3_000, seed=8)
    output[100:150], bias[100:150] = output[100], 500
    index, score, _ = run(output, bias, hidden)
    assert ((index >= 100) & (index < 150)).all()
    assert np.allclose(score, (hidden @ output[100] + 500)[:, None], rtol=1e-5)
    assert all(len(set(row)) == K for row in index.tolist())


def test_a_shortlist_that_proves_nothing_is_computed_again() -> None:
    """All items nearly alike: the integers cannot tell them apart, and the best are anywhere."""
    rng = np.random.default_rng(0)
    output, bias, hidden = random(2_000, seed=1)
    output = (output[:1] + 1e-4 * rng.standard_normal(output.shape)).astype(np.float32)
    index, score, unproven = run(output, np.zeros_like(bias), hidden)
    assert same_ranking(by_hand(output, np.zeros_like(bias), hidden), (index, score))
    assert unproven == len(hidden)


def test_only_the_sessions_without_proof_are_computed_again() -> None:
    """A state with one large component loses the others, which alone decide here."""
    output, bias, hidden = random(2_000, seed=2)
    output[:, 0] = 0
    hidden[3] /= 500
    hidden[3, 0] = 64
    index, score, unproven = run(output, bias, hidden)
    assert same_ranking(by_hand(output, bias, hidden), (index, score))
    assert 0 < unproven < len(hidden)


def test_small_weights_of_large_states_are_as_good_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of families that are one model: each has its own sizes of the two."""
    output, bias, hidden = random(2_000, seed=4)
    alike = np.abs(output).max() / np.abs(output).max(axis=0) < 2
    output, hidden = output[:, alike], hidden[:, alike]
    apart = np.where(np.arange(output.shape[1]) < 5, 16, 1).astype(np.float32)
    assert Catalogue(output / apart, bias).evening.tolist() == apart.tolist()
    index, score, unproven = run(output / apart, bias, hidden * apart)
    assert same_ranking(by_hand(output, bias, hidden), (index, score))
    assert unproven == run(output, bias, hidden)[2]
    monkeypatch.setattr(shortlist_catalogue, "_MOST_EVENED", 1)
    assert run(output / apart, bias, hidden * apart)[2] > unproven


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
    by_size = np.float32(size or 1)  # or scores that are all small would pass for equal
    expected, expected_score = by_hand(output, bias * np.float32(size), hidden)
    assert same_ranking((expected, expected_score / by_size), (index, score / by_size))
    if size:
        assert unproven < len(hidden)


@pytest.mark.parametrize("items", [5_000, 37_000])
def test_the_last_item_may_be_the_best(items: int) -> None:
    """What the last blocks are filled up with must not be taken for so many more of the best."""
    output, bias, hidden = random(items, seed=3, sessions=16)
    bias[-1] += 100
    index, score, unproven = run(output, bias, hidden)
    assert same_ranking(by_hand(output, bias, hidden), (index, score))
    assert (index[:, 0] == items - 1).all()
    assert unproven < len(hidden) / 2


def test_rows_of_zeros_and_negative_scores() -> None:
    output, bias, hidden = random(1_000, seed=5)
    output[::2] = 0
    bias -= 1_000
    index, score, _ = run(output, bias, hidden)
    assert same_ranking(by_hand(output, bias, hidden), (index, score))


def remembered(
    weights: Weights,
    memory: SessionMemory,
    hidden: Floats,
    clicked: NDArray[np.int64],
    *,
    first_length: float = 6,
    prune: bool = False,
) -> tuple[Ranking, Ranking, int]:
    """The rankings by hand and by the graph of an export, and how many sessions were computed again.

    The first session is of `first_length` clicks, the second one has no recent item.
    """
    recent, counts, clicks = recent_items(clicked, RECENT if memory else 1)  # as many as the export asks for
    clicks[0] = first_length
    recent[1:2] = -1
    z = torch.from_numpy(hidden @ weights.output.numpy().T + weights.output_bias.numpy())
    scores = remember(memory, z, *map(torch.from_numpy, (recent, counts, clicks))).numpy()
    rank = onnx.load_from_string(export.export(weights, memory, prune=prune).rank)
    rank.graph.output.append(helper.make_tensor_value_info(UNPROVEN, TensorProto.INT64, ["unproven", 1]))
    session = session_of(rank.SerializeToString())
    inputs = {"query": hidden, "recent": recent, "counts": counts, "clicks": clicks}
    inputs = {given.name: inputs[given.name] for given in session.get_inputs()}
    index, score, unproven = session.run(["top_index", "top_score", UNPROVEN], inputs)
    best = np.argsort(-scores, axis=1, kind="stable")[:, : index.shape[1]]
    return (best, np.take_along_axis(scores, best, axis=1)), (index, score), len(unproven)


def weights_of(output: Floats, bias: Floats) -> Weights:
    start = gru4rec.initial_weights(
        len(output), Gru4RecSettings(hidden_size=output.shape[1]), torch.Generator().manual_seed(0)
    )
    return replace(start, output=torch.from_numpy(output), output_bias=torch.from_numpy(bias))


def best_items(output: Floats, bias: Floats, hidden: Floats, count: int) -> NDArray[np.int64]:
    """The best of each session as its clicks, int64[count, B]."""
    return np.argsort(-(hidden @ output.T + bias), axis=1)[:, :count].T.astype(np.int64)


@pytest.fixture(params=[100, 100_000])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small catalogues with a shortlist, in blocks of 8 items and of 1."""
    monkeypatch.setattr(export, "LEAST_ITEMS", 1)
    monkeypatch.setattr(shortlist_catalogue, "_LARGE", request.param)


@pytest.mark.usefixtures("blocks")
def test_the_session_memory_counts_for_what_it_says() -> None:
    """Its terms move items up and down the list and depend on the scores themselves: all of it in float32."""
    output, bias, hidden = random(700, seed=9, sessions=60)
    clicked = np.random.default_rng(0).integers(len(output), size=(6, len(hidden)))
    expected, found, _ = remembered(weights_of(output, bias), whole_memory(len(output)), hidden, clicked)
    assert same_ranking(expected, found)
    without = best_items(output, bias, hidden, 1)[0]
    assert (without != expected[0][:, 0]).any()


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("place", [-20.0, -3.0, 3.0])
@pytest.mark.parametrize("score", [-0.5, 0.5])
def test_a_memory_that_lowers_the_best_lowers_no_other(place: float, score: float) -> None:
    """The best item was the last click, the next ones those before: what these get depends on the best one's score."""
    output, bias, hidden = random(5_000, seed=10, sessions=60)
    places = torch.zeros(PLACES)
    places[0] = place
    term = RepeatTerm(places, torch.tensor(0.0), torch.tensor(score), torch.tensor(0.0))
    clicked = best_items(output, bias, hidden, 4)[::-1]
    memory = replace(NO_MEMORY, repeat=term)
    expected, found, unproven = remembered(weights_of(output, bias), memory, hidden, clicked)
    assert same_ranking(expected, found)
    assert unproven < len(hidden)


@pytest.mark.usefixtures("blocks")
def test_what_one_session_adds_is_no_others() -> None:
    """Where another's list is shorter than its own, too."""
    output, bias, hidden = random(5_000, seed=12, sessions=8)
    clicked = best_items(output, bias, hidden, 6)
    clicked[:, 0] = 16 * np.arange(6)
    term = RepeatTerm(torch.zeros(PLACES), torch.tensor(0.0), torch.tensor(0.0), torch.tensor(1.0))
    memory = replace(NO_MEMORY, repeat=term)
    weights = weights_of(output, bias)
    expected, found, _ = remembered(weights, memory, hidden, clicked, first_length=np.inf)
    assert (found[0] < len(output)).all()
    others = slice(1, None)
    assert same_ranking((expected[0][others], expected[1][others]), (found[0][others], found[1][others]))


@pytest.mark.usefixtures("blocks")
def test_the_session_memory_counts_where_all_is_computed_again() -> None:
    """All items nearly alike: no list is proven."""
    output, _, hidden = random(2_000, seed=11, sessions=33)
    output = (output[:1] + 1e-4 * np.random.default_rng(1).standard_normal(output.shape)).astype(np.float32)
    bias = np.zeros(len(output), np.float32)
    clicked = np.random.default_rng(2).integers(len(output), size=(6, len(hidden)))
    expected, found, unproven = remembered(weights_of(output, bias), whole_memory(len(output)), hidden, clicked)
    assert same_ranking(expected, found)
    assert unproven == len(hidden)


@pytest.mark.parametrize("sessions", [1, 3, 33])
@pytest.mark.parametrize("memory", [False, True], ids=["plain", "memory"])
@pytest.mark.parametrize("items", [20_001, 37_000])
def test_catalogues_and_batches_as_they_are_served(items: int, memory: bool, sessions: int) -> None:
    output, bias, hidden = random(items, seed=items, sessions=sessions)
    clicked = np.random.default_rng(3).integers(items, size=(6, sessions))
    clicked[:2] = best_items(output, bias, hidden, 2)
    known = whole_memory(items) if memory else NO_MEMORY
    expected, found, _ = remembered(weights_of(output, bias), known, hidden, clicked)
    assert same_ranking(expected, found)


def test_one_session_at_a_time_gives_the_same() -> None:
    output, bias, hidden = random(3_000, seed=6, sessions=8)
    together = run(output, bias, hidden)
    for lane in range(len(hidden)):
        alone = run(output, bias, hidden[lane : lane + 1])
        assert same_ranking((together[0][lane : lane + 1], together[1][lane : lane + 1]), (alone[0], alone[1]))


@pytest.mark.parametrize("memory", [False, True], ids=["plain", "memory"])
@pytest.mark.parametrize("items", [300, 20_001, 100_001])
@pytest.mark.parametrize("alike", [False, True], ids=["", "all computed again"])
def test_shorter_lists_are_the_beginning_of_longer_ones(items: int, memory: bool, alike: bool) -> None:
    output, bias, hidden = random(items, seed=items, sessions=5)
    if alike:
        output, bias = (output[:1] + np.float32(1e-4) * output), np.zeros_like(bias)
    recent, counts, clicks = recent_items(best_items(output, bias, hidden, 6), RECENT if memory else 1)
    rank = export.export(weights_of(output, bias), whole_memory(items) if memory else NO_MEMORY, k=30).rank
    session = session_of(rank)
    inputs = {"query": hidden, "recent": recent, "counts": counts, "clicks": clicks}
    inputs = {given.name: inputs[given.name] for given in session.get_inputs()}
    index, score = session.run(["top_index", "top_score"], inputs)
    assert index.shape == (5, 30)
    for k in (1, 7, 29):
        short = session.run(["top_index", "top_score"], {**inputs, "k": np.array([k])})
        assert same_ranking((index[:, :k], score[:, :k]), (short[0], short[1])), k


@pytest.mark.usefixtures("blocks")
def test_a_session_that_is_not_finite_takes_no_others_memory() -> None:
    output, bias, hidden = random(3_000, seed=6)
    clicked = best_items(output, bias, hidden, 6)
    hidden[2] = np.nan
    expected, found, _ = remembered(weights_of(output, bias), whole_memory(len(output)), hidden, clicked)
    own = [[ranking[row : row + 1] for row in range(len(hidden))] for ranking in (*expected, *found)]
    agree = [same_ranking((index, score), (i, s)) for index, score, i, s in zip(*own, strict=True)]
    assert agree == [row != 2 for row in range(len(hidden))]
