"""A training run's steps in plain torch, one operation after the other: what the compiled ones must equal.

Also what trains where Numba is not installed, on a GPU, and with settings that the compiled steps do not know. They run
on whatever device the weights are on. What a step touches does not depend on what it learns, so it is found for many
steps at a time, and on a GPU the host sends and waits once for all of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.data.batches import Schedule
from trainer.data.targets import Floats
from trainer.models.gru4rec import Weights
from trainer.models.settings import Gru4RecSettings
from trainer.training import dropout
from trainer.training.gru.optimizer import Optimizer, Rows
from trainer.training.gru.step import Gradients, StepMath
from trainer.training.sampling import NegativeSampler

_AHEAD = 1 << 18  # columns that are looked at ahead, over all steps


@dataclass(frozen=True)
class _Touched:
    """What one step touches of the catalogue; shared means that one table has the input's and the columns' rows."""

    inputs: Tensor  # int64[n]
    targets: Tensor  # int64[n]
    samples: Tensor  # int64[N]
    carried: Tensor  # [n, 1], 0 where a session starts and 1 elsewhere
    columns: Rows  # of targets, then samples
    items: Rows  # of inputs; shared: of inputs, then columns
    target_weights: Tensor | None  # [n]


class ReferenceSteps:
    """Runs steps of an epoch; moves the weights and the optimizers' state in place."""

    def __init__(
        self,
        settings: Gru4RecSettings,
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
        self._device = weights.output.device
        self._math = StepMath(settings, support, self._mask)
        self._keys: list[np.uint32] = []

    def begin(self, items: npt.NDArray[np.int64], plan: Schedule, weights: Floats | None = None) -> None:
        """An epoch over clicks int64[clicks] by a schedule; ``weights`` float32[clicks] of each as a target."""
        self._plan = plan
        self._target_weights = None if weights is None else torch.from_numpy(weights).to(self._device)
        self._items = torch.from_numpy(items).to(self._device)
        self._position = torch.from_numpy(plan.position).to(self._device)
        self._fresh = torch.from_numpy(plan.fresh).to(self._device)
        size = (self._weights.state_rows, plan.position.shape[1], self._weights.hidden_size)
        self._hidden = torch.zeros(size, device=self._device)

    def run(self, epoch: int, first: int, last: int) -> float:
        """The loss of the steps first..last, summed over their lanes."""
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        masks = 1 + self._settings.layers
        keys = dropout.keys(self._settings.seed, epoch * self._plan.steps + first, last - first, masks)
        for of_step, touched in zip(keys, self._touched(first, last), strict=True):
            self._keys = list(of_step)
            n = len(touched.inputs)  # lanes only ever fall away
            hidden = self._hidden[:, :n] * touched.carried
            g = self._math(
                self._weights,
                touched.inputs,
                touched.targets,
                touched.samples,
                hidden,
                target_weights=touched.target_weights,
            )
            self._hidden = g.hidden
            self._update(g, touched)
            total += g.loss
        return float(total)

    def _touched(self, first: int, last: int) -> Iterator[_Touched]:
        """By step, looked up for as many steps at a time as have the same number of lanes."""
        step = first
        while step < last:
            n = int(self._plan.alive[step])
            same = int((self._plan.alive[step:last] == n).sum())
            steps = min(same, max(1, _AHEAD // (n + self._settings.n_sample)))
            # The sampler gives what its pool still has.
            samples = torch.from_numpy(self._sampler.draw_steps(steps)).to(self._device)  # [k, N]
            now = slice(step, step + len(samples))
            at = self._position[now, :n].long()
            inputs, targets = self._items[at], self._items[at + 1]  # [k, n]
            carried = (~self._fresh[now, :n]).float().unsqueeze(2)  # [k, n, 1]
            columns = torch.cat([targets, samples], dim=1)  # [k, C]
            shared = self._weights.embedding is None
            items = Rows.of_steps(torch.cat([inputs, columns], dim=1) if shared else inputs)
            weights = [None] * len(at) if self._target_weights is None else self._target_weights[at + 1]  # [k, n]
            yield from map(_Touched, inputs, targets, samples, carried, Rows.of_steps(columns), items, weights)
            step = now.stop

    def _mask(self, shape: tuple[int, int], rate: float) -> Tensor | None:
        """The step's next mask: that of the input, then those of the layers."""
        key = self._keys.pop(0)
        return dropout.mask(shape, rate, key, self._device) if rate else None

    def _update(self, g: Gradients, touched: _Touched) -> None:
        rows, items = touched.columns, touched.items
        self._optimizers["output_bias"].step_rows(rows, rows.sum(g.column_bias))
        if self._weights.embedding is None:
            # The same table twice: a row that is input and column gets one update, by the sum of both gradients.
            self._step_items("output", self._weights.output, items, torch.cat([g.inputs, g.columns]))
        else:
            self._step_items("output", self._weights.output, rows, g.columns)
            self._step_items("embedding", self._weights.embedding, items, g.inputs)
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
