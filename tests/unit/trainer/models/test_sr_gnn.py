from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch

from trainer.models.sr_gnn import SrGnnEncoder, SrGnnSettings, edges, nodes_of_clicks

Array = npt.NDArray[np.float32]


def small_encoder(steps: int) -> SrGnnEncoder:
    torch.manual_seed(1)
    encoder = SrGnnEncoder(SrGnnSettings(hidden_size=5, steps=steps)).eval()
    torch.nn.init.normal_(encoder.heard_bias)
    return encoder


def graph(session: list[int], width: int) -> tuple[list[list[float]], list[list[float]]]:
    """A_out and A_in of one session among padding."""
    items = torch.tensor([session + [-1] * (width - len(session))])
    to, back = edges(nodes_of_clicks(items).float())
    return to[0].tolist(), back[0].tolist()


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def by_hand(encoder: SrGnnEncoder, items: list[int], rows: Array) -> Array:
    """The paper's equations on a graph with a node for each distinct item: rows [T, H] -> query [H]."""
    w = {name: parameter.detach().numpy() for name, parameter in encoder.named_parameters()}

    def layer(name: str, x: Array) -> Array:
        return np.asarray(x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0))

    distinct = sorted(set(items))
    node = [distinct.index(item) for item in items]
    v = np.stack([rows[items.index(item)] for item in distinct])
    times = np.zeros((len(distinct), len(distinct)), np.float32)
    for one, following in pairwise(node):
        times[one, following] += 1
    to = times / np.maximum(times.sum(1, keepdims=True), 1)
    back = times.T / np.maximum(times.T.sum(1, keepdims=True), 1)
    for _ in range(encoder.steps):
        a = np.hstack([back @ layer("incoming", v), to @ layer("outgoing", v)]) + w["heard_bias"]
        heard, own = layer("gates_heard", a), layer("gates_node", v)
        z, r = sigmoid(heard[:, :5] + own[:, :5]), sigmoid(heard[:, 5:10] + own[:, 5:])
        v = (1 - z) * v + z * np.tanh(heard[:, 10:] + layer("candidate_node", r * v))
    clicks = v[node]
    weights = layer("attention_weight", sigmoid(layer("attention_last", clicks[-1]) + layer("attention_each", clicks)))
    return layer("hybrid", np.concatenate([clicks[-1], (weights * clicks).sum(0)]))


@pytest.mark.parametrize("steps", [1, 2])
def test_queries_are_those_of_the_papers_equations(steps: int) -> None:
    encoder = small_encoder(steps)
    table = torch.randn(9, 5)
    sessions = [[1, 2, 3, 2, 4], [7, 7, 1, 7, 7], [8, 0], [6]]
    items = torch.tensor([session + [-1] * (5 - len(session)) for session in sessions])
    found = encoder(table[items], items, torch.tensor([5, 5, 2, 1])).detach().numpy()
    for query, session in zip(found, sessions, strict=True):
        np.testing.assert_allclose(query, by_hand(encoder, session, table[session].numpy()), atol=1e-6)


def test_the_graph_is_that_of_the_papers_figure() -> None:
    # v1 v2 v3 v2 v4; nodes at 0, 1, 2 and 4, nothing at the repeat of v2, nor at the padding behind.
    to, back = graph([1, 2, 3, 2, 4], 6)
    assert to == [
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0.5, 0, 0.5, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert back == [
        [0, 0, 0, 0, 0, 0],
        [0.5, 0, 0.5, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_an_edge_counts_as_often_as_it_occurs() -> None:
    to, back = graph([5, 6, 5, 6, 5, 7], 6)
    np.testing.assert_allclose(to[0], [0, 2 / 3, 0, 0, 0, 1 / 3])
    np.testing.assert_allclose(to[1], [1, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(back[1], [1, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(("session", "edge"), [([4], 0), ([4, 4], 1), ([4, 4, 4], 1)])
def test_a_repeated_click_is_an_edge_to_itself_and_one_click_has_none(session: list[int], edge: int) -> None:
    for of_node in graph(session, 3):
        assert of_node == [[edge, 0, 0], [0, 0, 0], [0, 0, 0]]
