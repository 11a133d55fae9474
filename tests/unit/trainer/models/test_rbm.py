from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.errors import TrainingSettingsError
from trainer.models.base import Clicks, ItemTables
from trainer.models.rbm import RbmEncoder, RbmSettings, clicked
from trainer.models.settings import TrainingSettings

ITEMS, UNITS = 8, 3
SESSIONS = torch.tensor([[0, 1, 2, 1], [5, 6, -1, -1], [7, 7, 5, -1]])


def small_encoder(units: int = UNITS) -> RbmEncoder:
    return RbmEncoder(RbmSettings(hidden_size=units))


def clicks_of(items: Tensor) -> Clicks:
    target = items >= 0
    return Clicks(items, target.sum(1), target & (torch.arange(items.shape[1]) > 0))


def not_asked(queries: Tensor, columns: Tensor, weights: Tensor | None = None) -> Tensor:
    raise AssertionError("contrastive divergence asks for no ranking")


def tables_of(weights: Tensor, bias: Tensor) -> ItemTables:
    return ItemTables(weights, weights, bias)


def test_a_query_is_the_hidden_units_of_the_distinct_items() -> None:
    torch.manual_seed(1)
    encoder, weights = small_encoder(), torch.randn(ITEMS, UNITS)
    nn.init.normal_(encoder.hidden_bias)
    found = encoder(weights[SESSIONS], SESSIONS, torch.tensor([4, 2, 3])).detach().numpy()
    w, c = weights.numpy(), encoder.hidden_bias.detach().numpy()
    for query, distinct in zip(found, ([0, 1, 2], [5, 6], [5, 7]), strict=True):
        np.testing.assert_allclose(query, 1 / (1 + np.exp(-(c + w[distinct].sum(0)))), atol=1e-6)


def test_the_free_energy_is_that_of_all_hidden_states_together() -> None:
    torch.manual_seed(1)
    encoder, weights, bias = small_encoder(), torch.randn(ITEMS, UNITS), torch.randn(ITEMS)
    nn.init.normal_(encoder.hidden_bias)
    visible = clicked(SESSIONS, ITEMS)
    energies = torch.stack(
        [
            -(visible @ bias) - encoder.hidden_bias @ hidden - visible @ weights @ hidden
            for hidden in map(torch.tensor, product([0.0, 1.0], repeat=UNITS))
        ]
    )
    expected = -torch.logsumexp(-energies, 0)
    torch.testing.assert_close(encoder.free_energy(visible, weights, bias), expected)


def test_the_gradient_is_the_update_of_contrastive_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    encoder, weights, bias = small_encoder(), torch.randn(ITEMS, UNITS), torch.randn(ITEMS)
    for learned in (weights, bias):
        learned.requires_grad_(True)
    drawn: list[Tensor] = []
    bernoulli = torch.bernoulli

    def draw(chances: Tensor) -> Tensor:
        drawn.append(bernoulli(chances))
        return drawn[-1]

    monkeypatch.setattr(torch, "bernoulli", draw)
    encoder.loss(clicks_of(SESSIONS), tables_of(weights, bias), not_asked).backward()  # type: ignore[no-untyped-call]

    seen, (hidden, made_up) = clicked(SESSIONS, ITEMS), drawn
    assert hidden.shape == (3, UNITS)
    assert made_up.shape == (3, ITEMS)
    with torch.no_grad():
        after_seen = torch.sigmoid(encoder.hidden_bias + seen @ weights)
        after_made_up = torch.sigmoid(encoder.hidden_bias + made_up @ weights)
    torch.testing.assert_close(weights.grad, -(seen.T @ after_seen - made_up.T @ after_made_up) / 3)
    torch.testing.assert_close(bias.grad, -(seen - made_up).mean(0))
    torch.testing.assert_close(encoder.hidden_bias.grad, -(after_seen - after_made_up).mean(0))


def test_items_of_one_kind_call_for_each_other() -> None:
    torch.manual_seed(1)
    # Sessions of three of the items 0 to 3, or of the items 4 to 7.
    items = torch.stack([torch.randperm(4)[:3] + 4 * (session % 2) for session in range(40)])
    encoder = small_encoder(units=4)
    weights, bias = nn.Parameter(0.1 * torch.randn(ITEMS, 4)), nn.Parameter(torch.zeros(ITEMS))
    optimizer = torch.optim.Adam([*encoder.parameters(), weights, bias], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        encoder.loss(clicks_of(items), tables_of(weights, bias), not_asked).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    seen = torch.tensor([[1, 3], [6, 4]])
    scores = (encoder(weights[seen], seen, torch.tensor([2, 2])) @ weights.T + bias).detach()
    assert scores[0, :4].min() > scores[0, 4:].max() + 1
    assert scores[1, 4:].min() > scores[1, :4].max() + 1


def test_another_loss_is_refused() -> None:
    with pytest.raises(TrainingSettingsError, match="contrastive divergence alone; leave loss out"):
        TrainingSettings.parse({"family": "rbm", "loss": "bpr-max"})
