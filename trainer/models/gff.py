"""GFF, the general factorization framework (Hidasi & Tikk 2016, arXiv:1401.4529), for sessions.

In GFF a preference model says which dimensions of an event (item, user, contexts) are multiplied with which, each
value of a dimension having a vector; the score is the sum of the products. There are no users here: an event is an item
i, clicked in the context of its session and of the last click j_t before it. The session's vector is composed of its
items', as GFF does for a dimension that is known by its parts:

    s = (1/t) Σ_k S[j_k]                              the session j_1 .. j_t
    score of item i = o_i · s + o_i · C[j_t]          item × session + item × last item

The product of session and last item, the third of the pairwise model, is the same for all items and changes no ranking.
So an item has three vectors: o_i in the role of what is recommended, S[i] as a part of the session, C[i] as the last
click. The query is s + C[j_t], and an item's input row is both, [S[i]; C[i]].

This is the model only: GFF learns by weighted alternating least squares over every pair of event and item, here it
learns by the gradients of the losses that all families share. Nor has it dropout; here the input rows have some. There
is nothing to learn but the item tables.

B sessions of T clicks, H numbers of a vector and of a query.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.models.base import Encoder, last, valid
from trainer.models.settings import WindowSettings


class GffSettings(WindowSettings):
    """Settings of one GFF fit."""

    family: Literal["gff"] = "gff"
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout of the items' input rows; the paper has none")

    def encoder(self) -> Encoder:
        return GffEncoder(self)


class GffEncoder(Encoder):
    tied = False
    causal = True

    def __init__(self, settings: GffSettings) -> None:
        super().__init__(settings)
        self.input_size = 2 * settings.hidden_size
        self.dropout = settings.dropout

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        part, context = self.roles(rows)  # [B, T, H] each
        total = (part * valid(items)[:, :, None]).sum(1)  # [B, H]
        return total / length[:, None] + last(context, length)

    def prefixes(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        part, context = self.roles(rows)  # [B, T, H] each
        clicks = torch.arange(1, items.shape[1] + 1, device=rows.device)  # int64[T]
        return part.cumsum(1) / clicks[:, None] + context  # [B, T, H]

    def roles(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Input rows [B, T, 2H] -> S and C of the items, [B, T, H] each."""
        part, context = nn.functional.dropout(rows, self.dropout, self.training).chunk(2, 2)
        return part, context
