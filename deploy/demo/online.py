"""What a shop would measure live: was the next click among the ranking published before it? Pure."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from schemas.messages.ranking import Ranking

K: Final = 20
_REMEMBERED_SESSIONS: Final = 200_000


@dataclass
class ModelScore:
    """How the rankings of one model did.

    Attributes:
        rankings: published by it.
        predictions: those whose session clicked again.
        hits: predictions with the next click among their first 20 items.
        reciprocal_ranks: sum of 1 / rank of the next click over the hits.
    """

    rankings: int = 0
    predictions: int = 0
    hits: int = 0
    reciprocal_ranks: float = 0.0

    @property
    def recall(self) -> float:
        """Recall@20."""
        return self.hits / self.predictions if self.predictions else 0.0

    @property
    def mrr(self) -> float:
        """MRR@20."""
        return self.reciprocal_ranks / self.predictions if self.predictions else 0.0


@dataclass
class OnlineScores:
    """Follows the rankings topic, each session in order, and scores the models that served.

    Attributes:
        models: by version, in the order in which they first served.
        duplicates: rankings that were published before; not counted again.
    """

    models: dict[str, ModelScore] = field(default_factory=dict)
    duplicates: int = 0
    _last: "OrderedDict[str, Ranking]" = field(default_factory=OrderedDict)

    def add(self, ranking: Ranking) -> bool:
        """Count one ranking; False for a duplicate."""
        before = self._last.get(ranking.session_id)
        if before is not None and ranking.source.offset <= before.source.offset:
            self.duplicates += 1
            return False
        score = self.models.setdefault(ranking.model_version, ModelScore())
        score.rankings += 1
        if before is not None:
            self._score(before, ranking.item_id)
        self._last[ranking.session_id] = ranking
        self._last.move_to_end(ranking.session_id)
        if len(self._last) > _REMEMBERED_SESSIONS:
            self._last.popitem(last=False)
        return True

    def latest(self, sessions: int) -> list[Ranking]:
        """The newest ranking of the sessions that clicked last."""
        return [ranking for _, ranking in zip(range(sessions), reversed(self._last.values()), strict=False)]

    def _score(self, before: Ranking, clicked: str) -> None:
        score = self.models[before.model_version]
        score.predictions += 1
        for rank, item in enumerate(before.items[:K], start=1):
            if item.item_id == clicked:
                score.hits += 1
                score.reciprocal_ranks += 1 / rank
                return
