import numpy as np
import numpy.typing as npt
import pytest
import torch

from trainer.models.narm import NarmEncoder, NarmSettings

Array = npt.NDArray[np.float32]


def small_encoder(**values: float) -> NarmEncoder:
    torch.manual_seed(1)
    return NarmEncoder(NarmSettings.model_validate({"hidden_size": 5, **values})).eval()


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def by_hand(encoder: NarmEncoder, session: Array) -> Array:
    """The paper's equations, a click at a time: rows [T, H] -> query [H]."""
    w = {name: parameter.detach().numpy() for name, parameter in encoder.named_parameters()}
    h, states = np.zeros(5, np.float32), []
    for x in session:
        of_x = w["gates_item.weight"] @ x + w["gates_item.bias"]
        of_h = w["gates_state.weight"] @ h + w["gates_state.bias"]
        r, z = sigmoid(of_x[:5] + of_h[:5]), sigmoid(of_x[5:10] + of_h[5:10])
        h = (1 - z) * np.tanh(of_x[10:] + r * of_h[10:]) + z * h
        states.append(h)
    local = np.zeros(5, np.float32)
    for state in states:
        gate = sigmoid(w["attention_last.weight"] @ h + w["attention_each.weight"] @ state)
        local += (w["attention_weight.weight"][0] @ gate) * state
    return np.asarray(w["decoder.weight"] @ np.concatenate([h, local]))


def test_queries_are_those_of_the_papers_equations() -> None:
    encoder = small_encoder()
    rows = torch.randn(2, 4, 5)
    items, length = torch.tensor([[3, 1, 3, 2], [5, 6, -1, -1]]), torch.tensor([4, 2])
    found = encoder(rows, items, length).detach().numpy()
    np.testing.assert_allclose(found[0], by_hand(encoder, rows[0].numpy()), atol=1e-6)
    np.testing.assert_allclose(found[1], by_hand(encoder, rows[1, :2].numpy()), atol=1e-6)


def test_training_drops_a_quarter_of_the_rows_and_half_of_the_decoders_input(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small_encoder().train()
    decoded: list[torch.Tensor] = []
    encoder.decoder.register_forward_pre_hook(lambda _, given: decoded.append(given[0]))
    ones, items = torch.ones(100, 8, 5), torch.arange(8).expand(100, 8)
    encoder.prefixes(ones, items, torch.full((100,), 8))
    assert abs((decoded[0] == 0).float().mean() - 0.5) < 0.03
    monkeypatch.setattr(torch, "gru", lambda rows, *_, **__: (rows, None))
    assert abs((encoder.states(ones) == 0).float().mean() - 0.25) < 0.03
