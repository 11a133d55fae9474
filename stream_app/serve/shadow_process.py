"""The process of a worker's shadow models: batches of answered clicks in, rankings of each shadow out.

It keeps no state. A click is ranked from its session's row as it was before the click's batch: a recurrent model
replays the items that the row remembers, as after a swap. It ends when the worker closes the pipe.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Final, NoReturn

import msgspec
import structlog
from confluent_kafka import KafkaError, Producer
from faust.types import TP

from schemas.errors import SchemaError
from schemas.formats.codec import formats_of
from schemas.messages.ranking import Ranking, encode_ranking
from schemas.messages.split import SHADOW, Split
from stream_app.core.plan import plan
from stream_app.core.query import queries
from stream_app.core.recommend import rank
from stream_app.core.session import SessionRules, SessionState
from stream_app.serve.app import ranking_encoder, session_rules
from stream_app.serve.hot_swap import LiveModel, ModelWatcher
from stream_app.serve.live_catalogue import LiveCatalogue
from stream_app.serve.metrics import Metrics
from stream_app.serve.serving import Records, Serves
from stream_app.serve.settling import answers
from stream_app.serve.shadows import LENGTH_BYTES, Batch
from stream_app.serve.splits import Copies, SplitFollower, Watch
from stream_app.serve.worker import catalogue_of, shadow_copies, watch_of, watched_apart
from stream_app.settings import StreamSettings

log = structlog.get_logger(__name__)

_NONE_BEFORE: Final = -1
_FLUSH_SECONDS: Final = 2.0
_LOWEST: Final = 19


class ShadowModels:
    """The models that a split names as shadows."""

    def __init__(self, watch: Watch, copies: Copies | None = None) -> None:
        """`watch` makes a shadow's watcher; `copies` are where the watchers have them."""
        self._watch = watch
        self._copies = copies
        self._watched: dict[str, tuple[LiveModel, ModelWatcher]] = {}
        self.waiting_for: str | None = None  # nobody waits for shadows

    def put(self, split: Split | None) -> None:
        """Rank by the shadows of this split; on the follower's thread."""
        named = () if split is None else split.shadow
        ended = [watcher for alias, (_, watcher) in self._watched.items() if alias not in named]
        kept = {alias: of for alias, of in self._watched.items() if alias in named}
        for alias in named:
            if alias not in kept:
                live = LiveModel()
                kept[alias] = live, self._watch(alias, live)
                kept[alias][1].start()
        self._watched = kept
        for watcher in ended:
            watcher.stop()
        if self._copies is not None:
            self._copies.keep(named)

    def stop(self) -> None:
        """Stop the watchers."""
        for _, watcher in self._watched.values():
            watcher.stop()
        self._watched = {}

    def serving(self) -> list[Serves]:
        """Those that are loaded."""
        return [
            Serves(model, f"{SHADOW}{alias}")
            for alias, (live, _) in self._watched.items()
            if (model := live.current) is not None
        ]


class ShadowRanker:
    """Ranks batches and publishes the rankings."""

    def __init__(
        self,
        producer: Producer,
        topic: str,
        rules: SessionRules,
        catalogue: LiveCatalogue | None = None,
        encode: Callable[[Ranking], bytes] = encode_ranking,
    ) -> None:
        self._encode = encode
        self._producer = producer
        self._topic = topic
        self._rules = rules
        self._catalogue = catalogue

    def rank(self, batch: Batch, shadows: list[Serves]) -> None:
        """All of them; one that fails is told of, and does not keep others from ranking."""
        rows, clicks = batch.known()
        for serves in shadows:
            try:
                self._rank(batch, rows, clicks, serves)
            except Exception as error:  # noqa: BLE001 - the loop's edge: a model that cannot rank may be replaced
                log.error("a shadow cannot rank", variant=serves.variant, error=str(error) or repr(error))
        self._producer.poll(0)

    def _rank(self, batch: Batch, rows: Mapping[str, SessionState], clicks: Records, serves: Serves) -> None:
        plans = [plan(rows, clicks, serves.model, self._rules)]
        asked = queries(plans, serves.model)
        offers = None
        if self._catalogue is not None:
            markets = {sourced.click.market for sourced in plans[0].clicks}
            offers = self._catalogue.offered(serves.model, markets, batch.now_ms).by_market
        [done] = rank(plans, asked, serves.model, offers)
        before = {name: row.offset for name, row in rows.items()}
        follows = []
        for answer in done.ranked:
            follows.append(before.get(answer.click.session_id, _NONE_BEFORE))
            before[answer.click.session_id] = answer.offset
        tp = TP(batch.topic, batch.partition)
        for key, value in answers(done, tp, serves, batch.now_ms, follows=follows, encode=self._encode):
            self._produce(key, value)

    def _produce(self, key: bytes | None, value: bytes | None) -> None:
        while True:
            try:
                self._producer.produce(self._topic, value, key, on_delivery=_tell)
            except BufferError:
                self._producer.poll(1.0)  # the pipe fills, and the worker skips
            else:
                return


def _tell(error: KafkaError | None, _message: object) -> None:
    if error is not None:
        log.warning("a shadow's ranking is lost", error=error.str())


def batches(pipe: BinaryIO) -> Iterator[Batch]:
    """What the worker writes, to its end."""
    decoder = msgspec.msgpack.Decoder(Batch)
    while len(length := pipe.read(LENGTH_BYTES)) == LENGTH_BYTES:
        data = pipe.read(size := int.from_bytes(length, "big"))
        if len(data) < size:
            return
        yield decoder.decode(data)


def give_way() -> None:
    """Take only what nobody else on this machine wants, where the system has a class for that."""
    os.nice(_LOWEST)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def run(pipe: BinaryIO, ranker: ShadowRanker, models: ShadowModels, is_ready: Callable[[], bool]) -> None:
    """Rank until the worker closes the pipe; what comes before items and rules are read is passed over."""
    for batch in batches(pipe):
        if is_ready():
            ranker.rank(batch, models.serving())


def main(settings: StreamSettings) -> NoReturn:
    """Follow splits, models, items and rules, and rank what comes on standard input."""
    give_way()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal's Ctrl-C the worker is told too, and closes the pipe
    metrics = Metrics()  # shown to nobody
    client_id = f"{settings.app_id}-shadows-{os.getpid()}"
    consumer_config = settings.kafka.plain_consumer(settings.app_id, client_id, to_the_end=True)
    # What is lost is a statistic's: one broker's word is enough.
    producer = Producer(
        {
            **settings.kafka.librdkafka(),
            "client.id": client_id,
            "partitioner": "murmur2_random",
            "acks": 1,
            "linger.ms": 20,
            "queue.buffering.max.messages": 10_000,
            "queue.buffering.max.kbytes": 32_768,
        },
        logger=logging.getLogger("librdkafka"),
    )
    catalogue, items = catalogue_of(settings, consumer_config, metrics, _end)
    watch = watch_of(settings, consumer_config, metrics, _end, catalogue=catalogue)
    copies = shadow_copies(settings.worker.data_dir)
    models = ShadowModels(watched_apart(watch, copies), copies)
    SplitFollower(
        consumer_config=consumer_config,
        topic=settings.topics.splits,
        app_id=settings.worker.app_id,
        live=models,
        metrics=metrics,
        on_fatal=_end,
    ).start()
    if items is not None:
        items.start()
    topic = settings.topics.rankings_shadow
    formats = formats_of(settings.schema_registry, settings.topics, rankings=topic)
    try:
        formats.rankings.start()
    except SchemaError as error:
        _end(error)
    ranker = ShadowRanker(producer, topic, session_rules(settings), catalogue, ranking_encoder(formats))
    run(sys.stdin.buffer, ranker, models, lambda: items is None or items.is_ready)
    producer.flush(_FLUSH_SECONDS)
    os._exit(0)  # its threads wait for Kafka


def _end(error: BaseException) -> NoReturn:
    log.error("the shadows cannot go on", error=str(error), kind=type(error).__name__)
    os._exit(1)
