"""What a GRU4Rec has to beat: models of counting, under the same protocol."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from trainer.evaluate import Floats, Ints, Lanes, Ties, ranks_among
from trainer.sessions import SessionSet

NEIGHBOURS: Final = 100  # similar items that Item-KNN keeps for each item
REGULARISATION: Final = 20.0  # clicks added to an item's support: rare items are similar to little
_BLOCK = 512  # items whose similarities are held at once

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Baseline:
    """A scorer without state of its own: what it needs of a session it finds in the session's clicks.

    ``score`` gives the scores of the whole catalogue, Lanes of n sessions -> f32[n, I].
    """

    name: str
    depth: int
    score: Callable[[Lanes], Scores]

    def start(self, lanes: int) -> None:
        return None

    def advance(self, state: object, lanes: Lanes) -> None:
        return None

    def ranks(self, state: object, lanes: Lanes, targets: Ints, ties: Ties) -> Floats:
        return ranks_among(torch.from_numpy(self.score(lanes)), targets, ties, self.name)


def all_baselines(train: SessionSet) -> tuple[Callable[[], Baseline], ...]:
    """Every baseline, not built yet."""
    return (lambda: pop(train), lambda: s_pop(train), lambda: markov_chain(train), lambda: item_knn(train))


def pop(train: SessionSet) -> Baseline:
    """POP: items by their clicks in training."""
    support = train.support().astype(np.float32)
    return Baseline("pop", len(support), lambda lanes: np.tile(support, (len(lanes.position), 1)))


def s_pop(train: SessionSet) -> Baseline:
    """S-POP: the session's own items by their clicks in it, then all others; among equals by popularity."""
    popularity = _below_one(train)

    def score(lanes: Lanes) -> Scores:
        scores = np.tile(popularity, (len(lanes.position), 1))
        history = lanes.history(int(lanes.clicks.max()))  # [n, longest]
        row, _ = np.nonzero(history >= 0)
        np.add.at(scores, (row, history[history >= 0]), np.float32(1))
        return scores

    return Baseline("s-pop", len(popularity), score)


def markov_chain(train: SessionSet) -> Baseline:
    """Markov chain of first order: items by how often they followed the last one; among equals by popularity."""
    popularity = _below_one(train)
    items = len(popularity)
    first = np.ones(train.clicks, np.bool_)
    first[train.offsets[1:] - 1] = False  # a session's last click is followed by nothing
    before = np.flatnonzero(first)
    ones = np.ones(len(before), np.float32)
    follows = sparse.csr_array((ones, (train.items[before], train.items[before + 1])), shape=(items, items))
    return _of_last_item("markov-chain", follows, popularity)


def item_knn(train: SessionSet) -> Baseline:
    """Item-KNN: items by regularised cosine similarity to the last one, by the sessions they share.

    Sessions with both items / sqrt((support + λ)(support + λ)), λ = 20; the 100 nearest of each item (the Item-KNN of
    Hidasi et al. 2016).
    """
    items = len(train.item_ids)
    ones = np.ones(train.clicks, np.float32)
    table = sparse.csc_array((ones, (train.session_of_click(), train.items)), shape=(len(train), items))
    table.sum_duplicates()
    table.data[:] = 1.0  # an item clicked twice is in the session once
    scale = 1.0 / np.sqrt(train.support() + REGULARISATION)
    blocks = [_nearest(table, scale, start, min(start + _BLOCK, items)) for start in range(0, items, _BLOCK)]
    return _of_last_item("item-knn", sparse.csr_array(sparse.vstack(blocks)), np.zeros(items, np.float32))


def _nearest(table: "sparse.csc_array", scale: Floats, start: int, stop: int) -> "sparse.csr_array":
    """Rows start to stop of the similarity matrix, the nearest items of each alone."""
    similar = sparse.csr_array(table[:, start:stop].T @ table)
    row = np.repeat(np.arange(stop - start), np.diff(similar.indptr))
    similar.data *= (scale[start + row] * scale[similar.indices]).astype(np.float32)
    similar.data[similar.indices == start + row] = 0.0  # an item is no neighbour of its own
    for begin, end in zip(similar.indptr[:-1], similar.indptr[1:], strict=True):
        if end - begin > NEIGHBOURS:
            values = similar.data[begin:end]
            values[values < np.partition(values, -NEIGHBOURS)[-NEIGHBOURS]] = 0.0
    similar.eliminate_zeros()
    return similar


def _of_last_item(name: str, table: "sparse.csr_array", floor: Scores) -> Baseline:
    """Scores are the last item's row of the table, above a floor that ranks the rest."""

    def score(lanes: Lanes) -> Scores:
        scores: Scores = table[lanes.items].toarray()
        scores += floor
        return scores

    return Baseline(name, len(floor), score)


def _below_one(train: SessionSet) -> Scores:
    """Popularity in [0, 1): decides between equal counts and never against a greater one."""
    support = train.support()
    share: Scores = (support / (support.max(initial=0) + 1)).astype(np.float32)
    return share
