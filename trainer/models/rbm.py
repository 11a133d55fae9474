"""RBM, a restricted Boltzmann machine of a session's items (Salakhutdinov, Mnih & Hinton, ICML 2007: RBMs for
collaborative filtering; doi:10.1145/1273496.1273596, not on arXiv).

A visible unit v_i for each item, 1 where the session has it, and H hidden units:

    energy        E(v, h) = - Σ_i b_i v_i - Σ_f c_f h_f - Σ_i,f v_i W_if h_f
    free energy   F(v)    = - Σ_i b_i v_i - Σ_f log(1 + exp(c_f + Σ_i v_i W_if)),    p(v) ~ exp(-F(v))
    p(h_f = 1 | v) = σ(c_f + Σ_i v_i W_if)            p(v_i = 1 | h) = σ(b_i + W_i · h)

The query is q = p(h = 1 | v) of the session's distinct items, and an item's score W_i · q + b_i: what the paper calls
one mean-field update, less the σ that changes no ranking. W is input and output table at once.

Learning is contrastive divergence of one step (CD-1): the session v is answered by hidden units h drawn from
p(h | v), those by visible units v' drawn from p(v | h). F(v) - F(v'), with v' held fixed, has as its gradient what CD-1
moves the weights by: dF/dW = -v p(h | v)ᵀ, so W is moved by v p(h | v)ᵀ - v' p(h | v')ᵀ. As it is a difference to what
the machine itself makes up, it does not go down as a loss does, but to about 0.

What differs from the paper, or is approximate:

- Units are binary, clicked or not, where the paper has five values of a rating.
- CD-1 is not the gradient of the likelihood (the paper raises the number of steps during training).
- Visible units are the columns at hand, not the catalogue: the paper's machine too has units for a user's rated items
  only, but there what is not rated is unknown, while here it is as good as not clicked. The other items of the
  catalogue are not pushed down in this step, so rare items are pushed down too seldom.
- The chance of a click is far below 1/2, and the higher the fewer columns there are. So in training alone, the columns
  have one common number added to their biases, the log odds of a visible unit being 1. It changes no ranking, and
  without it the first epochs go by with learning that most items are not there.
- A session's order counts for nothing, and the click to predict is learned as a part of the session, as any other.

B sessions of T clicks, H hidden units (an item's row is its weights to them), C columns.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from trainer.models.base import Clicks, Encoder, ItemTables, Ranking, first
from trainer.models.settings import WindowSettings


class RbmSettings(WindowSettings):
    """Settings of one fit of the RBM."""

    search: ClassVar[tuple[str, ...]] = (
        "learning_rate=0.01..0.5:log",
        "batch_size=32..256:32",
        "initial_spread=0.03..0.5:log",
    )

    family: Literal["rbm"] = "rbm"
    # Its gradients are mostly the noise of drawn units: at .005, of use elsewhere, it is hardly better than popularity.
    learning_rate: float = Field(0.05, gt=0, le=1, description="highest learning rate of the cycle (AdamW)")
    batch_size: int = Field(32, ge=1, le=65536, description="sessions of a training step")
    # Units that begin alike stay alike for epochs: with .02, right elsewhere, a log of 18,000 items learned little.
    initial_spread: float = Field(0.2, gt=0, le=1, description="standard deviation of the items' rows before training")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="of no effect: the paper has none, units are drawn at random as it is"
    )

    @model_validator(mode="after")
    def _has_a_loss_of_its_own(self) -> "RbmSettings":
        if self.loss != "cross-entropy":
            raise ValueError(f"loss={self.loss}: rbm learns by contrastive divergence alone; leave loss out")
        if self.target_weights:
            raise ValueError("target_weights: rbm learns whole sessions and predicts no click of them; leave it out")
        return self

    def encoder(self) -> Encoder:
        return RbmEncoder(self)


class RbmEncoder(Encoder):
    bias = True
    causal = True

    def __init__(self, settings: RbmSettings) -> None:
        super().__init__(settings)
        self.hidden_bias = nn.Parameter(torch.zeros(settings.hidden_size))  # c

    def forward(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        total = (rows * first(items)[:, :, None]).sum(1)  # [B, H]
        return torch.sigmoid(self.hidden_bias + total)

    def prefixes(self, rows: Tensor, items: Tensor, length: Tensor) -> Tensor:
        totals = (rows * first(items)[:, :, None]).cumsum(1)  # [B, T, H]
        return torch.sigmoid(self.hidden_bias + totals)

    def loss(self, clicks: Clicks, tables: ItemTables, ranking: Ranking) -> Tensor:
        """CD-1 over whole sessions, []; `ranking` is not asked."""
        visible = clicked(clicks.items, len(tables.output))  # [B, C]
        rare = torch.logit(visible.mean(), 1e-6)  # []
        biases = rare if tables.bias is None else rare + tables.bias  # [] or [C]
        with torch.no_grad():
            hidden = torch.bernoulli(torch.sigmoid(self.hidden_bias + visible @ tables.output))  # [B, H]
            made_up = torch.bernoulli(torch.sigmoid(biases + hidden @ tables.output.T))  # [B, C]
        energy = [self.free_energy(v, tables.output, biases) for v in (visible, made_up)]  # [B] each
        return (energy[0] - energy[1]).mean()

    def free_energy(self, visible: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
        """F of visible units [B, C] under weights [C, H] and biases [C] or []: [B]."""
        of_hidden = nn.functional.softplus(self.hidden_bias + visible @ weights).sum(1)  # [B]
        return -(visible * biases).sum(1) - of_hidden


def clicked(items: Tensor, columns: int) -> Tensor:
    """Which columns a session has: int64[B, T], -1 behind its end -> 0 and 1, float32[B, C]."""
    padded = items.new_zeros(len(items), columns + 1, dtype=torch.float32)  # one more, for padding
    return padded.scatter(1, items.where(items >= 0, columns), 1.0)[:, :columns]
