"""The model that serves, and the watcher that replaces it when another is announced.

Every worker must see every announcement, so the watcher is a plain consumer that reads the compacted models topic from
its beginning without a group; an agent would hand each announcement to one worker only.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from schemas.bundle.files import open_files, read_bundle
from schemas.bundle.runtime import Model
from schemas.bundle.signature import TrustedKeys
from schemas.bundle.store import lies_within
from schemas.bundle.trial import try_bundle
from schemas.errors import AnnouncementError, BundleError
from schemas.kafka.absent import why_absent
from schemas.kafka.unread import Unread
from schemas.messages.announcement import ModelAnnouncement, decode_announcement
from stream_app.serve.live_catalogue import LiveCatalogue
from stream_app.serve.metrics import Metrics
from stream_app.serve.serving import Serves, Serving

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.2
_METADATA_SECONDS = 10.0
_RETRY_SECONDS = 1.0  # after the first refusal; twice as long after each further one
_LONGEST_RETRY_SECONDS = 60.0
# Threads whose store does not answer cannot be ended, only left: so many, and of one announcement two.
_MOST_LOADS = 8
_MOST_LOADS_EACH = 2


class LiveModel:
    """Holds the model that serves. Replaced by one assignment; a chunk reads it once and keeps what it read."""

    def __init__(self) -> None:
        self._model: Model | None = None
        self._changing = threading.Lock()

    @property
    def current(self) -> Model | None:
        """The serving model; None before the first one."""
        return self._model

    def serving(self) -> Serving:
        """Who ranks in a batch that is begun now."""
        assert self._model is not None, "the app does not start before there is a model"
        return Serving((Serves(self._model),))

    def replace(self, model: Model) -> None:
        """Serve `model` from the next chunk on."""
        with self._changing:
            self._model = model

    def withdraw(self, model: Model) -> bool:
        """Serve none from the next chunk on, if `model` still serves; whether it did."""
        with self._changing:
            served = self._model is model
            if served:
                self._model = None
        return served

    @property
    def is_loaded(self) -> bool:
        """Whether there is a model."""
        return self._model is not None


@dataclass(frozen=True, slots=True)
class _Pending:
    """An announcement that does not serve yet.

    Attributes:
        tries: how often it was refused.
        due: when to try it next, on the monotonic clock.
    """

    announcement: ModelAnnouncement
    tries: int = 0
    due: float = 0.0


class _Load:
    """A bundle on its way to be a model, on a thread of its own.

    Attributes:
        given_up: whether it took too long; the model is taken all the same if it comes while it is still wanted.
        ended: set once there is a model or an error.
    """

    def __init__(self, announcement: ModelAnnouncement, load: Callable[[ModelAnnouncement], Model]) -> None:
        self.announcement = announcement
        self.began = time.monotonic()
        self.given_up = False
        self.ended = threading.Event()
        self.model: Model | None = None
        self.error: Exception | None = None
        # A daemon: a store that never answers must not keep the process.
        threading.Thread(target=self._run, args=(load,), name=f"load {announcement.version}", daemon=True).start()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def _run(self, load: Callable[[ModelAnnouncement], Model]) -> None:
        try:
            self.model = load(self.announcement)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a bundle, the model before it serves on
            self.error = error
        finally:
            self.ended.set()


class ModelWatcher:
    """Follows the announcements of one alias; loads, verifies and warms each announced bundle beside that.

    The newest announcement is the one that counts, whatever those before it are still waiting for.

    Attributes:
        waiting_for: why there is no model yet.
        is_settled: whether what was announced at the start serves, or was refused once, or nothing was.
    """

    def __init__(
        self,
        *,
        consumer_config: Mapping[str, Any],
        topic: str,
        alias: str,
        live: LiveModel,
        metrics: Metrics,
        cache_dir: Path,
        threads: int,
        published: int,
        recent_items: int,
        bundle_timeout: float,
        bundle_locations: Sequence[str],
        trusted: TrustedKeys | None = None,
        bundle_memory_mb: int,
        warm_up_batches: tuple[int, ...],
        on_fatal: Callable[[BaseException], None],
        catalogue: LiveCatalogue | None = None,
        rows: bool = False,
        is_variant: bool = False,
        incarnation: Callable[[], int] = lambda: 0,
    ) -> None:
        """`incarnation` is another number once the topic has been created anew."""
        self._config = dict(consumer_config)
        self._topic = topic
        self._alias = alias
        self._live = live
        self._metrics = metrics
        self._cache_dir = cache_dir
        self._threads = threads
        self._published = published
        self._recent_items = recent_items
        self._bundle_timeout = bundle_timeout
        self._bundle_locations = bundle_locations
        self._trusted = trusted
        self._bundle_memory_mb = bundle_memory_mb
        self._loads: list[_Load] = []  # under way, those that were given up too
        self._warm_up_batches = warm_up_batches
        self._on_fatal = on_fatal
        self._catalogue = catalogue
        self._rows = rows  # whether models have to have item rows
        self._is_variant = is_variant
        self._incarnation = incarnation
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-watcher", daemon=True)
        self.waiting_for = "the models topic has not been read yet"
        self.is_settled = False

    def start(self) -> None:
        """Start following."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following; a bundle that is being loaded is not waited for."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001 - the thread's edge: without the watcher no model would ever be swapped again
            self._on_fatal(error)

    def _follow(self) -> None:
        consumer = Consumer(self._config, logger=logging.getLogger("librdkafka"))
        reads = -1
        unread: Unread | None = None
        pending: _Pending | None = None
        try:
            while not self._stopping.is_set():
                if (now := self._incarnation()) != reads:  # at the start, and of a new topic what lay below the offset
                    reads, unread = now, self._assign(consumer)
                    continue
                message = consumer.poll(_POLL_SECONDS)
                if message is not None and unread:
                    unread.take(message)
                if message is not None and (error := message.error()) is not None:
                    if error.code() != KafkaError._PARTITION_EOF:
                        log.warning("models topic", error=error.str())
                elif message is not None:
                    if (announcement := self._read(message.key(), message.value())) is not None:
                        pending = _Pending(announcement)
                    continue  # the newest announcement is the one that counts: read on before loading
                if not unread:
                    pending = self._attempt(pending)
        finally:
            consumer.close()

    def _attempt(self, pending: _Pending | None) -> _Pending | None:
        """Load what is announced, if it is due; returns what is still to be loaded."""
        # All at once: a model that nobody waits for any more must not stay in memory beside the one that serves.
        ended = [load for load in self._loads if load.ended.is_set()]
        self._loads = [load for load in self._loads if load not in ended]
        if pending is None:
            self.is_settled = True
            if not self._live.is_loaded:
                self._wait(f"no {self._alias!r} is announced on the topic {self._topic}")
            return None
        serving = self._live.current
        if serving is not None and serving.version == pending.announcement.version:
            return None
        if mine := [load for load in ended if load.announcement == pending.announcement]:
            return self._outcome(max(mine, key=lambda load: load.model is not None), pending)
        return self._wait_or_begin(pending)

    def _wait_or_begin(self, pending: _Pending) -> _Pending:
        announcement = pending.announcement
        mine = [load for load in self._loads if load.announcement == announcement]
        if mine and not mine[-1].given_up:
            if mine[-1].seconds < self._bundle_timeout:
                return pending
            mine[-1].given_up = True
            return self._refuse(pending, f"it was not loaded within {self._bundle_timeout:g} s; does its store answer?")
        if time.monotonic() < pending.due:
            return pending
        if len(mine) >= _MOST_LOADS_EACH or len(self._loads) >= _MOST_LOADS:
            return self._refuse(pending, "its store, or that of others, has not answered for too long")
        if not pending.tries:
            self.waiting_for = f"{announcement.version} is being loaded"
        self._loads.append(_Load(announcement, self._load))
        return pending

    def _assign(self, consumer: Consumer) -> Unread | None:
        """Begin to read; None where it was told to stop before it could."""
        while not self._stopping.is_set():
            try:
                topic = consumer.list_topics(self._topic, timeout=_METADATA_SECONDS).topics[self._topic]
                starts = [TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in topic.partitions]
                unread = Unread.of(consumer, starts, timeout=_METADATA_SECONDS)
            except KafkaException as error:
                self._wait(f"the brokers do not answer: {error.args[0].str()}")
                self._stopping.wait(1.0)
                continue
            if topic.error is None and starts:
                consumer.assign(starts)
                return unread
            self._wait(why_absent(self._topic, topic.error))
            self._stopping.wait(1.0)
        return None

    def _wait(self, reason: str) -> None:
        if reason != self.waiting_for:
            self.waiting_for = reason
            if not self._live.is_loaded and not self._is_variant:
                log.warning("waiting for a model; no click is consumed until there is one", reason=reason)

    def _read(self, key: bytes | None, value: bytes | None) -> ModelAnnouncement | None:
        if value is None:
            return None  # a tombstone: the alias was withdrawn, which unloads nothing
        try:
            announcement = decode_announcement(value, key)
        except AnnouncementError as error:
            if not self._is_variant:  # each watcher reads all of them
                self._metrics.refused_bundles.inc()
                log.error("a model announcement was refused", error=str(error))
            return None
        if announcement.alias != self._alias:
            return None
        if self._bundle_locations and not lies_within(announcement.uri, self._bundle_locations):
            self._metrics.refused_bundles.inc()
            log.error(
                "a model announcement was refused; its bundle lies in none of worker.bundle_locations",
                version=announcement.version,
                uri=announcement.uri,
            )
            return None
        return announcement

    def _outcome(self, load: _Load, pending: _Pending) -> _Pending | None:
        """Serve what was loaded, or refuse it."""
        if (model := load.model) is None:
            return self._refuse(pending, str(load.error) or repr(load.error))
        serving = self._live.current
        self._live.replace(model)
        self._metrics.swaps.inc()
        if not self._is_variant:
            self._metrics.model_info.clear()
            self._metrics.model_info.labels(version=model.version).set(1)
            created = model.manifest.created_at / 1000
            self._metrics.model_age_seconds.set_function(lambda: time.time() - created)
        log.info(
            "model in service",
            alias=self._alias,
            version=model.version,
            before=serving.version if serving else None,
            items=len(model.vocabulary),
            seconds=round(load.seconds, 3),
        )
        return None

    def _refuse(self, pending: _Pending, error: str) -> _Pending:
        """The model before it serves on. To be tried again: its store may be away for a while."""
        announcement, serving = pending.announcement, self._live.current
        reason = f"{announcement.version} was refused: {error}"
        if not pending.tries:
            self._metrics.refused_bundles.inc()
        if not pending.tries or reason != self.waiting_for:
            log.error(
                "an announced model was refused; it is tried again until another is announced",
                version=announcement.version,
                uri=announcement.uri,
                error=error,
                serving=serving.version if serving else None,
            )
        self.waiting_for = reason
        self.is_settled = True
        pause = min(_RETRY_SECONDS * 2 ** min(pending.tries, 30), _LONGEST_RETRY_SECONDS)
        return _Pending(announcement, pending.tries + 1, time.monotonic() + pause)

    def _load(self, announcement: ModelAnnouncement) -> Model:
        files = read_bundle(
            announcement.uri,
            manifest_sha256=announcement.manifest_sha256,
            trusted=self._trusted,
            cache_dir=self._cache_dir,
        )
        if self._bundle_memory_mb:
            try_bundle(
                announcement.uri,
                manifest_sha256=announcement.manifest_sha256,
                cache_dir=self._cache_dir,
                adjusts=self._catalogue is not None,
                rows=self._rows,
                batches=self._warm_up_batches,
                memory_mb=self._bundle_memory_mb,
                seconds=self._bundle_timeout,
            )
        model = open_files(files, threads=self._threads, adjusts=self._catalogue is not None, rows=self._rows)
        if model.version != announcement.version:
            raise BundleError(f"manifest.json: holds version {model.version}, announced was {announcement.version}")
        if model.k < min(self._published, len(model.vocabulary)):
            raise BundleError(
                f"manifest.json: it ranks {model.k} items, worker.published asks for {self._published}: lower that, or "
                f"train with list_length={self._published} or more ([trainer.training], or `trainer fit --set`)"
            )
        looks_at = max(model.recent_size, model.window)
        if looks_at > self._recent_items:
            raise BundleError(
                f"manifest.json: it looks at the last {looks_at} clicks of a session, and rows keep "
                f"{self._recent_items}: set worker.recent_items to {looks_at} or more"
            )
        # To rank 20 items where a bundle has 30 saves a fifth of a ranking's time at 5,000 items.
        model = model.ranking(self._published)
        model.warm_up(self._warm_up_batches)
        if self._catalogue is not None:
            self._catalogue.prepare(model, time.time_ns() // 1_000_000)
        return model
