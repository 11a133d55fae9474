"""Rankings to choose a graph by, without a log: of sessions that the network itself makes up."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from trainer.data.lanes import Lanes
from trainer.data.sessions import SessionSet
from trainer.models.base import Network

_SESSIONS: Final = 128
_CLICKS: Final = 3
_FOLLOWED: Final = 20
_SKEW: Final = 3
_SESSIONS_A_RUN: Final = 32

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """``queries`` f32[Q, H], and the k-th best score of each, ``kth`` f32[Q]."""

    queries: Floats
    kth: Floats


def sample_of(network: Network, *, k: int, seed: int) -> Sample:
    """After the first, second and third click of sessions that follow what the network ranks high.

    They begin at items from all over the vocabulary, more often at its beginning, where the popular ones are.
    """
    rng = np.random.default_rng(seed)
    items = (network.items * rng.random((_SESSIONS, 1)) ** _SKEW).astype(np.int64)  # [B, T]
    queries, kth = [], []
    with torch.inference_mode():
        for _ in range(_CLICKS):
            query = _query(network, items)
            score, item = _best(network, query, max(k, _FOLLOWED))
            queries.append(query.numpy())
            kth.append(score[:, k - 1])
            items = np.hstack([items, rng.permuted(item[:, :_FOLLOWED], axis=1)[:, :1]])
    return Sample(np.concatenate(queries), np.concatenate(kth))


def _query(network: Network, items: Ints) -> torch.Tensor:
    """[B, H] after the last of the clicks int64[B, T]"""
    sessions, clicks = items.shape
    starts = np.arange(sessions) * clicks
    walked = SessionSet(items.reshape(-1), np.append(starts, sessions * clicks), (), starts, timed=False)
    state = network.start(sessions)
    for click in range(clicks):
        here = Lanes(walked, starts + click, starts)
        state = network.advance(state, here)
    return network.queries(state, here)


def _best(network: Network, query: torch.Tensor, k: int) -> tuple[Floats, Ints]:
    """Scores and items, best first: f32[B, k] and int64[B, k]."""
    runs = [network.scores(some).topk(k, dim=1) for some in torch.split(query, _SESSIONS_A_RUN)]
    return torch.cat([run.values for run in runs]).numpy(), torch.cat([run.indices for run in runs]).numpy()
