"""What may not be shown, and boosts: the list is that of ranking everything, less what is left out."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.bundle.adjust import ADJUSTS, EXCLUDED
from schemas.bundle.golden import recent_items, same_ranking
from schemas.bundle.manifest import RANK
from schemas.bundle.onnx_file import turned_on
from tests.unit.examples import at_most
from tests.unit.trainer.builders import random_sessions
from tests.unit.trainer.export.test_shortlist import best_items, random, session_of, weights_of
from tests.unit.trainer.export.test_tail import small_tails, trained, trained_network
from tests.unit.trainer.memory.test_terms import whole_memory
from trainer.export import bundle as export
from trainer.export import counting_graph, shortlist, shortlist_catalogue, tail
from trainer.export.counting_graph import counting_rank, recent_size_of
from trainer.export.shortlist import UNPROVEN
from trainer.memory.terms import NO_MEMORY, RECENT, remember
from trainer.models.counting import CountingSettings
from trainer.models.settings import TrainingSettings

ITEMS, SESSIONS, K = 1_500, 12, 10

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

LISTED = ["shortlist", "shortlist in blocks", "shortlist with a tail"]
HEADS = ["small", *LISTED, "pop", "item-knn", "vs-knn", "bpr-mf", "bpr-mf in blocks"]


@cache
def head(kind: str, memory: bool) -> tuple[ort.InferenceSession, dict[str, NDArray[Any]], Floats]:
    """A graph that adjusts, inputs of a few sessions, and all scores of theirs, f32[B, I]."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (export, counting_graph):
            patched.setattr(module, "LEAST_ITEMS", ITEMS + 1 if kind in ("small", "bpr-mf") else 1)
        if "blocks" in kind:
            patched.setattr(shortlist_catalogue, "_LARGE", 100)
            patched.setattr(shortlist, "_PIECE", 512)
        if "tail" in kind:
            small_tails(patched)
            patched.setattr(tail, "_LISTED_COST", 1)  # of so few items a tail saves little
        return _head(kind, memory)


def _head(kind: str, memory: bool) -> tuple[ort.InferenceSession, dict[str, NDArray[Any]], Floats]:
    output, bias, hidden = (trained if "tail" in kind else random)(ITEMS, seed=1, sessions=SESSIONS)
    known = whole_memory(ITEMS) if memory else NO_MEMORY
    clicked = best_items(output, bias, hidden, 6)
    size = RECENT if memory else 1
    if kind in ("small", *LISTED):
        network = (trained_network if "tail" in kind else weights_of)(output, bias)
        exported = export.export(network, known, k=K, prune="tail" in kind)
        rank = exported.rank
        assert (exported.pruned_items > 0) == ("tail" in kind)
        recent, counts, clicks = recent_items(clicked, size)
        scores = hidden @ output.T + bias
    else:
        quick = {"epochs": 1, "factors": 5} if kind.startswith("bpr-mf") else {}
        settings = TrainingSettings.parse({"family": kind.split(maxsplit=1)[0], **quick})
        assert isinstance(settings, CountingSettings)
        model = settings.count(random_sessions(300, ITEMS, seed=6))
        rank = counting_rank(model, k=K, memory=known)
        recent, counts, clicks = recent_items(clicked, recent_size_of(model, known))
        scores = model.scores(recent, counts, clicks)
    row = (recent, counts, clicks)
    if memory:
        scores = remember(known, torch.from_numpy(scores), *map(torch.from_numpy, row)).numpy()
    turned = turned_on(RANK, rank, ADJUSTS)
    assert turned is not None
    opened = session_of(turned)
    inputs: dict[str, NDArray[Any]] = {"query": hidden, "recent": recent, "counts": counts, "clicks": clicks}
    return opened, {given.name: inputs[given.name] for given in opened.get_inputs()}, scores


def expected(scores: Floats, adjust: Floats, k: int) -> list[tuple[Ints, Floats]]:
    """By hand: of each session those that may be shown, best first."""
    shown = np.flatnonzero(adjust > EXCLUDED / 2)
    lists = []
    for own in scores + adjust:
        best = shown[np.argsort(-own[shown], kind="stable")][:k]
        lists.append((best, own[best]))
    return lists


def check(kind: str, memory: bool, adjust: Floats, k: int) -> None:
    opened, inputs, scores = head(kind, memory)
    index, score = opened.run(["top_index", "top_score"], {**inputs, "adjust": adjust, "k": np.array([k])})
    assert index.shape == (SESSIONS, k)
    for row, (best, best_score) in enumerate(expected(scores, adjust, k)):
        there = score[row] > EXCLUDED / 2
        assert there.sum() == len(best) == min(k, (adjust > EXCLUDED / 2).sum())
        assert not there[len(best) :].any()
        found = index[row : row + 1, : len(best)], score[row : row + 1, : len(best)]
        assert same_ranking((best[None], best_score[None].astype(np.float32)), found)


@st.composite
def adjusts(draw: st.DrawFn) -> Floats:
    """A part of the catalogue left out, from none to all but a few; here and there boosts of any size."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    adjust = np.zeros(ITEMS, np.float32)
    for boost in draw(st.lists(st.sampled_from([-100, -1.5, 0.001, 0.7, 3, 100]), max_size=2)):
        adjust[rng.random(ITEMS) < draw(st.sampled_from([0.002, 0.1, 0.6]))] = boost
    shown = draw(st.one_of(st.integers(0, 30), st.sampled_from([ITEMS // 100, ITEMS // 2, ITEMS - 15, ITEMS])))
    left_out = rng.permutation(ITEMS)[shown:] if draw(st.booleans()) else np.arange(shown, ITEMS)
    adjust[left_out] = EXCLUDED
    return adjust


@pytest.mark.parametrize("memory", [False, True], ids=["plain", "memory"])
@pytest.mark.parametrize("kind", HEADS)
@at_most(30)
@given(adjust=adjusts(), k=st.sampled_from([1, K, 60]))
def test_the_list_is_that_of_everything_less_what_is_left_out(kind: str, memory: bool, adjust: Floats, k: int) -> None:
    check(kind, memory, adjust, k)


@pytest.mark.parametrize("memory", [False, True], ids=["plain", "memory"])
@pytest.mark.parametrize("kind", HEADS)
def test_the_best_items_of_all_may_be_left_out(kind: str, memory: bool) -> None:
    """What a memory adds depends on the best score of all, whether its item is shown or not."""
    *_, scores = head(kind, memory)
    adjust = np.zeros(ITEMS, np.float32)
    adjust[np.unique(np.argsort(-scores, axis=1)[:, :40])] = EXCLUDED
    check(kind, memory, adjust, K)


@pytest.mark.parametrize("kind", ["shortlist", "shortlist in blocks"])
@pytest.mark.parametrize("memory", [False, True], ids=["plain", "memory"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_most_lists_are_proven_whatever_is_left_out(
    kind: str, memory: bool, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LEAST_ITEMS", 1)
    if "blocks" in kind:
        monkeypatch.setattr(shortlist_catalogue, "_LARGE", 100)
    items = 8_000
    output, bias, hidden = random(items, seed=3, sessions=SESSIONS)
    rank = export.export(weights_of(output, bias), whole_memory(items) if memory else NO_MEMORY).rank
    graph = onnx.load_from_string(turned_on(RANK, rank, ADJUSTS) or b"")
    graph.graph.output.append(onnx.helper.make_tensor_value_info(UNPROVEN, onnx.TensorProto.INT64, ["unproven", 1]))
    opened = session_of(graph.SerializeToString())
    recent, counts, clicks = recent_items(best_items(output, bias, hidden, 6), RECENT if memory else 1)
    inputs = {"query": hidden, "recent": recent, "counts": counts, "clicks": clicks}
    adjust = np.where(np.random.default_rng(0).random(items) < share, EXCLUDED, 0).astype(np.float32)
    inputs = {given.name: inputs[given.name] for given in opened.get_inputs()}
    [unproven] = opened.run([UNPROVEN], {**inputs, "adjust": adjust})
    assert len(unproven) < SESSIONS / 2


@pytest.mark.parametrize("items", [700, 20_001, 100_001])
def test_nothing_is_left_of_it_where_nothing_is_adjusted(items: int, tmp_path: Path) -> None:
    """ONNX Runtime takes the condition for the constant that it is, and the adjusting branches out of the graph."""
    output, bias, _ = random(items, seed=2)
    rank = export.export(weights_of(output, bias), whole_memory(items)).rank
    looks = []
    for graph in (rank, turned_on(RANK, rank, ADJUSTS)):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
        looks.append(sum("adjust" in node.input or ADJUSTS in node.input for node in nodes))
    assert looks[0] == 0
    assert looks[1] > 0
