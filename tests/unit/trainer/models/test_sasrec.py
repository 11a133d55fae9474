import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.trainer.models import by_hand
from tests.unit.trainer.models.test_encoders import ITEMS, LOG, Case, Tables, alone, batch_of, clicks_of
from trainer.errors import TrainingSettingsError
from trainer.models.sasrec import others
from trainer.models.settings import TrainingSettings


def test_the_query_is_the_papers() -> None:
    encoder = Case("sasrec", {"layers": 3, "heads": 4}).encoder()
    weights = by_hand.named(encoder)
    rows = batch_of(encoder, (by_hand.SESSION,), 4)[0][0].numpy().astype(np.float64)
    x = rows * math.sqrt(8) + weights["positions"][:4]
    for layer in range(3):
        own = by_hand.under(weights, f"layers.layers.{layer}")
        x = by_hand.layer_before(x, by_hand.causal, own, by_hand.relu, heads=4)
    expected = by_hand.norm(x, by_hand.under(weights, "norm"))[-1]
    np.testing.assert_allclose(alone(encoder, by_hand.SESSION).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_of_the_training_alone() -> None:
    encoder = Case("sasrec", {"dropout": 0.5}).encoder()
    assert torch.equal(alone(encoder, [1, 2]), alone(encoder, [1, 2]))
    encoder.train()
    assert not torch.equal(alone(encoder, [1, 2]), alone(encoder, [1, 2]))


def test_heads_share_the_units() -> None:
    with pytest.raises(TrainingSettingsError, match="hidden_size=100 cannot be shared between heads=3: set a multiple"):
        TrainingSettings.from_assignments(["family=sasrec", "heads=3"])


def test_the_loss_as_published_is_of_one_other_item_a_click() -> None:
    sessions = ([3, 5, 1], [1, 7], [0, 4, 2, 4])
    encoder = Case("sasrec", {"loss_as_published": True}).encoder()
    tables, clicks = Tables(encoder), clicks_of(sessions)
    weight = torch.tensor([[1.0, 2.0, 0.5, 1.0]]).expand(3, 4)
    rows = tables.output.detach().numpy().astype(np.float64)
    expected = []
    torch.manual_seed(5)
    drawn = others(clicks.items, ITEMS)
    for session, negatives in zip(sessions, drawn.tolist(), strict=True):
        for at in range(1, len(session)):
            query = alone(encoder, session[:at]).numpy().astype(np.float64)
            own, other = (1 / (1 + math.exp(-(query @ rows[item]))) for item in (session[at], negatives[at]))
            expected.append(float(weight[0, at]) * (-math.log(own) - math.log(1 - other)))
    torch.manual_seed(5)
    with torch.no_grad():
        loss = encoder.loss(replace(clicks, weight=weight), tables.item_tables(), tables.ranking)
    np.testing.assert_allclose(loss.item(), np.mean(expected), rtol=1e-5)


def test_the_other_item_is_none_of_its_session_and_any_other_one() -> None:
    items = torch.tensor([[3, 5, 1, -1], [7, 7, 7, 7]]).repeat(200, 1)
    torch.manual_seed(1)
    drawn = others(items, 20)
    for own, session in (({3, 5, 1}, drawn[::2]), ({7}, drawn[1::2])):
        found = set(session.flatten().tolist())
        assert found == set(range(20)) - own


def test_the_loss_as_published_learns() -> None:
    encoder = Case("sasrec", {"loss_as_published": True}).encoder()
    tables, clicks = Tables(encoder), clicks_of(LOG)
    optimizer = torch.optim.Adam([*encoder.parameters(), *tables.parameters()], 0.01)
    torch.manual_seed(1)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = encoder.loss(clicks, tables.item_tables(), tables.ranking)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) / 3
