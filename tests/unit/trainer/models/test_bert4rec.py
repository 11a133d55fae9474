import numpy as np
import torch
from torch import Tensor

from tests.unit.trainer.models import by_hand
from tests.unit.trainer.models.test_encoders import Case, Tables, alone, batch_of, clicks_of
from trainer.models.base import Clicks
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


def test_a_hidden_click_without_those_behind_it_is_found_as_the_next_is_served() -> None:
    torch.manual_seed(2)
    encoder = Case("bert4rec", {"last_rate": 1.0}).encoder()
    tables = Tables(encoder)
    given: list[Tensor] = []

    def ranking(queries: Tensor, columns: Tensor, weights: Tensor | None = None) -> Tensor:
        given.extend((queries, columns))
        return queries.sum()

    sessions = ([3, 5, 9], [1, 7]) * 4
    encoder.loss(clicks_of(sessions), tables.item_tables(), ranking)
    found = given[1].tolist()
    assert set(found[0::2]) == {5, 9}  # inside a session and at its end
    assert set(found[1::2]) == {7}
    before = [session[: session.index(item)] for session, item in zip(sessions, found, strict=True)]
    torch.testing.assert_close(given[0], torch.stack([alone(encoder, clicks) for clicks in before]))


def test_clicks_to_predict_are_hidden_at_random_one_at_least() -> None:
    torch.manual_seed(1)
    target = torch.tensor([[0, 1, 0, 0, 0], [0, 1, 1, 0, 1], [0, 0, 0, 0, 0]]).bool().repeat(1000, 1)
    whole = Clicks(torch.arange(5).repeat(3000, 1), torch.full((3000,), 5), target)
    shown, hidden = drawn_to_hide(whole, 0.4, 0.0)
    assert not (hidden & ~target).any()
    assert hidden[0::3, 1].all()
    assert hidden[1::3].any(1).all()
    share = hidden[1::3].float().mean(0)
    torch.testing.assert_close(share[[1, 2, 4]], torch.full((3,), 0.4 + 0.6**3 / 3), atol=0.05, rtol=0)
    several = hidden.sum(1) > 1
    assert (shown.length[several] == 5).all()
    assert (shown.items[several] == whole.items[several]).all()


def test_what_follows_a_click_that_is_hidden_alone_is_not_shown() -> None:
    torch.manual_seed(1)
    target = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]).bool().repeat(1000, 1)
    whole = Clicks(torch.arange(5).repeat(2000, 1), torch.full((2000,), 5), target, torch.rand(2000, 5))
    shown, hidden = drawn_to_hide(whole, 0.4, 1.0)
    assert (shown.length[1::2] == 5).all()  # nothing to predict, nothing to hide
    assert not hidden[1::2].any()
    first, second = hidden[0::2, 1], hidden[0::2, 3]
    assert (first ^ second).all()
    torch.testing.assert_close(first.float().mean().item(), 0.5, atol=0.05, rtol=0)
    assert (shown.length[0::2] == torch.where(first, 2, 4)).all()
    for row in shown.items[0::2][first], shown.items[0::2][second]:
        assert ((row == -1) == (torch.arange(5) >= (row >= 0).sum(1, keepdim=True))).all()
    assert shown.target[0::2].sum(1).tolist() == torch.where(first, 1, 2).tolist()
    assert shown.weights(hidden).tolist() == whole.weight[hidden].tolist()  # type: ignore[index, union-attr]
