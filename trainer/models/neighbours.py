"""Session neighbours: VS-KNN and STAN, the strongest models without a network.

Both look up training sessions that share items with the evolving session, keep the most similar of the most recent
ones, and let these vote for their items. They differ in the numbers only:

    similarity of a session  = f_session · Σ w_p over the items shared, p how many clicks before the last the item was
    score of item i          = c · g_i · Σ similarity · v_p · d_|place of i - place of the shared item|

where the sum is over the neighbours, and its p that of the most recent item shared.

A worker's row tells the distinct items by their last click, but of repeats only how many there were. So in serving, and
where a family is judged, p is the item's place among the m distinct ones, 0 for the last, and the session's length is
m. The baselines look at the clicks themselves. Without repeats the two are the same.

Which sessions are the neighbours must not hang on the order in which a machine sums. So the w are whole numbers, in
units that c makes up for, and f is multiplied once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from trainer.data.sessions import Ints, SessionSet
from trainer.models.counting import LONGEST, WINDOW, CountingSettings, Floats

Doubles = npt.NDArray[np.float64]

_DAY_MS: Final = 86_400_000.0
_FINE: Final = 2.0**40  # whole numbers for weights that are fractions

Weighting = Literal["linear", "quadratic", "division", "same"]


class VsKnnSettings(CountingSettings):
    """VS-KNN."""

    search: ClassVar[tuple[str, ...]] = (
        "neighbours=20..2000:log",
        "newest=200..20000:log",
        "idf=false|true",
        "weighting=linear|quadratic|division|same",
    )

    family: Literal["vs-knn"] = "vs-knn"
    neighbours: int = Field(100, ge=1, le=100_000, description="sessions that vote")
    newest: int = Field(
        1000, ge=1, le=1_000_000, description="most recent sessions of which these are the most similar"
    )
    idf: bool = Field(True, description="whether votes for rare items count more")
    weighting: Weighting = Field("linear", description="how an item's weight falls with its place in the session")

    def count(self, train: SessionSet) -> "SessionNeighbours":
        return vs_knn(
            train,
            neighbours=self.neighbours,
            newest=self.newest,
            idf=self.idf,
            weighting=self.weighting,
            window=self.window,
        )


class StanSettings(CountingSettings):
    """STAN."""

    search: ClassVar[tuple[str, ...]] = (
        "neighbours=50..5000:log",
        "newest=500..20000:log",
        "recency=0.2..20.0:log",
        "days=0.3..100.0:log",
        "reach=0.2..20.0:log",
    )

    family: Literal["stan"] = "stan"
    neighbours: int = Field(500, ge=1, le=100_000, description="sessions that vote")
    newest: int = Field(
        2500, ge=1, le=1_000_000, description="most recent sessions of which these are the most similar"
    )
    recency: float = Field(1.0, gt=0, description="clicks in which the weight of a session's item decays")
    days: float = Field(10.0, gt=0, description="days in which the weight of a neighbour decays")
    reach: float = Field(2.0, gt=0, description="places from the item shared in which a vote decays")

    def count(self, train: SessionSet) -> "SessionNeighbours":
        return stan(
            train,
            neighbours=self.neighbours,
            newest=self.newest,
            recency=self.recency,
            days=self.days,
            reach=self.reach,
            window=self.window,
        )


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
    age_days: Doubles

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

    def newest(self, sessions: int) -> "SessionIndex":
        """With so many sessions of each item at most, its newest, and without sessions that no item has then.

        Older ones cannot be among so many of the newest sessions that share an item with an evolving one.
        """
        counts = np.minimum(np.diff(self.postings), sessions)
        _, kept = _ranges(self.postings[1:] - counts, self.postings[1:])
        used, renamed = np.unique(self.sessions[kept], return_inverse=True)
        session, pairs = _ranges(self.offsets[used], self.offsets[used + 1])
        return replace(
            self,
            items=self.items[pairs],
            places=self.places[pairs],
            offsets=np.searchsorted(session, np.arange(len(used) + 1)).astype(np.int64),
            sessions=renamed.astype(np.int64),
            seen_at=self.seen_at[kept],
            postings=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
            lengths=self.lengths[used],
            age_days=self.age_days[used],
        )


@dataclass(frozen=True)
class Neighbours:
    """The c candidate sessions of one evolving session, newest last.

    session  int64[c]  index of the session
    overlap  int64[c]  sum of the weights of the items shared
    recent   int64[c]  the most recent of these: its p
    anchor   int64[c]  the same item's place in the neighbour
    """

    session: Ints
    overlap: Ints
    recent: Ints
    anchor: Ints

    def __getitem__(self, chosen: Ints) -> "Neighbours":
        return Neighbours(self.session[chosen], self.overlap[chosen], self.recent[chosen], self.anchor[chosen])


@dataclass(frozen=True)
class SessionNeighbours:
    """A model of the formulas above, for sessions of R recent clicks at most.

    index       of the training sessions; no item has more than ``newest``
    factor      f, f64[s]
    weight      w, int64[R + 1, R] by l, the session's clicks, R at most, and p
    vote        v, f64[R + 1, R] by l and p
    near        d, f64[LONGEST]
    gain        g, f64[I]
    unit        c, f64[R + 1] by l
    neighbours  sessions that vote
    newest      most recent sessions among which these are the most similar; of equally similar ones the newer
    """

    index: SessionIndex
    factor: Doubles
    weight: Ints
    vote: Doubles
    near: Doubles
    gain: Doubles
    unit: Doubles
    neighbours: int
    newest: int

    @property
    def items(self) -> int:
        return len(self.gain)

    @property
    def recent_size(self) -> int:
        return len(self.weight) - 1

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        of_index = {name: getattr(self.index, name) for name in self.index.__dataclass_fields__}
        own = {name: getattr(self, name) for name in ("factor", "weight", "vote", "near", "gain", "unit")}
        return {f"sessions.{name}": array for name, array in of_index.items()} | own

    def scores(self, recent: Ints, counts: Floats, clicks: Floats) -> Floats:
        return self.scores_after(recent[:, : self.recent_size])

    def scores_after(self, history: Ints) -> Floats:
        """The same by clicks, newest first, int64[B, R] padded with -1: repeats count in p and l."""
        scores = np.zeros((len(history), self.items), np.float32)
        for row, clicks in enumerate(history):
            scores[row] = self._votes(clicks[clicks >= 0])
        return scores

    def _votes(self, history: Ints) -> Doubles:
        """Clicks, newest first, int64[l] -> f64[I]."""
        clicks = len(history)
        _, first = np.unique(history, return_index=True)
        back = np.sort(first)  # distinct items by their last click, newest first
        found = self._candidates(history[back], back, self.weight[clicks])
        similar = found.overlap * self.factor[found.session]
        if len(similar) > self.neighbours:
            kept = np.sort(np.lexsort((found.session, similar))[-self.neighbours :])
            found, similar = found[kept], similar[kept]
        of, entry = _ranges(self.index.offsets[found.session], self.index.offsets[found.session + 1])
        near = self.near[np.abs(self.index.places[entry] - found.anchor[of])]
        votes = (similar * self.vote[clicks, found.recent])[of] * near
        summed = np.bincount(self.index.items[entry], weights=votes, minlength=self.items)
        scores: Doubles = summed * self.gain * self.unit[clicks]
        return scores

    def _candidates(self, recent: Ints, back: Ints, weight: Ints) -> Neighbours:
        """The ``newest`` most recent sessions that share an item: ``back`` are the p, ``weight`` the w of each p."""
        place, entry = _ranges(self.index.postings[recent], self.index.postings[recent + 1])
        # The first entry of a session is that of the most recent shared item.
        session, first, inverse = np.unique(self.index.sessions[entry], return_index=True, return_inverse=True)
        overlap = np.zeros(len(session), np.int64)
        np.add.at(overlap, inverse, weight[back[place]])
        found = Neighbours(session, overlap, back[place[first]], self.index.seen_at[entry[first]])
        return found[np.arange(max(0, len(session) - self.newest), len(session))]


@dataclass(frozen=True)
class _Weighting:
    """The weight of an item p clicks ago in a session of l: a whole number, by [l, p], and the unit it counts in."""

    weight: Callable[[Doubles, Doubles], Doubles]
    unit: Callable[[Doubles], Doubles]


WEIGHTINGS: Final[Mapping[Weighting, _Weighting]] = MappingProxyType(
    {
        "linear": _Weighting(lambda length, p: length - p, lambda length: 1.0 / length),
        "quadratic": _Weighting(lambda length, p: (length - p) ** 2, lambda length: 1.0 / length**2),
        "division": _Weighting(lambda length, p: _FINE / (p + 1.0), lambda length: np.full_like(length, 1.0 / _FINE)),
        "same": _Weighting(lambda length, p: np.ones_like(p), np.ones_like),
    }
)


def vs_knn(
    train: SessionSet,
    *,
    neighbours: int = 100,
    newest: int = 1000,
    idf: bool = True,
    weighting: Weighting = "linear",
    window: int = WINDOW,
) -> SessionNeighbours:
    """VS-KNN (Ludewig and Jannach 2018, sections 3.3.3 and 3.3.4).

    An item's weight in the evolving session falls with its place from the end, ``linear`` as 1, (l-1)/l, .. 1/l
    (``quadratic``: their squares, ``division``: 1, 1/2, 1/3 .., ``same``: not at all); the dot product with a
    neighbour's set is their similarity. A neighbour votes for its items with the similarity times the weight of the
    most recent item shared. With ``idf`` votes for an item in h of s sessions count ln(s / h) times (Kersbergen et al.
    2022, section 2), which also parts the many equal sums.
    """
    index = SessionIndex.of(train)
    within = np.maximum(np.diff(index.postings), 1)
    index = index.newest(newest)
    weight, unit = _weights(WEIGHTINGS[weighting], window)
    return SessionNeighbours(
        index=index,
        factor=np.ones(len(index.lengths)),
        weight=weight,
        vote=weight * unit[:, None],
        near=np.ones(LONGEST),
        gain=np.log(len(train) / within) if idf else np.ones(len(within)),
        unit=unit,
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
    window: int = WINDOW,
) -> SessionNeighbours:
    """STAN (Garg et al. 2019): three exponential decays.

    An item weighs exp(-p / ``recency``) in the evolving session. A neighbour of age a weighs exp(-a / ``days``), and
    its similarity is the overlap over the root of both lengths. It votes for an item by exp(-distance / ``reach``) from
    the most recent shared item. The age of the evolving session itself is the same factor for all neighbours and left
    out. Sessions without times have no ages.
    """
    index = SessionIndex.of(train).newest(newest)
    decay = _Weighting(lambda length, p: _FINE * np.exp(-p / recency), lambda length: 1.0 / (_FINE * np.sqrt(length)))
    weight, unit = _weights(decay, window)
    return SessionNeighbours(
        index=index,
        factor=np.exp(-index.age_days / days) / np.sqrt(index.lengths),
        weight=weight,
        vote=np.ones((window + 1, window)),
        near=np.exp(-np.arange(LONGEST) / reach),
        gain=np.ones(len(train.item_ids)),
        unit=unit,
        neighbours=neighbours,
        newest=newest,
    )


def _weights(weighting: _Weighting, window: int) -> tuple[Ints, Doubles]:
    """The whole numbers int64[R + 1, R] by l and p, 0 for p >= l, and their units f64[R + 1]."""
    length, p = np.arange(window + 1.0)[:, None], np.arange(float(window))
    weight = np.where(p < length, np.rint(weighting.weight(length, p)), 0.0).astype(np.int64)
    return weight, weighting.unit(np.maximum(length[:, 0], 1.0))


def _ranges(starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """The numbers from each start to its stop, one range after another, and which range each is of."""
    lengths = stops - starts
    which = np.repeat(np.arange(len(starts), dtype=np.int64), lengths)
    shift = starts - (np.cumsum(lengths) - lengths)
    return which, np.arange(len(which), dtype=np.int64) + shift[which]
