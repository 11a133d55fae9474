"""Score: what the rankings of a model came to within a window, on the compacted `scores` topic.

A ranking is scored by the next click of its session: was that item among the first k, and at which place? One record
holds what one partition of the rankings topic contributed; a record replaces the one before it under its key, and a
reader adds up those of all partitions.
"""

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from schemas.errors import MessageError
from schemas.messages.click import LATEST_MS, Moment
from schemas.messages.source import Count, Offset, Partition
from schemas.messages.split import is_shadow

MOST_TYPES: Final = 50
"""Of a score: further ones count as `OTHERS`."""
MOST_MARKETS: Final = 100
"""Of a window in a partition: further ones count as `OTHERS`."""
OTHERS: Final = "others"
_MOST_AHEAD_MS: Final = 3_600_000
"""How far a window may begin after a reader's now: clocks differ, and clicks may run ahead (`clicks.max_future`)."""


class Tally(msgspec.Struct, gc=False):
    """Predictions: rankings whose session clicked again."""

    predictions: Count = 0
    hits: Annotated[Count, msgspec.Meta(description="Predictions with the next click among their first k items.")] = 0
    reciprocal_ranks: Annotated[float, msgspec.Meta(description="Sum of 1 / rank over the hits.")] = 0.0

    @property
    def recall(self) -> float:
        """Recall@k; 0 without predictions."""
        return self.hits / self.predictions if self.predictions else 0.0

    @property
    def mrr(self) -> float:
        """MRR@k; 0 without predictions."""
        return self.reciprocal_ranks / self.predictions if self.predictions else 0.0

    def add(self, other: "Tally") -> None:
        """Add another's counts to these."""
        self.predictions += other.predictions
        self.hits += other.hits
        self.reciprocal_ranks += other.reciprocal_ranks


class Moments(msgspec.Struct, gc=False):
    """Second moments of sessions: what the variance of Recall and MRR follows from, sessions being independent.

    With n predictions, h hits and a sum r of reciprocal ranks in a session, the sums over sessions of n*n, n*h, and so
    on. Where a session goes on in another window, that window holds what its products grew by, so that sums over
    windows are those of whole sessions.
    """

    nn: Count = 0
    nh: Count = 0
    hh: Count = 0
    nr: float = 0.0
    rr: float = 0.0

    def add(self, other: "Moments") -> None:
        """Add another's sums to these."""
        self.nn += other.nn
        self.nh += other.nh
        self.hh += other.hh
        self.nr += other.nr
        self.rr += other.rr


class Score(msgspec.Struct):
    """Counts of one model, variant, market and window of click times, in one partition of the rankings topic."""

    model_version: str
    variant: str | None
    market: str | None
    window_start: Moment
    window_ms: Annotated[int, msgspec.Meta(ge=1, le=LATEST_MS, description="Length of the window.")]
    partition: Annotated[Partition, msgspec.Meta(description="Of the rankings topic.")]
    k: Annotated[Count, msgspec.Meta(description="Of Recall@k and MRR@k.")]
    rankings: Annotated[dict[str, Count], msgspec.Meta(description="Rankings made, by reason.")] = {}
    types: Annotated[
        dict[str, Tally],
        msgspec.Meta(description="Predictions by the type of the click after; from the 51st type on under `others`."),
    ] = {}
    reasons: Annotated[dict[str, Tally], msgspec.Meta(description="The same predictions by the ranking's reason.")] = {}
    sessions: Annotated[Count, msgspec.Meta(description="Sessions whose first prediction by this model is here.")] = 0
    moments: Annotated[Moments, msgspec.Meta(description="Sums over sessions.")] = msgspec.field(
        default_factory=Moments
    )
    next_offset: Annotated[
        Offset, msgspec.Meta(description="Rankings of the partition from this offset on are not counted here yet.")
    ] = 0

    def has_begun(self, now_ms: int) -> bool:
        """Whether its window is not of the future, beside which all that are real would be old."""
        return self.window_start <= now_ms + _MOST_AHEAD_MS

    @property
    def total(self) -> Tally:
        """All predictions."""
        total = Tally()
        for tally in self.types.values():
            total.add(tally)
        return total


_decoder: Final = msgspec.json.Decoder(Score)
_encoder: Final = msgspec.json.Encoder()


def score_key(score: Score) -> bytes:
    """The Kafka key: a JSON array of model version, variant, market, window start and partition."""
    return _encoder.encode((score.model_version, score.variant, score.market, score.window_start, score.partition))


def encode_score(score: Score) -> bytes:
    """The JSON value of a score."""
    return _encoder.encode(score)


def decode_score(value: bytes | None) -> Score:
    """Inverse of `encode_score`. Raises MessageError."""
    try:
        return _decoder.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a score: {error}") from error


def comparable(scores: Iterable[Score]) -> list[Score]:
    """Those of one k, that of the newest window: Recall@10 of the same rankings is lower than Recall@20.

    `scores.k` may have changed while older scores are on the topic still. What was served decides before what shadows
    ranked, since their scorer has settings of its own.
    """
    found = list(scores)
    k = max(found, key=lambda score: (not is_shadow(score.variant), score.window_start)).k if found else None
    return [score for score in found if score.k == k]


class Totals(Tally, gc=False):
    """Sums over partitions and windows."""

    rankings: int = 0
    sessions: int = 0
    moments: Moments = msgspec.field(default_factory=Moments)
    first_ms: int = 0
    """Where the first window starts."""
    last_ms: int = 0
    """Where the last window ends."""

    def count(self, score: Score) -> None:
        """Add a score."""
        self.add(score.total)
        self.rankings += sum(score.rankings.values())
        self.sessions += score.sessions
        self.moments.add(score.moments)
        self.first_ms = min(self.first_ms or score.window_start, score.window_start)
        self.last_ms = max(self.last_ms, score.window_start + score.window_ms)


def totals_by_model(scores: Iterable[Score]) -> dict[str, Totals]:
    """Sums by model version, in the order of the models' first windows, then of their names."""
    totals: dict[str, Totals] = {}
    for score in scores:
        totals.setdefault(score.model_version, Totals()).count(score)
    return dict(sorted(totals.items(), key=lambda item: (item[1].first_ms, item[0])))
