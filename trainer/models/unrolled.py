"""A recurrent network over a session's last clicks at once, as a window network: for members beside window families.

The same arithmetic as click by click (:mod:`trainer.models.gru4rec`), from a hidden state of zeros at the oldest click
of the window. So the answers are the same for sessions that are no longer than it, and all it takes is exact: one-hot
inputs are rows of gates to which an identity is applied; of the decayed sum, s_t = Σ_k d^(t - k) x_k, the powers of d
are a triangular matrix.

Shapes: B sessions of T clicks, H units, D numbers of a layer's input.
"""

import torch
from torch import Tensor, nn

from trainer.models.base import Encoder, last
from trainer.models.gru4rec import GruLayer, Weights, initial_weights
from trainer.models.settings import Gru4RecSettings
from trainer.models.window import WindowNetwork


class Unrolled(Encoder):
    """The query is the last layer's state after the last click; without layers, what the first would be given."""

    bias = True
    causal = True

    powers: Tensor | None

    def __init__(self, settings: Gru4RecSettings, window: int) -> None:
        super().__init__(settings)
        size, one_hot = settings.hidden_size, settings.embedding == "one-hot"
        self.input_size = 3 * size if one_hot else size
        self.tied = settings.embedding == "shared"
        self.deep_input = settings.deep_input
        self.layers = nn.ModuleList()
        for depth in range(settings.layers):
            width = 2 * size if depth and self.deep_input else size
            self.layers.append(_Layer(None if one_hot and not depth else width, size))
        powers = None
        if settings.input_decay:
            steps = torch.arange(window)
            powers = (settings.input_decay ** (steps[:, None] - steps).clamp(min=0)).tril()  # [window, window]
        self.register_buffer("powers", powers, persistent=False)  # set, not learned

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        return last(self.prefixes(rows, items, length), length)  # [B, H]

    def prefixes(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        if self.powers is not None:
            clicks = rows.shape[1]
            rows = self.powers[:clicks, :clicks] @ rows  # [B, T, H], one-hot [B, T, 3H]
        x = rows
        for depth, layer in enumerate(self.layers):
            x = layer(torch.cat([x, rows], dim=2) if depth and self.deep_input else x)  # [B, T, H]
        return x


class _Layer(nn.Module):
    """The parameters of a :class:`trainer.models.gru4rec.GruLayer`; without ``w`` of an input of gates."""

    def __init__(self, width: int | None, size: int) -> None:
        super().__init__()
        self.w = None if width is None else nn.Parameter(torch.zeros(3 * size, width))
        self.u = nn.Parameter(torch.zeros(3 * size, size))
        self.b = nn.Parameter(torch.zeros(3 * size))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> the state after each click [B, T, H]."""
        start = x.new_zeros(1, x.shape[0], self.u.shape[1])  # [1, B, H]; len() would fix B in an export
        w = torch.eye(len(self.b), device=x.device) if self.w is None else self.w
        # torch has a bias of U h as well, which GRU4Rec has not.
        weights = [w, self.u, self.b, torch.zeros_like(self.b)]
        states, _ = torch.gru(
            x, start, weights, has_biases=True, num_layers=1, dropout=0.0, train=False, bidirectional=False,
            batch_first=True,
        )  # fmt: skip
        return states


def unrolled(weights: Weights, settings: Gru4RecSettings, window: int) -> WindowNetwork:
    """The network as one of so many last clicks. Its bias is shared, all else copied."""
    shape = WindowNetwork(
        settings, window, Unrolled(settings, window).eval(), weights.input_table, weights.output, weights.output_bias
    )
    named = {"input": weights.input_table, "output": weights.output, "output_bias": weights.output_bias}
    for depth, layer in enumerate(weights.layers):
        named |= {
            f"encoder.layers.{depth}.{part}": tensor
            for part, tensor in (("w", layer.w), ("u", layer.u), ("b", layer.b))
            if tensor is not None
        }
    return shape.with_tensors(named)


def rolled(network: WindowNetwork, settings: Gru4RecSettings) -> Weights:
    """The inverse of :func:`unrolled`."""
    encoder = network.encoder
    assert isinstance(encoder, Unrolled)
    layers = tuple(
        GruLayer(None if layer.w is None else layer.w.detach(), layer.u.detach(), layer.b.detach())
        for layer in encoder.layers
        if isinstance(layer, _Layer)
    )
    decay = initial_weights(1, settings, torch.Generator()).input_decay
    return Weights(None if encoder.tied else network.input, layers, network.output, network.output_bias, decay)
