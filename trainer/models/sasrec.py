"""SASRec: self-attentive sequential recommendation (Kang and McAuley 2018, arXiv:1808.09781).

Of a session's item rows m_1 .. m_T, and rows p_1 .. p_T learned for the positions:

    x_t = dropout(√D m_t + p_t)
    each layer, t seeing 1 .. t:    x <- x + dropout(attention(norm(x)))
                                    x <- x + dropout(W_2 relu(W_1 norm(x) + b_1) + b_2)
    query = norm(x_T)               score of item i = query · m_i, of the same table

What differs from the paper: the position is counted from the oldest click, not from the newest, so that one pass
gives the queries of all prefixes and padding moves nothing; the heads are joined by W_o; the loss is the trainer's, on
all items or a sample of them, in place of one negative item a click. The √D and the norm at the end are in the
authors' code.

Shapes: B sessions of T clicks, D units.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import dropout, relu

from trainer.models.attention import SPREAD, Attention, AttentionSettings, Layer, Layers
from trainer.models.base import Encoder


class SasRec(Encoder):
    """The query is the last click's row after all layers."""

    causal: ClassVar[bool] = True

    def __init__(self, settings: AttentionSettings) -> None:
        super().__init__(settings)
        size, self.rate = settings.hidden_size, settings.dropout
        self.positions = nn.Parameter(SPREAD * torch.randn(settings.window, size))
        self.layers = Layers(
            [
                Layer(Attention(size, settings.heads, self.rate), size, relu, norm_first=True)
                for _ in range(settings.layers)
            ],
            causal=True,
        )
        self.norm = nn.LayerNorm(size)

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        return self.norm(self.layers.last(self.at_positions(rows), length))  # type: ignore[no-any-return]  # [B, D]

    def prefixes(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        return self.norm(self.layers(self.at_positions(rows), length))  # type: ignore[no-any-return]  # [B, T, D]

    def at_positions(self, rows: Tensor) -> Tensor:
        """What the first layer is given: [B, T, D] -> [B, T, D]."""
        x = rows * math.sqrt(self.input_size) + self.positions[: rows.shape[1]]  # [B, T, D]
        return dropout(x, self.rate, self.training)


class SasRecSettings(AttentionSettings):
    """Settings of one SASRec fit."""

    family: Literal["sasrec"] = "sasrec"
    dropout: float = Field(0.3, ge=0, lt=1, description="dropout of rows, attention and layers")

    def encoder(self) -> SasRec:
        return SasRec(self)
