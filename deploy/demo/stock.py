"""What the demo's shop has in stock: all that was ever clicked, but for one item that is sold out for a while."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from confluent_kafka import KafkaError, Message, Producer
from msgspec.structs import replace

from deploy.demo.reader import RankingsReader
from schemas.messages.item import Item, encode_item
from schemas.messages.ranking import Ranking

_BEGINS: Final = 0.25
_LASTS: Final = 0.5
"""In shares of the time that live clicks come at least."""
_LEAST_RANKINGS: Final = 200


@dataclass
class SoldOut:
    """An item that was sold out.

    Attributes:
        begin, end: offsets of the records that say so and that it is back, on the topic of items; None so far.
    """

    item_id: str
    begin: int | None = None
    end: int | None = None

    def counts_for(self, ranking: Ranking) -> bool:
        """Whether the worker had read that it is sold out, and not that it is back, when it ranked."""
        known = -1 if ranking.applied is None else ranking.applied.items
        return self.begin is not None and self.begin <= known and (self.end is None or known < self.end)

    def holds(self, ranking: Ranking) -> bool:
        """Whether the ranking holds the item."""
        return any(item.item_id == self.item_id for item in ranking.items)


class Stock:
    """Publishes every item before its first click, and lets the most shown one go out of stock and come back.

    Attributes:
        sold_out: that item, once there is one.
    """

    def __init__(self, producer: Producer, topic: str, event: Callable[[str], None], items: Iterable[Item]) -> None:
        """Publishes `items`, those of which more is known than the id."""
        self.sold_out: SoldOut | None = None
        self._producer, self._topic, self._event = producer, topic, event
        self._items = {item.item_id: item for item in items}
        self._told = self._back = False
        self._said_ms, self._began = 0, 0.0
        for item in self._items.values():
            self._publish(item)

    def offer(self, item_id: str) -> None:
        """The shop has this item."""
        if item_id not in self._items:
            self._items[item_id] = Item(item_id=item_id)
            self._publish(self._items[item_id])

    def update(self, share: float, reader: RankingsReader, now_ms: int) -> None:
        """Go on with the story, after this share of the live clicks."""
        gone = self.sold_out
        if gone is None:
            recent = list(reader.recent)
            if share >= _BEGINS and len(recent) >= _LEAST_RANKINGS:
                self._began = share
                self._begin(recent, now_ms)
        elif not self._told:
            if gone.begin is not None and (ranked_ms := reader.first_applied(gone.begin)) is not None:
                after = max(0, ranked_ms - self._said_ms)
                self._event(
                    f"out of stock: {gone.item_id} is in no ranking any more, {after} ms after the shop said so"
                )
                self._told = True
        elif not self._back and share >= self._began + _LASTS:
            self._publish(self._items[gone.item_id], lambda offset: setattr(gone, "end", offset))
            self._event(f"back in stock: {gone.item_id}")
            self._back = True

    def _begin(self, recent: Sequence[Ranking], now_ms: int) -> None:
        [(item_id, times)] = Counter(item.item_id for ranking in recent for item in ranking.items).most_common(1)
        gone = self.sold_out = SoldOut(item_id)
        self._said_ms = now_ms
        self._publish(replace(self._items[item_id], available=False), lambda offset: setattr(gone, "begin", offset))
        self._event(f"out of stock: {item_id}, which {times} of the last {len(recent)} rankings held")

    def _publish(self, item: Item, done: Callable[[int], None] = lambda _: None) -> None:
        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is None:
                done(message.offset())

        while True:
            try:
                self._producer.produce(self._topic, encode_item(item), item.item_id.encode(), on_delivery=delivered)
            except BufferError:
                self._producer.poll(0.1)
            else:
                return
