"""SASRec: self-attentive sequential recommendation (Kang and McAuley 2018, arXiv:1808.09781).

Of a session's item rows m_1 .. m_T, and rows p_1 .. p_T learned for the positions:

    x_t = dropout(√D m_t + p_t)
    each layer, t seeing 1 .. t:    x <- x + dropout(attention(norm(x)))
                                    x <- x + dropout(W_2 relu(W_1 norm(x) + b_1) + b_2)
    query = norm(x_T)               score of item i = query · m_i, of the same table

What differs from the paper: the position is counted from the oldest click, not from the newest, so that one pass
gives the queries of all prefixes and padding moves nothing; the heads are joined by W_o; the loss is the trainer's, on
all items or a sample of them. The √D and the norm at the end are in the authors' code. With ``loss_as_published`` the
loss is the paper's, eq. 7, of one negative item j for each click that is predicted, i:

    L = -log σ(s_i) - log(1 - σ(s_j))

j being drawn evenly from the items at hand, and none of its session's: all items, or a step's clicks and its sample
(even, too, with ``sample_alpha=0``).

Shapes: B sessions of T clicks, D units.
"""

import math
from typing import ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding, relu, softplus

from trainer.models.attention import SPREAD, Attention, AttentionSettings, Layer, Layers
from trainer.models.base import Clicks, Encoder, ItemTables, Ranking
from trainer.models.settings import Ablation

_DRAWS: Final = 4


class SasRec(Encoder):
    """The query is the last click's row after all layers."""

    causal: ClassVar[bool] = True

    def __init__(self, settings: AttentionSettings) -> None:
        super().__init__(settings)
        size, self.rate = settings.hidden_size, settings.dropout
        self.as_published = isinstance(settings, SasRecSettings) and settings.loss_as_published
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

    def loss(self, clicks: Clicks, tables: ItemTables, ranking: Ranking) -> Tensor:
        if not self.as_published:
            return super().loss(clicks, tables, ranking)
        items, after, wanted = clicks.items[:, :-1], clicks.items[:, 1:], clicks.target[:, 1:]
        queries = self.prefixes(embedding(items.clamp(min=0), tables.input), items, clicks.length - 1)  # [B, T - 1, D]
        other = others(clicks.items, len(tables.output))[:, 1:]  # int64[B, T - 1]
        queries, after, other = queries[wanted], after[wanted], other[wanted]  # [N, D], int64[N], int64[N]
        own, against = ((queries * tables.output[column]).sum(1) for column in (after, other))  # [N]
        loss = softplus(-own) + softplus(against)  # [N]
        weight = clicks.weights(clicks.target)
        return loss.mean() if weight is None else (loss * weight).mean()


def others(items: Tensor, count: int) -> Tensor:
    """For each place of sessions int64[B, T] a column of so many, drawn evenly from those that its session has not."""
    drawn = torch.randint(count, items.shape, device=items.device)  # int64[B, T]
    # A session has few of the items: what is drawn again is seldom, and soon none of its own. One of all items stays.
    for _ in range(_DRAWS):
        own = (drawn[:, :, None] == items[:, None, :]).any(2)  # bool[B, T]
        drawn = torch.where(own, torch.randint(count, items.shape, device=items.device), drawn)
    return drawn


class SasRecSettings(AttentionSettings):
    """Settings of one SASRec fit."""

    family: Literal["sasrec"] = "sasrec"
    dropout: float = Field(0.3, ge=0, lt=1, description="dropout of rows, attention and layers")
    loss_as_published: bool = Field(
        False, description="the paper's own loss, with one negative item a click, in place of `loss`"
    )
    ablations: ClassVar[tuple[Ablation, ...]] = (
        *AttentionSettings.ablations,
        Ablation("loss-as-published", {"loss_as_published": True}, "all items or a sample of them as negatives"),
    )

    def encoder(self) -> SasRec:
        return SasRec(self)
