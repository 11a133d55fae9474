"""The losses against autograd of the formulas as the papers have them."""

import math

import pytest
import torch
from torch import Tensor

from trainer.models.settings import Gru4RecSettings
from trainer.training.losses import EPSILON, Loss, bpr, bpr_max, cross_entropy, logq_correction, loss_of, top1, top1_max

SHAPES = [(1, 5), (4, 4), (3, 9)]


def scores(n: int, columns: int, scale: float = 2.0) -> Tensor:
    r = scale * torch.randn(n, columns, generator=torch.Generator().manual_seed(n * columns))
    r[:, -1] = r[:, 0]  # negatives that equal a target happen
    return r


def reference_cross_entropy(r: Tensor) -> Tensor:
    p = torch.exp(r - r.max(1, keepdim=True).values)
    p = p / p.sum(1, keepdim=True)
    return -torch.log(p.diagonal() + 1e-24).sum()


def negatives_of(r: Tensor, row: int) -> Tensor:
    return torch.cat([r[row, :row], r[row, row + 1 :]])


def reference_bpr(target: Tensor, negatives: Tensor) -> Tensor:
    return -torch.log(torch.sigmoid(target - negatives)).mean()


def reference_top1(target: Tensor, negatives: Tensor) -> Tensor:
    return (torch.sigmoid(negatives - target) + torch.sigmoid(negatives**2)).mean()


def reference_bpr_max(target: Tensor, negatives: Tensor) -> Tensor:
    s = torch.softmax(negatives, 0)
    won = (s * torch.sigmoid(target - negatives)).sum()
    return -torch.log(won + EPSILON) + BPREG * (s * negatives**2).sum()


def reference_top1_max(target: Tensor, negatives: Tensor) -> Tensor:
    s = torch.softmax(negatives, 0)
    return (s * (torch.sigmoid(negatives - target) + torch.sigmoid(negatives**2))).sum()


BPREG, ALPHA = 1.95, 0.5
REFERENCES = {
    "bpr": reference_bpr,
    "top1": reference_top1,
    "bpr-max": reference_bpr_max,
    "top1-max": reference_top1_max,
}
ACTIVATIONS = {
    "linear": lambda r: r,
    "elu": lambda r: torch.nn.functional.elu(r, alpha=ALPHA),
    "tanh": torch.tanh,
    "relu": torch.relu,
}
EVERY_LOSS = ["cross-entropy", *REFERENCES]


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_is_that_of_the_paper(shape: tuple[int, int]) -> None:
    r = scores(*shape)
    variable = r.double().requires_grad_()
    expected = reference_cross_entropy(variable)
    expected.backward()  # type: ignore[no-untyped-call]
    loss, gradient = cross_entropy(r)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient.double(), variable.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("loss", list(REFERENCES))
def test_ranking_losses_are_those_of_the_papers(loss: str, activation: str, shape: tuple[int, int]) -> None:
    r = scores(*shape)
    variable = r.double().requires_grad_()
    activated = ACTIVATIONS[activation](variable)
    expected = sum(REFERENCES[loss](activated[i, i], negatives_of(activated, i)) for i in range(len(r)))
    assert isinstance(expected, Tensor)
    expected.backward()  # type: ignore[no-untyped-call]
    settings = Gru4RecSettings.parse({"loss": loss, "activation": activation, "bpreg": BPREG, "elu": ALPHA})
    value, gradient = loss_of(settings)(r.clone())
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient.double(), variable.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", list(REFERENCES))
def test_an_elu_of_alpha_0_leaves_the_scores_as_they_are(loss: str) -> None:
    with_elu = loss_of(Gru4RecSettings.parse({"loss": loss, "activation": "elu", "elu": 0}))(scores(3, 9))
    linear = loss_of(Gru4RecSettings.parse({"loss": loss, "activation": "linear"}))(scores(3, 9))
    assert torch.equal(with_elu[0], linear[0])
    assert torch.equal(with_elu[1], linear[1])


def test_cross_entropy_takes_scores_and_not_probabilities() -> None:
    # A target 10 ahead of the only negative: certain. Of probabilities it would still be -ln σ(1) = .31.
    loss, _ = cross_entropy(torch.tensor([[10.0, 0.0]]))
    assert float(loss) == pytest.approx(math.log1p(math.exp(-10)), rel=1e-3)


def test_bpr_max_weighs_the_negatives_among_themselves() -> None:
    # The target towers over all: with it in the softmax, the negatives would weigh nothing and the loss explode.
    loss, _ = bpr_max(torch.tensor([[20.0, 0.0, 0.0]]), bpreg=0)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def test_bpr_max_regularises_the_negatives_scores() -> None:
    loss, _ = bpr_max(torch.tensor([[9.0, 1.0, 1.0]]), bpreg=2.0)
    assert float(loss) == pytest.approx(2.0 - math.log(1 / (1 + math.exp(-8))), rel=1e-5)


def test_top1_max_weighs_the_negatives_among_themselves() -> None:
    # σ(0 - 20) + σ(0) for each negative; with the target in the softmax nearly nothing of it would be left.
    loss, _ = top1_max(torch.tensor([[20.0, 0.0, 0.0]]))
    assert float(loss) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("loss", [top1, top1_max])
def test_top1_does_not_regularise_the_targets_score(loss: Loss) -> None:
    # The negatives are far below and at the regulariser's minimum: nothing may pull the target down again.
    value, gradient = loss(torch.tensor([[3.0, -30.0, -30.0]]))
    assert float(gradient[0, 0]) == pytest.approx(0.0, abs=1e-9)
    # σ(r_j²) = 1 of the negatives alone. Averaged with the target, σ(0) + σ(9) would weigh in with a third.
    assert float(value) == pytest.approx(1.0, rel=1e-6)


def test_bpr_and_top1_are_means_over_the_negatives() -> None:
    for loss, one in ((bpr, math.log(2)), (top1, 0.5 + 1 / (1 + math.exp(-1)))):
        few, many = loss(torch.ones(1, 3))[0], loss(torch.ones(1, 50))[0]
        assert float(few) == pytest.approx(one, rel=1e-5)
        assert float(many) == pytest.approx(one, rel=1e-5)


def test_the_wrongest_pairs_of_bpr_have_the_strongest_gradient() -> None:
    # ln(σ(x) + ε) would be flat there, and the logarithm of an underflow infinite.
    value, gradient = bpr(torch.tensor([[-100.0, 100.0]]))
    assert float(value) == pytest.approx(200.0)
    assert gradient.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("loss", EVERY_LOSS)
@pytest.mark.parametrize("scale", [1e-6, 80.0])
def test_losses_and_gradients_stay_finite(loss: str, scale: float) -> None:
    value, gradient = loss_of(Gru4RecSettings.parse({"loss": loss}))(scores(4, 12, scale))
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("loss", EVERY_LOSS)
def test_a_row_without_negatives_has_no_loss(loss: str) -> None:
    value, gradient = loss_of(Gru4RecSettings.parse({"loss": loss}))(torch.tensor([[3.0]]))
    assert float(value) == 0.0
    assert float(gradient.abs().sum()) == 0.0


def test_the_wrongest_rows_have_the_strongest_gradient() -> None:
    _, gradient = cross_entropy(torch.tensor([[-100.0, 100.0]]))
    assert gradient.tolist() == [[-1.0, 1.0]]


def test_logq_is_the_logarithm_of_how_often_an_item_is_a_negative() -> None:
    support = torch.tensor([1, 10, 100])
    found = logq_correction(support, Gru4RecSettings(logq=0.5, sample_alpha=0.4))
    assert found is not None
    torch.testing.assert_close(found[0], 0.5 * torch.log(support.float()))
    torch.testing.assert_close(found[1], 0.5 * 0.4 * torch.log(support.float()))
    assert logq_correction(support, Gru4RecSettings(logq=0)) is None
