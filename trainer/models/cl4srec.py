"""CL4SRec: contrastive learning for sequential recommendation (Xie et al. 2022, arXiv:2010.14395).

SASRec (:mod:`trainer.models.sasrec`), which serves, trained by the sum of two losses:

    L = L_next + λ L_cl
    L_cl = mean over the views of -log(exp(s(z, z') / τ) / (exp(s(z, z') / τ) + Σ over others exp(s(z, z_other) / τ))

Each session of a step is changed twice, in two different of three ways, which gives its views z and z': queries, s
their dot product. The others are the views of the step's other sessions of about the same length, 2 (B - 1). Of a
session of n clicks

    crop     keeps η n clicks in a row
    mask     puts a learned row in the place of γ n clicks
    reorder  shuffles β n clicks in a row

all rounded down, but a crop keeps one. So a session of few clicks is changed little or not at all.

What differs from the paper: the two ways always differ, as two draws of one way are often one view of a session of few
clicks; τ, which is 1 there; and what SASRec says of itself.

Shapes: B sessions of T clicks, D units.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding

from trainer.models.attention import SPREAD, AttentionSettings
from trainer.models.base import Clicks, ItemTables, Ranking
from trainer.models.sasrec import SasRec
from trainer.models.settings import Ablation


class Cl4SRecSettings(AttentionSettings):
    """Settings of one CL4SRec fit."""

    search: ClassVar[tuple[str, ...]] = (
        *AttentionSettings.search,
        "contrast=0.01..1.0:log",
        "crop_rate=0.2..0.9:0.1",
        "mask_rate=0.1..0.9:0.1",
        "reorder_rate=0.2..0.9:0.1",
    )

    family: Literal["cl4srec"] = "cl4srec"
    dropout: float = Field(0.3, ge=0, lt=1, description="dropout of rows, attention and layers")
    ablations: ClassVar[tuple[Ablation, ...]] = (
        *AttentionSettings.ablations,
        Ablation("no-contrast", {"contrast": 0}, "the contrastive loss"),
    )

    contrast: float = Field(0.1, ge=0, le=10, description="weight of the contrastive loss")
    temperature: float = Field(1.0, gt=0, le=100, description="the views' similarities are divided by it")
    crop_rate: float = Field(0.6, gt=0, le=1, description="share of a session's clicks that a crop keeps")
    mask_rate: float = Field(0.3, ge=0, le=1, description="share of a session's clicks that a mask hides")
    reorder_rate: float = Field(0.6, ge=0, le=1, description="share of a session's clicks that are shuffled")

    def encoder(self) -> "Cl4SRec":
        return Cl4SRec(self)


@dataclass(frozen=True)
class View:
    """Sessions that have been changed.

    order   int64[B, T]  which click stands at each place
    hidden  bool[B, T]   places where the learned row stands
    length  int64[B]     clicks of each session, of those that stand first
    """

    order: Tensor
    hidden: Tensor
    length: Tensor


class Cl4SRec(SasRec):
    """SASRec, and what it takes to train it so."""

    def __init__(self, settings: Cl4SRecSettings) -> None:
        super().__init__(settings)
        self.weight, self.temperature = settings.contrast, settings.temperature
        self.rates = settings.crop_rate, settings.mask_rate, settings.reorder_rate
        self.mask = nn.Parameter(SPREAD * torch.randn(settings.hidden_size))

    def loss(self, clicks: Clicks, tables: ItemTables, ranking: Ranking) -> Tensor:
        items, length = clicks.items[:, :-1], clicks.length - 1  # what is seen of the sessions
        rows = embedding(items.clamp(min=0), tables.input)  # [B, T, D]
        first, second = two_views(length, items.shape[1], self.rates)
        contrast = contrastive_loss(self.view(rows, items, first), self.view(rows, items, second), self.temperature)
        return super().loss(clicks, tables, ranking) + self.weight * contrast

    def view(self, rows: Tensor, items: Tensor, view: View) -> Tensor:
        """Rows [B, T, D] and items int64[B, T] -> the queries of the sessions once they are changed: [B, D]."""
        moved = rows.gather(1, view.order[:, :, None].expand_as(rows))  # [B, T, D]
        moved = moved.where(~view.hidden[:, :, None], self.mask)  # [B, T, D]
        return self(moved, items.gather(1, view.order), view.length)  # type: ignore[no-any-return]  # [B, D]


def contrastive_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Two views [B, D] of each session -> [], each of the 2 B views to be told from those of other sessions."""
    views = torch.cat([first, second])  # [2 B, D]
    similar = views @ views.T / temperature  # [2 B, 2 B]
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    partner = torch.arange(len(views), device=views.device).roll(len(first))  # int64[2 B]
    return cross_entropy(similar.masked_fill(itself, -torch.inf), partner)


def two_views(length: Tensor, width: int, rates: tuple[float, float, float]) -> tuple[View, View]:
    """Of sessions int64[B] of at most T clicks: each changed in two of the three ways, which two being drawn."""
    crop, mask, reorder = rates
    ways = cropped(length, width, crop), masked(length, width, mask), reordered(length, width, reorder)
    drawn = torch.rand(len(length), len(ways), device=length.device).argsort(1)  # int64[B, 3]
    return _choice(drawn[:, 0], ways), _choice(drawn[:, 1], ways)


def _choice(way: Tensor, ways: tuple[View, ...]) -> View:
    """The way int64[B] of each session."""
    session = torch.arange(len(way), device=way.device)  # [B]
    order = torch.stack([view.order for view in ways])[way, session]  # [B, T]
    hidden = torch.stack([view.hidden for view in ways])[way, session]  # [B, T]
    return View(order, hidden, torch.stack([view.length for view in ways])[way, session])


def cropped(length: Tensor, width: int, rate: float) -> View:
    """A part of each session, one click at least."""
    kept = _share(length, rate).clamp(min=1)  # int64[B]
    order = _steps(length, width) + _start(length, kept)[:, None]  # [B, T]
    return View(order.clamp(max=width - 1), torch.zeros_like(order, dtype=torch.bool), kept)


def masked(length: Tensor, width: int, rate: float) -> View:
    """Some clicks of each session hidden."""
    steps = _steps(length, width).expand(len(length), width)  # [B, T]
    # Places of a session in an order that is drawn, those behind its end last.
    keys = torch.rand(steps.shape, device=length.device) + (steps >= length[:, None])  # [B, T]
    rank = keys.argsort(1).argsort(1)  # int64[B, T]
    return View(steps, rank < _share(length, rate)[:, None], length)


def reordered(length: Tensor, width: int, rate: float) -> View:
    """A part of each session shuffled."""
    steps, size = _steps(length, width), _share(length, rate)[:, None]  # [1, T], [B, 1]
    start = _start(length, size[:, 0])[:, None]  # [B, 1]
    inside = (steps >= start) & (steps < start + size)  # bool[B, T]
    # Sorted by these keys only what is inside moves: to between the first place inside and the next outside.
    keys = torch.where(inside, start + size * torch.rand(inside.shape, device=length.device), steps)  # [B, T]
    order = keys.argsort(dim=1, stable=True)  # [B, T]
    return View(order, torch.zeros_like(inside), length)


def _steps(length: Tensor, width: int) -> Tensor:
    return torch.arange(width, device=length.device)[None]  # [1, T]


def _share(length: Tensor, rate: float) -> Tensor:
    """The share of each session's clicks, rounded down: int64[B]."""
    return (length * rate + 1e-4).long()


def _start(length: Tensor, size: Tensor) -> Tensor:
    """Where a part of these sizes begins, drawn: int64[B]."""
    return (torch.rand(len(length), device=length.device) * (length - size + 1)).long()
