"""Session neighbours: VS-KNN and STAN, the strongest models without a network.

Both look up training sessions that share items with the evolving session, keep the most similar of the most recent
ones, and let these vote for their items. They differ in the weights only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.data.lanes import Lanes
from trainer.data.sessions import Ints, SessionSet
from trainer.errors import TrainingSettingsError
from trainer.evaluation.baselines.scorer import LONGEST, Baseline, Scores, newest_first
from trainer.evaluation.protocol import Floats

_DAY_MS = 86_400_000.0


@dataclass(frozen=True)
class SessionIndex:
    """Training sessions as sets of items, by session and by item. p pairs of a session and an item in it.

    Of an item clicked several times in a session the last click counts; of a session the last ``LONGEST`` clicks.

    items, places     int64[p]      each session's distinct items, and the 0-based place of their last click
    offsets           int64[s + 1]  session i has the pairs from ``offsets[i]`` to ``offsets[i + 1]``
    sessions, seen_at int64[p]      each item's sessions, oldest first, and the item's place in them
    postings          int64[I + 1]  item i has the entries from ``postings[i]`` to ``postings[i + 1]``
    lengths           int64[s]      clicks of each session
    age_days          float64[s]    days from the session's end to the newest end; 0 where sessions have no times
    """

    items: Ints
    places: Ints
    offsets: Ints
    sessions: Ints
    seen_at: Ints
    postings: Ints
    lengths: Ints
    age_days: Floats

    @classmethod
    def of(cls, train: SessionSet) -> "SessionIndex":
        train, catalogue = train.newest(LONGEST), len(train.item_ids)
        session = train.session_of_click()
        place = np.arange(train.clicks) - train.offsets[session]
        # The first of each pair in the reversed log is its last click; pairs come out by session, then by item.
        _, last = np.unique((session * catalogue + train.items)[::-1], return_index=True)
        last = train.clicks - 1 - last
        items, session, places = train.items[last], session[last], place[last]
        by_item = np.argsort(items, kind="stable")
        ends = train.ends.astype(np.float64)
        age = (ends.max(initial=0.0) - ends) / _DAY_MS if train.timed else np.zeros(len(train))
        return cls(
            items=items,
            places=places,
            offsets=np.searchsorted(session, np.arange(len(train) + 1)).astype(np.int64),
            sessions=session[by_item],
            seen_at=places[by_item],
            postings=np.searchsorted(items[by_item], np.arange(catalogue + 1)).astype(np.int64),
            lengths=train.lengths,
            age_days=age,
        )


@dataclass(frozen=True)
class Neighbours:
    """The c candidate sessions of one evolving session, newest last.

    session  int64[c]    index of the session
    overlap  float64[c]  sum of the weights of the items shared
    recent   int64[c]    the most recent of these: its place in the evolving session counted back, 0 is the last click
    anchor   int64[c]    the same item's place in the neighbour
    """

    session: Ints
    overlap: Floats
    recent: Ints
    anchor: Ints

    def __getitem__(self, chosen: Ints | npt.NDArray[np.bool_]) -> "Neighbours":
        return Neighbours(self.session[chosen], self.overlap[chosen], self.recent[chosen], self.anchor[chosen])


def candidates(index: SessionIndex, items: Ints, back: Ints, weight: Floats, newest: int) -> Neighbours:
    """The ``newest`` most recent sessions that share an item.

    ``items`` are distinct and most recent first, ``back`` their places counted from the session's end, ``weight``
    what each adds to the overlap.
    """
    starts, stops = index.postings[items], index.postings[items + 1]
    starts = np.maximum(starts, stops - newest)  # older ones cannot be among the newest of the union
    which, entry = _ranges(starts, stops)
    # The first entry of a session is that of the most recent shared item.
    session, first, inverse = np.unique(index.sessions[entry], return_index=True, return_inverse=True)
    overlap = np.bincount(inverse, weights=weight[which], minlength=len(session)).astype(np.float64)
    found = Neighbours(session, overlap, back[which[first]], index.seen_at[entry[first]])
    return found[np.arange(max(0, len(session) - newest), len(session))]


# The weight of an item that was clicked ``back`` clicks before the last one of ``length``.
WEIGHTINGS: Final[Mapping[str, Callable[[Ints, int], Floats]]] = MappingProxyType(
    {
        "linear": lambda back, length: 1.0 - back / length,
        "quadratic": lambda back, length: (1.0 - back / length) ** 2,
        "division": lambda back, length: np.divide(1.0, back + 1.0),
        "same": lambda back, length: np.ones(len(back)),
    }
)


def vs_knn(
    train: SessionSet, *, neighbours: int = 100, newest: int = 1000, idf: bool = True, weighting: str = "linear"
) -> Baseline:
    """VS-KNN (Ludewig and Jannach 2018, sections 3.3.3 and 3.3.4).

    An item's weight in the evolving session falls with its place from the end, ``linear`` as 1, (l-1)/l, .. 1/l
    (``quadratic``: their squares, ``division``: 1, 1/2, 1/3 .., ``same``: not at all); the dot product with a
    neighbour's set is their similarity. A neighbour votes for its items with the similarity times the weight of the
    most recent item shared. With ``idf`` votes for an item in h of s sessions count ln(s / h) times (Kersbergen et al.
    2022, section 2), which also parts the many equal sums.
    """
    index = SessionIndex.of(train)
    within = np.maximum(np.diff(index.postings), 1)
    rarity = np.log(len(train) / within) if idf else np.ones(len(within))
    if weighting not in WEIGHTINGS:
        raise TrainingSettingsError(f"vs-knn has no weighting {weighting}; there are {', '.join(WEIGHTINGS)}")
    weight = WEIGHTINGS[weighting]

    def similarity(found: Neighbours, length: int) -> Floats:
        return found.overlap

    def vote(found: Neighbours, similar: Floats, length: int, entry: Ints, of: Ints) -> Floats:
        votes: Floats = (similar * weight(found.recent, length))[of] * rarity[index.items[entry]]
        return votes

    return _baseline(
        "vs-knn",
        train,
        index,
        weight=weight,
        similarity=similarity,
        vote=vote,
        neighbours=neighbours,
        newest=newest,
    )


def stan(
    train: SessionSet,
    *,
    neighbours: int = 500,
    newest: int = 2500,
    recency: float = 1.0,
    days: float = 10.0,
    reach: float = 2.0,
) -> Baseline:
    """STAN (Garg et al. 2019): three exponential decays.

    An item weighs exp(-back / ``recency``) in the evolving session. A neighbour of age a weighs exp(-a / ``days``),
    and its similarity is the overlap over the root of both lengths. It votes for an item by exp(-distance / ``reach``)
    from the most recent shared item. The age of the evolving session itself is the same factor for all neighbours and
    left out. Sessions without times have no ages.
    """
    index = SessionIndex.of(train)

    def weight(back: Ints, length: int) -> Floats:
        decayed: Floats = np.exp(-back / recency)
        return decayed

    def similarity(found: Neighbours, length: int) -> Floats:
        aged: Floats = np.exp(-index.age_days[found.session] / days)
        similar: Floats = found.overlap / np.sqrt(float(length) * index.lengths[found.session]) * aged
        return similar

    def vote(found: Neighbours, similar: Floats, length: int, entry: Ints, of: Ints) -> Floats:
        near: Floats = np.exp(-np.abs(index.places[entry] - found.anchor[of]) / reach)
        return similar[of] * near

    return _baseline(
        "stan", train, index, weight=weight, similarity=similarity, vote=vote, neighbours=neighbours, newest=newest
    )


def _baseline(
    name: str,
    train: SessionSet,
    index: SessionIndex,
    *,
    weight: Callable[[Ints, int], Floats],
    similarity: Callable[[Neighbours, int], Floats],
    vote: Callable[[Neighbours, Floats, int, Ints, Ints], Floats],
    neighbours: int,
    newest: int,
) -> Baseline:
    """The frame that both share: candidates, the most similar of them, their votes."""
    catalogue = len(train.item_ids)

    def votes_after(history: Ints) -> Floats:
        """Clicks newest first, int64[l] -> float64[I]."""
        length = len(history)
        _, first = np.unique(history, return_index=True)
        back = np.sort(first)  # distinct items by their last click, newest first
        found = candidates(index, history[back], back, weight(back, length), newest)
        similar = similarity(found, length)
        if len(similar) > neighbours:
            # Among equally similar sessions the newer ones are kept.
            kept = np.sort(np.lexsort((found.session, similar))[-neighbours:])
            found, similar = found[kept], similar[kept]
        of, entry = _ranges(index.offsets[found.session], index.offsets[found.session + 1])
        weights = vote(found, similar, length, entry, of)
        return np.bincount(index.items[entry], weights=weights, minlength=catalogue).astype(np.float64)

    def score(lanes: Lanes) -> Scores:
        history = newest_first(lanes)
        scores = np.empty((len(history), catalogue), np.float32)
        for row, clicks in enumerate(history):
            scores[row] = votes_after(clicks[clicks >= 0])
        return scores

    return Baseline(name, catalogue, score)


def _ranges(starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """The numbers from each start to its stop, one range after another, and which range each is of."""
    lengths = stops - starts
    which = np.repeat(np.arange(len(starts), dtype=np.int64), lengths)
    shift = starts - (np.cumsum(lengths) - lengths)
    return which, np.arange(len(which), dtype=np.int64) + shift[which]
