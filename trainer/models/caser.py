"""Caser, convolutional sequence embedding recommendation (Tang & Wang 2018, arXiv:1809.07426).

The rows of the last L items stand below each other, an image E of L × H numbers. Filters as wide as the image and h
rows high slide down it and look for h items in a row; of each only the strongest answer counts. Filters one column wide
and L high are weighted sums of the L rows:

    horizontal   o_h,k = max_i relu(F_h,k · E[i : i + h] + b_h,k)      i = 0 .. L - h;  k = 1 .. n;  h = 1 .. L
    vertical     õ_k   = Σ_l G_k,l E[l]                                k = 1 .. m
    z = relu(W [o; õ] + b)                score of item i = W'_i · z + b'_i

z is the query, W' the output table, b' the items' biases. As in the paper there is dropout before W (there .5), and an
image that a short session does not fill is 0 above it. In the paper W' is a table of its own (`embedding=separate`).
Items that are seldom clicked learn too little for two tables, so by default the rows of the image are those of W'.

The paper's score is W'_i · [z; P_u] with a vector P_u of the user's. There is none here: sessions are anonymous, and
most begin after training. Its loss for the next T items at once, "skips", is left out too: what is learned is the next
item, as for all families. What it says on the sigmoid around scores changes no ranking.

Nothing but the last L items is looked at, so the images of all prefixes are cut out of a session at once.

B sessions of T clicks, N images, H numbers of a row and of a query.
"""

from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from trainer.models.base import Encoder
from trainer.models.settings import WindowSettings, canonical


class CaserSettings(WindowSettings):
    """Settings of one Caser fit."""

    family: Literal["caser"] = "caser"
    embedding: Annotated[Literal["shared", "separate"], BeforeValidator(canonical)] = Field(
        "shared", description="rows of the items clicked: those of the output, or the paper's table of their own"
    )
    last: int = Field(5, ge=1, le=32, description="items that the filters look at, the paper's L: at most `window`")
    horizontal: int = Field(16, ge=1, le=256, description="horizontal filters of each height from 1 to `last`")
    vertical: int = Field(4, ge=1, le=64, description="vertical filters")
    initial_spread: float = Field(0.1, gt=0, le=1, description="standard deviation of the items' rows before training")
    dropout: float = Field(0.7, ge=0, lt=1, description="dropout of what the filters answer")

    @model_validator(mode="after")
    def _window_holds_the_last(self) -> "CaserSettings":
        if self.last > self.window:
            raise ValueError(f"last={self.last} items are more than window={self.window}: lower last or raise window")
        return self

    def encoder(self) -> Encoder:
        return CaserEncoder(self)


class CaserEncoder(Encoder):
    bias = True
    causal = True

    def __init__(self, settings: CaserSettings) -> None:
        super().__init__(settings)
        self.tied = settings.embedding == "shared"
        size = settings.hidden_size
        self.last, self.dropout = settings.last, settings.dropout
        heights = range(1, settings.last + 1)
        self.horizontal = nn.ModuleList(nn.Linear(height * size, settings.horizontal) for height in heights)  # F, b
        self.vertical = nn.Linear(settings.last, settings.vertical, bias=False)  # G
        answers = settings.last * settings.horizontal + settings.vertical * size
        self.together = nn.Linear(answers, size)  # W, b

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        return self.queries(self.images(rows, length[:, None])[:, 0])  # [B, H]

    def prefixes(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        batch, width, size = rows.shape
        ends = torch.arange(1, width + 1, device=rows.device).expand(batch, width)  # int64[B, T]
        images = self.images(rows, ends).flatten(0, 1)  # [B T, L, H]
        return self.queries(images).view(batch, width, size)  # [B, T, H]

    def images(self, rows: Tensor, ends: Tensor) -> Tensor:
        """The L rows before each of the ends int64[B, Q], 0 before the first: rows [B, T, H] -> [B, Q, L, H]."""
        batch, ends_each, size = *ends.shape, rows.shape[2]
        back = torch.arange(-self.last, 0, device=rows.device)  # int64[L]
        at = ends[:, :, None] + back  # int64[B, Q, L]
        places = at.clamp(min=0).flatten(1)[:, :, None].expand(-1, -1, size)  # int64[B, Q L, H]
        found = rows.gather(1, places).view(batch, ends_each, self.last, size)  # [B, Q, L, H]
        return found * (at >= 0)[:, :, :, None]

    def queries(self, images: Tensor) -> Tensor:
        """Images [N, L, H] -> [N, H]."""
        strongest = [  # [N, n] each
            torch.relu(filters(slices(images, height))).amax(1) for height, filters in enumerate(self.horizontal, 1)
        ]
        sums = self.vertical(images.transpose(1, 2)).flatten(1)  # [N, H m]
        answers = torch.cat([*strongest, sums], 1)  # [N, L n + H m]
        answers = nn.functional.dropout(answers, self.dropout, self.training)
        return torch.relu(self.together(answers))  # [N, H]


def slices(images: Tensor, height: int) -> Tensor:
    """What a filter of h rows sees as it slides down: [N, L, H] -> [N, L - h + 1, h H].

    Rows side by side and one multiplication: five times as fast as a convolution on images as small as these.
    """
    places = images.shape[1] - height + 1
    return torch.cat([images[:, row : row + places] for row in range(height)], 2)
