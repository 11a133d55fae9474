"""Adam, for the rows of a table that a step touches and for a module, and the learning rate's one cycle.

Adam (Kingma and Ba 2015, arXiv:1412.6980): m and v are running means of the gradient and of its square, t counts steps,

    m = β1 m + (1 - β1) g      v = β2 v + (1 - β2) g²      w -= lr m / (1 - β1^t) / (sqrt(v / (1 - β2^t)) + ε)

Of a table only the rows of a step see any of this, the decay of m and v included, so a step's time does not grow with
the catalogue; t counts the steps of the table, not those of a row.
"""

import math

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.999)
EPSILON = 1e-8
_WARM_UP = 0.2  # share of the steps


class RowAdam:
    """The state of one table [I, ..], which it updates in place."""

    def __init__(self, weight: Tensor, *, betas: tuple[float, float] = BETAS) -> None:
        self._weight = weight
        self._betas = betas
        self._mean = torch.zeros_like(weight)
        self._square = torch.zeros_like(weight)
        self._steps = torch.zeros((), dtype=torch.int64)

    def step(self, gradient: Tensor, learning_rate: float, rows: Tensor | None = None) -> None:
        """Move the distinct rows int64[C] by their gradient [C, ..]; by default all, by one of the table's shape."""
        self._steps += 1
        one, two = (1 - beta ** int(self._steps) for beta in self._betas)
        state = (self._mean, self._square, self._weight)
        mean, square, weight = state if rows is None else (whole.index_select(0, rows) for whole in state)
        mean.lerp_(gradient, 1 - self._betas[0])
        square.mul_(self._betas[1]).addcmul_(gradient, gradient, value=1 - self._betas[1])
        scale = square.div(two).sqrt_().add_(EPSILON)
        weight.addcdiv_(mean, scale, value=-learning_rate / one)
        if rows is not None:
            for whole, some in zip(state, (mean, square, weight), strict=True):
                whole.index_copy_(0, rows, some)

    def tensors(self) -> dict[str, Tensor]:
        """The state by name, not copied: what must be kept to go on later as if nothing had happened."""
        return {"mean": self._mean, "square": self._square, "steps": self._steps}


class ModuleAdam:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) for all parameters of a module, which it updates in place.

    They and their gradients become parts of one vector each, so that a step takes as many operations as for one
    parameter. Unlike torch's own it does not need the seconds that importing torch's compiler takes.
    """

    def __init__(self, module: nn.Module, *, weight_decay: float) -> None:
        parameters = list(module.parameters())
        sizes = [parameter.numel() for parameter in parameters]
        self._weight_decay = weight_decay
        self._flat = torch.cat([torch.empty(0), *(one.detach().cpu().flatten() for one in parameters)])
        if parameters:
            self._flat = self._flat.to(parameters[0].device)
        self._gradient = torch.zeros_like(self._flat)
        self._adam = RowAdam(self._flat)
        parts = (torch.split(whole, sizes) for whole in (self._flat, self._gradient))
        for parameter, part, gradient in zip(parameters, *parts, strict=True):
            parameter.data = part.view_as(parameter)
            parameter.grad = gradient.view_as(parameter)

    def step(self, learning_rate: float) -> None:
        """Move the parameters by the gradients that were added up since the last step."""
        self._flat.mul_(1 - learning_rate * self._weight_decay)
        self._adam.step(self._gradient, learning_rate)
        self._gradient.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """As :meth:`RowAdam.tensors`."""
        return self._adam.tensors()


def one_cycle(step: int, steps: int) -> float:
    """The share of the highest learning rate that a step (from 0) of so many has: up in a line, then down in half a
    cosine's wave to almost 0.
    """
    up = max(1, round(_WARM_UP * steps))
    if step < up:
        return (step + 1) / up
    return (1 + math.cos(math.pi * (step + 1 - up) / (steps + 1 - up))) / 2
