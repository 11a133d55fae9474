"""BPR-MF: sessions and items as vectors, learned from pairs of a clicked and another item.

Served as the counting families are, without an encoder: a session is the mean of its items' vectors, and a row tells
which items these are and how often each was clicked.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from trainer.data.sessions import Ints, SessionSet
from trainer.models.counting import WINDOW, CountingSettings, Floats


class BprMfSettings(CountingSettings):
    """BPR-MF."""

    search: ClassVar[tuple[str, ...]] = (
        "factors=32..256:4",
        "epochs=5..40",
        "learning_rate=0.02..0.5:log",
        "regularisation=0.0001..0.1:log",
    )

    family: Literal["bpr-mf"] = "bpr-mf"
    factors: int = Field(100, ge=1, le=4096, description="numbers of a vector")
    epochs: int = Field(20, ge=1, le=10_000)
    batch_size: int = Field(512, ge=1, le=65536, description="clicks of a training step")
    learning_rate: float = Field(0.1, gt=0, le=10)
    regularisation: float = Field(0.002, ge=0, description="L2 penalty on vectors and biases")

    def count(self, train: SessionSet) -> "SessionMean":
        return bpr_mf(
            train,
            factors=self.factors,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            regularisation=self.regularisation,
            seed=self.seed,
            window=self.window,
        )


@dataclass(frozen=True)
class SessionMean:
    """Score of item i = mean of q_j over the session's clicks · q_i + b_i: vectors q f32[I, F], bias b f32[I]."""

    vectors: Floats
    bias: Floats
    recent_size: int = WINDOW

    @property
    def items(self) -> int:
        return len(self.bias)

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        return {"output": self.vectors, "output_bias": self.bias}

    def scores(self, recent: Ints, counts: Floats, clicks: Floats) -> Floats:
        rows = torch.from_numpy(self.vectors[np.maximum(recent, 0)])  # [B, R, F]
        times = torch.from_numpy(counts).unsqueeze(1)  # [B, 1, R]
        mean = (times @ rows).squeeze(1) / times.sum(2).clamp(min=1)  # [B, F]
        scores: Floats = torch.addmm(torch.from_numpy(self.bias), mean, torch.from_numpy(self.vectors).T).numpy()
        return scores


def bpr_mf(
    train: SessionSet,
    *,
    factors: int = 100,
    epochs: int = 20,
    batch_size: int = 512,
    learning_rate: float = 0.1,
    regularisation: float = 0.002,
    seed: int = 42,
    window: int = WINDOW,
) -> SessionMean:
    """Matrix factorisation by BPR (Rendle et al. 2009); an evolving session is the mean of its items' vectors.

    A session of the test has no vector of its own, so its items' mean stands for it (Hidasi et al. 2016, section 4.1).
    Training: every click (session s, item i) once an epoch with an item j drawn evenly, ascent of
    ln σ(b_i - b_j + p_s·(q_i - q_j)) minus L2, gradients summed over a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    items, catalogue = torch.from_numpy(train.items), len(train.item_ids)
    sessions = torch.from_numpy(train.session_of_click())
    p = torch.randn(len(train), factors, generator=generator) * 0.1  # [s, F]
    q = torch.randn(catalogue, factors, generator=generator) * 0.1  # [I, F]
    bias = torch.zeros(catalogue)  # [I]
    for _ in range(epochs):
        order = torch.randperm(train.clicks, generator=generator)
        for batch in torch.split(order, batch_size):
            negative = torch.randint(catalogue, batch.shape, generator=generator)  # [M]
            _ascend(
                p,
                q,
                bias,
                session=sessions[batch],
                item=items[batch],
                negative=negative,
                rate=learning_rate,
                decay=regularisation,
            )
    return SessionMean(q.numpy(), bias.numpy(), window)


def _ascend(
    p: Tensor, q: Tensor, bias: Tensor, *, session: Tensor, item: Tensor, negative: Tensor, rate: float, decay: float
) -> None:
    """One batch of M pairs, in place: p [s, f], q [I, f], bias [I]; session, item, negative int64[M]."""
    user, better, worse = p[session], q[item], q[negative]  # [M, f]
    margin = (user * (better - worse)).sum(1) + bias[item] - bias[negative]  # [M]
    slope = torch.sigmoid(-margin).unsqueeze(1)  # [M, 1]
    p.index_add_(0, session, rate * (slope * (better - worse) - decay * user))
    q.index_add_(0, item, rate * (slope * user - decay * better))
    q.index_add_(0, negative, rate * (-slope * user - decay * worse))
    bias.index_add_(0, item, rate * (slope.squeeze(1) - decay * bias[item]))
    bias.index_add_(0, negative, rate * (-slope.squeeze(1) - decay * bias[negative]))
