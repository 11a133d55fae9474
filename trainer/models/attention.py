"""What the families of Transformers share: attention between the clicks of a session, and layers of it.

Scaled dot-product attention of several heads (Vaswani et al. 2017, arXiv:1706.03762). Of rows x_i that ask, rows y_j
that are seen, and d numbers a head:

    q_i = W_q x_i + b_q      k_j = W_k y_j      v_j = W_v y_j
    a_ij = softmax over the j that i may see of (q_i · k_j / √d)
    z_i = W_o (the heads' Σ_j a_ij v_j, side by side) + b_o

Keys and values have no bias: the one of the keys cancels in the softmax, and the one of the values is in b_o already.

With relative positions (Transformer-XL, Dai et al. 2019, arXiv:1901.02860, equation of section 3.3) the score is

    q_i · k_j + q_i · W_r r_(i-j) + u · k_j + v · W_r r_(i-j)      without b_q, r_n the sines and cosines of distance n

A layer is attention and a feed-forward network f(x) = W_2 act(W_1 x + b_1) + b_2, each with a residual:

    normed after:   x <- norm(x + dropout(part(x)))        as in BERT, Transformer-XL, XLNet
    normed before:  x <- x + dropout(part(norm(x)))        as in SASRec, GPT-2

Shapes: B sessions of T clicks, Q of them asking (T, or 1 where only the last is wanted), D numbers a row, H heads of
D / H numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import dropout

from trainer.models.base import last
from trainer.models.settings import Ablation, WindowSettings

SPREAD = 0.02
"""Standard deviation of the rows that stand for a position or a hidden item, as in BERT."""


class AttentionSettings(WindowSettings):
    """What every family of layers of attention is told."""

    ablations: ClassVar[tuple[Ablation, ...]] = (
        *WindowSettings.ablations,
        Ablation("one-layer", {"layers": 1}, "the layers above the first"),
        Ablation("one-head", {"heads": 1}, "the other heads of attention"),
    )

    layers: int = Field(2, ge=1, le=12, description="layers of attention and feed-forward network")
    heads: int = Field(2, ge=1, le=32, description="heads of attention; hidden_size is a multiple of it")

    @model_validator(mode="after")
    def _heads_share_the_units(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} cannot be shared between heads={self.heads}: set a multiple of heads"
            )
        return self


@dataclass(frozen=True)
class Sight:
    """What the rows that ask can see.

    allowed   bool[B or 1, 1, Q or 1, T]  whether a row may look at a click; each may at one at least
    distance  int64[B or 1, Q, T]         clicks from a click to the row that asks, below 0 for later ones; at most T
    """

    allowed: Tensor
    distance: Tensor


def sight(length: Tensor, width: int, causal: bool) -> Sight:
    """Of every click: those up to itself where causal, else all of its session. Length int64[B], T = width."""
    steps = torch.arange(width, device=length.device)  # [T]
    distance = (steps[:, None] - steps)[None]  # [1, T, T]
    # A causal click of a session has no padding before it: what lies behind the length needs no mask.
    allowed = distance[:, None] >= 0 if causal else (steps < length[:, None])[:, None, None]
    return Sight(allowed, distance)


def sight_from(place: Tensor, length: Tensor, width: int) -> Sight:
    """Of one row a session, at the place int64[B]: all clicks up to the length int64[B]."""
    steps = torch.arange(width, device=length.device)  # [T]
    return Sight((steps < length[:, None])[:, None, None], place[:, None, None] - steps)


class Attention(nn.Module):
    """Attention of several heads."""

    def __init__(self, size: int, heads: int, rate: float, *, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.rate = heads, rate
        self.scale = math.sqrt(heads / size)
        self.ask = linear(size, size, bias=bias)
        self.key = linear(size, size, bias=False)
        self.value = linear(size, size, bias=False)
        self.out = linear(size, size)

    def forward(self, asking: Tensor, seen: Tensor, sight: Sight) -> Tensor:
        """Rows [B, Q, D] that ask, rows [B, T, D] that are seen -> [B, Q, D]."""
        scores = self.scores(self.split(self.ask(asking)), self.split(self.key(seen)), sight)  # [B, H, Q, T]
        weights = scores.masked_fill(~sight.allowed, -math.inf).softmax(3)  # [B, H, Q, T]
        weights = dropout(weights, self.rate, self.training)
        mixed = weights @ self.split(self.value(seen))  # [B, H, Q, D / H]
        joined: Tensor = self.out(mixed.transpose(1, 2).flatten(2))  # [B, Q, D]
        return joined

    def scores(self, ask: Tensor, keys: Tensor, sight: Sight) -> Tensor:
        """[B, H, Q, D / H] and [B, H, T, D / H] -> [B, H, Q, T]; here whatever the distance."""
        return (ask * self.scale) @ keys.transpose(2, 3)

    def split(self, rows: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, D / H]."""
        return rows.view(rows.shape[0], rows.shape[1], self.heads, -1).transpose(1, 2)


class RelativeAttention(Attention):
    """Attention whose scores depend on how far apart two clicks are, at most ``reach``."""

    waves: Tensor  # [2 reach + 1, D], those of the distances -reach to reach

    def __init__(self, size: int, heads: int, rate: float, *, reach: int) -> None:
        super().__init__(size, heads, rate, bias=False)
        self.reach = reach
        self.apart = linear(size, size, bias=False)  # W_r
        self.of_key = nn.Parameter(SPREAD * torch.randn(heads, 1, size // heads))  # u
        self.of_distance = nn.Parameter(SPREAD * torch.randn(heads, 1, size // heads))  # v
        self.register_buffer("waves", waves(reach, size), persistent=False)

    def scores(self, ask: Tensor, keys: Tensor, sight: Sight) -> Tensor:
        width = keys.shape[2]  # T
        near = self.apart(self.waves)[self.reach - width : self.reach + width + 1]  # [2 T + 1, D]
        far = self.split(near[None])  # [1, H, 2 T + 1, D / H]
        by_key = ((ask + self.of_key) * self.scale) @ keys.transpose(2, 3)  # [B, H, Q, T]
        by_distance = ((ask + self.of_distance) * self.scale) @ far.transpose(2, 3)  # [B, H, Q, 2 T + 1]
        at = (sight.distance + width)[:, None].expand_as(by_key)  # [B, H, Q, T]
        return by_key + by_distance.gather(3, at)


class Layer(nn.Module):
    """Attention and the feed-forward network behind it."""

    def __init__(
        self,
        attention: Attention,
        inner: int,
        activation: Callable[[Tensor], Tensor],
        *,
        norm_first: bool,
    ) -> None:
        super().__init__()
        size, self.rate = attention.out.out_features, attention.rate
        self.attention, self.activation, self.norm_first = attention, activation, norm_first
        self.widen, self.narrow = linear(size, inner), linear(inner, size)
        self.norm_attention, self.norm_feed = nn.LayerNorm(size), nn.LayerNorm(size)

    def forward(self, asking: Tensor, seen: Tensor, sight: Sight) -> Tensor:
        """Rows [B, Q, D] that ask, rows [B, T, D] that are seen -> [B, Q, D]."""
        if self.norm_first:
            normed = self.norm_attention(seen)  # [B, T, D]
            own = normed if asking is seen else self.norm_attention(asking)  # [B, Q, D]
            x = asking + self.drop(self.attention(own, normed, sight))  # [B, Q, D]
            return x + self.drop(self.feed(self.norm_feed(x)))  # [B, Q, D]
        x = self.norm_attention(asking + self.drop(self.attention(asking, seen, sight)))  # [B, Q, D]
        return self.norm_feed(x + self.drop(self.feed(x)))  # type: ignore[no-any-return]  # [B, Q, D]

    def feed(self, x: Tensor) -> Tensor:
        """[B, Q, D] -> [B, Q, D]."""
        return self.narrow(self.activation(self.widen(x)))  # type: ignore[no-any-return]

    def drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate, self.training)


class Layers(nn.Module):
    """Layers, one after the other, of rows that look at each other: at those before where causal, else at all."""

    def __init__(self, layers: list[Layer], *, causal: bool) -> None:
        super().__init__()
        self.layers, self.causal = nn.ModuleList(layers), causal

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        """All positions: [B, T, D] and int64[B] -> [B, T, D]."""
        every = sight(length, x.shape[1], self.causal)
        for layer in self.layers:
            x = layer(x, x, every)  # [B, T, D]
        return x

    def last(self, x: Tensor, length: Tensor) -> Tensor:
        """The last position of each session alone: [B, T, D] and int64[B] -> [B, D]. Much less of the last layer."""
        every = sight(length, x.shape[1], self.causal)
        for layer in self.layers[:-1]:
            x = layer(x, x, every)  # [B, T, D]
        final = last(x, length)[:, None]  # [B, 1, D]
        query: Tensor = self.layers[-1](final, x, sight_from(length - 1, length, x.shape[1]))  # [B, 1, D]
        return query.squeeze(1)


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear map, its weights U(±sqrt(6 / (inputs + outputs))), its bias 0."""
    made = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(made.weight)
    if bias:
        nn.init.zeros_(made.bias)
    return made


def waves(reach: int, size: int) -> Tensor:
    """Sines, then cosines, of the distances -reach to reach in wave lengths from 2π to 20,000π: [2 reach + 1, D]."""
    distance = torch.arange(-reach, reach + 1)[:, None]  # [2 reach + 1, 1]
    angle = distance / 10_000 ** (torch.arange(0, size, 2) / size)  # [2 reach + 1, D / 2, rounded up]
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :size]
