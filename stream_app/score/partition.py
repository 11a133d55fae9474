"""One partition of the rankings topic that this scorer has: its scores, its rows, and how far it is."""

from collections.abc import Sequence

from confluent_kafka import Message

from schemas.errors import MessageError
from schemas.formats.codec import Codec
from schemas.messages.score import Score
from stream_app.core.scoring import (
    PartitionScores,
    Row,
    ScoredRanking,
    decode_ranking,
    decode_row,
    encode_row,
    whose,
)
from stream_app.state.last_rankings import LastRankings


class Partition:
    """Counts rankings from `committed` on; those before it, from `position` on, lead to rows alone.

    Attributes:
        position: offset of the next ranking.
        committed: rankings before it are counted in scores that are published.
        unreadable: records that are no ranking.
        expired: offsets from `committed` to `position` that retention removed before they were counted.
    """

    def __init__(
        self,
        number: int,
        scores: PartitionScores,
        rows: LastRankings,
        *,
        position: int,
        committed: int,
        expired: int = 0,
        codec: Codec | None = None,
    ) -> None:
        self.number = number
        self.scores = scores
        self.position = position
        self.committed = committed
        self.unreadable = 0
        self.expired = expired
        self._rows = rows
        self._codec = codec or Codec()
        self._changed: dict[bytes, Row | None] = {}  # None: the session is forgotten

    @property
    def unsettled(self) -> int:
        """Rows that are in memory alone."""
        return len(self._changed)

    def take(self, records: Sequence[Message]) -> None:
        """Count records, which are in the order of their offsets. Raises StoreError and SchemaRegistryError."""
        to_json = self._codec.to_json
        self._codec.ready(record.value() for record in records)
        rankings: list[tuple[int, bytes, ScoredRanking | None]] = []
        for record in records:
            value, key = record.value(), record.key()
            if value is None and key is not None:
                rankings.append((record.offset(), key, None))  # the mark of a forgotten session
                continue
            try:
                ranking = decode_ranking(to_json(value or b""))
                rankings.append((record.offset(), ranking.session_id.encode(), ranking))
            except MessageError:
                self.unreadable += 1
        changed, apply, first = self._changed, self.scores.apply, self.committed
        unread = list({key for _, key, _ in rankings if key not in changed})
        found = zip(unread, self._rows.rows(unread), strict=True)
        rows = {key: decode_row(row) for key, row in found if row is not None}
        for offset, key, told in rankings:
            before = changed[key] if key in changed else rows.get(key)
            if told is None:
                changed[key] = None
                continue
            own = whose(told)
            last = None if before is None else before.get(own)
            after = apply(last, told, offset, counts=offset >= first)
            if after is not last:
                changed[key] = {own: after} if not before else {**before, own: after}
        self.position = max(self.position, records[-1].offset() + 1)

    @property
    def due(self) -> int:
        """The first ranking that is not counted yet."""
        return max(self.position, self.committed)

    def pass_over(self, first: int) -> None:
        """What lies before this offset is no longer there."""
        self.expired += max(0, first - self.due)
        self.position = max(self.position, first)

    def go_back(self, first: int, end: int) -> None:
        """Brokers lost what lay from `end` on. What comes there is new; what is before it leads to rows alone."""
        self.position, self.committed = first, end
        self.scores.go_back(end)

    def published(self) -> list[Score]:
        """The scores to publish with all rankings before `position` counted in them."""
        return self.scores.published(self.position)

    def settle(self) -> None:
        """What was published is durable: keep rows and position. Raises StoreError."""
        if self._changed or self.position != self._rows.positions.get(self.number):
            rows = {key: None if row is None else encode_row(row) for key, row in self._changed.items()}
            self._rows.write(rows, {self.number: self.position})
            self._changed.clear()
        if self.position > self.committed:  # else, after a loss, the scores are yet to be published
            self.committed = self.position
            self.scores.settle()

    def close(self) -> None:
        """Leave the partition; what was not settled is forgotten. Raises StoreError."""
        self._rows.close()
