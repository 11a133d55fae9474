"""Negative samples by popularity."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_POOL = 1 << 18  # ids drawn ahead
_BLOCK = 1 << 13  # ids drawn by one call: enough to make its cost vanish, small enough for the cache


@dataclass(frozen=True)
class SamplerState:
    """Where a sampler stands: its random numbers (JSON), its pool int64[n], and how much of that is handed out."""

    rng: dict[str, Any]
    pool: npt.NDArray[np.int64]
    position: int


class NegativeSampler:
    """Draws ``n_sample`` item indexes a step with p ~ support^alpha, with replacement.

    A pool is drawn at once and handed out in slices; no id is handed out twice. By the alias method (Walker 1977): one
    column and one coin for each draw, whatever the size of the catalogue.
    """

    def __init__(self, support: npt.NDArray[np.int64], *, n_sample: int, alpha: float, seed: int) -> None:
        weights = np.maximum(support, 1).astype(np.float64) ** alpha
        self._keep, self._alias = _alias_table(weights / weights.sum())
        self._n_sample = n_sample
        self._rng = np.random.default_rng(seed)
        self._pool = torch.empty(0, dtype=torch.int64)
        self._next = 0

    def draw_steps(self, steps: int) -> npt.NDArray[np.int64]:
        """The samples of the next steps, int64[k, n_sample]: of ``steps`` steps, or as many as the pool still has."""
        if self._n_sample == 0:
            return np.zeros((steps, 0), np.int64)
        if self._next + self._n_sample > len(self._pool):
            self._refill()
        found = self._pool[self._next : self._next + steps * self._n_sample].numpy().reshape(-1, self._n_sample)
        self._next += found.size
        return found

    def state(self) -> SamplerState:
        return SamplerState(dict(self._rng.bit_generator.state), self._pool.numpy(), self._next)

    def restore(self, state: SamplerState) -> None:
        """Go on from a state of a sampler of the same support, alpha and number of samples."""
        self._rng.bit_generator.state = state.rng
        self._pool = torch.from_numpy(state.pool)
        self._next = state.position

    def _refill(self) -> None:
        size = max(1, _POOL // max(1, self._n_sample)) * self._n_sample
        pool = np.empty(size, np.int64)
        for first in range(0, size, _BLOCK):
            block = pool[first : first + _BLOCK]
            # One uniform number gives both: its whole part the column, its fraction the coin.
            u = self._rng.random(len(block)) * len(self._keep)
            column = u.astype(np.int64)
            heads = (u - column) < self._keep[column]
            block[:] = np.where(heads, column, self._alias[column])
        self._pool = torch.from_numpy(pool)
        self._next = 0


def _alias_table(p: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    n = len(p)
    keep, alias = np.ones(n), np.arange(n)
    mass = (p * n).tolist()
    small = [i for i in range(n) if mass[i] < 1.0]
    large = [i for i in range(n) if mass[i] >= 1.0]
    while small and large:
        little, big = small.pop(), large[-1]
        keep[little], alias[little] = mass[little], big
        mass[big] -= 1.0 - mass[little]
        if mass[big] < 1.0:
            small.append(large.pop())
    return keep, alias
