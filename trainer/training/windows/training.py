"""The training of one window network."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from trainer.data.sessions import Ints, SessionSet
from trainer.data.targets import target_weights
from trainer.errors import TrainingDivergedError
from trainer.models.base import Clicks, ItemTables, Network, Ranking
from trainer.models.settings import WindowSettings
from trainer.models.window import WindowNetwork, initial_network
from trainer.training.checkpoint import Arrays, Checkpoint
from trainer.training.device import CPU
from trainer.training.early_stopping import Epoch
from trainer.training.losses import loss_of
from trainer.training.sampling import NegativeSampler
from trainer.training.windows.batches import Batch, batches, pieces_of, steps_of
from trainer.training.windows.columns import ColumnMap
from trainer.training.windows.optimizers import ModuleAdam, RowAdam, one_cycle
from trainer.training.windows.rankings import among_targets_and_samples, cross_entropy

_CHECK_EVERY = 32  # steps between looks at the loss, and at what the caller wants


class WindowTraining:
    """The moving parts of a fit: network, optimizers' state, negatives.

    Random numbers of an epoch, those of dropout and of the batches, come from the seed and the epoch's number, and
    torch's own are put back behind it: nothing of them needs to be kept for a run to go on.
    """

    def __init__(
        self,
        sessions: SessionSet,
        settings: WindowSettings,
        warm_start: WindowNetwork | None = None,
        *,
        device: torch.device = CPU,
    ) -> None:
        self._settings, self._items, self._device = settings, sessions.items, device
        self._target_weights = target_weights(sessions, settings.weight_of_type)
        self._pieces = pieces_of(sessions, settings.window)
        self._steps_an_epoch = steps_of(self._pieces, settings.batch_size)
        with torch.inference_mode(False):  # what is made in it cannot be trained
            generator = torch.Generator().manual_seed(settings.seed)
            network = initial_network(len(sessions.item_ids), settings, generator)
            if warm_start is not None:
                network = _like(network, warm_start)
            self._network = network.to(device)
            self._optimizers = {name: RowAdam(table) for name, table in self._tables().items()}
            self._encoder = ModuleAdam(self._network.encoder, weight_decay=settings.weight_decay)
        support = sessions.support()
        self._exact = settings.loss == "cross-entropy" and len(support) <= settings.n_sample
        self._sampler = NegativeSampler(
            support, n_sample=0 if self._exact else settings.n_sample, alpha=settings.sample_alpha, seed=settings.seed
        )
        self._columns = ColumnMap(support, settings)
        self._loss = loss_of(settings)

    @property
    def weights(self) -> WindowNetwork:
        """The network on the CPU; where it is trained there, the one that training goes on with."""
        return self._network.to(CPU)

    def state(self, identity: str, epochs: tuple[Epoch, ...], best: Network | None, mean: Network | None) -> Checkpoint:
        """Everything that the next epoch depends on; shares memory with this object."""
        moments: Arrays = {name: tensor.cpu().numpy() for name, tensor in self._moments().items()}
        return Checkpoint(identity, epochs, self.weights, best, mean, moments, self._sampler.state())

    def restore(self, saved: Checkpoint) -> None:
        """The inverse of :meth:`state`, for an object of the same sessions and settings."""
        given = saved.weights.tensors()
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor in self._network.tensors().items():
                tensor.copy_(given[name])
            for name, tensor in self._moments().items():
                tensor.copy_(torch.from_numpy(saved.optimizers[name]))
        self._sampler.restore(saved.sampler)

    def epoch(self, number: int, progress: Callable[[int], None]) -> Epoch:
        """Train on every transition once. Raises :class:`TrainingDivergedError`."""
        began = time.perf_counter()
        settings, encoder = self._settings, self._network.encoder
        rng = np.random.default_rng([settings.seed, number])
        first, told, done = (number - 1) * self._steps_an_epoch, 0, 0
        with torch.inference_mode(False), _seeded(int(rng.integers(2**62)), self._device):
            total = torch.zeros((), device=self._device)
            encoder.train()
            drawn = batches(self._items, self._pieces, settings.batch_size, rng, self._target_weights)
            for step, batch in enumerate(drawn):
                share = one_cycle(first + step, settings.epochs * self._steps_an_epoch)
                transitions = int(batch.target.sum())
                total += self._step(batch, share * settings.learning_rate) * transitions
                done += transitions
                if (step + 1) % _CHECK_EVERY == 0 or step + 1 == self._steps_an_epoch:
                    self._check(float(total), number, step)
                    progress(done - told)
                    told = done
            encoder.eval()
        return Epoch(number, float(total) / done, done, time.perf_counter() - began)

    def _step(self, batch: Batch, learning_rate: float) -> Tensor:
        """The mean loss before it, []."""
        tables, columns, ranking, rows = self._at_hand(batch)
        transitions = int(batch.target.sum())
        total = torch.zeros((), device=self._device)
        for some, width in batch.groups():
            target = batch.target[some, :width]
            weight = None if batch.weight is None else self._there(batch.weight[some, :width])
            of_group = map(self._there, (columns[some, :width], batch.length[some], target))
            clicks = replace(Clicks(*of_group), weight=weight)
            with torch.enable_grad():
                loss = self._network.encoder.loss(clicks, tables, ranking) * (int(target.sum()) / transitions)
                torch.autograd.backward(loss)
            total += loss.detach()
        self._encoder.step(learning_rate)
        with torch.no_grad():
            for name, leaf in (("output", tables.output), ("input", tables.input), ("output_bias", tables.bias)):
                if name in self._optimizers and leaf is not None and leaf.grad is not None:
                    self._optimizers[name].step(leaf.grad, learning_rate, rows)
        return total

    def _at_hand(self, batch: Batch) -> tuple[ItemTables, Ints, Ranking, Tensor | None]:
        """Of a step: its tables, leaves of their own; the column of each click, int64[B, T]; the loss; and the items of
        the rows, None for all.
        """
        if self._exact:
            whole = self._leaves(None)
            return whole, batch.items, cross_entropy(whole), None
        columns = self._columns(batch.items, self._sampler.draw_steps(1)[0])
        rows = self._there(columns.index)
        tables = self._leaves(rows)
        if self._settings.loss == "cross-entropy":
            ranking = cross_entropy(tables, self._there(columns.offset), self._there(columns.own_offset))
        else:
            ranking = among_targets_and_samples(tables, self._there(columns.samples), self._loss)
        return tables, columns.clicks, ranking, rows

    def _leaves(self, rows: Tensor | None) -> ItemTables:
        leaf = {
            name: (table.detach() if rows is None else table.index_select(0, rows)).requires_grad_()
            for name, table in self._tables().items()
        }
        return ItemTables(leaf.get("input", leaf["output"]), leaf["output"], leaf.get("output_bias"))

    def _tables(self) -> dict[str, Tensor]:
        """What is learned of the items, by the names of :meth:`WindowNetwork.tensors`."""
        network = self._network
        tables = {"output": network.output}
        if not network.encoder.tied:
            tables["input"] = network.input
        if network.encoder.bias:
            tables["output_bias"] = network.output_bias
        return tables

    def _there(self, array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _moments(self) -> dict[str, Tensor]:
        """The optimizers' state by name, not copied."""
        named = {name: optimizer.tensors() for name, optimizer in self._optimizers.items()}
        named["encoder"] = self._encoder.tensors()
        return {f"{of}.{name}": tensor for of, state in named.items() for name, tensor in state.items()}

    def _check(self, total: float, epoch: int, step: int) -> None:
        if not math.isfinite(total):
            raise TrainingDivergedError(
                f"the loss is {total} in epoch {epoch}, before step {step + 1}: lower learning_rate "
                f"(now {self._settings.learning_rate})"
            )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's random numbers from a seed, and back to where they were."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _like(fresh: WindowNetwork, given: WindowNetwork) -> WindowNetwork:
    """A copy of the given network, once its shapes are those of the fresh one."""
    expected = {name: tuple(tensor.shape) for name, tensor in fresh.tensors().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in given.tensors().items()}
    if shapes != expected:
        raise ValueError(f"the weights to start from do not fit the settings: {shapes} in place of {expected}")
    return fresh.with_tensors({name: tensor.clone() for name, tensor in given.tensors().items()})
