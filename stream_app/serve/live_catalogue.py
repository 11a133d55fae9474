"""Items and rules as their topics have them now, and the thread that follows these topics.

Every worker needs all of them, so the follower is a plain consumer that reads both topics from their beginning without
a group, as the watcher of models does.
"""

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.bundle.runtime import Model
from schemas.messages.item import Item, decode_item
from schemas.messages.ranking import Applied
from schemas.messages.refused import RecordRefusedError, RefuseReason
from schemas.messages.rule import Rule, decode_rule
from stream_app.core.catalogue import Catalogue
from stream_app.core.diversity import DiversityRules
from stream_app.core.offer import Offer, Offers
from stream_app.errors import StreamError
from stream_app.serve.metrics import Metrics

log = structlog.get_logger(__name__)

_TOGETHER: Final = 1000  # records; who ranks may have to wait until so many are taken in
_WAIT_SECONDS: Final = 0.1  # for so many
_METADATA_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 1.0
_MOST_TOLD: Final = 100  # refused records, one line each


class CatalogueTopicError(StreamError):
    """A topic of items or rules is not as a worker needs it."""


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
        self._offers: Offers | None = None
        self._prepared: Offers | None = None

    def prepare(self, model: Model, now_ms: int) -> None:
        """Look the model's items up before it serves; that takes a tenth of a second for 300,000."""
        with self._lock:
            self._prepared = Offers(model, self._catalogue, now_ms, self._diversity)

    def offered(self, model: Model, markets: Collection[str | None], now_ms: int) -> Offered:
        """What may be shown now. For whoever computes, between two batches."""
        with self._lock:
            offers = self._of(model, now_ms)
            if (catalogue := self._catalogue) is None:
                return Offered({market: offers.of(market) for market in markets}, None)
            if offers.needs(now_ms):
                offers.refresh(now_ms)
            return Offered({market: offers.of(market) for market in markets}, Applied(*catalogue.applied))

    def _of(self, model: Model, now_ms: int) -> Offers:
        if self._offers is None or self._offers.version != model.version:
            prepared, self._prepared = self._prepared, None
            fits = prepared is not None and prepared.version == model.version
            self._offers = prepared if fits else Offers(model, self._catalogue, now_ms, self._diversity)
        assert self._offers is not None
        return self._offers

    def apply(self, changes: Callable[[Catalogue], None]) -> None:
        """Change the catalogue while nobody looks at it."""
        assert self._catalogue is not None
        with self._lock:
            changes(self._catalogue)


class CatalogueFollower:
    """Reads the topics of items and rules, from their beginning and then as they grow, on a thread of its own.

    A record that is no item or no rule is refused, counted and told; what its key had before stays.
    """

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
        self._config = {
            **consumer_config,
            "group.id": "nextclick-catalogue",  # librdkafka asks for one; nothing is committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "queued.max.messages.kbytes": 16_384,  # of a million items that are read at the start
        }
        self._items_topic, self._rules_topic = items_topic, rules_topic
        self._live = live
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="catalogue-follower", daemon=True)
        self._refused = 0
        self._applied = dict.fromkeys(self._topics(), -1)
        self._read = False
        self._has_items = items_topic is None
        self.waiting_for: str | None = "the topics of items and rules have not been read yet"

    def start(self) -> None:
        """Start following."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def is_ready(self) -> bool:
        """Whether everything has been read that was there at the start."""
        return self.waiting_for is None

    def _topics(self) -> list[str]:
        return [topic for topic in (self._items_topic, self._rules_topic) if topic is not None]

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001 - the thread's edge: no change would be heard of from here on
            self._on_fatal(error)

    def _follow(self) -> None:
        consumer = Consumer(self._config, logger=logging.getLogger("librdkafka"))
        try:
            self._assign(consumer)
            unread = set(self._topics())
            while not self._stopping.is_set():
                records = []
                for message in consumer.consume(_TOGETHER, _WAIT_SECONDS):
                    if (error := message.error()) is None:
                        records.append(message)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        unread.discard(message.topic())
                    else:
                        log.warning("topics of items and rules", error=error.str())
                if records:
                    self._take_in(records)
                if not unread and not self.is_ready:
                    self._tell_whether_ready()
        finally:
            consumer.close()

    def _assign(self, consumer: Consumer) -> None:
        for topic in self._topics():
            while not self._stopping.is_set():
                try:
                    partitions = consumer.list_topics(topic, timeout=_METADATA_SECONDS).topics[topic].partitions
                except KafkaException as error:
                    self._wait(f"the brokers do not answer: {error.args[0].str()}")
                    continue
                if len(partitions) == 1:
                    break
                if partitions:
                    raise CatalogueTopicError(
                        f"topic {topic} has {len(partitions)} partitions and must have 1, so that its records have one "
                        "order: delete it, run `stream-app topics` and publish its records again"
                    )
                self._wait(f"the topic {topic} does not exist; create it with `stream-app topics`")
                self._stopping.wait(_RETRY_SECONDS)
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING) for topic in self._topics()])

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

    def _refuse(self, message: Message, error: RecordRefusedError) -> None:
        self._metrics.refused_records.labels(topic=message.topic(), reason=error.reason.value).inc()
        self._refused += 1
        if self._refused <= _MOST_TOLD:
            log.error(
                "a record was refused; what its key had before stays",
                topic=message.topic(),
                offset=message.offset(),
                key=(message.key() or b"").decode(errors="replace")[:256],
                error=str(error),
                more="further ones are only counted" if self._refused == _MOST_TOLD else None,
            )

    def _tell_whether_ready(self) -> None:
        if not self._has_items:
            # An empty catalogue would make every ranking empty.
            self._wait(f"the topic {self._items_topic} holds no item; publish them with `stream-app items`")
            return
        self.waiting_for = None
        log.info("items and rules read", **{topic: offset + 1 for topic, offset in self._applied.items()})

    def _wait(self, reason: str) -> None:
        if reason != self.waiting_for:
            self.waiting_for = reason
            log.warning("waiting for items and rules; no click is consumed until they are read", reason=reason)


def _id(key: bytes | None) -> str:
    """The id of a tombstone."""
    try:
        return (key or b"").decode()
    except UnicodeDecodeError as error:
        raise RecordRefusedError(RefuseReason.KEY_MISMATCH, "the key is not UTF-8") from error
