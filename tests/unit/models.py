"""A model of whole numbers: what it answers does not depend on how sessions are batched, to the last bit."""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from schemas.bundle.manifest import Encoder
from schemas.bundle.runtime import Model
from schemas.bundle.vocabulary import Vocabulary

_PRIME = 2039  # below 2^11, its square below 2^24: float16 and float32 hold every number exactly


class ExactModel:
    """Looks like `schemas.bundle.runtime.Model`. Each input leaves its trace in each answer; `salt` parts versions."""

    k, popular_share = 4, 0.25
    encoder: Encoder = "recurrent"
    window, own_query = 0, False
    query_size = 2
    step = Model.step

    def __init__(self, version: str, items: tuple[str, ...], *, salt: int, layers: int, recent_size: int) -> None:
        self.version = self.states_of = version
        self.vocabulary = Vocabulary(items)
        self.layers, self.hidden_size, self.recent_size, self._salt = layers, 2, recent_size, salt
        self.popular = np.arange(self.k), np.full(self.k, self.popular_share, dtype=np.float32)
        self.popularity = np.ones(len(items), dtype=np.int64)

    def initial_hidden(self, batch: int) -> NDArray[np.float32]:
        return np.zeros((self.layers, batch, self.hidden_size), dtype=np.float32)

    def advance(
        self, item_index: NDArray[np.int64], hidden: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        assert item_index.min() >= 0
        assert hidden.shape == (self.layers, len(item_index), self.hidden_size)
        below, out = item_index[:, None] + 1 + self._salt, np.empty_like(hidden)  # [B, 1]
        for layer in range(self.layers):
            below = (hidden[layer].astype(np.int64) * (31, 37) + below * (17, 29) + layer + 1) % _PRIME  # [B, H]
            out[layer] = below
        return out, out[-1]

    def encode(self, items: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.float32]:
        raise AssertionError(f"the encoder of {self.version} is {self.encoder!r}")

    def rank(
        self,
        query: NDArray[np.float32] | None,
        recent: NDArray[np.int64],
        counts: NDArray[np.float32],
        clicks: Any,
        *,
        adjust: NDArray[np.float32] | None = None,
        k: int | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        assert recent.shape == counts.shape == (len(clicks), self.recent_size)
        places = np.arange(1, self.recent_size + 1)  # [R]
        seen = ((recent + 2) * places * (counts.astype(np.int64) * 13 + 1)).sum(axis=1)  # [B]
        asked = query.astype(np.int64) @ np.arange(7, 7 + 4 * self.query_size, 4) if query is not None else 0  # [B]
        assert (query is None) == (self.encoder == "none")
        seed = asked + seen + clicks.astype(np.int64) * 101 + self._salt  # [B]
        scores = seed[:, None] * (np.arange(len(self.vocabulary)) * 211 + 1) % _PRIME  # [B, N]
        scores = scores.astype(np.float32) if adjust is None else scores.astype(np.float32) + adjust
        top = np.argsort(-scores, axis=1, kind="stable")[:, : self.k if k is None else k]  # [B, k]
        return top, np.take_along_axis(scores, top, axis=1).astype(np.float32)


class OwnQueryModel(ExactModel):
    """Its query is no part of the state that a row keeps: it tells of the click, too."""

    own_query, query_size = True, 3

    def advance(
        self, item_index: NDArray[np.int64], hidden: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        out, last = super().advance(item_index, hidden)
        return out, np.concatenate([last, item_index[:, None] + last[:, :1]], axis=1).astype(np.float32)


class WindowModel(ExactModel):
    """Its query tells of each item of the window and of its place."""

    encoder: Encoder = "window"
    encode_all = Model.encode_all

    def __init__(self, version: str, items: tuple[str, ...], *, salt: int, recent_size: int, window: int) -> None:
        super().__init__(version, items, salt=salt, layers=0, recent_size=recent_size)
        self.window = window

    def encode(self, items: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.float32]:
        clicks = items.shape[1]
        assert 1 <= length.min() <= length.max() == clicks <= self.window  # padded to the longest, and no further
        assert ((items >= 0) == (np.arange(clicks) < length[:, None])).all()
        query = np.zeros((len(items), self.query_size), dtype=np.int64)
        for click in range(clicks):
            after = (query * (31, 37) + (items[:, click, None] + 1 + self._salt) * (17, 29)) % _PRIME
            query = np.where(click < length[:, None], after, query)
        return query.astype(np.float32)


class NoEncoderModel(ExactModel):
    """Ranks by the recent items alone."""

    encoder: Encoder = "none"
    query_size = 0

    def __init__(self, version: str, items: tuple[str, ...], *, salt: int, recent_size: int) -> None:
        super().__init__(version, items, salt=salt, layers=0, recent_size=recent_size)


class SickModel(ExactModel):
    """Answers with numbers that are none, or too large for a row: after its items 1 and 2, and in rankings after 4."""

    def advance(
        self, item_index: NDArray[np.int64], hidden: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        out, _ = super().advance(item_index, hidden)
        out[-1, item_index == 1, 0] = np.nan
        out[0, item_index == 2, -1] = 70_000
        return out, out[-1]

    def rank(
        self,
        query: NDArray[np.float32] | None,
        recent: NDArray[np.int64],
        counts: NDArray[np.float32],
        clicks: Any,
        **told: Any,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return _sick_rank(self, query, recent, counts, clicks, **told)


class SickOwnQueryModel(OwnQueryModel):
    """Has states that are numbers, and queries that are none after its item 1; such rankings after 4."""

    def advance(
        self, item_index: NDArray[np.int64], hidden: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        out, query = super().advance(item_index, hidden)
        query[item_index == 1, 0] = np.nan
        return out, query

    def rank(
        self,
        query: NDArray[np.float32] | None,
        recent: NDArray[np.int64],
        counts: NDArray[np.float32],
        clicks: Any,
        **told: Any,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return _sick_rank(self, query, recent, counts, clicks, **told)


class SickWindowModel(WindowModel):
    """Has queries that are no numbers where the last item is 1, and such rankings after 4."""

    def encode(self, items: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.float32]:
        query = super().encode(items, length)
        query[items[np.arange(len(items)), length - 1] == 1, 0] = np.nan
        return query

    def rank(
        self,
        query: NDArray[np.float32] | None,
        recent: NDArray[np.int64],
        counts: NDArray[np.float32],
        clicks: Any,
        **told: Any,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return _sick_rank(self, query, recent, counts, clicks, **told)


def _sick_rank(
    model: ExactModel,
    query: NDArray[np.float32] | None,
    recent: NDArray[np.int64],
    counts: NDArray[np.float32],
    clicks: Any,
    **told: Any,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    assert query is not None
    assert np.isfinite(query).all()
    top, score = ExactModel.rank(model, query, recent, counts, clicks, **told)
    score[recent[:, 0] == 4, 1] = np.inf
    return top, score


def exact_model(version: str, items: tuple[str, ...], *, salt: int = 0, layers: int = 1, recent_size: int = 4) -> Model:
    """An ExactModel where a Model is wanted."""
    return cast(Model, ExactModel(version, items, salt=salt, layers=layers, recent_size=recent_size))


def own_query_model(version: str, items: tuple[str, ...], *, salt: int = 0, recent_size: int = 4) -> Model:
    """An OwnQueryModel where a Model is wanted."""
    return cast(Model, OwnQueryModel(version, items, salt=salt, layers=2, recent_size=recent_size))


def window_model(
    version: str, items: tuple[str, ...], *, salt: int = 0, recent_size: int = 4, window: int = 5
) -> Model:
    """A WindowModel where a Model is wanted."""
    return cast(Model, WindowModel(version, items, salt=salt, recent_size=recent_size, window=window))


def no_encoder_model(version: str, items: tuple[str, ...], *, salt: int = 0, recent_size: int = 4) -> Model:
    """A NoEncoderModel where a Model is wanted."""
    return cast(Model, NoEncoderModel(version, items, salt=salt, recent_size=recent_size))


def sick_model(version: str, items: tuple[str, ...]) -> Model:
    """A SickModel where a Model is wanted."""
    return cast(Model, SickModel(version, items, salt=5, layers=2, recent_size=3))


def sick_own_query_model(version: str, items: tuple[str, ...], *, recent_size: int = 3) -> Model:
    """A SickOwnQueryModel where a Model is wanted."""
    return cast(Model, SickOwnQueryModel(version, items, salt=7, layers=2, recent_size=recent_size))


def sick_window_model(version: str, items: tuple[str, ...]) -> Model:
    """A SickWindowModel where a Model is wanted."""
    return cast(Model, SickWindowModel(version, items, salt=6, recent_size=3, window=4))
