import numpy as np
import numpy.typing as npt
import torch

from trainer.models.stamp import StampEncoder, StampSettings

Array = npt.NDArray[np.float32]


def small_encoder() -> StampEncoder:
    torch.manual_seed(1)
    return StampEncoder(StampSettings(hidden_size=5)).eval()


def by_hand(encoder: StampEncoder, session: Array) -> Array:
    """The paper's equations: rows [T, H] -> query [H]."""
    w = {name: parameter.detach().numpy() for name, parameter in encoder.named_parameters()}
    end, mean = session[-1], session.mean(0)
    interest = np.zeros(5, np.float32)
    for x in session:
        inner = w["attention_each.weight"] @ x + w["attention_last.weight"] @ end
        inner += w["attention_mean.weight"] @ mean + w["attention_mean.bias"]
        interest += (w["attention_weight.weight"][0] @ (1 / (1 + np.exp(-inner)))) * x
    h_s = np.tanh(w["session.weight"] @ interest + w["session.bias"])
    h_t = np.tanh(w["now.weight"] @ end + w["now.bias"])
    return np.asarray(h_s * h_t)


def test_queries_are_those_of_the_papers_equations() -> None:
    encoder = small_encoder()
    rows = torch.randn(2, 4, 5)
    items, length = torch.tensor([[3, 1, 3, 2], [5, 6, -1, -1]]), torch.tensor([4, 2])
    found = encoder(rows, items, length).detach().numpy()
    np.testing.assert_allclose(found[0], by_hand(encoder, rows[0].numpy()), atol=1e-6)
    np.testing.assert_allclose(found[1], by_hand(encoder, rows[1, :2].numpy()), atol=1e-6)


def test_of_the_order_only_the_last_click_counts() -> None:
    encoder = small_encoder()
    rows, items, length = torch.randn(1, 4, 5), torch.tensor([[3, 1, 0, 2]]), torch.tensor([4])
    query = encoder(rows, items, length)
    for order, same in (([2, 0, 1, 3], True), ([0, 1, 3, 2], False)):
        assert torch.allclose(encoder(rows[:, order], items[:, order], length), query, atol=1e-6) == same
