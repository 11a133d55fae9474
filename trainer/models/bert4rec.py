"""BERT4Rec: sequential recommendation with bidirectional encoder representations (Sun et al. 2019, arXiv:1904.06690).

Of a session's item rows m_1 .. m_T, a row m_? learned for an item that is hidden, and rows p_1 .. learned for the
positions:

    x_t = dropout(norm(m_t + p_t)),  m_? in place of m_t where item t is hidden
    each layer, all clicks seen:    x <- norm(x + dropout(attention(x)))
                                    x <- norm(x + dropout(W_2 gelu(W_1 x + b_1) + b_2))
    query_t = norm(gelu(W x_t + b))      score of item i = query_t · m_i, of the same table

In training some items of the whole session are hidden, and the query in the place of each is to find it. To serve, one
more place is put behind the last click, hidden: its query is the session's.

That place has nothing behind it. So in a share of the sessions of a step one click alone is hidden, and what follows it
is cut off. The norms of the input and of the query are in the authors' code.

What differs from the paper: such a click is any that is to be predicted, where the paper takes each session's last, so
prefixes of a session are learned as they are served; only clicks that are to be predicted are hidden, so never the
first of a session; every step draws anew what is hidden, in place of ten copies of each session drawn once; no bias of
an item; the loss is the trainer's, on all items or a sample of them.

Shapes: B sessions of T clicks, D units, N hidden items.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding, gelu

from trainer.models.attention import SPREAD, Attention, AttentionSettings, Layer, Layers, linear
from trainer.models.base import Clicks, Encoder, ItemTables, Ranking


class HidingSettings(AttentionSettings):
    """What a family is told that learns to find hidden items."""

    search: ClassVar[tuple[str, ...]] = (
        *AttentionSettings.search,
        "mask_rate=0.1..0.8:0.05",
        "last_rate=0.0..1.0:0.05",
    )

    # A step learns from the hidden clicks alone, a causal family's from all: half as many.
    epochs: int = Field(20, ge=1, le=10_000)
    mask_rate: float = Field(0.4, gt=0, le=1, description="share of a session's clicks that are hidden in a step")
    last_rate: float = Field(
        0.2, ge=0, le=1, description="share of a step's sessions that end at a hidden click, which may be any"
    )


class Bert4Rec(Encoder):
    """The query is that of a hidden place behind the last click."""

    def __init__(self, settings: HidingSettings) -> None:
        super().__init__(settings)
        size, self.rate = settings.hidden_size, settings.dropout
        self.mask_rate, self.last_rate = settings.mask_rate, settings.last_rate
        self.mask = nn.Parameter(SPREAD * torch.randn(size))
        self.positions = nn.Parameter(SPREAD * torch.randn(settings.window + 1, size))
        self.norm_input, self.norm_query = nn.LayerNorm(size), nn.LayerNorm(size)
        self.layers = Layers(
            [
                Layer(Attention(size, settings.heads, self.rate), 4 * size, gelu, norm_first=False)
                for _ in range(settings.layers)
            ],
            causal=False,
        )
        self.project = linear(size, size)

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        x = self.at_positions(hidden_behind(rows, length, self.mask))  # [B, T + 1, D]
        return self.query(self.layers.last(x, length + 1))  # [B, D]

    def loss(self, clicks: Clicks, tables: ItemTables, ranking: Ranking) -> Tensor:
        clicks, hidden = drawn_to_hide(clicks, self.mask_rate, self.last_rate)  # bool[B, T]
        rows = embedding(clicks.items.clamp(min=0), tables.input)  # [B, T, D]
        x = self.at_positions(rows.where(~hidden[:, :, None], self.mask))  # [B, T, D]
        found = self.query(self.layers(x, clicks.length)[hidden])  # [N, D]
        return ranking(found, clicks.items[hidden], clicks.weights(hidden))

    def at_positions(self, rows: Tensor) -> Tensor:
        """What the first layer is given: [B, T, D] -> [B, T, D]."""
        return dropout(self.norm_input(rows + self.positions[: rows.shape[1]]), self.rate, self.training)

    def query(self, x: Tensor) -> Tensor:
        """Of rows [N, D] after all layers: [N, D]."""
        return self.norm_query(gelu(self.project(x)))  # type: ignore[no-any-return]


def hidden_behind(rows: Tensor, length: Tensor, mask: Tensor) -> Tensor:
    """The mask's row [D] put behind each session's last: rows [B, T, D] and length int64[B] -> [B, T + 1, D]."""
    longer = torch.cat([rows, torch.zeros_like(rows[:, :1])], dim=1)  # [B, T + 1, D]
    behind = torch.arange(longer.shape[1], device=rows.device) == length[:, None]  # bool[B, T + 1]
    return torch.where(behind[:, :, None], mask, longer)


def drawn_to_hide(clicks: Clicks, rate: float, last_rate: float) -> tuple[Clicks, Tensor]:
    """What a step shows of the sessions, and which of these clicks it hides: bool[B, T], one of each session at least.

    Each that is to be predicted with this probability. In a share ``last_rate`` of the sessions, and where none is
    drawn, one of them alone, and what follows it is not shown.
    """
    target, device = clicks.target, clicks.target.device
    one = torch.rand(target.shape, device=device).where(target, -1.0).argmax(1)  # int64[B], any one to predict
    hidden = target & (torch.rand(target.shape, device=device) < rate)  # bool[B, T]
    alone = (torch.rand(len(target), device=device) < last_rate) | ~hidden.any(1)  # bool[B]
    length = torch.where(alone & target.any(1), one + 1, clicks.length)  # int64[B]
    places = torch.arange(target.shape[1], device=device)  # [T]
    shown = places < length[:, None]  # bool[B, T]
    last = target & (places == length[:, None] - 1)  # bool[B, T]
    cut = replace(clicks, items=clicks.items.where(shown, -1), length=length, target=target & shown)
    return cut, torch.where(alone[:, None], last, hidden)


class Bert4RecSettings(HidingSettings):
    """Settings of one BERT4Rec fit."""

    family: Literal["bert4rec"] = "bert4rec"
    learning_rate: float = Field(0.003, gt=0, le=1, description="highest learning rate of the cycle (AdamW)")
    initial_spread: float = Field(0.05, gt=0, le=1, description="standard deviation of the items' rows before training")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of rows, attention and layers")
    mask_rate: float = Field(0.2, gt=0, le=1, description="share of a session's clicks that are hidden in a step")
    last_rate: float = Field(
        0.05, ge=0, le=1, description="share of a step's sessions that end at a hidden click, which may be any"
    )

    def encoder(self) -> Bert4Rec:
        return Bert4Rec(self)
