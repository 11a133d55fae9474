"""The graphs of the counting families answer what the models say, for any row that a worker may have."""

from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.bundle.golden import recent_items, same_ranking
from tests.unit.trainer.builders import random_sessions, sessions_of
from tests.unit.trainer.memory.test_terms import ITEMS, whole_memory
from trainer.evaluation.baselines import BASELINES
from trainer.export import counting_graph
from trainer.export.counting_graph import counting_rank, counting_ranking, recent_size_of
from trainer.memory.terms import NO_MEMORY, RECENT, SessionMemory
from trainer.models.counting import CountingModel, CountingSettings, ItemCounts, item_knn, markov_chain, pop
from trainer.models.settings import TrainingSettings

K, WINDOW = 10, 6
CASES = {
    **{name: {"family": name, "window": WINDOW} for name in BASELINES},
    "few neighbours": {"family": "vs-knn", "neighbours": 3, "newest": 8, "window": WINDOW},
    "division": {"family": "vs-knn", "weighting": "division", "neighbours": 4, "idf": False, "window": WINDOW},
    "few of stan": {"family": "stan", "neighbours": 4, "newest": 9, "recency": 0.5, "window": WINDOW},
    "one click": {"family": "markov-chain", "window": 1},
}
Row = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]
Sessions = list[list[int]]

# -1 is a click on an item that the model does not know; a session may be longer than a row.
sessions = st.lists(st.lists(st.integers(-1, ITEMS - 1), max_size=3 * WINDOW), max_size=5)
alike = st.lists(st.lists(st.integers(-1, 2), max_size=3 * WINDOW), min_size=1, max_size=3)  # many repeats


@cache
def model_of(case: str) -> CountingModel:
    quick = {"epochs": 2, "factors": 5} if case == "bpr-mf" else {}
    settings = TrainingSettings.parse({**CASES[case], **quick})
    assert isinstance(settings, CountingSettings)
    return settings.count(random_sessions(200, ITEMS, seed=6))


@cache
def session_of(case: str) -> ort.InferenceSession:
    return opened(counting_rank(model_of(case), k=K))


def opened(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # another would wait in a loop for work that never comes
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def rows_of(clicks: Sessions, size: int) -> Row:
    """As a worker makes them: of the last R clicks those on known items."""
    items = np.full((size, len(clicks)), -1)
    for row, session in enumerate(clicks):
        last = session[-size:]
        items[: len(last), row] = last
    recent, counts, _ = recent_items(items, size)
    return recent, counts, np.array([len(session) for session in clicks], np.float32)


def answer(
    graph: ort.InferenceSession, row: Row, k: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    inputs = dict(zip(("recent", "counts", "clicks"), row, strict=True))
    chosen = {} if k is None else {"k": np.array([k])}
    index, score = graph.run(["top_index", "top_score"], inputs | chosen)
    return index, score


@pytest.mark.parametrize("case", list(CASES))
@given(clicks=st.one_of(sessions, alike))
def test_the_graph_answers_what_the_model_says(case: str, clicks: Sessions) -> None:
    model = model_of(case)
    row = rows_of(clicks, recent_size_of(model))
    expected, found = counting_ranking(model, *row, k=K), answer(session_of(case), row)
    if isinstance(model, ItemCounts):  # sums of two numbers: to the bit
        assert np.array_equal(expected[0], found[0])
        assert np.array_equal(expected[1], found[1])
    assert found[0].shape == (len(clicks), K)
    assert same_ranking(expected, found)


@pytest.mark.parametrize("case", list(CASES))
def test_a_session_alone_has_the_answer_that_it_has_in_a_batch(case: str) -> None:
    row = rows_of([[3, 4, 5], [], [7], [1, 2, 1, 9, 30, 31, 32], [-1, 5]], recent_size_of(model_of(case)))
    together = answer(session_of(case), row)
    for one in range(5):
        alone = answer(session_of(case), tuple(part[one : one + 1] for part in row))  # type: ignore[arg-type]
        assert same_ranking((together[0][one : one + 1], together[1][one : one + 1]), alone)


@pytest.mark.parametrize("case", list(BASELINES))
def test_a_shorter_list_is_the_beginning_of_a_longer_one(case: str) -> None:
    row = rows_of([[3, 4, 5], [8]], recent_size_of(model_of(case)))
    index, score = answer(session_of(case), row)
    short = answer(session_of(case), row, k=4)
    assert same_ranking((index[:, :4], score[:, :4]), short)


@pytest.mark.parametrize("case", list(BASELINES))
@pytest.mark.parametrize("memory", [NO_MEMORY, whole_memory()], ids=["plain", "memory"])
def test_a_session_memory_is_added_to_the_scores(case: str, memory: SessionMemory) -> None:
    model = model_of(case)
    size = recent_size_of(model, memory)
    assert size == RECENT if memory else size == model.recent_size
    row = rows_of([[3, 4, 5], [8, 8, 2], list(range(ITEMS)), []], size)
    found = answer(opened(counting_rank(model, k=K, memory=memory)), row)
    assert same_ranking(counting_ranking(model, *row, k=K, memory=memory), found)


@pytest.mark.parametrize("memory", [NO_MEMORY, whole_memory()], ids=["plain", "memory"])
def test_factors_of_a_large_catalogue_have_a_shortlist(memory: SessionMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting_graph, "LEAST_ITEMS", 10)
    model = model_of("bpr-mf")
    graph = counting_rank(model, k=K, memory=memory)
    assert b"shortlist" in graph
    row = rows_of([[3, 4, 5], [8, 8, 2], [], [1] * 40], recent_size_of(model, memory))
    assert same_ranking(counting_ranking(model, *row, k=K, memory=memory), answer(opened(graph), row))


def test_of_equal_scores_the_lower_index_comes_first() -> None:
    model = item_knn(sessions_of([[4, 2], [0, 1], [3, 3]], items=8))
    index, score = answer(opened(counting_rank(model, k=5)), rows_of([[4], [3]], model.recent_size))
    assert index.tolist() == [[2, 0, 1, 3, 4], [0, 1, 2, 3, 4]]
    assert score[:, 1:].max() == 0


def test_counts_beyond_half_precision_are_exact() -> None:
    model = markov_chain(sessions_of([[0, 1]] * 4099 + [[0, 2]] * 4097, items=3))
    index, score = answer(opened(counting_rank(model, k=2)), rows_of([[0]], model.recent_size))
    assert index.tolist() == [[1, 2]]
    assert score.tolist() == [counting_ranking(model, *rows_of([[0]], model.recent_size), k=2)[1][0].tolist()]
    assert score[0, 0] - score[0, 1] >= 2


def test_lists_are_no_longer_than_the_catalogue() -> None:
    model = pop(sessions_of([[0, 1], [1, 2]]))
    index, score = answer(opened(counting_rank(model, k=30)), rows_of([[0]], model.recent_size))
    assert (index.tolist(), score.tolist()) == ([[1, 0, 2]], [[2, 1, 1]])


def test_another_kind_of_model_has_no_graph() -> None:
    class Other(ItemCounts):
        pass

    class Unknown:
        items, recent_size = 3, 1

    assert counting_rank(Other(np.zeros(3, np.float32)), k=1)
    with pytest.raises(TypeError, match="Unknown has no rank graph"):
        counting_rank(Unknown(), k=1)  # type: ignore[arg-type]
