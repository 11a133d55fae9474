"""The training of one GRU4Rec."""

import math
import time
from collections.abc import Callable

import torch

from trainer.data.batches import schedule
from trainer.data.sessions import SessionSet
from trainer.data.targets import target_weights
from trainer.errors import TrainingDivergedError
from trainer.models.base import Network
from trainer.models.gru4rec import Weights, initial_weights
from trainer.models.settings import Gru4RecSettings
from trainer.training.checkpoint import Arrays, Checkpoint
from trainer.training.early_stopping import Epoch
from trainer.training.engine import EngineName
from trainer.training.gru.engine import steps_of
from trainer.training.gru.optimizer import optimizer_of
from trainer.training.sampling import NegativeSampler

_CHECK_EVERY = 64  # steps between looks at the loss, and at what the caller wants


class GruTraining:
    """The moving parts of a fit: weights, optimiser state, negatives."""

    def __init__(
        self,
        sessions: SessionSet,
        settings: Gru4RecSettings,
        warm_start: Weights | None,
        *,
        engine: EngineName,
        device: torch.device,
        threads: int,
    ) -> None:
        self._settings = settings
        self._items = sessions.items
        self._target_weights = target_weights(sessions, settings.weight_of_type)
        self._schedule = schedule(sessions, settings.batch_size)
        generator = torch.Generator().manual_seed(settings.seed)
        fresh = initial_weights(len(sessions.item_ids), settings, generator)
        self.weights = fresh if warm_start is None else _like(fresh, warm_start)
        support = sessions.support()
        self._sampler = NegativeSampler(
            support, n_sample=settings.n_sample, alpha=settings.sample_alpha, seed=settings.seed
        )
        self._optimizers = {
            name: optimizer_of(settings, tensor)
            for name, tensor in self.weights.tensors().items()
            if name != "input_decay"  # stays as it is set
        }
        self._steps = steps_of(
            engine,
            settings,
            self.weights,
            optimizers=self._optimizers,
            support=torch.from_numpy(support),
            sampler=self._sampler,
            device=device,
            threads=threads,
        )

    def state(self, identity: str, epochs: tuple[Epoch, ...], best: Network | None, mean: Network | None) -> Checkpoint:
        optimizers: Arrays = {
            f"{weight}.{name}": tensor.numpy()
            for weight, optimizer in self._optimizers.items()
            for name, tensor in optimizer.tensors().items()
        }
        return Checkpoint(identity, epochs, self.weights, best, mean, optimizers, self._sampler.state())

    def restore(self, saved: Checkpoint) -> None:
        given = saved.weights.tensors()
        for name, tensor in self.weights.tensors().items():
            tensor.copy_(given[name])
        for weight, optimizer in self._optimizers.items():
            for name, tensor in optimizer.tensors().items():
                tensor.copy_(torch.from_numpy(saved.optimizers[f"{weight}.{name}"]))
        self._sampler.restore(saved.sampler)

    def epoch(self, number: int, progress: Callable[[int], None]) -> Epoch:
        began = time.perf_counter()
        plan = self._schedule
        self._steps.begin(self._items, plan, self._target_weights)
        total, done = 0.0, 0
        for first in range(0, plan.steps, _CHECK_EVERY):
            last = min(first + _CHECK_EVERY, plan.steps)
            total += self._steps.run(number - 1, first, last)
            self._check(total, number, last)
            trained = int(plan.alive[first:last].sum())
            progress(trained)
            done += trained
        return Epoch(number, total / done, done, time.perf_counter() - began)

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
