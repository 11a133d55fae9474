"""A GRU over a window at once is the GRU click by click."""

import pytest
import torch
from torch import Tensor

from trainer.models import gru4rec
from trainer.models.gru4rec import Weights, initial_weights
from trainer.models.settings import Gru4RecSettings, window_numbers
from trainer.models.unrolled import rolled, unrolled

ITEMS, WINDOW = 20, 6
KINDS: tuple[dict[str, object], ...] = (
    {},
    {"embedding": "separate", "layers": 2},
    {"embedding": "one-hot"},
    {"embedding": "one-hot", "layers": 2, "input_decay": 0.5},
    {"layers": 3, "deep_input": True, "input_decay": 0.3},
    {"embedding": "separate", "layers": 2, "deep_input": True},
    {"layers": 0},
    {"layers": 0, "input_decay": 0.7},
)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def drawn(kind: dict[str, object]) -> tuple[Weights, Gru4RecSettings]:
    settings = Gru4RecSettings.parse({"hidden_size": 5, **kind})
    generator = torch.Generator().manual_seed(1)
    weights = initial_weights(ITEMS, settings, generator)
    for tensor in (weights.output_bias, *(layer.b for layer in weights.layers)):
        tensor.normal_(generator=generator)  # biases begin at 0, which would hide one that got lost
    return weights, settings


def click_by_click(weights: Weights, clicks: list[int]) -> Tensor:
    """The query after the last click, [H]."""
    hidden = torch.zeros(weights.state_rows, 1, weights.hidden_size)
    for item in clicks:
        hidden = gru4rec.advance(weights, torch.tensor([item]), hidden)
    return hidden[-1, 0]


@every_kind
def test_at_once_is_click_by_click(kind: dict[str, object]) -> None:
    weights, settings = drawn(kind)
    network = unrolled(weights, settings, WINDOW)
    sessions = [[3], [7, 1, 7], [2, 2, 5, 19, 0, 4]]
    items = torch.tensor([session + [-1] * (WINDOW - len(session)) for session in sessions])
    length = torch.tensor([len(session) for session in sessions])
    expected = torch.stack([click_by_click(weights, session) for session in sessions])
    found = network.query(items, length)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(network.scores(found), weights.scores(expected))
    with torch.inference_mode():
        prefixes = network.encoder.prefixes(network.input[items[2:]], items[2:], length[2:])[0]
    for end, query in enumerate(prefixes, start=1):
        torch.testing.assert_close(query, click_by_click(weights, sessions[2][:end]))


@every_kind
def test_nothing_is_lost_on_the_way_there_and_back(kind: dict[str, object]) -> None:
    weights, settings = drawn(kind)
    network = unrolled(weights, settings, WINDOW)
    assert (network.input is network.output) == (weights.embedding is None)
    back = rolled(network, settings)
    assert back.tensors().keys() == weights.tensors().keys()
    for name, tensor in weights.tensors().items():
        assert torch.equal(back.tensors()[name], tensor), name
    learned = network.input.numel() + sum(one.numel() for one in network.encoder.parameters())
    of_decay = WINDOW**2 if settings.input_decay else 0
    assert window_numbers(settings, WINDOW, ITEMS) == learned + of_decay
