import numpy as np
import torch
from torch import Tensor

from tests.unit.trainer.models import by_hand
from tests.unit.trainer.models.test_encoders import Case, Tables, alone, batch_of, clicks_of
from trainer.models.bert4rec import drawn_to_hide


def test_the_query_is_the_papers() -> None:
    encoder = Case("bert4rec", {"heads": 4}).encoder()
    weights = by_hand.named(encoder)
    rows = batch_of(encoder, (by_hand.SESSION,), 4)[0][0].numpy().astype(np.float64)
    x = np.vstack([rows, weights["mask"]]) + weights["positions"][:5]
    x = by_hand.norm(x, by_hand.under(weights, "norm_input"))
    for layer in range(2):
        own = by_hand.under(weights, f"layers.layers.{layer}")
        x = by_hand.layer_after(x, x, by_hand.everywhere, own, by_hand.gelu, heads=4)
    projected = by_hand.gelu(by_hand.linear(x[-1], by_hand.under(weights, "project")))
    expected = by_hand.norm(projected, by_hand.under(weights, "norm_query"))
    np.testing.assert_allclose(alone(encoder, by_hand.SESSION).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_last_click_hidden_is_found_as_the_next_is_served() -> None:
    encoder = Case("bert4rec", {"last_rate": 1.0}).encoder()
    tables = Tables(encoder)
    given: list[Tensor] = []

    def ranking(queries: Tensor, columns: Tensor, weights: Tensor | None = None) -> Tensor:
        given.extend((queries, columns))
        return queries.sum()

    encoder.loss(clicks_of(([3, 5, 9], [1, 7])), tables.item_tables(), ranking)
    assert given[1].tolist() == [9, 7]
    torch.testing.assert_close(given[0], torch.stack([alone(encoder, [3, 5]), alone(encoder, [1])]))


def test_clicks_to_predict_are_hidden_at_random_one_at_least() -> None:
    torch.manual_seed(1)
    target = torch.tensor([[0, 1, 0, 0, 0], [0, 1, 1, 0, 1], [0, 0, 0, 0, 0]]).bool().repeat(1000, 1)
    hidden = drawn_to_hide(target, 0.4, 0.0)
    assert not (hidden & ~target).any()
    assert hidden[0::3, 1].all()
    assert hidden[1::3].any(1).all()
    share = hidden[1::3].float().mean(0)
    torch.testing.assert_close(share[1:3], torch.tensor([0.4, 0.4]), atol=0.05, rtol=0)
    torch.testing.assert_close(share[4].item(), 0.4 + 0.6**3, atol=0.05, rtol=0)
    assert drawn_to_hide(target, 0.4, 1.0)[:3].int().tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
