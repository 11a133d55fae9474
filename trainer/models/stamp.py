"""STAMP, short-term attention/memory priority (Liu et al., KDD 2018, doi:10.1145/3219819.3219950; not on arXiv).

No recurrence: the session x_1 .. x_t, the items' rows, is one sum, weighted by attention that looks at the item, at the
last item x_t and at the session's mean m_s. The sum (the session's interest) and the last item (the interest now) each
pass a layer, and meet in a product:

    m_s = (1/t) Σ_j x_j
    α_j = w_0ᵀ σ(W_1 x_j + W_2 x_t + W_3 m_s + b_a)          j = 1 .. t
    m_a = Σ_j α_j x_j
    h_s = tanh(W_s m_a + b_s)
    h_t = tanh(W_t x_t + b_t)
    score of item i = σ(Σ_d h_s,d h_t,d x_i,d)

A score is the product of three vectors, which is q · x_i of the query q = h_s ∘ h_t. The σ around it is left out: it
changes no ranking, and under a softmax it would keep all probabilities within a factor e of each other. The weights α
are not normalised, as in the paper.

Otherwise: the paper has no dropout; here the items' rows have some.

All prefixes of a session are done in one pass: their means are a running sum, their attention a masked one.

B sessions of T clicks, Q queries to a session (1, or T when there is one after each click), H numbers of a row and of a
query.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.models.base import Encoder, last, valid
from trainer.models.settings import WindowSettings


class StampSettings(WindowSettings):
    """Settings of one STAMP fit."""

    family: Literal["stamp"] = "stamp"
    dropout: float = Field(0.35, ge=0, lt=1, description="dropout of the items' rows; the paper has none")

    def encoder(self) -> Encoder:
        return StampEncoder(self)


class StampEncoder(Encoder):
    causal = True

    def __init__(self, settings: StampSettings) -> None:
        super().__init__(settings)
        size = settings.hidden_size
        self.dropout = settings.dropout
        self.attention_each = nn.Linear(size, size, bias=False)  # W_1
        self.attention_last = nn.Linear(size, size, bias=False)  # W_2
        self.attention_mean = nn.Linear(size, size)  # W_3, b_a
        self.attention_weight = nn.Linear(size, 1, bias=False)  # w_0
        self.session = nn.Linear(size, size)  # W_s, b_s
        self.now = nn.Linear(size, size)  # W_t, b_t

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        rows = nn.functional.dropout(rows, self.dropout, self.training)  # [B, T, H]
        seen = valid(items)[:, None]  # bool[B, 1, T]
        return self.queries(last(rows, length)[:, None], rows, seen).squeeze(1)  # [B, H]

    def prefixes(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        rows = nn.functional.dropout(rows, self.dropout, self.training)  # [B, T, H]
        steps = torch.arange(items.shape[1], device=items.device)
        seen = (steps <= steps[:, None])[None]  # bool[1, T, T]
        return self.queries(rows, rows, seen)  # [B, T, H]

    def queries(self, end: Tensor, rows: Tensor, seen: Tensor) -> Tensor:
        """Last rows [B, Q, H], rows [B, T, H], which of them each query sees bool[B or 1, Q, T] -> [B, Q, H]."""
        seen = seen.to(rows.dtype)  # [B or 1, Q, T]
        mean = seen @ rows / seen.sum(2, keepdim=True)  # [B, Q, H]
        of_query = self.attention_last(end) + self.attention_mean(mean)  # [B, Q, H]
        of_each = self.attention_each(rows)  # [B, T, H]
        gates = torch.sigmoid(of_query[:, :, None] + of_each[:, None])  # [B, Q, T, H]
        weights = self.attention_weight(gates).squeeze(3)  # [B, Q, T]
        session = torch.tanh(self.session((weights * seen) @ rows))  # [B, Q, H]
        return session * torch.tanh(self.now(end))  # [B, Q, H]
