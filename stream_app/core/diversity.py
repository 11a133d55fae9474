"""Lists that are not all of one kind: at most so many items of a category, and MMR over the model's item rows.

Both choose items one after the other. Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) takes, of the
first N items of the ranking, the candidates, the one with the highest

    λ relevance - (1 - λ) (its greatest cosine with an item that was chosen before)

where relevance is its score, moved and scaled so that the scores of the candidates lie between 0 and 1. Boosts do not
count for that scale, or one large boost would make all other items alike; they are added on it. Of equals the item that
ranks higher is taken. An item in a category that has its share already is passed over, with MMR or without. Where that
leaves the list too short, the items behind the candidates follow in the order of the ranking.

Nothing of this is approximate. Shapes: N candidates of I items of the model, D numbers of an item's row.
"""

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from schemas.messages.ranking import Diversified

Floats = NDArray[np.float32]
Categories = Collection[str]

_LISTS: Final = 3
"""How deep a ranking is looked at first where only categories count, in lengths of the list."""


@dataclass(frozen=True, slots=True)
class DiversityRules:
    """What a list has to be like.

    Attributes:
        max_per_category: how many items of a category it may hold; None for any number.
        mmr_lambda: λ; 1 is the order of the ranking.
        mmr_candidates: N.
    """

    max_per_category: int | None = None
    mmr_lambda: float = 1.0
    mmr_candidates: int = 100

    @property
    def uses_rows(self) -> bool:
        """Whether a model has to have item rows."""
        return self.mmr_lambda < 1

    def depth(self, listed: int) -> int:
        """How much of a ranking to look at first for so long a list."""
        return max(self.mmr_candidates, listed) if self.uses_rows else _LISTS * listed


@dataclass(slots=True, eq=False)
class Diversity:
    """The rules for one model's lists, and what they need to know of its items.

    Attributes:
        rows: float32[I, D] of length 1, or of zeros; None without MMR.
        categories: int32[I], a number of `category_sets` for each item.
    """

    rules: DiversityRules
    rows: Floats | None = None
    categories: NDArray[np.int32] | None = None
    category_sets: Sequence[Hashable] = ()

    def chosen(
        self,
        index: Sequence[int],
        score: Sequence[float],
        boost: Floats | None,
        most: int,
        pinned: Sequence[Categories],
    ) -> tuple[list[int], tuple[Diversified, ...]]:
        """Which of the ranked items a list holds, and what makes it another than that of the best.

        Args:
            index: of the items, best first, those left out that rules have put into the list.
            score: theirs, boosts included.
            boost: float32[I] what was added; None for nothing.
            most: so many items at most.
            pinned: the categories of each item that rules have put there.

        Returns:
            Places in `index`, in the order of the list. Pinned items take the room of the last ones, so what happened
            there is not told.
        """
        every = self._of_categories(index)
        shown = most - len(pinned)
        walked = _Choice(self.rules.max_per_category, every, pinned)
        walked.walk(range(len(index)), most)
        found = walked
        if self.rows is not None and index:
            found = _Choice(self.rules.max_per_category, every, pinned)
            candidates = list(index[: self.rules.mmr_candidates])
            boosts = np.zeros(len(candidates), np.float32) if boost is None else boost[candidates]
            relevance = relevance_of(np.array(score[: len(candidates)], np.float32), boosts)
            found.diversify(relevance, self.rows[candidates], np.float32(self.rules.mmr_lambda), most)
            found.walk(range(len(candidates), len(index)), most)
        capped = walked.passed_over_at is not None and walked.passed_over_at < shown
        touched = {Diversified.CATEGORY_CAP: capped, Diversified.MMR: found.places[:shown] != walked.places[:shown]}
        return found.places, tuple(name for name, touches in touched.items() if touches)

    def _of_categories(self, index: Sequence[int]) -> Sequence[Categories]:
        if self.categories is None:
            return [()] * len(index)
        sets = cast(Sequence[Categories], self.category_sets)
        return [sets[number] for number in self.categories[list(index)].tolist()]


def relevance_of(score: Floats, boost: Floats) -> Floats:
    """float32[N] of candidates: their scores before they were boosted as 0 to 1, and the boosts on that scale."""
    plain = score - boost
    least = plain.min()
    spread = plain.max() - least
    return np.asarray((score - least) / (spread if spread > 0 else 1), dtype=np.float32)


class _Choice:
    """A list under way.

    Attributes:
        places: of its items.
        passed_over_at: how many items it held when a category of the next one was full for the first time, or None.
    """

    def __init__(self, most: int | None, categories: Sequence[Categories], pinned: Iterable[Categories]) -> None:
        self._most, self._categories = most, categories
        self._count: dict[str, int] = {}
        for one in pinned:
            self._add(one)
        self.places: list[int] = []
        self.passed_over_at: int | None = None

    def walk(self, places: Iterable[int], most: int) -> None:
        """Take the items at these places in turn."""
        for place in places:
            if len(self.places) == most:
                return
            self._take(place)

    def diversify(self, relevance: Floats, rows: Floats, of_relevance: np.float32, most: int) -> None:
        """Take the items of relevance float32[N] and rows float32[N, D] by their marginal relevance."""
        value = of_relevance * relevance
        unlike = (1 - of_relevance) * (rows @ rows.T)  # [N, N]
        nearest: Floats | None = None
        for _ in range(len(value)):
            if len(self.places) == most:
                return
            best = int(np.argmax(value if nearest is None else value - nearest))
            value[best] = -np.inf
            if self._take(best):
                nearest = unlike[best] if nearest is None else np.maximum(nearest, unlike[best])

    def _take(self, place: int) -> bool:
        if self._most is not None:
            categories = self._categories[place]
            if any(self._count.get(one, 0) >= self._most for one in categories):
                if self.passed_over_at is None:
                    self.passed_over_at = len(self.places)
                return False
            self._add(categories)
        self.places.append(place)
        return True

    def _add(self, categories: Categories) -> None:
        for one in categories:
            self._count[one] = self._count.get(one, 0) + 1
