"""Adagrad and SGD against the formulas, a row and a step at a time."""

import numpy as np
import pytest
import torch

from trainer.models.settings import Gru4RecSettings
from trainer.training.gru.optimizer import Adagrad, Rows, Sgd, optimizer_of

STEPS = [([3, 1, 3, 0], 0.5), ([1, 1, 1], -2.0), ([4], 0.1), ([3, 0, 4, 4, 3], 1.5)]


KINDS: dict[str, type[Adagrad | Sgd]] = {"adagrad": Adagrad, "sgd": Sgd}


def reference(
    kind: str, weight: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", lr: float, momentum: float
) -> None:
    a, v = np.zeros_like(weight), np.zeros_like(weight)
    for step, (touched, scale) in enumerate(STEPS):
        gradient = gradient_of(step, len(touched), weight.shape[1], scale)
        for row in set(touched):
            g = gradient[[i for i, r in enumerate(touched) if r == row]].sum(0)  # duplicates first, then squared
            a[row] += g**2
            v[row] = momentum * v[row] - lr * (g / np.sqrt(a[row] + 1e-6) if kind == "adagrad" else g)
            weight[row] += v[row]


def gradient_of(step: int, n: int, width: int, scale: float) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    return scale * np.random.default_rng(step).normal(size=(n, width))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_rows_follow_the_formula(kind: str, momentum: float) -> None:
    start = np.random.default_rng(9).normal(size=(6, 4))
    expected = start.copy()
    reference(kind, expected, 0.1, momentum)
    weight = torch.from_numpy(start.astype(np.float32))
    optimizer = KINDS[kind](weight, learning_rate=0.1, momentum=momentum)
    for step, (touched, scale) in enumerate(STEPS):
        (rows,) = Rows.of_steps(torch.tensor([touched]))
        gradient = torch.from_numpy(gradient_of(step, len(touched), 4, scale).astype(np.float32))
        optimizer.step_rows(rows, rows.sum(gradient))
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-4, atol=1e-6)
    # Rows 2 and 5 were never touched, to the bit.
    assert (weight[[2, 5]].numpy() == start[[2, 5]].astype(np.float32)).all()


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_dense_and_by_rows_are_the_same_where_all_rows_are_touched(kind: str, momentum: float) -> None:
    dense, sparse = torch.ones(3, 2), torch.ones(3, 2)
    of_dense = KINDS[kind](dense, learning_rate=0.2, momentum=momentum)
    of_sparse = KINDS[kind](sparse, learning_rate=0.2, momentum=momentum)
    for step in range(4):
        gradient = torch.randn(3, 2, generator=torch.Generator().manual_seed(step))
        of_dense.step(gradient)
        (rows,) = Rows.of_steps(torch.arange(3).unsqueeze(0))
        of_sparse.step_rows(rows, rows.sum(gradient))
    torch.testing.assert_close(dense, sparse)


def test_the_accumulator_starts_at_zero_and_epsilon_is_inside_the_root() -> None:
    weight = torch.zeros(2)
    Adagrad(weight, learning_rate=0.1, momentum=0).step(torch.tensor([1e-3, 5.0]))
    # sqrt(1e-6 + 1e-6); an epsilon outside of the root would give -.0999, a start at .1 would give -.0003
    torch.testing.assert_close(weight, torch.tensor([-0.1 / 2**0.5, -0.1]), rtol=1e-4, atol=0)


def test_sums_a_vector_too() -> None:
    (rows,) = Rows.of_steps(torch.tensor([[5, 2, 5]]))
    assert rows.index.tolist() == [2, 5]
    assert rows.sum(torch.tensor([1.0, 2.0, 3.0])).tolist() == [2.0, 4.0]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_an_optimizer_is_its_tensors(kind: str, momentum: float) -> None:
    settings = Gru4RecSettings.parse({"optimizer": kind, "momentum": momentum, "learning_rate": 0.3})
    weight = torch.ones(3, 2)
    optimizer = optimizer_of(settings, weight)
    assert isinstance(optimizer, KINDS[kind])
    optimizer.step(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))
    copy = weight.clone()
    resumed = optimizer_of(settings, copy)
    for name, tensor in resumed.tensors().items():
        tensor.copy_(optimizer.tensors()[name])
    for each in (optimizer, resumed):
        each.step(torch.ones(3, 2))
    assert torch.equal(weight, copy)
