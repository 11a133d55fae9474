"""SR-GNN, session-based recommendation with graph neural networks (Wu et al. 2019, arXiv:1811.00855).

A session is a graph: a node v_u for each of its distinct items, an edge from each click's item to the next one's. A
gated graph network lets each node hear of those before and after it, then an attention of the last click over all
clicks makes the query. With A_out[u, w] the number of times w followed u over the times that anything followed u,
A_in[u, w] the number of times u followed w over the times that u followed anything, and v_u at first the item's row:

    a_u = [A_in,u (V H_in + c_in) + b_in ; A_out,u (V H_out + c_out) + b_out]
    z_u = σ(W_z a_u + U_z v_u)                r_u = σ(W_r a_u + U_r v_u)
    ṽ_u = tanh(W_o a_u + U_o (r_u ∘ v_u))     v_u <- (1 - z_u) ∘ v_u + z_u ∘ ṽ_u

once or more often (`steps`). With s_1 .. s_t the nodes of the clicks, a node as often as it was clicked:

    α_j = qᵀ σ(W_1 s_t + W_2 s_j + c)         s_g = Σ_j α_j s_j
    query = W_3 [s_t ; s_g]

The graph is made from the items' numbers by comparing each with each, tensor operations on [T, T] matrices and nothing
else: a node sits where its item stands first, and the places of repeats and of padding have no edges.

The text of the paper is followed where the authors' code differs: edges count as often as they occur (there: once), and
r_u is applied before U_o (there: after). The paper has no dropout; here the items' rows have some.

A later click changes the edges of earlier ones, so each prefix of a session is a graph of its own.

B sessions of T clicks and so of up to T nodes, H numbers of a row, a node and a query.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.models.base import Encoder, first, last, valid
from trainer.models.settings import WindowSettings


class SrGnnSettings(WindowSettings):
    """Settings of one SR-GNN fit."""

    search: ClassVar[tuple[str, ...]] = (*WindowSettings.search, "steps=1..3")

    family: Literal["sr-gnn"] = "sr-gnn"
    steps: int = Field(1, ge=1, le=8, description="times that the nodes hear of their neighbours")
    dropout: float = Field(0.65, ge=0, lt=1, description="dropout of the items' rows; the paper has none")
    initial_spread: float = Field(0.1, gt=0, le=1, description="standard deviation of the items' rows before training")

    def encoder(self) -> Encoder:
        return SrGnnEncoder(self)


class SrGnnEncoder(Encoder):
    def __init__(self, settings: SrGnnSettings) -> None:
        super().__init__(settings)
        size = settings.hidden_size
        self.steps, self.dropout = settings.steps, settings.dropout
        self.incoming = nn.Linear(size, size)  # H_in, c_in
        self.outgoing = nn.Linear(size, size)  # H_out, c_out
        self.heard_bias = nn.Parameter(torch.zeros(2 * size))  # b_in, b_out
        self.gates_heard = nn.Linear(2 * size, 3 * size)  # W_z, W_r, W_o
        self.gates_node = nn.Linear(size, 2 * size)  # U_z, U_r
        self.candidate_node = nn.Linear(size, size)  # U_o
        self.attention_last = nn.Linear(size, size)  # W_1, c
        self.attention_each = nn.Linear(size, size, bias=False)  # W_2
        self.attention_weight = nn.Linear(size, 1, bias=False)  # q
        self.hybrid = nn.Linear(2 * size, size, bias=False)  # W_3

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        node = nodes_of_clicks(items).to(rows.dtype)  # [B, T, T]
        to, back = edges(node)  # [B, T, T] each
        states = nn.functional.dropout(rows, self.dropout, self.training)  # [B, T, H]
        for _ in range(self.steps):
            states = self.step(states, to, back)  # [B, T, H]
        clicks = node @ states  # [B, T, H]; 0 behind a session's end
        end = last(clicks, length)  # [B, H]
        gates = torch.sigmoid(self.attention_last(end)[:, None] + self.attention_each(clicks))  # [B, T, H]
        weights = self.attention_weight(gates)  # [B, T, 1]
        whole = (weights * clicks).sum(1)  # [B, H]
        query: Tensor = self.hybrid(torch.cat([end, whole], 1))  # [B, H]
        return query

    def step(self, states: Tensor, to: Tensor, back: Tensor) -> Tensor:
        """One round of the gated graph network: nodes [B, T, H], edges [B, T, T] twice -> nodes [B, T, H]."""
        size = states.shape[2]
        before, after = back @ self.incoming(states), to @ self.outgoing(states)  # [B, T, H] each
        heard = torch.cat([before, after], 2) + self.heard_bias  # [B, T, 2H]
        zr_heard, candidate_heard = self.gates_heard(heard).split([2 * size, size], 2)  # [B, T, 2H], [B, T, H]
        z, r = torch.sigmoid(zr_heard + self.gates_node(states)).chunk(2, 2)  # [B, T, H] each
        candidate = torch.tanh(candidate_heard + self.candidate_node(r * states))  # [B, T, H]
        return states + z * (candidate - states)


def nodes_of_clicks(items: Tensor) -> Tensor:
    """Where each click's node sits, the place of its item's first click: int64[B, T] -> one-hot bool[B, T, T].

    A row of nothing behind a session's end.
    """
    same = items[:, :, None] == items[:, None, :]  # bool[B, T, T]
    return same & valid(items)[:, :, None] & first(items)[:, None, :]


def edges(node: Tensor) -> tuple[Tensor, Tensor]:
    """One-hot nodes of clicks [B, T, T] -> (A_out, A_in), [B, T, T] each: rows sum to 1, or to 0 without an edge."""
    following = nn.functional.pad(node, (0, 0, 0, 1))[:, 1:]  # [B, T, T]: the node of the click after
    times = node.transpose(1, 2) @ following  # [B, T, T]: how often the first node was followed by the second
    to = times / times.sum(2, keepdim=True).clamp(min=1)
    back = times / times.sum(1, keepdim=True).clamp(min=1)
    return to, back.transpose(1, 2)
