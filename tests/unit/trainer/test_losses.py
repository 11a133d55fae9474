"""The losses against autograd of the formulas as the papers have them."""

import math

import pytest
import torch
from torch import Tensor

from trainer.losses import EPSILON, bpr_max, cross_entropy, logq_correction, loss_of
from trainer.settings import TrainingSettings

SHAPES = [(1, 5), (4, 4), (3, 9)]


def scores(n: int, columns: int, scale: float = 2.0) -> Tensor:
    r = scale * torch.randn(n, columns, generator=torch.Generator().manual_seed(n * columns))
    r[:, -1] = r[:, 0]  # negatives that equal a target happen
    return r


def reference_cross_entropy(r: Tensor) -> Tensor:
    p = torch.exp(r - r.max(1, keepdim=True).values)
    p = p / p.sum(1, keepdim=True)
    return -torch.log(p.diagonal() + 1e-24).sum()


def reference_bpr_max(r: Tensor, bpreg: float, elu: float) -> Tensor:
    if elu:
        r = torch.nn.functional.elu(r, alpha=elu)
    total = r.new_zeros(())
    for i in range(len(r)):
        negatives = torch.cat([r[i, :i], r[i, i + 1 :]])
        s = torch.softmax(negatives, 0)
        total = total - torch.log((s * torch.sigmoid(r[i, i] - negatives)).sum() + EPSILON)
        total = total + bpreg * (s * negatives**2).sum()
    return total


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
@pytest.mark.parametrize(("bpreg", "elu"), [(0.0, 0.0), (1.95, 0.0), (0.0, 0.5), (1.95, 0.5)])
def test_bpr_max_is_that_of_the_paper(shape: tuple[int, int], bpreg: float, elu: float) -> None:
    r = scores(*shape)
    variable = r.double().requires_grad_()
    expected = reference_bpr_max(variable, bpreg, elu)
    expected.backward()  # type: ignore[no-untyped-call]
    loss, gradient = bpr_max(r.clone(), bpreg=bpreg, elu=elu)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient.double(), variable.grad, rtol=1e-4, atol=1e-6)


def test_cross_entropy_takes_scores_and_not_probabilities() -> None:
    # A target 10 ahead of the only negative: certain. Of probabilities it would still be -ln σ(1) = .31.
    loss, _ = cross_entropy(torch.tensor([[10.0, 0.0]]))
    assert float(loss) == pytest.approx(math.log1p(math.exp(-10)), rel=1e-3)


def test_bpr_max_weighs_the_negatives_among_themselves() -> None:
    # The target towers over all: with it in the softmax, the negatives would weigh nothing and the loss explode.
    loss, _ = bpr_max(torch.tensor([[20.0, 0.0, 0.0]]), bpreg=0, elu=0)
    assert float(loss) == pytest.approx(0.0, abs=1e-6)


def test_bpr_max_regularises_the_negatives_scores() -> None:
    loss, _ = bpr_max(torch.tensor([[9.0, 1.0, 1.0]]), bpreg=2.0, elu=0)
    assert float(loss) == pytest.approx(2.0 - math.log(1 / (1 + math.exp(-8))), rel=1e-5)


@pytest.mark.parametrize("loss", ["cross-entropy", "bpr-max"])
@pytest.mark.parametrize("scale", [1e-6, 80.0])
def test_losses_and_gradients_stay_finite(loss: str, scale: float) -> None:
    value, gradient = loss_of(TrainingSettings.parse({"loss": loss}))(scores(4, 12, scale))
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("loss", ["cross-entropy", "bpr-max"])
def test_a_row_without_negatives_has_no_loss(loss: str) -> None:
    value, gradient = loss_of(TrainingSettings.parse({"loss": loss}))(torch.tensor([[3.0]]))
    assert float(value) == 0.0
    assert float(gradient.abs().sum()) == 0.0


def test_the_wrongest_rows_have_the_strongest_gradient() -> None:
    _, gradient = cross_entropy(torch.tensor([[-100.0, 100.0]]))
    assert gradient.tolist() == [[-1.0, 1.0]]


def test_logq_is_the_logarithm_of_how_often_an_item_is_a_negative() -> None:
    support = torch.tensor([1, 10, 100])
    found = logq_correction(support, TrainingSettings(logq=0.5, sample_alpha=0.4))
    assert found is not None
    torch.testing.assert_close(found[0], 0.5 * torch.log(support.float()))
    torch.testing.assert_close(found[1], 0.5 * 0.4 * torch.log(support.float()))
    assert logq_correction(support, TrainingSettings(logq=0)) is None
