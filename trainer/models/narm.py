"""NARM, neural attentive session-based recommendation (Li et al. 2017, arXiv:1711.04725).

A GRU goes over the session x_1 .. x_t, the items' rows. Its last state says what the session was about in the end; an
attention of the last state over all states says what it was mainly about:

    h_j      = GRU(x_j, h_{j-1}),  h_0 = 0
    c_global = h_t
    α_j      = vᵀ σ(A_1 h_t + A_2 h_j)          j = 1 .. t
    c_local  = Σ_j α_j h_j
    score of item i = o_iᵀ B [c_global; c_local]

The bilinear decoder is folded into the query, q = B [c_global; c_local], so that an item's score is o_i · q. The
weights α are not normalised: the paper has no softmax over them, so a long session may say its purpose louder.

As in the paper there is dropout between items and GRU (.25), and between [c_global; c_local] and the decoder (.5).
Otherwise: there the items' rows have 50 numbers and the GRU 100 units, here both have `hidden_size`.

What is behind a click never reaches its state, so one pass of the GRU serves all prefixes of a session.

B sessions of T clicks, Q queries to a session (1, or T when there is one after each click), H numbers of a row, a state
and a query.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.models.base import Encoder, last, valid
from trainer.models.settings import Ablation, WindowSettings


class NarmSettings(WindowSettings):
    """Settings of one NARM fit."""

    search: ClassVar[tuple[str, ...]] = (*WindowSettings.search, "dropout_query=0.0..0.7:0.05")

    family: Literal["narm"] = "narm"
    ablations: ClassVar[tuple[Ablation, ...]] = (
        *(row for row in WindowSettings.ablations if row.name != "no-regularisation"),
        Ablation(
            "no-regularisation", {"dropout": 0, "dropout_query": 0, "weight_decay": 0}, "dropout and weight decay"
        ),
    )

    dropout: float = Field(0.25, ge=0, lt=1, description="dropout of the items' rows")
    initial_spread: float = Field(0.1, gt=0, le=1, description="standard deviation of the items' rows before training")
    dropout_query: float = Field(0.5, ge=0, lt=1, description="dropout of what goes into the bilinear decoder")

    def encoder(self) -> Encoder:
        return NarmEncoder(self)


class NarmEncoder(Encoder):
    causal = True

    def __init__(self, settings: NarmSettings) -> None:
        super().__init__(settings)
        size = settings.hidden_size
        self.dropout, self.dropout_query = settings.dropout, settings.dropout_query
        self.gates_item = nn.Linear(size, 3 * size)  # the GRU's weights, reset, update and candidate on each other
        self.gates_state = nn.Linear(size, 3 * size)
        self.attention_last = nn.Linear(size, size, bias=False)  # A_1
        self.attention_each = nn.Linear(size, size, bias=False)  # A_2
        self.attention_weight = nn.Linear(size, 1, bias=False)  # v
        self.decoder = nn.Linear(2 * size, size, bias=False)  # B

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        states = self.states(rows)  # [B, T, H]
        end = last(states, length)[:, None]  # [B, 1, H]
        return self.queries(end, states, valid(items)[:, None]).squeeze(1)  # [B, H]

    def prefixes(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        states = self.states(rows)  # [B, T, H]
        steps = torch.arange(items.shape[1], device=items.device)
        return self.queries(states, states, steps <= steps[:, None])  # [B, T, H]

    def states(self, rows: Tensor) -> Tensor:
        """The GRU's state after each click: rows [B, T, H] -> [B, T, H]."""
        rows = nn.functional.dropout(rows, self.dropout, self.training)
        start = rows.new_zeros(1, rows.shape[0], rows.shape[2])  # [1, B, H]; len() would fix B in an export
        item, state = self.gates_item, self.gates_state
        # What nn.GRU calls. That class keeps its weights a second time, in a list, over which an export stumbles.
        states, _ = torch.gru(
            rows,
            start,
            [item.weight, state.weight, item.bias, state.bias],
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=self.training,
            bidirectional=False,
            batch_first=True,
        )
        return states

    def queries(self, end: Tensor, states: Tensor, seen: Tensor) -> Tensor:
        """Last states [B, Q, H], states [B, T, H], which of them each query sees bool[B or 1, Q, T] -> [B, Q, H]."""
        of_end = self.attention_last(end)[:, :, None]  # [B, Q, 1, H]
        of_each = self.attention_each(states)[:, None]  # [B, 1, T, H]
        weights = self.attention_weight(torch.sigmoid(of_end + of_each)).squeeze(3)  # [B, Q, T]
        local = (weights * seen) @ states  # [B, Q, H]
        both = nn.functional.dropout(torch.cat([end, local], 2), self.dropout_query, self.training)  # [B, Q, 2H]
        queries: Tensor = self.decoder(both)  # [B, Q, H]
        return queries
