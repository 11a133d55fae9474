"""Recall@k, MRR@k and NDCG@k of next-click prediction, one protocol for every model.

Every prefix of every session is a prediction of the click after it. State starts at zero with each session, the whole
catalogue is ranked, repeats included and nothing filtered out, and each prediction weighs the same. Papers that judge
one prediction a session ask for the last click alone: :func:`of_last_clicks`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.data.lanes import Lanes, follow
from trainer.data.sessions import Ints, SessionSet
from trainer.data.targets import target_types
from trainer.errors import NonFiniteScoresError
from trainer.memory.terms import NO_MEMORY, RECENT, SessionMemory, remember
from trainer.models.base import SessionModel

Ties = Literal["conservative", "standard", "median"]
DEFAULT_KS = (1, 5, 10, 20)
MOST_TYPES = 20
"""Types of clicks that have metrics of their own: a shop has a handful, and a mistake may make one of each click."""
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Scorer(Protocol):
    """A model under evaluation. ``depth`` is how many items it ranks: the catalogue's size, or less."""

    @property
    def name(self) -> str: ...

    @property
    def depth(self) -> int: ...

    def start(self, lanes: int) -> object:
        """The state before any click."""
        ...

    def advance(self, state: object, lanes: Lanes) -> object:
        """The state after each lane's click. Lanes only ever fall away at the end; a fresh lane starts from nothing."""
        ...

    def ranks(self, state: object, lanes: Lanes, targets: Ints, ties: Ties) -> Floats:
        """The target's place in each lane's ranking, from 1, float64[n]; beyond ``depth`` anything above it."""
        ...


@dataclass(frozen=True)
class Metrics:
    """``recall``, ``mrr`` and ``ndcg`` by k, and the number of predictions they are the mean of.

    A prediction has one right item, of rank r: it adds 1 to Recall@k (which papers also call the hit rate, and the
    session graph papers precision), 1 / r to MRR@k and 1 / log2(r + 1) to NDCG@k where r <= k, else 0. The ideal DCG of
    one right item is 1 (Järvelin and Kekäläinen 2002). ``by_type``: of the predictions of clicks of one type, the most
    frequent type first; empty where there are none but views.
    """

    recall: dict[int, float]
    mrr: dict[int, float]
    ndcg: dict[int, float]
    predictions: int
    by_type: Mapping[str, "Metrics"] = field(default_factory=dict)

    @classmethod
    def of_ranks(
        cls, ranks: Floats, ks: Sequence[int] = DEFAULT_KS, of_type: "Mapping[str, Flags] | None" = None
    ) -> "Metrics":
        """``of_type``: which predictions, bool[predictions], are of each type (:func:`predictions_by_type`)."""
        if not len(ranks):
            raise ValueError("no predictions: no test session has two clicks on known items")
        hits = {k: ranks <= k for k in ks}
        return cls(
            recall={k: float(hit.mean()) for k, hit in hits.items()},
            mrr={k: float(np.where(hit, 1.0 / ranks, 0.0).mean()) for k, hit in hits.items()},
            ndcg={k: float(np.where(hit, 1.0 / np.log2(ranks + 1.0), 0.0).mean()) for k, hit in hits.items()},
            predictions=len(ranks),
            by_type={name: cls.of_ranks(ranks[mask], ks) for name, mask in (of_type or {}).items()},
        )


def evaluate(
    scorer: Scorer,
    sessions: SessionSet,
    *,
    ks: Sequence[int] = DEFAULT_KS,
    ties: Ties = "conservative",
    progress: Callable[[int], None] | None = None,
) -> Metrics:
    """Metrics of a model on sessions in its vocabulary. Raises :class:`NonFiniteScoresError`."""
    if max(ks) >= scorer.depth and ties_undecided(scorer, sessions):
        raise ValueError(f"{scorer.name} ranks {scorer.depth} items: metrics at {max(ks)} need more of them")
    return Metrics.of_ranks(ranks_of(scorer, sessions, ties=ties, progress=progress), ks, predictions_by_type(sessions))


def ties_undecided(scorer: Scorer, sessions: SessionSet) -> bool:
    """Whether the model ranks a part of the catalogue only, so that a tie may go on beyond its list."""
    return scorer.depth < len(sessions.item_ids)


def ranks_of(
    scorer: Scorer,
    sessions: SessionSet,
    *,
    ties: Ties = "conservative",
    progress: Callable[[int], None] | None = None,
) -> Floats:
    """The rank of every prediction, float64[predictions], in the order of the clicks: the same for every model.

    Raises :class:`NonFiniteScoresError`.
    """
    ranks: Floats = np.zeros(sessions.clicks)
    state: object = None
    for step, lanes in enumerate(follow(sessions)):
        state = scorer.advance(state if step else scorer.start(len(lanes.position)), lanes)
        ranks[lanes.position] = scorer.ranks(state, lanes, sessions.items[lanes.position + 1], ties)
        if progress:
            progress(len(lanes.position))
    predicted = np.ones(sessions.clicks, dtype=np.bool_)
    predicted[sessions.offsets[1:] - 1] = False  # nothing comes after a session's last click
    found: Floats = ranks[predicted]
    return found


def of_last_clicks(sessions: SessionSet) -> npt.NDArray[np.bool_]:
    """Which of the predictions of :func:`ranks_of` are of a session's last click, bool[predictions]."""
    last = np.zeros(sessions.transitions, np.bool_)
    predictions = np.maximum(sessions.lengths - 1, 0)
    last[np.cumsum(predictions)[predictions > 0] - 1] = True
    return last


def predictions_by_type(sessions: SessionSet) -> dict[str, Flags]:
    """Which of the predictions of :func:`ranks_of` are of a click of each type, bool[predictions], most frequent first.

    Of the :data:`MOST_TYPES` most frequent; none where all clicks are views.
    """
    if sessions.types is None:
        return {}
    types = target_types(sessions)
    counts = np.bincount(types, minlength=len(sessions.type_names))
    frequent = [number for number in np.argsort(-counts, kind="stable")[:MOST_TYPES].tolist() if counts[number]]
    return {sessions.type_names[number]: types == number for number in frequent}


def ranks_among(scores: Tensor, targets: Ints, ties: Ties, name: str) -> Floats:
    """Rank of each row's target: scores [n, I], targets int64[n] -> float64[n].

    Conservative: every other item of the same score stands before the target. Standard: none does. Median: half.
    """
    target = scores.gather(1, torch.from_numpy(targets).unsqueeze(1))  # [n, 1]
    found = _count_around(scores, target)
    if found is None:
        raise NonFiniteScoresError(f"{name} scores items with a number that is not finite")
    below, above = found
    conservative, standard = scores.shape[1] - below, above + 1
    ranks: Floats = {"conservative": conservative, "standard": standard, "median": (conservative + standard) / 2}[ties]
    return ranks


def _count_around(scores: Tensor, target: Tensor) -> tuple[Floats, Floats] | None:
    """How many of each row's scores [n, I] are below and above its target [n, 1]; None where one is not finite."""
    if scores.is_contiguous():
        from trainer.evaluation.ranking import count_around

        found = count_around(scores.numpy(), target.squeeze(1).numpy())
        return None if found is None else (found[0].astype(np.float64), found[1].astype(np.float64))
    if not bool(torch.isfinite(scores.sum())) and not bool(torch.isfinite(scores).all()):
        return None
    # Compared into floats: summing truth values is ten times slower, and counts below 2^24 are exact.
    flag = torch.empty_like(scores)
    below, above = (compare(scores, target, out=flag).sum(1).numpy() for compare in (torch.lt, torch.gt))
    return below.astype(np.float64), above.astype(np.float64)


def ranks_in_top(index: Ints, score: npt.NDArray[np.float32], targets: Ints, ties: Ties, name: str) -> Floats:
    """The same from lists of the best k alone, index int64[n, k], score f32[n, k]; infinite for a target not listed."""
    if not np.isfinite(score).all():
        raise NonFiniteScoresError(f"{name} scores items with a number that is not finite")
    found = index == targets[:, None]  # [n, k]
    listed = found.any(axis=1)
    target = np.where(found, score, -np.inf).max(axis=1, keepdims=True)  # [n, 1]
    better = (score > target).sum(axis=1)
    tied = (score == target).sum(axis=1)
    rank = {"conservative": better + tied, "standard": better + 1, "median": better + (tied + 1) / 2}[ties]
    return np.where(listed, rank.astype(np.float64), np.inf)


@dataclass(frozen=True)
class NetworkScorer:
    """A network, and its session memory if it has one."""

    network: SessionModel
    memory: SessionMemory = NO_MEMORY
    name: str = "model"

    @property
    def depth(self) -> int:
        return self.network.items

    def start(self, lanes: int) -> object:
        return self.network.start(lanes)

    def advance(self, state: object, lanes: Lanes) -> object:
        with torch.inference_mode():
            return self.network.advance(state, lanes)

    def ranks(self, state: object, lanes: Lanes, targets: Ints, ties: Ties) -> Floats:
        with torch.inference_mode():
            found = self.network.scores(self.network.queries(state, lanes))  # [n, I]
            if self.memory:
                found = remember(self.memory, found, *map(torch.from_numpy, lanes.recent(RECENT)))
            return ranks_among(found, targets, ties, self.name)
