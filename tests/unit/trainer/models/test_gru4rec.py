import math

import pytest
import torch
from torch import Tensor

from tests.unit.trainer import reference
from trainer.models.gru4rec import Weights, advance, initial_weights
from trainer.models.settings import Gru4RecSettings
from trainer.training.gru.step import StepMath

ITEMS = 20


def random_weights(settings: Gru4RecSettings, spread: float = 0.7) -> Weights:
    generator = torch.Generator().manual_seed(3)
    shapes = initial_weights(ITEMS, settings, generator).tensors()
    return Weights.of_tensors(
        {
            name: t if name == "input_decay" else spread * torch.randn(t.shape, generator=generator)
            for name, t in shapes.items()
        }
    )


# (embedding, layers, deep_input)
ARCHITECTURES = [
    ("shared", 1, False),
    ("separate", 1, False),
    ("one-hot", 1, False),
    ("shared", 2, False),
    ("separate", 3, True),
    ("shared", 3, True),
    ("one-hot", 2, False),
]
WITHOUT_GRU = [("shared", 0, False), ("separate", 0, False)]


@pytest.mark.parametrize(("embedding", "layers", "deep_input"), ARCHITECTURES)
def test_a_click_is_a_step_of_torchs_gru(embedding: str, layers: int, deep_input: bool) -> None:
    chosen = {"hidden_size": 6, "layers": layers, "embedding": embedding, "deep_input": deep_input}
    settings = Gru4RecSettings.parse(chosen)
    weights = random_weights(settings)
    hidden = torch.randn(layers, 4, 6, generator=torch.Generator().manual_seed(1))
    items = torch.tensor([0, 19, 7, 7])
    x = item = weights.input_table[items]
    for layer, after in enumerate(advance(weights, items, hidden)):
        x = reference.gru(weights, layer, torch.cat([x, item], 1) if layer and deep_input else x, hidden[layer])
        torch.testing.assert_close(after, x)
    expected = x @ weights.output.T + weights.output_bias
    torch.testing.assert_close(weights.scores(advance(weights, items, hidden)[-1]), expected)


class Masks:
    """Dropout masks as the step asks for them, kept for the reference. None for a rate of 0."""

    def __init__(self) -> None:
        self.given: list[Tensor] = []

    def __call__(self, shape: tuple[int, int], rate: float) -> Tensor | None:
        if rate == 0:
            return None
        mask = (torch.rand(shape, generator=torch.Generator().manual_seed(len(self.given))) >= rate) / (1 - rate)
        self.given.append(mask)
        return mask


@pytest.mark.parametrize("input_decay", [0.0, 0.6])
@pytest.mark.parametrize(("embedding", "layers", "deep_input"), [*ARCHITECTURES, *WITHOUT_GRU])
@pytest.mark.parametrize("loss", ["cross-entropy", "bpr", "top1", "bpr-max", "top1-max"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("target_weights", [None, (3.0, 0.0, 0.25, 1.0)])
def test_the_gradient_is_that_of_autograd(
    *,
    loss: str,
    embedding: str,
    layers: int,
    deep_input: bool,
    input_decay: float,
    dropout: float,
    target_weights: tuple[float, ...] | None,
) -> None:
    settings = Gru4RecSettings.parse(
        {
            "loss": loss,
            "embedding": embedding,
            "layers": layers,
            "deep_input": deep_input,
            "input_decay": input_decay,
            "hidden_size": 7,
            "batch_size": 5,
            "n_sample": 6,
            "dropout_input": dropout,
            "dropout_hidden": dropout,
        }
    )
    weights = random_weights(settings)
    generator = torch.Generator().manual_seed(8)
    inputs, targets = torch.tensor([3, 3, 8, 1]), torch.tensor([8, 2, 2, 8])  # duplicates, and inputs among targets
    samples = torch.tensor([2, 11, 11, 0, 19, 3])
    hidden = torch.randn(weights.state_rows, 4, 7, generator=generator)
    support = torch.arange(1, ITEMS + 1)
    masks = Masks()
    share = None if target_weights is None else torch.tensor(target_weights)
    found = StepMath(settings, support, masks)(weights, inputs, targets, samples, hidden, target_weights=share)

    leaves = reference.double(weights)
    input_mask, hidden_masks = (masks.given[0], masks.given[1:]) if dropout else (None, None)
    expected, state = reference.loss(
        leaves,
        settings,
        inputs=inputs,
        targets=targets,
        samples=samples,
        hidden=hidden,
        support=support,
        input_mask=input_mask,
        hidden_masks=hidden_masks,
        target_weights=share,
    )
    (expected / settings.batch_size).backward()  # type: ignore[no-untyped-call]

    def same(value: Tensor, wanted: Tensor | None) -> None:
        assert wanted is not None
        torch.testing.assert_close(value.double(), wanted.double(), rtol=1e-4, atol=1e-6)

    same(found.loss, expected.detach())
    same(found.hidden, state.detach())  # dropped, and carried on like that
    columns = torch.cat([targets, samples])
    of_input = torch.zeros(ITEMS, weights.input_table.shape[1]).index_add_(0, inputs, found.inputs)
    of_output = torch.zeros(ITEMS, 7).index_add_(0, columns, found.columns)
    same(torch.zeros(ITEMS).index_add_(0, columns, found.column_bias), leaves.output_bias.grad)
    if leaves.embedding is None:
        same(of_input + of_output, leaves.output.grad)
    else:
        same(of_input, leaves.embedding.grad)
        same(of_output, leaves.output.grad)
    for layer, leaf in zip(found.layers, leaves.layers, strict=True):
        if layer.w is not None and leaf.w is not None:
            same(layer.w, leaf.w.grad)
        assert (layer.w is None) == (leaf.w is None)
        same(layer.u, leaf.u.grad)
        same(layer.b, leaf.b.grad)


@pytest.mark.parametrize("embedding", ["shared", "one-hot"])
def test_the_input_is_the_decayed_sum_of_the_sessions_items(embedding: str) -> None:
    chosen = {"hidden_size": 6, "embedding": embedding, "input_decay": 0.5}
    weights = random_weights(Gru4RecSettings.parse(chosen))
    clicks = torch.tensor([[3, 1], [3, 7], [5, 0]])  # [T, B]
    hidden = torch.zeros(1, 2, 6)  # as a caller has it who knows of no sum
    expected = torch.zeros(2, 6)
    for step, items in enumerate(clicks):
        hidden = advance(weights, items, hidden)
        so_far = [0.5 ** (step - past) * weights.input_table[clicks[past]] for past in range(step + 1)]
        expected = reference.gru(weights, 0, torch.stack(so_far).sum(0), expected)
        torch.testing.assert_close(hidden[-1], expected)
    assert len(hidden) == weights.state_rows == (2 if embedding == "shared" else 4)


@pytest.mark.parametrize("embedding", ["shared", "separate"])
def test_without_layers_the_state_is_the_last_items_row(embedding: str) -> None:
    weights = random_weights(Gru4RecSettings.parse({"hidden_size": 6, "embedding": embedding, "layers": 0}))
    hidden = torch.zeros(0, 2, 6)  # as a caller has it who knows of no sum
    for items in torch.tensor([[3, 1], [3, 7], [5, 0]]):  # [T, B]
        hidden = advance(weights, items, hidden)
        assert torch.equal(hidden, weights.input_table[items].unsqueeze(0))
    assert weights.state_rows == 1


def test_only_the_targets_and_the_samples_are_scored() -> None:
    settings = Gru4RecSettings(hidden_size=4, batch_size=3, n_sample=5)
    weights = random_weights(settings)
    # Every other item's scores are NaN; nothing of them may be seen.
    weights.output[10:] = math.nan
    step = StepMath(settings, torch.ones(ITEMS), lambda *_: None)
    found = step(
        weights, torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4, 5, 6, 7, 8]), torch.zeros(1, 2, 4)
    )
    assert found.columns.shape == (7, 4)
    assert torch.isfinite(found.loss)


def test_weights_start_uniform_a_gate_at_a_time_and_biases_at_zero() -> None:
    settings = Gru4RecSettings.parse({"hidden_size": 50, "embedding": "separate", "layers": 2})
    weights = initial_weights(400, settings, torch.Generator().manual_seed(0))
    assert weights.embedding is not None
    bounds = [(weights.output, math.sqrt(6 / 450)), (weights.embedding, math.sqrt(6 / 450))]
    # sqrt(6 / (50 + 50)) for each gate; of the stacked matrix it would be sqrt(6 / (150 + 50))
    bounds += [
        (gate, math.sqrt(6 / 100))
        for layer in weights.layers
        for m in (layer.w, layer.u)
        if m is not None
        for gate in m.chunk(3)
    ]
    for tensor, bound in bounds:
        assert 0.98 * bound < float(tensor.abs().max()) <= bound
        assert float(tensor.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    for bias in (weights.output_bias, *(layer.b for layer in weights.layers)):
        assert not bias.any()


def test_one_hot_input_weights_start_as_those_of_a_gate() -> None:
    settings = Gru4RecSettings.parse({"hidden_size": 50, "embedding": "one-hot"})
    weights = initial_weights(400, settings, torch.Generator().manual_seed(0))
    assert weights.embedding is not None
    assert weights.embedding.shape == (400, 150)
    for gate in weights.embedding.chunk(3, dim=1):
        assert 0.98 * math.sqrt(6 / 450) < float(gate.abs().max()) <= math.sqrt(6 / 450)


def test_dropout_of_a_one_hot_input_drops_whole_clicks() -> None:
    settings = Gru4RecSettings.parse({"embedding": "one-hot", "hidden_size": 3, "dropout_input": 0.5, "n_sample": 1})
    asked: list[tuple[int, int]] = []

    def drop(shape: tuple[int, int], rate: float) -> Tensor | None:
        asked.append(shape)
        return torch.tensor([[0.0], [2.0]]) if rate == 0.5 else None

    step = StepMath(settings, torch.ones(ITEMS), drop)
    found = step(
        random_weights(settings), torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4]), torch.ones(1, 2, 3)
    )
    assert asked[0] == (2, 1)
    assert not found.inputs[0].any()
    assert found.inputs[1].all()


@pytest.mark.parametrize("embedding", ["shared", "separate", "one-hot"])
def test_weights_are_their_named_tensors(embedding: str) -> None:
    weights = random_weights(Gru4RecSettings.parse({"hidden_size": 3, "layers": 2, "embedding": embedding}))
    again = Weights.of_tensors(weights.tensors())
    assert {name: t.data_ptr() for name, t in again.tensors().items()} == {
        name: t.data_ptr() for name, t in weights.tensors().items()
    }
    clone = weights.clone()
    clone.output.zero_()
    assert weights.output.any()
