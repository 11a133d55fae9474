"""An item that goes out of stock in the demo, told to topics that a test makes."""

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec

from deploy.demo.stock import SoldOut, Stock
from schemas.messages.examples import RANKING
from schemas.messages.item import Item, decode_item
from schemas.messages.ranking import Applied, RankedItem, Ranking


class Producer:
    """Delivers at once."""

    def __init__(self) -> None:
        self.records: list[tuple[str, bool]] = []
        self.titled: list[bool] = []

    def produce(self, _: str, value: bytes, key: bytes, *, on_delivery: Callable[[None, Any], None]) -> None:
        item = decode_item(key, value)
        self.records.append((item.item_id, item.available))
        self.titled.append("title" in item.attributes)
        on_delivery(None, SimpleNamespace(offset=lambda: len(self.records) - 1))


def ranking(*items: str, applied: int | None = None) -> Ranking:
    known = None if applied is None else Applied(applied, -1)
    return msgspec.structs.replace(RANKING, items=tuple(RankedItem(item, 1.0) for item in items), applied=known)


def test_the_most_shown_item_is_sold_out_for_a_while_and_the_records_tell_which_rankings_know() -> None:
    producer, told = Producer(), list[str]()
    stock: Any = Stock(producer, "items", told.append, [Item(item_id="b", attributes={"title": "B"})])
    reader: Any = SimpleNamespace(recent=deque([ranking("a", "b")] * 199), first_applied=lambda _: None)
    for item_id in ("a", "b", "c", "a"):
        stock.offer(item_id)
    stock.update(0.3, reader, 1000)
    assert told == []  # too little is known
    reader.recent.append(ranking("b", "c"))
    stock.update(0.2, reader, 1000)
    assert told == []  # too early
    stock.update(0.3, reader, 1000)
    stock.update(0.85, reader, 2000)  # not back before it was seen to be gone
    reader.first_applied = {3: 1040}.get
    for share in (0.6, 0.7, 0.8, 0.9):
        stock.update(share, reader, 3000)
    assert producer.records == [("b", True), ("a", True), ("c", True), ("b", False), ("b", True)]
    assert producer.titled == [True, False, False, True, True]
    assert told == [
        "out of stock: b, which 200 of the last 200 rankings held",
        "out of stock: b is in no ranking any more, 40 ms after the shop said so",
        "back in stock: b",
    ]
    gone: SoldOut = stock.sold_out
    assert [gone.counts_for(ranking("a", applied=known)) for known in (None, 2, 3, 4)] == [
        False, False, True, False,
    ]  # fmt: skip
    assert gone.holds(ranking("a", "b"))
    assert not gone.holds(ranking("a"))
