"""BPR-MF: sessions and items as vectors, learned from pairs of a clicked and another item."""

import numpy as np
import torch
from torch import Tensor

from trainer.data.lanes import Lanes
from trainer.data.sessions import SessionSet
from trainer.evaluation.baselines.scorer import Baseline, Scores, newest_first


def bpr_mf(
    train: SessionSet,
    *,
    factors: int = 100,
    epochs: int = 20,
    batch_size: int = 512,
    learning_rate: float = 0.1,
    regularisation: float = 0.002,
    seed: int = 42,
) -> Baseline:
    """Matrix factorisation by BPR (Rendle et al. 2009); an evolving session is the mean of its items' vectors.

    A session of the test has no vector of its own, so its items' mean stands for it (Hidasi et al. 2016, section 4.1).
    Training: every click (session s, item i) once an epoch with an item j drawn evenly, ascent of
    ln σ(b_i - b_j + p_s·(q_i - q_j)) minus L2, gradients summed over a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    items, catalogue = torch.from_numpy(train.items), len(train.item_ids)
    sessions = torch.from_numpy(train.session_of_click())
    p = torch.randn(len(train), factors, generator=generator) * 0.1  # [s, f]
    q = torch.randn(catalogue, factors, generator=generator) * 0.1  # [I, f]
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

    def score(lanes: Lanes) -> Scores:
        history = newest_first(lanes)
        present = torch.from_numpy((history >= 0).astype(np.float32))
        rows = q[torch.from_numpy(np.maximum(history, 0))] * present.unsqueeze(2)  # [n, longest, f]
        scores: Scores = ((rows.sum(1) / present.sum(1, keepdim=True)) @ q.T + bias).numpy()
        return scores

    return Baseline("bpr-mf", catalogue, score)


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
