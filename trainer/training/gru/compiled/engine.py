"""A training run's steps by the compiled code: the arrays of torch's tensors, and where their results go."""

from collections.abc import Mapping
from typing import Any

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  # the products are its: loaded before its threads are looked for
import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
from torch import Tensor

from trainer.data.batches import Schedule
from trainer.data.targets import Floats
from trainer.models.gru4rec import Weights
from trainer.models.settings import Gru4RecSettings
from trainer.training.dropout import keys, threshold
from trainer.training.gru.compiled import arrays, losses
from trainer.training.gru.compiled.columns import room
from trainer.training.gru.compiled.steps import on_one_thread, on_threads
from trainer.training.gru.optimizer import Optimizer
from trainer.training.losses import logq_correction
from trainer.training.sampling import NegativeSampler

_LOSSES = {
    "cross-entropy": losses.CROSS_ENTROPY,
    "bpr": losses.BPR,
    "top1": losses.TOP1,
    "bpr-max": losses.BPR_MAX,
    "top1-max": losses.TOP1_MAX,
}
_ACTIVATIONS = {"elu": losses.ELU, "tanh": losses.TANH, "relu": losses.RELU}


class CompiledSteps:
    """Runs steps of an epoch; moves the weights and the optimizers' state in place."""

    def __init__(
        self,
        settings: Gru4RecSettings,
        weights: Weights,
        *,
        optimizers: Mapping[str, Optimizer],
        support: Tensor,
        sampler: NegativeSampler,
        threads: int,
    ) -> None:
        self._settings = settings
        self._sampler = sampler
        self._options = _options(settings, weights)
        self._model = _tables(weights, {name: tensor.numpy() for name, tensor in weights.tensors().items()})
        self._accumulators = _tables(weights, _state(optimizers, "accumulator"))
        self._velocities = _tables(weights, _state(optimizers, "velocity"))
        self._weights = _column_weights(settings, support)
        self._scratch = _scratch(settings, weights, parts=threads)
        self._run = on_one_thread if threads == 1 else on_threads
        if threads > 1:
            numba.set_num_threads(threads)
        self._blas = ThreadpoolController().select(user_api="blas")

    def begin(self, items: np.ndarray[Any, Any], plan: Schedule, weights: Floats | None = None) -> None:
        """An epoch over clicks int64[clicks] by a schedule; ``weights`` float32[clicks] of each as a target."""
        of_target = np.ones(1, np.float32) if weights is None else weights
        self._data = arrays.Data(items, plan.position, plan.fresh, plan.alive, *self._weights, of_target)

    def run(self, epoch: int, first: int, last: int) -> float:
        """The loss of the steps first..last, summed over their lanes."""
        total, step = 0.0, first
        # Its own threads would wait for each other in a loop, and matrices as small as these are slower with them.
        with self._blas.limit(limits=1):
            while step < last:
                samples = self._sampler.draw_steps(last - step)
                total += self._run(
                    step,
                    samples,
                    keys(self._settings.seed, epoch * len(self._data.alive) + step, len(samples), masks=2),
                    self._data,
                    self._model,
                    self._accumulators,
                    self._velocities,
                    self._scratch,
                    self._options,
                )
                step += len(samples)
        return total


def _options(settings: Gru4RecSettings, weights: Weights) -> arrays.Options:
    elu = settings.activation != "elu" or settings.elu > 0
    return arrays.Options(
        loss=_LOSSES[settings.loss],
        activation=_ACTIVATIONS.get(settings.activation, losses.LINEAR) if elu else losses.LINEAR,
        elu=np.float32(settings.elu),
        bpreg=np.float32(settings.bpreg),
        shared=weights.embedding is None,
        one_hot=weights.one_hot,
        adagrad=settings.optimizer == "adagrad",
        learning_rate=np.float32(settings.learning_rate),
        momentum=np.float32(settings.momentum),
        embedding_l2=np.float32(settings.embedding_l2),
        input_decay=np.float32(settings.input_decay),
        input_scale=np.float32(1 / (1 - settings.dropout_input)),
        input_threshold=threshold(settings.dropout_input),
        hidden_scale=np.float32(1 / (1 - settings.dropout_hidden)),
        hidden_threshold=threshold(settings.dropout_hidden),
        per_lane=np.float32(1 / settings.batch_size),
    )


def _state(optimizers: Mapping[str, Optimizer], which: str) -> dict[str, Any]:
    """One kind of optimizer state by weight, without the weights that have none."""
    states = {name: optimizer.tensors().get(which) for name, optimizer in optimizers.items()}
    return {name: tensor.numpy() for name, tensor in states.items() if tensor is not None}


def _tables(weights: Weights, of: Mapping[str, Any]) -> arrays.Tables:
    """Arrays by the names of :meth:`Weights.tensors`, empty ones where there is none."""
    flat, none = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
    return arrays.Tables(
        output=of.get("output", none),
        bias=of.get("output_bias", flat),
        inputs=of.get("output" if weights.embedding is None else "embedding", none),
        w=of.get("layer0.w", none),
        u=of.get("layer0.u", none),
        b=of.get("layer0.b", flat).reshape(-1, 3 * weights.hidden_size),
    )


def _column_weights(settings: Gru4RecSettings, support: Tensor) -> tuple[Any, Any]:
    """e^-correction of each item, as a target and as a sample; without a correction every column counts 1."""
    logq = logq_correction(support, settings)
    if logq is None:
        return np.ones(1, np.float32), np.ones(1, np.float32)
    as_target, as_sample = (torch.exp(-correction.double()).float().numpy() for correction in logq)
    return as_target, as_sample


def _scratch(settings: Gru4RecSettings, weights: Weights, parts: int) -> arrays.Scratch:
    lanes, samples, size = settings.batch_size, settings.n_sample, weights.hidden_size
    columns, width = 2 * lanes + samples, weights.input_table.shape[1]
    separate = weights.embedding is not None

    def floats(*shape: int) -> Any:
        return np.zeros(shape, np.float32)

    def ints(count: int) -> Any:
        return np.zeros(count, np.int32)

    return arrays.Scratch(
        hidden=floats(lanes, size),
        sums=floats(lanes, width if settings.input_decay else 0),
        items=np.zeros(columns, np.int64),
        place=room(weights.items),
        target_slot=ints(lanes),
        sample_slot=ints(samples),
        input_slot=ints(lanes),
        input_items=np.zeros(lanes, np.int64),
        input_place=room(weights.items if separate else 0),
        rows=floats(columns, size),
        weight=floats(columns),
        log_weight=floats(columns),
        bias=floats(columns),
        shift=floats(lanes),
        lane_weight=floats(lanes),
        scores=floats(lanes * columns),
        x=floats(lanes, width),
        gates=floats(lanes, 3 * size),
        from_h=floats(lanes, 3 * size),
        out=floats(lanes, size),
        d_out=floats(lanes, size),
        d_x=floats(lanes, width),
        d_rows=floats(parts, columns * size),
        d_bias=floats(parts, columns),
        d_inputs=floats(lanes if separate else 0, width),
        d_w=floats(parts, 0 if weights.one_hot else 3 * size, size),
        d_u=floats(parts, 3 * size, size),
        d_b=floats(parts, 1, 3 * size),
        temporary=floats(parts, 4, columns),
        identity=np.arange(3 * size),
        loss=np.zeros(parts),
    )
