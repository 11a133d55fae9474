"""What a session's next click says about the ranking before it. Pure: no clock, no I/O; time comes from the clicks.

Scores and rows are a function of the beginning of a partition of the rankings topic, whatever it was read in pieces of.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from schemas.errors import MessageError
from schemas.messages.click import VIEW, Moment
from schemas.messages.score import MOST_MARKETS, MOST_TYPES, OTHERS, Score, Tally
from schemas.messages.source import Offset, OffsetOrNone, Partition
from schemas.messages.split import is_shadow
from stream_app.errors import RowError

UNIT_MS: Final = 3_600_000
"""A session counts as one unit of the variance within an hour of the clock, so that a row depends on the last hour and
the idle gap alone, and can be made anew from those rankings."""

WindowKey = tuple[str, str | None, str | None, int]
"""Model version, variant, market, start of the window."""


class _Item(msgspec.Struct, gc=False):
    item_id: str


class _Source(msgspec.Struct, gc=False):
    partition: Partition
    offset: Offset


class ScoredRanking(msgspec.Struct):
    """What scoring needs of a ranking; the other fields are passed over, which takes half the time."""

    session_id: str
    item_id: str
    model_version: str
    items: list[_Item]
    source: _Source
    click_timestamp: Moment
    reason: str
    type: str | None = None
    market: str | None = None
    variant: str | None = None
    follows: OffsetOrNone | None = None


class LastRanking(msgspec.Struct, array_like=True):
    """A session's last ranking, and what its predictions by that model came to so far.

    Attributes:
        partition, offset: where the click of the ranking lies; a ranking of no later one is a repetition.
        newest: newest click time of the session, ms since the epoch.
        items: the first k of the ranking.
        n, h, r: predictions, hits and reciprocal ranks of the unit that the session is in (`UNIT_MS`).
    """

    partition: int
    offset: int
    newest: int
    model_version: str
    variant: str | None
    market: str | None
    reason: str
    items: list[str]
    n: int
    h: int
    r: float


Row = dict[str, LastRanking]
"""A session's row, by whose they are: several shadows rank the same click. Those that visitors saw are under ``""``."""

_decode_ranking = msgspec.json.Decoder(ScoredRanking).decode
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(LastRanking | Row).decode


def decode_ranking(value: bytes) -> ScoredRanking:
    """What a record of the rankings topic holds. Raises MessageError."""
    try:
        return _decode_ranking(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise MessageError(f"not a ranking: {error}") from error


def whose(ranking: ScoredRanking) -> str:
    """Where its session's row has the ranking before it."""
    return ranking.variant if is_shadow(ranking.variant) else ""


def encode_row(row: Row) -> bytes:
    """As a store of bytes keeps it: without shadows the one ranking alone."""
    return _encode(row[""] if row.keys() == {""} else row)


def decode_row(row: bytes) -> Row:
    """Inverse of `encode_row`. Raises RowError."""
    try:
        found = _decode(row)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RowError(f"a row of last rankings is damaged: {error}") from error
    return found if isinstance(found, dict) else {"": found}


@dataclass(frozen=True, slots=True)
class ScoringRules:
    """What is counted. Times in milliseconds.

    Attributes:
        k: how many items of a ranking count.
        window_ms: length of a window.
        keep_ms: a click is late, and not counted, when its window began so long before the newest one.
        idle_gap_ms: a later click belongs to another session, and says nothing of the ranking before.
    """

    k: int = 20
    window_ms: int = 300_000
    keep_ms: int = 86_400_000
    idle_gap_ms: int = 1_800_000


class PartitionScores:
    """The scores of one partition of the rankings topic, from `known` ones on.

    Attributes:
        late, repeated: rankings that were not counted.
        changed: keys of scores that have changed since the last `published`.
    """

    def __init__(self, partition: int, rules: ScoringRules, known: Iterable[Score] = ()) -> None:
        self._partition = partition
        self._rules = rules
        self._scores = {_key(score): score for score in known}
        self._newest = max((key[3] for key in self._scores), default=0)
        self._markets: dict[int, set[str]] = {}  # by start of the window
        for _, _, market, start in self._scores:
            self._own_market(market, start)
        self.late = 0
        self.repeated = 0
        self.changed: set[WindowKey] = set()
        self._forget_old()

    @property
    def scores(self) -> Iterable[Score]:
        """Those that may still change."""
        return self._scores.values()

    def apply(self, row: LastRanking | None, ranking: ScoredRanking, offset: int, *, counts: bool) -> LastRanking:
        """Count a ranking that lies at `offset`; returns what its session's row has next, the same
        for a repetition.

        `counts` says whether its counts are wanted, or its row alone, the counts being there already.
        """
        rules, source, at = self._rules, ranking.source, ranking.click_timestamp
        newest, n, h, r = at, 0, 0, 0.0
        if row is not None and at - row.newest <= rules.idle_gap_ms:
            if source.partition == row.partition and source.offset <= row.offset:
                self.repeated += counts
                return row
            newest = max(at, row.newest)
            n, h, r = (row.n, row.h, row.r) if newest // UNIT_MS == row.newest // UNIT_MS else (0, 0, 0.0)
            # A shadow may have skipped clicks in between: of what it predicted nothing is known then.
            if ranking.follows is None or ranking.follows == row.offset:
                place = row.items.index(ranking.item_id) + 1 if ranking.item_id in row.items else 0
                if counts:
                    self._count(row, ranking, offset, place, (n, h, r))
                n, h, r = n + 1, h + (place > 0), r + (1 / place if place else 0.0)
            if (ranking.model_version, ranking.variant, ranking.market) != (row.model_version, row.variant, row.market):
                n, h, r = 0, 0, 0.0
        if counts and (score := self._score(ranking.model_version, ranking.variant, ranking.market, at, offset)):
            score.rankings[ranking.reason] = score.rankings.get(ranking.reason, 0) + 1
        return LastRanking(
            source.partition, source.offset, newest, ranking.model_version, ranking.variant, ranking.market,
            ranking.reason, [item.item_id for item in ranking.items[: rules.k]], n, h, r,
        )  # fmt: skip

    def go_back(self, end: int) -> None:
        """What lay from `end` on is gone, and what comes to these offsets is not counted yet."""
        for score in self._scores.values():
            score.next_offset = min(score.next_offset, end)

    def published(self, next_offset: int) -> list[Score]:
        """The scores that have changed, to be published with all rankings before `next_offset` counted in them."""
        changed = [self._scores[key] for key in self.changed]
        for score in changed:
            score.next_offset = next_offset
        return changed

    def settle(self) -> None:
        """What `published` returned is durable."""
        self.changed.clear()
        self._forget_old()

    def _count(
        self, row: LastRanking, click: ScoredRanking, offset: int, place: int, unit: tuple[int, int, float]
    ) -> None:
        """Count that the click after `row` was at a place (1..k, 0: none of these) in its ranking."""
        score = self._score(row.model_version, row.variant, row.market, click.click_timestamp, offset)
        if score is None:
            return
        gained = 1 / place if place else 0.0
        of_type = click.type or VIEW
        if of_type not in score.types and len(score.types) >= MOST_TYPES:
            of_type = OTHERS
        for tallies, name in ((score.types, of_type), (score.reasons, row.reason)):
            tally = tallies.get(name)
            if tally is None:
                tally = tallies[name] = Tally()
            tally.predictions += 1
            if place:
                tally.hits += 1
                tally.reciprocal_ranks += gained
        n, h, r = unit
        hit = 1 if place else 0
        moments = score.moments
        moments.nn += 2 * n + 1
        moments.nh += n * hit + h + hit
        moments.hh += (2 * h + 1) * hit
        moments.nr += n * gained + r + gained
        moments.rr += (2 * r + gained) * gained
        if not n:
            score.sessions += 1

    def _score(self, version: str, variant: str | None, market: str | None, at: int, offset: int) -> Score | None:
        """Where a ranking or a prediction of that time counts; None where it is late, or in there already."""
        rules = self._rules
        start = at - at % rules.window_ms
        market = self._own_market(market, start)
        key = version, variant, market, start
        score = self._scores.get(key)
        if score is None:
            if start < self._newest - rules.keep_ms:
                self.late += 1
                return None
            self._newest = max(self._newest, start)
            score = self._scores[key] = Score(
                version, variant, market, start, rules.window_ms, self._partition, rules.k
            )
        elif offset < score.next_offset:
            return None
        self.changed.add(key)
        return score

    def _own_market(self, market: str | None, start: int) -> str | None:
        """The market that counts for a click of this one: a producer may send any number of them."""
        if market is None:
            return None
        markets = self._markets.setdefault(start, set())
        if market not in markets:
            if len(markets) >= MOST_MARKETS:
                return OTHERS
            markets.add(market)
        return market

    def _forget_old(self) -> None:
        oldest = self._newest - self._rules.keep_ms
        for start in [start for start in self._markets if start < oldest]:
            del self._markets[start]
        for key in [key for key in self._scores if key[3] < oldest]:
            del self._scores[key]


def _key(score: Score) -> WindowKey:
    return score.model_version, score.variant, score.market, score.window_start
