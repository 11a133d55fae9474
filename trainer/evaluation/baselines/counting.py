"""Models that count: what is clicked, what follows what, what is clicked together."""

from collections.abc import Callable
from typing import Final

import numpy as np
from scipy import sparse

from trainer.data.lanes import Lanes
from trainer.data.sessions import SessionSet
from trainer.data.shared_sessions import shared_sessions, strongest
from trainer.evaluation.baselines.scorer import LONGEST, Baseline, Scores, below_one, newest_first

NEIGHBOURS: Final = 100  # similar items that Item-KNN keeps for each item
REGULARISATION: Final = 20.0  # clicks added to an item's support: rare items are similar to little
RULE_STEPS: Final = 10  # clicks that a sequential rule looks ahead
RULE_UNITS: Final = 2520  # two sums of 1/1 .. 1/10 differ by 1/2520 at least, or not at all


def all_baselines(train: SessionSet) -> tuple[Callable[[], Baseline], ...]:
    """Every baseline that a fit reports, not built yet: those that are built and evaluated in seconds."""
    return (lambda: pop(train), lambda: s_pop(train), lambda: markov_chain(train), lambda: item_knn(train))


def pop(train: SessionSet) -> Baseline:
    """POP: items by their clicks in training."""
    support = train.support().astype(np.float32)
    return Baseline("pop", len(support), lambda lanes: np.tile(support, (len(lanes.position), 1)))


def s_pop(train: SessionSet) -> Baseline:
    """S-POP: the session's own items by their clicks in it, then all others; among equals by popularity."""
    popularity = below_one(train)

    def score(lanes: Lanes) -> Scores:
        scores = np.tile(popularity, (len(lanes.position), 1))
        history = newest_first(lanes)
        row, _ = np.nonzero(history >= 0)
        np.add.at(scores, (row, history[history >= 0]), np.float32(1))
        return scores

    return Baseline("s-pop", len(popularity), score)


def markov_chain(train: SessionSet) -> Baseline:
    """Markov chain of first order: items by how often they followed the last one; among equals by popularity."""
    popularity = below_one(train)
    items = len(popularity)
    first = np.ones(train.clicks, np.bool_)
    first[train.offsets[1:] - 1] = False  # a session's last click is followed by nothing
    before = np.flatnonzero(first)
    ones = np.ones(len(before), np.float32)
    follows = sparse.csr_array((ones, (train.items[before], train.items[before + 1])), shape=(items, items))
    return _of_last_item("markov-chain", follows, popularity)


def sequential_rules(train: SessionSet, *, steps: int = RULE_STEPS, repeats: bool = True) -> Baseline:
    """SR: items by how often and how soon they came after the last one; among equals by popularity.

    A pair x, y with y d clicks later, d <= ``steps``, adds 1/d to the rule x -> y (Ludewig and Jannach 2018, section
    3.2.3). ``repeats``: whether an item may follow itself, as the formula has it; some implementations leave it out.
    """
    popularity = below_one(train)
    items = len(popularity)
    session = train.session_of_click()
    rules = sparse.csr_array((items, items), dtype=np.float32)
    for distance in range(1, steps + 1):
        before = np.flatnonzero(session[distance:] == session[:-distance])
        source, target = train.items[before], train.items[before + distance]
        counted = np.ones(len(before), np.bool_) if repeats else source != target
        weight = np.full(int(counted.sum()), 1.0 / distance, np.float32)
        rules = rules + sparse.csr_array((weight, (source[counted], target[counted])), shape=(items, items))
    return _of_last_item("sequential-rules", sparse.csr_array(rules), popularity / np.float32(RULE_UNITS))


def item_knn(train: SessionSet, *, neighbours: int = NEIGHBOURS, regularisation: float = REGULARISATION) -> Baseline:
    """Item-KNN: items by regularised cosine similarity to the last one, by the sessions they share.

    Sessions with both items / sqrt((support + λ)(support + λ)), λ the ``regularisation``; the nearest ``neighbours`` of
    each item (the Item-KNN of Hidasi et al. 2016). Among equally near ones those of the lower number are kept: where
    the vocabulary is :func:`trainer.data.sessions.vocabulary_of`'s, the more popular ones.
    """
    train = train.newest(LONGEST)
    items = len(train.item_ids)
    scale = 1.0 / np.sqrt(train.support() + regularisation)
    parts = [
        strongest(item, other, count * scale[item] * scale[other], neighbours)
        for item, other, count in shared_sessions(train)
    ]
    item, other, similarity = (np.concatenate(column) for column in zip(*parts, strict=True))
    table = sparse.csr_array((similarity.astype(np.float32), (item, other)), shape=(items, items))
    return _of_last_item("item-knn", table, np.zeros(items, np.float32))


def _of_last_item(name: str, table: "sparse.csr_array", floor: Scores) -> Baseline:
    """Scores are the last item's row of the table, above a floor that ranks the rest."""

    def score(lanes: Lanes) -> Scores:
        scores: Scores = table[lanes.items].toarray()
        scores += floor
        return scores

    return Baseline(name, len(floor), score)
