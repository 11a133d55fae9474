from typing import cast

import numpy as np
import pytest
import torch

from tests.unit.trainer.models import by_hand
from tests.unit.trainer.models.by_hand import Array
from tests.unit.trainer.models.test_encoders import LOG, Case, Tables, alone, batch_of, clicks_of
from trainer.errors import TrainingSettingsError
from trainer.models.base import Encoder
from trainer.models.settings import TrainingSettings
from trainer.models.transformer import Masked, Permuted, TransformerSettings


def transformer(**told: object) -> Encoder:
    return Case("transformer", {"heads": 4, **told}).encoder()


def rows_of(encoder: Encoder) -> Array:
    return cast(Array, batch_of(encoder, (by_hand.SESSION,), 4)[0][0].numpy().astype(np.float64))


def is_the_query(encoder: Encoder, expected: Array) -> None:
    np.testing.assert_allclose(alone(encoder, by_hand.SESSION).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_gpt2() -> None:
    encoder = transformer(architecture="gpt2")
    weights = by_hand.under(by_hand.named(encoder), "body")
    x = rows_of(encoder) + weights["positions"][:4]
    for layer in range(2):
        own = by_hand.under(weights, f"layers.layers.{layer}")
        x = by_hand.layer_before(x, by_hand.causal, own, by_hand.gelu, heads=4)
    is_the_query(encoder, by_hand.norm(x, by_hand.under(weights, "norm"))[-1])


@pytest.mark.parametrize(("architecture", "activation"), [("transformer-xl", by_hand.relu), ("xlnet", by_hand.gelu)])
def test_causal_with_relative_positions(architecture: str, activation: by_hand.Activation) -> None:
    encoder = transformer(architecture=architecture, objective="clm")
    weights = by_hand.under(by_hand.named(encoder), "body")
    x = rows_of(encoder)
    for layer in range(2):
        x = by_hand.layer_after(
            x, x, by_hand.causal, by_hand.under(weights, f"layers.layers.{layer}"), activation, heads=4
        )
    is_the_query(encoder, x[-1])


@pytest.mark.parametrize("architecture", ["bert", "electra"])
def test_bert(architecture: str) -> None:
    encoder = transformer(architecture=architecture)
    weights = by_hand.named(encoder)
    body = by_hand.under(weights, "body")
    x = np.vstack([rows_of(encoder), weights["mask"]]) + body["positions"][:5]
    x = by_hand.norm(x, by_hand.under(body, "norm_input"))
    for layer in range(2):
        x = by_hand.layer_after(
            x, x, by_hand.everywhere, by_hand.under(body, f"layers.layers.{layer}"), by_hand.gelu, heads=4
        )
    is_the_query(encoder, x[-1])


@pytest.mark.parametrize("objective", ["mlm", "rtd"])
def test_xlnet_with_a_hidden_click(objective: str) -> None:
    encoder = transformer(objective=objective)
    weights = by_hand.named(encoder)
    x = np.vstack([rows_of(encoder), weights["mask"]])
    for layer in range(2):
        own = by_hand.under(weights, f"body.layers.layers.{layer}")
        x = by_hand.layer_after(x, x, by_hand.everywhere, own, by_hand.gelu, heads=4)
    is_the_query(encoder, x[-1])


def test_xlnet_with_two_streams() -> None:
    encoder = transformer(objective="plm")
    weights = by_hand.named(encoder)
    h, g = rows_of(encoder), weights["mask"][None]
    for layer in range(2):
        own = by_hand.under(weights, f"body.layers.layers.{layer}")
        g, h = (
            by_hand.layer_after(g, h, by_hand.everywhere, own, by_hand.gelu, heads=4, place=4),
            by_hand.layer_after(h, h, by_hand.everywhere, own, by_hand.gelu, heads=4),
        )
    is_the_query(encoder, g[0])


@pytest.mark.parametrize("objective", ["mlm", "plm"])
def test_a_hidden_click_is_not_seen(objective: str) -> None:
    encoder = cast(Masked, transformer(objective=objective))
    clicks = clicks_of(([1, 7, 3, 9, 4],))
    rows, _, _ = batch_of(encoder, ([1, 7, 3, 9, 4],), 5)
    rows.requires_grad_(True)
    hidden = torch.tensor([[False, True, False, True, True]])
    found = encoder.found(rows, hidden, clicks)
    seen = []
    for query in found:
        (slope,) = torch.autograd.grad(query.square().sum(), rows, retain_graph=True)
        seen.append({place for place in range(5) if slope[0, place].abs().sum() > 0})
    if isinstance(encoder, Permuted):  # of the three one sees no other, one sees one, and one both
        assert all({0, 2} <= places and place not in places for place, places in zip((1, 3, 4), seen, strict=True))
        assert sorted(len(places) for places in seen) == [2, 3, 4]
    else:
        assert seen == [{0, 2}] * 3


def test_telling_replaced_items_is_added_to_the_loss() -> None:
    def loss(detection: float) -> float:
        encoder = transformer(architecture="electra", detection=detection)
        tables = Tables(encoder)
        torch.manual_seed(3)
        return encoder.loss(clicks_of(LOG), tables.item_tables(), tables.ranking).item()

    one, two, three = loss(1), loss(2), loss(3)
    assert two > one
    assert three - two == pytest.approx(two - one, rel=1e-4)


@pytest.mark.parametrize(
    ("assignments", "objective"),
    [
        (["architecture=gpt2"], "clm"),
        (["architecture=Transformer_XL"], "clm"),
        (["architecture=BERT"], "mlm"),
        (["architecture=electra"], "rtd"),
        ([], "mlm"),
        (["objective=PLM"], "plm"),
    ],
)
def test_an_architecture_has_its_usual_objective(assignments: list[str], objective: str) -> None:
    settings = TrainingSettings.from_assignments(["family=transformer", *assignments])
    assert cast(TransformerSettings, settings).objective == objective


@pytest.mark.parametrize(
    ("architecture", "objective", "message"),
    [
        ("gpt2", "mlm", r"objective=mlm does not go with architecture=gpt2 \(GPT-2 sees .* set objective=clm"),
        ("transformer-xl", "rtd", "set objective=clm, or leave it out"),
        ("bert", "clm", "for clm or plm take xlnet"),
        ("bert", "rtd", "rtd is architecture=electra"),
        ("electra", "mlm", "mlm is architecture=bert"),
        ("lstm", "clm", "architecture=lstm: .*'gpt2'"),
    ],
)
def test_a_pair_that_makes_no_sense_is_refused(architecture: str, objective: str, message: str) -> None:
    told = ["family=transformer", f"architecture={architecture}", f"objective={objective}"]
    with pytest.raises(TrainingSettingsError, match=message):
        TrainingSettings.from_assignments(told)
