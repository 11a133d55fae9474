"""A training run's steps in plain torch, one operation after the other: what the compiled ones must equal.

Also what trains where Numba is not installed, on a GPU, and with settings that the compiled steps do not know.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer import dropout
from trainer.batches import Schedule
from trainer.gru4rec import Weights
from trainer.optimizer import Optimizer, Rows
from trainer.sampling import NegativeSampler
from trainer.settings import TrainingSettings
from trainer.step import Gradients, StepMath


class ReferenceSteps:
    """Runs steps of an epoch; moves the weights and the optimizers' state in place."""

    def __init__(
        self,
        settings: TrainingSettings,
        weights: Weights,
        *,
        optimizers: Mapping[str, Optimizer],
        support: Tensor,
        sampler: NegativeSampler,
    ) -> None:
        self._settings = settings
        self._weights = weights
        self._optimizers = optimizers
        self._sampler = sampler
        self._math = StepMath(settings, support, self._mask)
        self._keys: list[np.uint32] = []

    def begin(self, items: npt.NDArray[np.int64], plan: Schedule) -> None:
        """An epoch over clicks int64[clicks] by a schedule."""
        self._items, self._plan = torch.from_numpy(items), plan
        self._hidden = torch.zeros(self._weights.state_rows, plan.position.shape[1], self._weights.hidden_size)

    def run(self, epoch: int, first: int, last: int) -> float:
        """The loss of the steps first..last, summed over their lanes."""
        total = torch.zeros((), dtype=torch.float64)
        for step in range(first, last):
            n = int(self._plan.alive[step])
            at = torch.from_numpy(self._plan.position[step, :n].astype(np.int64))
            carried = torch.from_numpy((~self._plan.fresh[step, :n]).astype(np.float32))  # 0 where a session starts
            inputs, targets = self._items.index_select(0, at), self._items.index_select(0, at + 1)
            samples = self._sampler.draw()
            masks = 1 + self._settings.layers
            self._keys = list(dropout.keys(self._settings.seed, epoch * self._plan.steps + step, 1, masks)[0])
            # Lanes only ever fall away.
            g = self._math(self._weights, inputs, targets, samples, self._hidden[:, :n] * carried[:, None])
            self._hidden = g.hidden
            self._update(g, inputs, torch.cat([targets, samples]))
            total += g.loss
        return float(total)

    def _mask(self, shape: tuple[int, int], rate: float) -> Tensor | None:
        """The step's next mask: that of the input, then those of the layers."""
        key = self._keys.pop(0)
        return dropout.mask(shape, rate, key) if rate else None

    def _update(self, g: Gradients, inputs: Tensor, columns: Tensor) -> None:
        rows = Rows.of(columns)
        self._optimizers["output_bias"].step_rows(rows, rows.sum(g.column_bias))
        if self._weights.embedding is None:
            # The same table twice: a row that is input and column gets one update, by the sum of both gradients.
            both = Rows.of(torch.cat([inputs, columns]))
            self._step_items("output", self._weights.output, both, torch.cat([g.inputs, g.columns]))
        else:
            self._step_items("output", self._weights.output, rows, g.columns)
            self._step_items("embedding", self._weights.embedding, Rows.of(inputs), g.inputs)
        for i, layer in enumerate(g.layers):
            for part, gradient in (("w", layer.w), ("u", layer.u), ("b", layer.b)):
                if gradient is not None:
                    self._optimizers[f"layer{i}.{part}"].step(gradient)

    def _step_items(self, name: str, table: Tensor, rows: Rows, gradient: Tensor) -> None:
        """Update item rows; with L2 the step's loss has embedding_l2 / 2 times their squares, each row once."""
        summed = rows.sum(gradient)
        if self._settings.embedding_l2:
            summed = summed.add(table.index_select(0, rows.index), alpha=self._settings.embedding_l2)
        self._optimizers[name].step_rows(rows, summed)
