import math

import numpy as np
import pytest
import torch

from tests.unit.trainer.models import by_hand
from tests.unit.trainer.models.test_encoders import Case, alone, batch_of
from trainer.errors import TrainingSettingsError
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
