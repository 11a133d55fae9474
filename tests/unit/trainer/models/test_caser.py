import numpy as np
import numpy.typing as npt
import pytest
import torch

from trainer.errors import TrainingSettingsError
from trainer.models.caser import CaserEncoder, CaserSettings
from trainer.models.settings import TrainingSettings

Array = npt.NDArray[np.float32]


def small_encoder() -> CaserEncoder:
    torch.manual_seed(1)
    return CaserEncoder(CaserSettings(hidden_size=5, last=3, horizontal=2, vertical=4)).eval()


def by_hand(encoder: CaserEncoder, session: Array) -> Array:
    """The paper's equations, a filter at a place at a time: rows [T, H] -> query [H]."""
    w = {name: parameter.detach().numpy() for name, parameter in encoder.named_parameters()}
    image = np.concatenate([np.zeros((3, 5), np.float32), session])[-3:]
    answers = []
    for height in (1, 2, 3):
        for kernel, bias in zip(w[f"horizontal.{height - 1}.weight"], w[f"horizontal.{height - 1}.bias"], strict=True):
            places = [(kernel.reshape(height, 5) * image[i : i + height]).sum() + bias for i in range(4 - height)]
            answers.append(max(0, *places))
    for column in range(5):
        answers += [(image[:, column] * kernel).sum() for kernel in w["vertical.weight"]]
    z = w["together.weight"] @ np.array(answers, np.float32) + w["together.bias"]
    return np.asarray(np.maximum(z, 0))


def test_queries_are_those_of_the_papers_equations() -> None:
    encoder = small_encoder()
    rows = torch.randn(4, 5, 5)
    for length in range(1, 6):
        items = torch.arange(5).where(torch.arange(5) < length, -1).expand(4, 5)
        found = encoder(rows, items, torch.full((4,), length)).detach().numpy()
        assert (found > 0).any()
        for query, session in zip(found, rows.numpy(), strict=True):
            np.testing.assert_allclose(query, by_hand(encoder, session[:length]), atol=1e-6)


def test_nothing_but_the_last_items_counts() -> None:
    encoder = small_encoder()
    rows, items, length = torch.randn(1, 6, 5), torch.arange(6)[None], torch.tensor([6])
    query = encoder(rows, items, length)
    for click in range(6):
        changed = rows.clone()
        changed[0, click] += 1
        assert torch.equal(encoder(changed, items, length), query) == (click < 3)


def test_a_short_session_stands_below_zeros() -> None:
    encoder = small_encoder()
    rows = torch.randn(1, 2, 5)
    filled = torch.cat([torch.zeros(1, 1, 5), rows], 1)
    torch.testing.assert_close(
        encoder(rows, torch.tensor([[1, 2]]), torch.tensor([2])),
        encoder(filled, torch.tensor([[0, 1, 2]]), torch.tensor([3])),
    )


def test_the_last_items_must_be_in_the_window() -> None:
    with pytest.raises(TrainingSettingsError, match="last=5 items are more than window=4"):
        TrainingSettings.parse({"family": "caser", "window": 4})
