"""Training: sessions and settings in, weights out."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from trainer.data.batches import schedule
from trainer.data.sessions import SessionSet
from trainer.errors import TrainingDivergedError
from trainer.memory.trained import TrainedModel
from trainer.models.gru4rec import Weights, initial_weights
from trainer.models.settings import TrainingSettings
from trainer.training import checkpoint as checkpoints
from trainer.training.averaging import averaged
from trainer.training.checkpoint import Arrays, Checkpoint
from trainer.training.device import CPU, Hardware
from trainer.training.early_stopping import EarlyStopping, Epoch, best_epoch
from trainer.training.engine import EngineName, engine_of, steps_of
from trainer.training.gru.members import joined, seed_of, split
from trainer.training.optimizer import optimizer_of
from trainer.training.sampling import NegativeSampler

DEFAULT_HARDWARE: Final = Hardware()
_CHECK_EVERY = 64  # steps between looks at the loss, and at what the caller wants


@dataclass(frozen=True, kw_only=True)
class FitResult(TrainedModel):
    """``weights`` are those after the epoch ``best_epoch``: the last one, or with early stopping the best one.

    With ``settings.averaging`` they are the mean over the epochs up to it (see :mod:`trainer.training.averaging`).

    Attributes:
        epochs: of the first member.
        engine: what computed the steps.
        device: where they were computed.
    """

    epochs: tuple[Epoch, ...]
    engine: EngineName = "torch"
    device: torch.device = CPU

    @property
    def best_epoch(self) -> int:
        return best_epoch(self.epochs)

    @property
    def transitions_per_second(self) -> float:
        """True transitions (no padding, no samples) over the wall time of whole epochs."""
        return sum(e.transitions for e in self.epochs) / max(sum(e.seconds for e in self.epochs), 1e-9)


def fit(
    sessions: SessionSet,
    settings: TrainingSettings,
    *,
    warm_start: Weights | None = None,
    early_stopping: EarlyStopping | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Callable[[int], None] | None = None,
    hardware: Hardware = DEFAULT_HARDWARE,
) -> FitResult:
    """Train the networks that the settings ask for, without a session memory; several are joined into one.

    ``sessions`` have a vocabulary of their own (see :func:`trainer.data.sessions.train_and_test`). ``warm_start`` are
    weights in it to start from (see :mod:`trainer.training.warm_start`), of all members; they are copied, not changed.
    With ``early_stopping`` every epoch of the first member is judged, and the best one's weights are kept; the others
    train for as many epochs. The file ``checkpoint`` is written after each epoch; where it exists already, the run goes
    on from it. Each further member has a file beside it. ``progress`` hears the number of transitions done since it
    last heard (of a resumed run's earlier epochs at once), ``on_epoch`` of every epoch of the first member that is
    trained. Runs with equal inputs and the same engine give equal bits on the CPU, interrupted or not.

    Raises :class:`TrainingDivergedError`, NonFiniteScoresError from the judging of a diverged model, and
    :class:`trainer.training.checkpoint.CheckpointError` for a checkpoint that is damaged or of another run.
    """
    starts = split(warm_start, settings.members) if warm_start else [None] * settings.members
    first = _fit_one(
        sessions,
        settings,
        warm_start=starts[0],
        checkpoint=checkpoint,
        progress=progress,
        hardware=hardware,
        early_stopping=early_stopping,
        on_epoch=on_epoch,
    )
    found = [first.weights]
    for number in range(1, settings.members):
        own = settings.model_copy(update={"seed": seed_of(settings.seed, number), "epochs": first.best_epoch})
        beside = checkpoint.with_name(f"{checkpoint.name}.member{number}") if checkpoint else None
        more = _fit_one(
            sessions, own, warm_start=starts[number], checkpoint=beside, progress=progress, hardware=hardware
        )
        found.append(more.weights)
    return replace(first, weights=joined(found))


def _fit_one(
    sessions: SessionSet,
    settings: TrainingSettings,
    *,
    warm_start: Weights | None,
    checkpoint: Path | None,
    progress: Callable[[int], None] | None,
    hardware: Hardware,
    early_stopping: EarlyStopping | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> FitResult:
    """One network, whatever ``settings.members`` says."""
    progress = progress or (lambda _: None)
    device = hardware.device_of(settings, sessions.transitions)
    runs = engine_of(settings, sessions.transitions, device)
    identity = ""
    if checkpoint:
        identity = checkpoints.identity(
            sessions, settings, warm_start, early_stopping, engine=runs, device=device, threads=hardware.threads
        )
    with torch.inference_mode():
        training = _Training(sessions, settings, warm_start, engine=runs, device=device, threads=hardware.threads)
        epochs: list[Epoch] = []
        best: Weights | None = None
        mean: Weights | None = None
        saved = checkpoints.load(checkpoint, identity) if checkpoint else None
        if saved is not None:
            training.restore(saved)
            epochs, best, mean = list(saved.epochs), saved.best, saved.mean
            progress(sum(epoch.transitions for epoch in epochs))
        while len(epochs) < settings.epochs and not (early_stopping and early_stopping.is_over(epochs)):
            epoch = training.epoch(len(epochs) + 1, progress)
            if settings.averaging:
                mean = averaged(mean, training.weights, epoch.number, settings.averaging)
            if early_stopping:
                epoch = replace(epoch, score=early_stopping.score(mean or training.weights))
            epochs.append(epoch)
            if early_stopping and best_epoch(epochs) == epoch.number:
                best = (mean or training.weights).clone()
            if checkpoint:
                checkpoints.save(checkpoint, training.state(identity, tuple(epochs), best, mean))
            if on_epoch:
                on_epoch(epoch)
        kept = best or mean or training.weights
    return FitResult(
        weights=kept.clone(),
        item_ids=sessions.item_ids,
        settings=settings,
        epochs=tuple(epochs),
        engine=runs,
        device=device,
    )


class _Training:
    """The moving parts of a fit: weights, optimiser state, negatives."""

    def __init__(
        self,
        sessions: SessionSet,
        settings: TrainingSettings,
        warm_start: Weights | None,
        *,
        engine: EngineName,
        device: torch.device,
        threads: int,
    ) -> None:
        self._settings = settings
        self._items = sessions.items
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

    def state(self, identity: str, epochs: tuple[Epoch, ...], best: Weights | None, mean: Weights | None) -> Checkpoint:
        """Everything that the next epoch depends on; shares memory with this object."""
        optimizers: Arrays = {
            f"{weight}.{name}": tensor.numpy()
            for weight, optimizer in self._optimizers.items()
            for name, tensor in optimizer.tensors().items()
        }
        return Checkpoint(identity, epochs, self.weights, best, mean, optimizers, self._sampler.state())

    def restore(self, saved: Checkpoint) -> None:
        """The inverse of :meth:`state`, for an object of the same sessions and settings."""
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
        self._steps.begin(self._items, plan)
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
