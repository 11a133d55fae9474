"""Items and rules as their topics have them now, and the thread that follows these topics."""

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from confluent_kafka import Message

from schemas.bundle.runtime import Model
from schemas.messages.item import Item, decode_item
from schemas.messages.ranking import Applied
from schemas.messages.refused import RecordRefusedError, RefuseReason
from schemas.messages.rule import Rule, decode_rule
from stream_app.core.catalogue import Catalogue
from stream_app.core.diversity import DiversityRules
from stream_app.core.offer import Offer, Offers
from stream_app.serve.following import TopicFollower
from stream_app.serve.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Offered:
    """What may be shown to the clicks of a batch.

    Attributes:
        by_market: an offer for every market that was asked for.
        applied: the state of the topics that it keeps to; None without any.
    """

    by_market: Mapping[str | None, Offer]
    applied: Applied | None


class LiveCatalogue:
    """The newest state of items and rules; the follower changes it while others ask, in turns."""

    def __init__(self, catalogue: Catalogue | None, diversity: DiversityRules | None = None) -> None:
        self._catalogue = catalogue
        self._diversity = diversity
        self._lock = threading.Lock()
        # As long as somebody keeps the model: in an experiment several serve.
        self._offers: WeakKeyDictionary[Model, Offers] = WeakKeyDictionary()

    def prepare(self, model: Model, now_ms: int) -> None:
        """Look the model's items up before it serves; that takes a tenth of a second for 300,000."""
        with self._lock:
            self._offers[model] = Offers(model, self._catalogue, now_ms, self._diversity)

    def offered(self, model: Model, markets: Collection[str | None], now_ms: int) -> Offered:
        """What may be shown now. For whoever computes, between two batches."""
        with self._lock:
            offers = self._offers.get(model)
            if offers is None:
                offers = self._offers[model] = Offers(model, self._catalogue, now_ms, self._diversity)
            if (catalogue := self._catalogue) is None:
                return Offered({market: offers.of(market) for market in markets}, None)
            if offers.needs(now_ms):
                offers.refresh(now_ms)
            return Offered({market: offers.of(market) for market in markets}, Applied(*catalogue.applied))

    def apply(self, changes: Callable[[Catalogue], None]) -> None:
        """Change the catalogue while nobody looks at it."""
        assert self._catalogue is not None
        with self._lock:
            changes(self._catalogue)


class CatalogueFollower(TopicFollower):
    """Follows the topics of items and rules."""

    def __init__(
        self,
        *,
        consumer_config: Mapping[str, Any],
        items_topic: str | None,
        rules_topic: str | None,
        live: LiveCatalogue,
        metrics: Metrics,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        super().__init__(
            consumer_config=consumer_config,
            what="items and rules",
            topics=[topic for topic in (items_topic, rules_topic) if topic is not None],
            metrics=metrics,
            on_fatal=on_fatal,
        )
        self._items_topic, self._rules_topic = items_topic, rules_topic
        self._live = live
        self._has_items = items_topic is None

    def _take_in(self, records: list[Message]) -> None:
        items: list[tuple[str, Item | None]] = []
        rules: list[tuple[Message, str, Rule | None]] = []
        for message in records:
            key, value, topic = message.key(), message.value(), message.topic()
            self._applied[topic] = message.offset()
            try:
                if topic == self._items_topic:
                    item = None if value is None else decode_item(key, value)
                    items.append((item.item_id if item else _id(key), item))
                else:
                    rule = None if value is None else decode_rule(key, value)
                    rules.append((message, rule.rule_id if rule else _id(key), rule))
            except RecordRefusedError as error:
                self._refuse(message, error)

        def apply(catalogue: Catalogue) -> None:
            catalogue.put_items(items)
            for message, rule_id, rule in rules:
                try:
                    catalogue.put_rule(rule_id, rule)
                except RecordRefusedError as error:
                    self._refuse(message, error)
            of = self._applied
            catalogue.applied = (of.get(self._items_topic or "", -1), of.get(self._rules_topic or "", -1))
            self._metrics.items.set(len(catalogue.place))
            self._metrics.rules.set(len(catalogue.rules))
            self._has_items = bool(catalogue.place) or self._items_topic is None

        self._live.apply(apply)

    def _missing(self) -> str | None:
        if self._has_items:
            return None
        # An empty catalogue would make every ranking empty.
        return f"the topic {self._items_topic} holds no item; publish them with `stream-app items`"


def _id(key: bytes | None) -> str:
    """The id of a tombstone."""
    try:
        return (key or b"").decode()
    except UnicodeDecodeError as error:
        raise RecordRefusedError(RefuseReason.KEY_MISMATCH, "the key is not UTF-8") from error
