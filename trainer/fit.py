"""Training: sessions and settings in, weights out."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.batches import Schedule, schedule
from trainer.errors import TrainingDivergedError
from trainer.gru4rec import CellTrace, GruLayer, Weights, cell, cell_gradient, initial_weights
from trainer.losses import logq_correction, loss_of
from trainer.optimizer import Rows, optimizer_of
from trainer.sampling import NegativeSampler
from trainer.sessions import SessionSet
from trainer.settings import TrainingSettings

_CHECK_EVERY = 64  # steps between looks at the loss: a look waits for the arithmetic


def use_threads(threads: int) -> None:
    """Set up torch's arithmetic for this process. Call it once, before any training."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # numbers below 1e-38 are slow, and zero to any purpose here


@dataclass(frozen=True)
class Epoch:
    """What an epoch did. ``loss`` is the mean over its transitions."""

    number: int
    loss: float
    transitions: int
    seconds: float


@dataclass(frozen=True)
class FitResult:
    weights: Weights
    item_ids: tuple[str, ...]
    settings: TrainingSettings
    epochs: tuple[Epoch, ...]

    @property
    def transitions_per_second(self) -> float:
        """True transitions (no padding, no samples) over the wall time of whole epochs."""
        return sum(e.transitions for e in self.epochs) / max(sum(e.seconds for e in self.epochs), 1e-9)


def fit(
    sessions: SessionSet,
    settings: TrainingSettings,
    *,
    warm_start: Weights | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> FitResult:
    """Train GRU4Rec on sessions whose vocabulary is theirs alone (see :func:`trainer.sessions.train_and_test`).

    ``warm_start`` are weights in the same vocabulary to start from (see :mod:`trainer.warm_start`); they are copied,
    not changed. ``progress`` hears the number of transitions done since it last heard, ``on_epoch`` of every epoch.
    Runs with equal inputs and one thread give equal bits. Raises :class:`TrainingDivergedError`.
    """
    with torch.inference_mode():
        training = _Training(sessions, settings, warm_start)
        epochs = []
        for number in range(1, settings.epochs + 1):
            epoch = training.epoch(number, progress or (lambda _: None))
            epochs.append(epoch)
            if on_epoch:
                on_epoch(epoch)
    weights = Weights.of_tensors({name: tensor.clone() for name, tensor in training.weights.tensors().items()})
    return FitResult(weights, sessions.item_ids, settings, tuple(epochs))


def dropout_mask(shape: tuple[int, int], rate: float, generator: torch.Generator) -> Tensor | None:
    """0 for the share ``rate`` of the components, 1 / (1 - rate) for the rest; None for a rate of 0."""
    if rate == 0:
        return None
    return torch.empty(shape).bernoulli_(1 - rate, generator=generator).div_(1 - rate)


@dataclass(frozen=True)
class Gradients:
    """Of one step: its loss summed over the lanes, and the gradient of that sum / batch_size."""

    loss: Tensor  # []
    inputs: Tensor  # [n, H] of the input rows
    layers: tuple[GruLayer, ...]
    columns: Tensor  # [C, H] of the output rows of the columns
    column_bias: Tensor  # [C]
    hidden: Tensor  # [L, n, H], no gradient: the state that the lanes carry on


class StepMath:
    """Loss and gradient of one mini-batch step; changes nothing.

    ``drop`` gives the dropout mask of a shape and a rate (values 0 or 1 / (1 - rate)), or None for none.
    """

    def __init__(
        self, settings: TrainingSettings, support: Tensor, drop: Callable[[tuple[int, int], float], Tensor | None]
    ) -> None:
        self._settings = settings
        self._loss = loss_of(settings)
        self._logq = logq_correction(support, settings)
        self._drop = drop

    def __call__(self, weights: Weights, inputs: Tensor, targets: Tensor, samples: Tensor, hidden: Tensor) -> Gradients:
        """inputs, targets int64[n], samples int64[N], hidden [L, n, H] -> Gradients with C = n + N columns."""
        settings, n = self._settings, len(inputs)
        x = weights.input_table.index_select(0, inputs)  # [n, H]
        input_mask = self._drop((n, x.shape[1]), settings.dropout_input)
        x = x if input_mask is None else x * input_mask
        traces: list[CellTrace] = []
        masks: list[Tensor | None] = []
        states: list[Tensor] = []
        for layer, h in zip(weights.layers, hidden, strict=True):
            x, trace = cell(layer, x, h)  # [n, H]
            mask = self._drop((n, x.shape[1]), settings.dropout_hidden)
            x = x if mask is None else x * mask  # goes up, and on to the next step as well
            traces.append(trace)
            masks.append(mask)
            states.append(x)

        columns = torch.cat([targets, samples])  # [C]
        w = weights.output.index_select(0, columns)  # [C, H]
        bias = weights.output_bias.index_select(0, columns)  # [C]
        if self._logq is not None:
            as_target, as_sample = self._logq
            bias = bias - torch.cat([as_target.index_select(0, targets), as_sample.index_select(0, samples)])
        loss, d_scores = self._loss(torch.addmm(bias, x, w.T))  # [n, C]
        d_scores.mul_(1.0 / settings.batch_size)

        d_x = d_scores @ w  # [n, H]
        layers: list[GruLayer] = []
        for layer, trace, mask in zip(reversed(weights.layers), reversed(traces), reversed(masks), strict=True):
            d_x, d_layer = cell_gradient(layer, trace, d_x if mask is None else d_x * mask)
            layers.insert(0, d_layer)
        d_x = d_x if input_mask is None else d_x * input_mask
        return Gradients(loss, d_x, tuple(layers), d_scores.T @ x, d_scores.sum(0), torch.stack(states))


class _Training:
    """The moving parts of a fit: weights, optimiser state, random numbers."""

    def __init__(self, sessions: SessionSet, settings: TrainingSettings, warm_start: Weights | None) -> None:
        self._settings = settings
        self._items = torch.from_numpy(sessions.items)
        self._schedule = schedule(sessions, settings.batch_size)
        self._generator = torch.Generator().manual_seed(settings.seed)
        # Drawn even when a warm start replaces them: the random numbers after them stay the same.
        fresh = initial_weights(len(sessions.item_ids), settings, self._generator)
        self.weights = fresh if warm_start is None else _like(fresh, warm_start)
        support = sessions.support()
        self._sampler = NegativeSampler(
            support, n_sample=settings.n_sample, alpha=settings.sample_alpha, seed=settings.seed
        )
        self._math = StepMath(settings, torch.from_numpy(support), self._dropout)
        self._optimizers = {name: optimizer_of(settings, tensor) for name, tensor in self.weights.tensors().items()}

    def epoch(self, number: int, progress: Callable[[int], None]) -> Epoch:
        began = time.perf_counter()
        plan: Schedule = self._schedule
        carried = torch.from_numpy((~plan.fresh).astype(np.float32))  # [T, B] 0 where a session starts
        position = torch.from_numpy(plan.position)
        hidden = torch.zeros(self._settings.layers, plan.position.shape[1], self._settings.hidden_size)
        total, told, done = torch.zeros((), dtype=torch.float64), 0, 0
        for step, n in enumerate(plan.alive.tolist()):
            at = position[step, :n]
            inputs, targets = self._items.index_select(0, at), self._items.index_select(0, at + 1)
            samples = self._sampler.draw()
            g = self._math(self.weights, inputs, targets, samples, hidden[:, :n] * carried[step, :n, None])
            hidden = g.hidden  # lanes only ever fall away
            self._update(g, inputs, torch.cat([targets, samples]))
            total += g.loss
            done += n
            if step % _CHECK_EVERY == 0:
                self._check(float(total), number, step)
                progress(done - told)
                told = done
        self._check(float(total), number, plan.steps)
        progress(done - told)
        return Epoch(number, float(total) / done, done, time.perf_counter() - began)

    def _update(self, g: Gradients, inputs: Tensor, columns: Tensor) -> None:
        rows = Rows.of(columns)
        self._optimizers["output_bias"].step_rows(rows, rows.sum(g.column_bias))
        if self.weights.embedding is None:
            # The same table twice: a row that is input and column gets one update, by the sum of both gradients.
            both = Rows.of(torch.cat([inputs, columns]))
            self._optimizers["output"].step_rows(both, both.sum(torch.cat([g.inputs, g.columns])))
        else:
            self._optimizers["output"].step_rows(rows, rows.sum(g.columns))
            input_rows = Rows.of(inputs)
            self._optimizers["embedding"].step_rows(input_rows, input_rows.sum(g.inputs))
        for i, layer in enumerate(g.layers):
            for part, gradient in (("w", layer.w), ("u", layer.u), ("b", layer.b)):
                self._optimizers[f"layer{i}.{part}"].step(gradient)

    def _dropout(self, shape: tuple[int, int], rate: float) -> Tensor | None:
        return dropout_mask(shape, rate, self._generator)

    def _check(self, total: float, epoch: int, step: int) -> None:
        if not math.isfinite(total):
            raise TrainingDivergedError(
                f"the loss is {total} in epoch {epoch}, before step {step + 1}: lower learning_rate "
                f"(now {self._settings.learning_rate}) or momentum (now {self._settings.momentum})"
            )


def _like(fresh: Weights, given: Weights) -> Weights:
    """A copy of the given weights, once their shapes are those of the fresh ones."""
    expected = {name: tuple(tensor.shape) for name, tensor in fresh.tensors().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in given.tensors().items()}
    if shapes != expected:
        raise ValueError(f"the weights to start from do not fit the settings: {shapes} in place of {expected}")
    return given.clone()
