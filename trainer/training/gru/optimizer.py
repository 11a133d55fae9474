"""Adagrad (Duchi et al. 2011) and SGD, both with momentum, dense and for the few rows of a table that a step touches.

    Adagrad    A += g²        v = m v - lr g / sqrt(A + 1e-6)        w += v
    SGD                       v = m v - lr g                         w += v

A and v start at 0. Of a table only the touched rows see any of this, the decay of v included; gradients of a row that a
step touches several times are summed before they are squared.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trainer.models.settings import Gru4RecSettings

EPSILON = 1e-6


@dataclass(frozen=True)
class Rows:
    """The distinct rows that a step touches, and how to sum its gradient rows into them.

    index  int64[U]  the distinct rows
    order  int64[n]  gradient rows, those of one table row next to each other
    start  int64[U]  where each table row's gradient rows start in ``order``
    """

    index: Tensor
    order: Tensor
    start: Tensor

    @classmethod
    def of_steps(cls, touched: Tensor) -> "list[Rows]":
        """By step, from the table row of each of its gradient rows, int64[k, n]."""
        ordered, order = torch.sort(touched, dim=1, stable=True)
        first = torch.ones_like(touched, dtype=torch.bool)
        torch.ne(ordered[:, 1:], ordered[:, :-1], out=first[:, 1:])
        step, start = first.nonzero().unbind(1)  # of all steps, one after the other
        index = ordered[step, start]
        counts = first.sum(1).cpu().tolist()
        return [cls(*rows) for rows in zip(torch.split(index, counts), order, torch.split(start, counts), strict=True)]

    def sum(self, gradient: Tensor) -> Tensor:
        """[n, D] or [n] -> [U, D] or [U], duplicates summed."""
        flat = gradient.dim() == 1
        table = gradient.unsqueeze(1) if flat else gradient
        summed = torch.nn.functional.embedding_bag(self.order, table, self.start, mode="sum")
        return summed.squeeze(1) if flat else summed


class Optimizer(Protocol):
    """The state of one weight tensor, which it updates in place."""

    def step(self, gradient: Tensor) -> None:
        """Update the whole tensor by its dense gradient."""
        ...

    def step_rows(self, rows: Rows, gradient: Tensor) -> None:
        """Update the rows ``rows.index`` by a gradient that is summed by them already, [U, D] or [U]."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The state by name, not copied: what must be kept to go on later as if nothing had happened."""
        ...


def optimizer_of(settings: Gru4RecSettings, weight: Tensor) -> Optimizer:
    """The optimizer that the settings name, at its start."""
    kind = Adagrad if settings.optimizer == "adagrad" else Sgd
    return kind(weight, learning_rate=settings.learning_rate, momentum=settings.momentum)


class Sgd:
    """Stochastic gradient descent; see :class:`Optimizer`."""

    def __init__(self, weight: Tensor, *, learning_rate: float, momentum: float) -> None:
        self._weight = weight
        self._lr = learning_rate
        self._momentum = momentum
        self._velocity = torch.zeros_like(weight) if momentum else None

    def step(self, gradient: Tensor) -> None:
        if self._velocity is None:
            self._weight.add_(gradient, alpha=-self._lr)
        else:
            self._weight.add_(self._velocity.mul_(self._momentum).add_(gradient, alpha=-self._lr))

    def step_rows(self, rows: Rows, gradient: Tensor) -> None:
        w = self._weight.index_select(0, rows.index)
        if self._velocity is None:
            w.add_(gradient, alpha=-self._lr)
        else:
            v = self._velocity.index_select(0, rows.index).mul_(self._momentum).add_(gradient, alpha=-self._lr)
            self._velocity.index_copy_(0, rows.index, v)
            w.add_(v)
        self._weight.index_copy_(0, rows.index, w)

    def tensors(self) -> dict[str, Tensor]:
        return {} if self._velocity is None else {"velocity": self._velocity}


class Adagrad:
    """Adagrad; see :class:`Optimizer`."""

    def __init__(self, weight: Tensor, *, learning_rate: float, momentum: float) -> None:
        self._weight = weight
        self._lr = learning_rate
        self._momentum = momentum
        self.accumulator = torch.zeros_like(weight)
        self._velocity = torch.zeros_like(weight) if momentum else None

    def step(self, gradient: Tensor) -> None:
        self.accumulator.addcmul_(gradient, gradient)
        scale = (self.accumulator + EPSILON).sqrt_()
        if self._velocity is None:
            self._weight.addcdiv_(gradient, scale, value=-self._lr)
        else:
            self._weight.add_(self._velocity.mul_(self._momentum).addcdiv_(gradient, scale, value=-self._lr))

    def step_rows(self, rows: Rows, gradient: Tensor) -> None:
        a = self.accumulator.index_select(0, rows.index).addcmul_(gradient, gradient)
        self.accumulator.index_copy_(0, rows.index, a)
        scale = a.add_(EPSILON).sqrt_()
        if self._velocity is None:
            change = torch.div(gradient, scale).mul_(-self._lr)
        else:
            change = self._velocity.index_select(0, rows.index).mul_(self._momentum)
            change.addcdiv_(gradient, scale, value=-self._lr)
            self._velocity.index_copy_(0, rows.index, change)
        w = self._weight.index_select(0, rows.index).add_(change)
        self._weight.index_copy_(0, rows.index, w)

    def tensors(self) -> dict[str, Tensor]:
        state = {"accumulator": self.accumulator}
        return state if self._velocity is None else state | {"velocity": self._velocity}
