"""Adagrad with momentum (Duchi et al. 2011), dense and for the few rows of a large table that a step touches.

    A += g²        v = m v - lr g / sqrt(A + 1e-6)        w += v

A and v start at 0. Of a table only the touched rows see any of this, the decay of v included; gradients of a row that a
step touches several times are summed before they are squared.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

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
    def of(cls, touched: Tensor) -> "Rows":
        """From the table row of each gradient row, int64[n]."""
        ordered, order = torch.sort(touched, stable=True)
        first = torch.ones(len(touched), dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=first[1:])
        start = first.nonzero().squeeze(1)
        return cls(ordered.index_select(0, start), order, start)

    def sum(self, gradient: Tensor) -> Tensor:
        """[n, D] or [n] -> [U, D] or [U], duplicates summed."""
        flat = gradient.dim() == 1
        table = gradient.unsqueeze(1) if flat else gradient
        summed = torch.nn.functional.embedding_bag(self.order, table, self.start, mode="sum")
        return summed.squeeze(1) if flat else summed


class Adagrad:
    """The state of one weight tensor, which it updates in place."""

    def __init__(self, weight: Tensor, *, learning_rate: float, momentum: float) -> None:
        self._weight = weight
        self._lr = learning_rate
        self._momentum = momentum
        self.accumulator = torch.zeros_like(weight)
        self._velocity = torch.zeros_like(weight) if momentum else None

    def step(self, gradient: Tensor) -> None:
        """Update the whole tensor by its dense gradient."""
        self.accumulator.addcmul_(gradient, gradient)
        scale = (self.accumulator + EPSILON).sqrt_()
        if self._velocity is None:
            self._weight.addcdiv_(gradient, scale, value=-self._lr)
        else:
            self._weight.add_(self._velocity.mul_(self._momentum).addcdiv_(gradient, scale, value=-self._lr))

    def step_rows(self, rows: Rows, gradient: Tensor) -> None:
        """Update the rows ``rows.index`` by a gradient that is summed by them already, [U, D] or [U]."""
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
