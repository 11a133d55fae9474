"""A model of whole numbers: what it answers does not depend on how sessions are batched, to the last bit."""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from schemas.bundle.runtime import Model
from schemas.bundle.vocabulary import Vocabulary

_PRIME = 2039  # below 2^11, its square below 2^24: float16 and float32 hold every number exactly


class ExactModel:
    """Looks like `schemas.bundle.runtime.Model`. Each input leaves its trace in each answer; `salt` parts versions."""

    k, popular_share = 4, 0.25
    step = Model.step

    def __init__(self, version: str, items: tuple[str, ...], *, salt: int, layers: int, recent_size: int) -> None:
        self.version, self.vocabulary = version, Vocabulary(items)
        self.layers, self.hidden_size, self.recent_size, self._salt = layers, 2, recent_size, salt
        self.popular = np.arange(self.k), np.full(self.k, self.popular_share, dtype=np.float32)

    def initial_hidden(self, batch: int) -> NDArray[np.float32]:
        return np.zeros((self.layers, batch, self.hidden_size), dtype=np.float32)

    def advance(self, item_index: NDArray[np.int64], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        assert item_index.min() >= 0
        assert hidden.shape == (self.layers, len(item_index), self.hidden_size)
        below, out = item_index[:, None] + 1 + self._salt, np.empty_like(hidden)  # [B, 1]
        for layer in range(self.layers):
            below = (hidden[layer].astype(np.int64) * (31, 37) + below * (17, 29) + layer + 1) % _PRIME  # [B, H]
            out[layer] = below
        return out

    def rank(
        self, hidden: NDArray[np.float32], recent: NDArray[np.int64], counts: NDArray[np.float32], clicks: Any
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        assert recent.shape == counts.shape == (len(hidden), self.recent_size)
        places = np.arange(1, self.recent_size + 1)  # [R]
        seen = ((recent + 2) * places * (counts.astype(np.int64) * 13 + 1)).sum(axis=1)  # [B]
        seed = hidden.astype(np.int64) @ (7, 11) + seen + clicks.astype(np.int64) * 101 + self._salt  # [B]
        scores = seed[:, None] * (np.arange(len(self.vocabulary)) * 211 + 1) % _PRIME  # [B, N]
        top = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]  # [B, k]
        return top, np.take_along_axis(scores, top, axis=1).astype(np.float32)


class SickModel(ExactModel):
    """Answers with numbers that are none, or too large for a row: after its items 1 and 2, and in rankings after 4."""

    def advance(self, item_index: NDArray[np.int64], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        out = super().advance(item_index, hidden)
        out[-1, item_index == 1, 0] = np.nan
        out[0, item_index == 2, -1] = 70_000
        return out

    def rank(
        self, hidden: NDArray[np.float32], recent: NDArray[np.int64], counts: NDArray[np.float32], clicks: Any
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        assert np.isfinite(hidden).all()
        top, score = super().rank(hidden, recent, counts, clicks)
        score[recent[:, 0] == 4, 1] = np.inf
        return top, score


def exact_model(version: str, items: tuple[str, ...], *, salt: int = 0, layers: int = 1, recent_size: int = 4) -> Model:
    """An ExactModel where a Model is wanted."""
    return cast(Model, ExactModel(version, items, salt=salt, layers=layers, recent_size=recent_size))


def sick_model(version: str, items: tuple[str, ...]) -> Model:
    """A SickModel where a Model is wanted."""
    return cast(Model, SickModel(version, items, salt=5, layers=2, recent_size=3))
