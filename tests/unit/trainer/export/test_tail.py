"""A tail's items are found where they are among the best, and nobody computes them where they are not."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.bundle.files import Model, open_bundle
from schemas.bundle.golden import recent_items, same_ranking
from schemas.bundle.manifest import RANK
from schemas.bundle.terms import Terms
from tests.unit.examples import at_most
from tests.unit.trainer.builders import random_sessions
from tests.unit.trainer.export.test_shortlist import (
    UNITS,
    best_items,
    by_hand,
    random,
    ranked,
    remembered,
    session_of,
    weights_of,
)
from tests.unit.trainer.memory.test_terms import whole_memory
from trainer.data.sessions import SessionSet
from trainer.export import bundle as export
from trainer.export import shortlist, shortlist_catalogue, tail
from trainer.export.graph import new_graph, serialized
from trainer.export.parity import check_parity
from trainer.export.sample import Sample
from trainer.export.shortlist_catalogue import Catalogue
from trainer.export.tail import Tail
from trainer.memory.terms import NO_MEMORY, PLACES, RepeatTerm, SessionMemory, remember
from trainer.memory.trained import TrainedModel
from trainer.models.base import Network
from trainer.models.gru4rec import Weights
from trainer.models.mixed import MixedSettings, initial_mixed
from trainer.models.settings import Gru4RecSettings
from trainer.training.refresh import refreshed

K = 10
Floats = NDArray[np.float32]


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        small_tails(patched)
        yield


def small_tails(patched: pytest.MonkeyPatch) -> None:
    """Catalogues of a thousand items count as very large."""
    patched.setattr(shortlist_catalogue, "_LARGE", 100)
    patched.setattr(shortlist_catalogue, "_BLOCK_OF_LARGE", 2)
    patched.setattr(shortlist, "_PIECE", 512)
    patched.setattr(tail, "_LEAST_FRONT", 2 * K)
    patched.setattr(export, "LEAST_ITEMS", 1)
    patched.setattr(export, "LEAST_WITH_TAIL", 1_000)


def trained(items: int, seed: int, *, sessions: int = 40) -> tuple[Floats, Floats, Floats]:
    """As training leaves weights: one item in ten has a long row, all over the catalogue."""
    output, bias, hidden = random(items, seed, sessions=sessions)
    output[np.random.default_rng(seed).random(items) > 0.1] *= np.float32(0.1)
    return output, bias - np.float32(3), hidden


def trained_network(output: Floats, bias: Floats) -> Weights:
    """States are large, as training makes them; those of a new network are near 0."""
    start = weights_of(output, bias)
    return replace(
        start, layers=tuple(replace(layer, w=layer.w * 100) for layer in start.layers if layer.w is not None)
    )


def chosen(output: Floats, bias: Floats, queries: Floats) -> Catalogue:
    """With a tail if that pays for these queries."""
    sample = Sample(queries, by_hand(output, bias, queries)[1][:, K - 1])
    return shortlist.with_tail(Catalogue(output, bias), sample, memory=False)


def with_tail(output: Floats, bias: Floats, queries: Floats) -> tuple[Catalogue, Tail]:
    catalogue = chosen(output, bias, queries)
    assert catalogue.tail is not None
    assert catalogue.front < len(output) / 2
    return catalogue, catalogue.tail


def split(output: Floats, bias: Floats, order: NDArray[np.int64], front: int, *, size: int, usual: float) -> Catalogue:
    """With the items in this order, whatever that costs."""
    catalogue = Catalogue(output, bias)
    rows = output * catalogue.evening
    central = rows.mean(axis=0)
    distance = np.linalg.norm(rows - central, axis=1)
    kappa = distance * np.float32(usual) + bias
    parts = Tail.of(order, front, size, central=central, usual=usual, kappa=kappa, distance=distance)
    return replace(catalogue, tail=parts)


@pytest.mark.parametrize("items", [3_000, 4_096, 5_001])
def test_the_best_are_those_of_the_whole_catalogue(items: int) -> None:
    output, bias, hidden = trained(items, seed=items)
    index, score, unproven = ranked(with_tail(output, bias, hidden)[0], hidden)
    assert same_ranking(by_hand(output, bias, hidden), (index, score))
    assert unproven < len(hidden) / 4


@at_most(15)
@given(
    seed=st.integers(0, 2**32 - 1),
    items=st.integers(700, 1_500),
    front=st.integers(1, 600),
    usual=st.sampled_from([0.0, 1.0, 5.0, 100.0]),
    length=st.sampled_from([1e-3, 0.3, 1.0, 10.0]),
    alike=st.integers(0, 60),
)
def test_it_is_exact_wherever_the_front_ends(
    *, seed: int, items: int, front: int, usual: float, length: float, alike: int
) -> None:
    """In any order, for any usual length, with as many items alike as lists are long and more."""
    rng = np.random.default_rng(seed)
    output, bias, hidden = trained(items, seed, sessions=6)
    hidden *= np.float32(length)
    same = rng.permutation(items)[:alike]
    output[same], bias[same] = output[same[:1]], bias.max()
    catalogue = split(output, bias, rng.permutation(items), front, size=32, usual=usual)
    index, score, _ = ranked(catalogue, hidden)
    assert same_ranking(by_hand(output, bias, hidden), (index, score))
    assert all(len(set(row)) == K for row in index.tolist())


def test_nobody_gets_one_unasked() -> None:
    output, bias, _ = trained(3_000, seed=6)
    exported = [export.export(trained_network(output, bias), k=K, prune=prune).pruned_items for prune in (False, True)]
    assert exported[0] == 0 < exported[1]


def test_random_weights_have_none() -> None:
    rng = np.random.default_rng(1)
    output = rng.uniform(-0.1, 0.1, (5_000, UNITS)).astype(np.float32)
    hidden = np.tanh(rng.standard_normal((40, UNITS))).astype(np.float32)
    assert chosen(output, np.zeros(5_000, np.float32), hidden).tail is None


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_weights_that_are_not_finite_have_none(broken: float) -> None:
    output, bias, hidden = trained(3_000, seed=7)
    output[17, 3] = broken
    sample = Sample(hidden, np.zeros(len(hidden), np.float32))
    with np.errstate(invalid="ignore"):
        assert shortlist.with_tail(Catalogue(output, bias), sample, memory=False).tail is None


@pytest.mark.parametrize("longer", [1, 4, 40])
def test_states_that_its_end_was_not_chosen_for(longer: float) -> None:
    """They point at items of the tail, and are longer than usual."""
    output, bias, hidden = trained(5_000, seed=2)
    catalogue, parts = with_tail(output, bias, hidden)
    aims = output[parts.order[catalogue.front :: 100]]
    hidden = aims * (np.float32(longer) * np.linalg.norm(hidden, axis=1).mean() / np.linalg.norm(aims, axis=1)[:, None])
    index, score, _ = ranked(catalogue, hidden)
    assert same_ranking(by_hand(output, bias, hidden), (index, score))


@pytest.mark.parametrize("size", [0.0, 1e-30, 0.1, 1.0, 1e3])
def test_no_score_is_above_its_bound(size: float) -> None:
    output, bias, hidden = trained(3_000, seed=3)
    catalogue, parts = with_tail(output, bias, hidden)
    hidden *= np.float32(size)
    with new_graph("bounds") as op:
        state = op.builder.input("state", ir.DataType.FLOAT, ["batch", UNITS])
        model = serialized(op, {"bounds": parts.bounds(op, state)})
    session = session_of(model)
    (bounds,) = session.run(None, {"state": hidden / catalogue.evening})
    order = parts.order[catalogue.front :]
    scores = hidden.astype(np.float64) @ output[order].T.astype(np.float64) + bias[order]
    highest = np.maximum.reduceat(scores, np.arange(0, len(order), parts.size), axis=1)
    assert bounds.shape == highest.shape
    assert (bounds >= highest).all()


def test_the_best_may_all_be_of_the_tail() -> None:
    """Ties across the end of the list: any of them will do, none may be missing for an item that is worse."""
    output, bias, hidden = trained(3_000, seed=4)
    catalogue, parts = with_tail(output, bias, hidden)
    alike = parts.order[catalogue.front + 500 : catalogue.front + 540]
    output[alike], bias[alike] = 0, 50
    index, score, _ = ranked(split(output, bias, parts.order, parts.front, size=parts.size, usual=parts.usual), hidden)
    assert np.isin(index, alike).all()
    assert np.allclose(score, 50)
    assert all(len(set(row)) == K for row in index.tolist())


def test_states_that_are_not_finite_are_not_hidden() -> None:
    output, bias, hidden = trained(3_000, seed=5)
    catalogue, _ = with_tail(output, bias, hidden)
    for sessions in (1, len(hidden)):
        broken = hidden[:sessions].copy()
        broken[0, 0] = np.nan
        _, score, unproven = ranked(catalogue, broken)
        assert unproven >= 1
        assert not np.isfinite(score[0]).all()


@pytest.mark.parametrize(("place", "score"), [(-3.0, 0.5), (3.0, -0.5)])
def test_a_session_memory_counts_for_items_of_a_tail(place: float, score: float) -> None:
    output, bias, hidden = trained(3_000, seed=6, sessions=60)
    places = torch.zeros(PLACES)
    places[0] = place
    repeat = RepeatTerm(places, torch.tensor(0.0), torch.tensor(score), torch.tensor(0.0))
    clicked = best_items(output, bias, hidden, 6)[::-1].copy()
    clicked[1::2] = np.random.default_rng(1).integers(len(output), size=clicked[1::2].shape)
    weights = trained_network(output, bias)
    for memory in (whole_memory(len(output)), replace(NO_MEMORY, repeat=repeat)):
        assert export.export(weights, memory, prune=True).pruned_items > len(output) / 4
        expected, found, unproven = remembered(weights, memory, hidden, clicked, prune=True)
        assert same_ranking(expected, found)
        assert unproven < len(hidden)


# -- whole bundles -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so few items a tail saves little, which would be a reason against it."""
    monkeypatch.setattr(tail, "_LISTED_COST", 1.0)
    monkeypatch.setattr(tail, "_FLOAT_COST", 1.0)


def opened(folder: Path, model: TrainedModel, sessions: SessionSet) -> tuple[Model, bytes]:
    """The bundle of a model, which answers as the network does, and its rank graph."""
    made = export.save_bundle(folder, "v1", model, popularity=sessions.support(), training={}, metrics={}, created_at=0)
    bundle = open_bundle(made)
    assert check_parity(model.network, bundle, sessions, memory=model.memory) > 100
    return bundle, (made / RANK).read_bytes()


def gru_with_memory(items: int) -> TrainedModel:
    output, bias, _ = trained(items, seed=8)
    ids = tuple(f"i{item}" for item in range(items))
    return TrainedModel(
        weights=trained_network(output, bias),
        item_ids=ids,
        settings=Gru4RecSettings(hidden_size=UNITS, list_length=K, prune=True),
        memory=whole_memory(items),
    )


@pytest.mark.usefixtures("cheap")
def test_a_bundle_says_how_many_items_its_tail_has_and_gives_shorter_lists(tmp_path: Path) -> None:
    model = gru_with_memory(3_000)
    bundle, graph = opened(tmp_path, model, random_sessions(60, 3_000, seed=7))
    assert 1_000 < bundle.manifest.pruned_items < 3_000
    query = trained(3_000, seed=8)[2]
    session = recent_items(np.random.default_rng(0).integers(3_000, size=(6, len(query))), bundle.recent_size)
    index, score = bundle.rank(query, *session)
    assert index.shape == (40, K)
    of_any_length = session_of(graph)
    inputs = dict(zip(["query", "recent", "counts", "clicks"], [query, *session], strict=True))
    for k in (1, 7):
        short = of_any_length.run(["top_index", "top_score"], {**inputs, "k": np.array([k])})
        assert same_ranking((index[:, :k], score[:, :k]), (short[0], short[1]))


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(("items", "has_tail"), [(999, False), (1_000, True)])
def test_a_catalogue_is_large_enough_or_not(items: int, has_tail: bool) -> None:
    exported = export.export(trained_network(*trained(items, seed=9)[:2]), k=K, prune=True)
    assert (exported.pruned_items > 0) == has_tail


@pytest.mark.usefixtures("cheap")
def test_a_ranking_is_explained_term_by_term(tmp_path: Path) -> None:
    model = gru_with_memory(3_000)
    terms = Terms.of(*opened(tmp_path, model, random_sessions(60, 3_000, seed=7)))
    assert terms.depth == K
    query = trained(3_000, seed=8)[2]
    session = recent_items(best_items(*trained(3_000, seed=8), 6), terms.model.recent_size)
    z = model.network.scores(torch.from_numpy(query))
    parts: dict[str, SessionMemory] = {
        "repeat": replace(model.memory, repeat=None),
        "cooccurrence": replace(model.memory, cooccurrence=None),
        "transitions": replace(model.memory, transitions=None),
    }
    for term, memory in parts.items():
        scores = remember(memory, z, *map(torch.from_numpy, session)).numpy()
        best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        without = terms.without(term).rank(query, *session)
        assert same_ranking((best, np.take_along_axis(scores, best, axis=1)), without)


@pytest.mark.usefixtures("cheap")
def test_a_refresh_chooses_anew_for_the_items_that_it_adds(tmp_path: Path) -> None:
    sessions = random_sessions(60, 3_300, seed=7)
    trained_model = gru_with_memory(3_000)
    model, found = refreshed(trained_model, sessions)
    assert len(model.item_ids) > 3_000
    bundle, _ = opened(tmp_path, model, found)
    assert bundle.manifest.catalogue_size == len(model.item_ids)
    assert bundle.manifest.pruned_items > 1_000


@pytest.mark.usefixtures("cheap")
def test_several_families_as_one_model_have_one_tail(tmp_path: Path) -> None:
    items = 3_000
    settings = MixedSettings.parse(
        {
            "family": "gru4rec+sasrec",
            "memory": "none",
            "window": 5,
            "list_length": K,
            "prune": True,
            "gru4rec.hidden_size": 8,
            "sasrec.hidden_size": 12,
        }
    )
    generator = torch.Generator().manual_seed(1)
    network: Network = initial_mixed(items, settings, generator)
    # One family's rows are large, and one item in ten has long ones.
    output = torch.tensor([5.0] * 8 + [0.1] * 12) * torch.randn(items, 20, generator=generator)
    output[torch.rand(items, generator=generator) > 0.1] *= 0.1
    network = network.with_tensors({**network.tensors(), "output": output})
    sessions = random_sessions(60, items, seed=7)
    bundle, _ = opened(tmp_path, TrainedModel(weights=network, item_ids=sessions.item_ids, settings=settings), sessions)
    assert bundle.manifest.pruned_items > 1_000
