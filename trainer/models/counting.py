"""Models that count: what is clicked, what follows what, what is clicked together.

They have no query, so a bundle of theirs has no encoder: a session's row alone decides (``encoder: none``). A row tells
the distinct items of the last R clicks, the most recent first, and how often each was clicked. From it

    score of item i = floor_i + own · n_i + T_ji

where j is the last item, n_i the session's clicks on i, and T a sparse table. I items, B sessions, R recent items.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from scipy import sparse
from torch import Tensor

from trainer.data.lanes import Lanes
from trainer.data.sessions import Ints, SessionSet
from trainer.data.shared_sessions import shared_sessions, strongest
from trainer.models.settings import MOST_WINDOW, MemoryTerms, TrainingSettings

Floats = npt.NDArray[np.float32]

LONGEST: Final = 200
"""Clicks of a session that are looked at, its newest: work and memory grow with their square, and beyond a few hundred
clicks it is a robot that walks through the catalogue. RSC15's sessions end at 200."""
WINDOW: Final = 30  # what a worker's rows keep by default
NEIGHBOURS: Final = 100  # similar items that Item-KNN keeps for each item
REGULARISATION: Final = 20.0  # clicks added to an item's support: rare items are similar to little
RULE_STEPS: Final = 10  # clicks that a sequential rule looks ahead
RULE_UNITS: Final = 2520  # two sums of 1/1 .. 1/10 differ by 1/2520 at least, or not at all


class CountingModel(Protocol):
    """What a counting family learns from sessions. Frozen; equal in evaluation and in a worker."""

    @property
    def items(self) -> int:
        """I."""
        ...

    @property
    def recent_size(self) -> int:
        """R: the clicks of a session that its row must have."""
        ...

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """All that was learned, by name; of a sparse table ``starts`` int64[I + 1], ``items`` and ``values``."""
        ...

    def scores(self, recent: Ints, counts: Floats, clicks: Floats) -> Floats:
        """Scores of the whole catalogue, from rows as a worker has them: f32[B, I].

        ``recent`` int64[B, R] are the distinct items of the last R clicks, most recent first, padded with -1;
        ``counts`` f32[B, R] their clicks, 0 where padded; ``clicks`` f32[B] the session's clicks. R may be any size.
        """
        ...


@dataclass(frozen=True)
class RowModel:
    """A counting model as a :class:`trainer.models.base.SessionModel`: its query is the session's row itself."""

    counted: CountingModel
    recent_size: int
    """R: at least what the counting model looks at; with a session memory, what that looks at as well."""

    @property
    def items(self) -> int:
        return self.counted.items

    def start(self, lanes: int) -> None:
        """Nothing is carried from click to click."""

    def advance(self, state: object, lanes: Lanes) -> None:
        """A click changes no more than the lane's history."""

    def queries(self, state: object, lanes: Lanes) -> Tensor:
        """The distinct recent items, their clicks and the session's, side by side: [n, 2 R + 1].

        float32 has every item of a bundle: there are fewer than 2^24.
        """
        recent, counts, clicks = lanes.recent(self.recent_size)
        return torch.from_numpy(np.hstack([recent.astype(np.float32), counts, clicks[:, None]]))

    def scores(self, query: Tensor) -> Tensor:
        """Scores of the whole catalogue: [B, 2 R + 1] -> [B, I]."""
        size, row = self.recent_size, query.numpy()
        found = self.counted.scores(row[:, :size].astype(np.int64), row[:, size : 2 * size], row[:, 2 * size])
        return torch.from_numpy(found)


class CountingSettings(TrainingSettings):
    """What every counting family is told."""

    memory: MemoryTerms = Field((), description="terms of the session memory, separated by commas; by default none")
    window: int = Field(WINDOW, ge=1, le=MOST_WINDOW, description="clicks of a session that the model looks back on")

    @model_validator(mode="after")
    def _weighs_nothing(self) -> Self:
        if self.target_weights:
            raise ValueError(f"target_weights: family={self.family} counts all clicks alike; leave it out")
        return self

    @abstractmethod
    def count(self, train: SessionSet) -> CountingModel:
        """The model of these sessions."""


class PopSettings(CountingSettings):
    """POP."""

    family: Literal["pop"] = "pop"

    def count(self, train: SessionSet) -> "ItemCounts":
        return pop(train)


class SPopSettings(CountingSettings):
    """S-POP."""

    family: Literal["s-pop"] = "s-pop"

    def count(self, train: SessionSet) -> "ItemCounts":
        return s_pop(train, window=self.window)


class MarkovChainSettings(CountingSettings):
    """Markov chain of first order."""

    family: Literal["markov-chain"] = "markov-chain"

    def count(self, train: SessionSet) -> "ItemCounts":
        return markov_chain(train, window=self.window)


class SequentialRulesSettings(CountingSettings):
    """Sequential rules."""

    search: ClassVar[tuple[str, ...]] = ("steps=1..30", "repeats=false|true")

    family: Literal["sequential-rules"] = "sequential-rules"
    steps: int = Field(RULE_STEPS, ge=1, le=LONGEST, description="clicks that a rule looks ahead")
    repeats: bool = Field(True, description="whether an item may follow itself")

    def count(self, train: SessionSet) -> "ItemCounts":
        return sequential_rules(train, steps=self.steps, repeats=self.repeats, window=self.window)


class ItemKnnSettings(CountingSettings):
    """Item-KNN."""

    search: ClassVar[tuple[str, ...]] = ("neighbours=20..2000:log", "regularisation=0.5..200.0:log")

    family: Literal["item-knn"] = "item-knn"
    neighbours: int = Field(NEIGHBOURS, ge=1, le=100_000, description="similar items kept for each item")
    regularisation: float = Field(REGULARISATION, ge=0, description="clicks added to the support of each item")

    def count(self, train: SessionSet) -> "ItemCounts":
        return item_knn(train, neighbours=self.neighbours, regularisation=self.regularisation, window=self.window)


@dataclass(frozen=True)
class ItemCounts:
    """The scores above.

    floor  f32[I]
    own    added for each click on an item of the session; 0 or 1
    table  f32[I, I], sparse: row j is what goes with item j. None where the last item says nothing
    """

    floor: Floats
    own: float = 0.0
    table: "sparse.csr_array | None" = None
    recent_size: int = 1

    @property
    def items(self) -> int:
        return len(self.floor)

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        named: dict[str, npt.NDArray[Any]] = {"floor": self.floor}
        if self.own:
            named["own"] = np.array([self.own], np.float32)
        if self.table is not None:
            named["table.starts"] = self.table.indptr.astype(np.int64)
            named["table.items"] = self.table.indices.astype(np.int32)
            named["table.values"] = self.table.data
        return named

    @classmethod
    def of_tensors(cls, named: Mapping[str, npt.NDArray[Any]], recent_size: int) -> "ItemCounts":
        """The inverse of :meth:`tensors`. KeyError when one is missing."""
        floor, table = named["floor"], None
        if "table.starts" in named:
            parts = named["table.values"], named["table.items"], named["table.starts"]
            table = sparse.csr_array(parts, shape=(len(floor), len(floor)))
        return cls(floor, float(named.get("own", np.zeros(1))[0]), table, recent_size)

    def scores(self, recent: Ints, counts: Floats, clicks: Floats) -> Floats:
        if self.table is None:
            scores = np.tile(self.floor, (len(recent), 1))
        else:
            last = recent[:, 0]
            scores = self.table[np.maximum(last, 0)].toarray()
            scores[last < 0] = 0  # nothing was clicked, nothing follows
            scores += self.floor
        if self.own:
            session, place = np.nonzero(recent >= 0)
            scores[session, recent[session, place]] += np.float32(self.own) * counts[session, place]
        return scores


def pop(train: SessionSet) -> ItemCounts:
    """POP: items by their clicks in training."""
    return ItemCounts(train.support().astype(np.float32))


def s_pop(train: SessionSet, *, window: int = WINDOW) -> ItemCounts:
    """S-POP: the session's own items by their clicks in it, then all others; among equals by popularity."""
    return ItemCounts(below_one(train), own=1.0, recent_size=window)


def markov_chain(train: SessionSet, *, window: int = WINDOW) -> ItemCounts:
    """Markov chain of first order: items by how often they followed the last one; among equals by popularity."""
    first = np.ones(train.clicks, np.bool_)
    first[train.offsets[1:] - 1] = False  # a session's last click is followed by nothing
    before = np.flatnonzero(first)
    ones = np.ones(len(before), np.float32)
    follows = _table(train, train.items[before], train.items[before + 1], ones)
    return ItemCounts(below_one(train), table=follows, recent_size=window)


def sequential_rules(
    train: SessionSet, *, steps: int = RULE_STEPS, repeats: bool = True, window: int = WINDOW
) -> ItemCounts:
    """SR: items by how often and how soon they came after the last one; among equals by popularity.

    A pair x, y with y d clicks later, d <= ``steps``, adds 1/d to the rule x -> y (Ludewig and Jannach 2018, section
    3.2.3). ``repeats``: whether an item may follow itself, as the formula has it; some implementations leave it out.
    """
    session = train.session_of_click()
    empty = np.zeros(0, np.int64)
    rules = _table(train, empty, empty, np.zeros(0, np.float32))
    for distance in range(1, steps + 1):
        before = np.flatnonzero(session[distance:] == session[:-distance])
        source, target = train.items[before], train.items[before + distance]
        counted = np.ones(len(before), np.bool_) if repeats else source != target
        weight = np.full(int(counted.sum()), 1.0 / distance, np.float32)
        rules = rules + _table(train, source[counted], target[counted], weight)
    floor = below_one(train) / np.float32(RULE_UNITS)
    return ItemCounts(floor, table=sparse.csr_array(rules), recent_size=window)


def item_knn(
    train: SessionSet,
    *,
    neighbours: int = NEIGHBOURS,
    regularisation: float = REGULARISATION,
    window: int = WINDOW,
) -> ItemCounts:
    """Item-KNN: items by regularised cosine similarity to the last one, by the sessions they share.

    Sessions with both items / sqrt((support + λ)(support + λ)), λ the ``regularisation``; the nearest ``neighbours`` of
    each item (the Item-KNN of Hidasi et al. 2016). Among equally near ones those of the lower number are kept: where
    the vocabulary is :func:`trainer.data.sessions.vocabulary_of`'s, the more popular ones.
    """
    train = train.newest(LONGEST)
    scale = 1.0 / np.sqrt(train.support() + regularisation)
    parts = [
        strongest(item, other, count * scale[item] * scale[other], neighbours)
        for item, other, count in shared_sessions(train)
    ]
    item, other, similarity = (np.concatenate(column) for column in zip(*parts, strict=True))
    table = _table(train, item, other, similarity.astype(np.float32))
    return ItemCounts(np.zeros(len(train.item_ids), np.float32), table=table, recent_size=window)


def below_one(train: SessionSet) -> Floats:
    """Popularity in [0, 1): decides between equal counts and never against a greater one."""
    support = train.support()
    share: Floats = (support / (support.max(initial=0) + 1)).astype(np.float32)
    return share


def _table(train: SessionSet, row: Ints, item: Ints, value: Floats) -> "sparse.csr_array":
    """The sums of equal pairs, f32[I, I]."""
    size = len(train.item_ids)
    table = sparse.csr_array((value, (row, item)), shape=(size, size))
    table.sum_duplicates()
    return table
