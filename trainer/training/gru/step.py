"""One mini-batch step: forward, loss, and the gradient written out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.models.gru4rec import CellTrace, GruLayer, Weights, cell, cell_gradient, item_input, layer_input
from trainer.models.settings import Gru4RecSettings
from trainer.training.losses import logq_correction, loss_of


@dataclass(frozen=True)
class Gradients:
    """Of one step: its loss summed over the lanes, and the gradient of that sum / batch_size."""

    loss: Tensor  # []
    inputs: Tensor  # [n, H] of the input rows, one-hot [n, 3H]
    layers: tuple[GruLayer, ...]
    columns: Tensor  # [C, H] of the output rows of the columns
    column_bias: Tensor  # [C]
    hidden: Tensor  # [S + L, n, H], no gradient: the state that the lanes carry on


class StepMath:
    """Loss and gradient of one mini-batch step; changes nothing.

    ``drop`` gives the dropout mask of a shape and a rate (values 0 or 1 / (1 - rate)), or None for none.
    """

    def __init__(
        self, settings: Gru4RecSettings, support: Tensor, drop: Callable[[tuple[int, int], float], Tensor | None]
    ) -> None:
        self._settings = settings
        self._loss = loss_of(settings)
        self._logq = logq_correction(support, settings)
        self._drop = drop

    def __call__(
        self,
        weights: Weights,
        inputs: Tensor,
        targets: Tensor,
        samples: Tensor,
        hidden: Tensor,
        *,
        target_weights: Tensor | None = None,
    ) -> Gradients:
        """inputs, targets int64[n], samples int64[N], hidden [S + L, n, H] -> Gradients with C = n + N columns.

        ``target_weights`` [n]: how much each lane's loss counts.
        """
        settings, n = self._settings, len(inputs)
        item, of_sum = item_input(weights, inputs, hidden)  # [n, H], one-hot [n, 3H]; the sum is carried undropped
        # A one-hot input has one component that is not 0: the whole click is dropped, or nothing of it.
        input_mask = self._drop((n, 1 if weights.one_hot else item.shape[1]), settings.dropout_input)
        item = item if input_mask is None else item * input_mask
        x = item
        traces: list[CellTrace] = []
        masks: list[Tensor | None] = []
        states = list(of_sum)
        for layer, h in zip(weights.layers, hidden[weights.sum_rows :], strict=True):
            x, trace = cell(layer, layer_input(layer, x, item), h)  # [n, H]
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
        loss, d_scores = self._loss(torch.addmm(bias, x, w.T), target_weights)  # [n, C]
        d_scores.mul_(1.0 / settings.batch_size)

        d_x = d_scores @ w  # [n, H]
        d_item: Tensor | None = None
        layers: list[GruLayer] = []
        for layer, trace, mask in zip(reversed(weights.layers), reversed(traces), reversed(masks), strict=True):
            d_x, d_layer = cell_gradient(layer, trace, d_x if mask is None else d_x * mask)
            layers.insert(0, d_layer)
            if len(layers) < len(weights.layers) and d_x.shape[1] > weights.hidden_size:
                of_item = d_x[:, weights.hidden_size :]  # [n, H], what deep input hands to this layer
                d_item = of_item if d_item is None else d_item + of_item
                d_x = d_x[:, : weights.hidden_size]
        d_x = d_x if d_item is None else d_x + d_item
        d_x = d_x if input_mask is None else d_x * input_mask
        return Gradients(loss, d_x, tuple(layers), d_scores.T @ x, d_scores.sum(0), torch.stack(states))
