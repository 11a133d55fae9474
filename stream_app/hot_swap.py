"""The model that serves, and the watcher that replaces it when another is announced.

Every worker must see every announcement, so the watcher is a plain consumer that reads the compacted models topic from
its beginning without a group; an agent would hand each announcement to one worker only.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from schemas.announcement import ModelAnnouncement, decode_announcement
from schemas.bundle import open_bundle
from schemas.errors import AnnouncementError, BundleError
from schemas.model import Model
from stream_app.metrics import Metrics

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.2
_METADATA_SECONDS = 10.0
_RETRY_SECONDS = 1.0  # after the first refusal; twice as long after each further one
_LONGEST_RETRY_SECONDS = 60.0


class LiveModel:
    """Holds the model that serves. Replaced by one assignment; a chunk reads it once and keeps what it read."""

    def __init__(self) -> None:
        self._model: Model | None = None

    @property
    def current(self) -> Model | None:
        """The serving model; None before the first one."""
        return self._model

    def replace(self, model: Model) -> None:
        """Serve `model` from the next chunk on."""
        self._model = model

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


class ModelWatcher:
    """Follows the announcements of one alias; loads, verifies and warms each announced bundle in its own thread."""

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
        warm_up_batches: tuple[int, ...],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._config = {
            **consumer_config,
            "group.id": "nextclick-models",  # librdkafka asks for one; nothing is committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
        self._topic = topic
        self._alias = alias
        self._live = live
        self._metrics = metrics
        self._cache_dir = cache_dir
        self._threads = threads
        self._published = published
        self._recent_items = recent_items
        self._warm_up_batches = warm_up_batches
        self._on_fatal = on_fatal
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-watcher", daemon=True)
        self.waiting_for = "the models topic has not been read yet"

    def start(self) -> None:
        """Start following."""
        self._thread.start()

    def stop(self) -> None:
        """Stop following; waits for a bundle that is being loaded."""
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
        try:
            unread = self._assign(consumer)
            pending: _Pending | None = None
            while not self._stopping.is_set():
                message = consumer.poll(_POLL_SECONDS)
                if message is not None and (error := message.error()) is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        unread.discard(message.partition())
                    else:
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
        if pending is None:
            if not self._live.is_loaded:
                self._wait(f"no {self._alias!r} is announced on the topic {self._topic}")
            return None
        if time.monotonic() < pending.due:
            return pending
        if self._take(pending.announcement, again=pending.tries > 0):
            return None
        pause = min(_RETRY_SECONDS * 2 ** min(pending.tries, 30), _LONGEST_RETRY_SECONDS)
        return _Pending(pending.announcement, pending.tries + 1, time.monotonic() + pause)

    def _assign(self, consumer: Consumer) -> set[int]:
        while not self._stopping.is_set():
            try:
                topic = consumer.list_topics(self._topic, timeout=_METADATA_SECONDS).topics[self._topic]
            except KafkaException as error:
                self._wait(f"the brokers do not answer: {error.args[0].str()}")
                continue
            if topic.error is None and topic.partitions:
                partitions = set(topic.partitions)
                consumer.assign([TopicPartition(self._topic, p, OFFSET_BEGINNING) for p in partitions])
                return partitions
            self._wait(f"the topic {self._topic} does not exist; create it with `stream-app topics`")
            self._stopping.wait(1.0)
        return set()

    def _wait(self, reason: str) -> None:
        if reason != self.waiting_for:
            self.waiting_for = reason
            if not self._live.is_loaded:
                log.warning("waiting for a model; no click is consumed until there is one", reason=reason)

    def _read(self, key: bytes | None, value: bytes | None) -> ModelAnnouncement | None:
        if value is None:
            return None  # a tombstone: the alias was withdrawn, which unloads nothing
        try:
            announcement = decode_announcement(value, key)
        except AnnouncementError as error:
            self._metrics.refused_bundles.inc()
            log.error("a model announcement was refused", error=str(error))
            return None
        return announcement if announcement.alias == self._alias else None

    def _take(self, announcement: ModelAnnouncement, *, again: bool) -> bool:
        """Serve what was announced. False if it is refused: to be tried again, its store may be away for a while."""
        serving = self._live.current
        if serving is not None and serving.version == announcement.version:
            return True
        started = time.monotonic()
        try:
            model = self._load(announcement)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a bundle, the model before it serves on
            reason = f"{announcement.version} was refused: {error}"
            if not again:
                self._metrics.refused_bundles.inc()
            if not again or reason != self.waiting_for:
                log.error(
                    "an announced model was refused; it is tried again until another is announced",
                    version=announcement.version,
                    uri=announcement.uri,
                    error=str(error) or repr(error),
                    serving=serving.version if serving else None,
                )
            self.waiting_for = reason
            return False
        self._live.replace(model)
        self._metrics.swaps.inc()
        self._metrics.model_info.clear()
        self._metrics.model_info.labels(version=model.version).set(1)
        created = model.manifest.created_at / 1000
        self._metrics.model_age_seconds.set_function(lambda: time.time() - created)
        log.info(
            "model in service",
            version=model.version,
            before=serving.version if serving else None,
            items=len(model.vocabulary),
            seconds=round(time.monotonic() - started, 3),
        )
        return True

    def _load(self, announcement: ModelAnnouncement) -> Model:
        model = open_bundle(
            announcement.uri,
            manifest_sha256=announcement.manifest_sha256,
            cache_dir=self._cache_dir,
            threads=self._threads,
        )
        if model.version != announcement.version:
            raise BundleError(f"manifest.json: holds version {model.version}, announced was {announcement.version}")
        if model.k < min(self._published, len(model.vocabulary)):
            raise BundleError(
                f"manifest.json: it ranks {model.k} items, worker.published asks for {self._published}: lower that, or "
                f"train with list_length={self._published} or more ([trainer.training], or `trainer fit --set`)"
            )
        if model.recent_size > self._recent_items:
            raise BundleError(
                f"manifest.json: it looks at the last {model.recent_size} clicks of a session, and rows keep "
                f"{self._recent_items}: set worker.recent_items to {model.recent_size} or more"
            )
        # To rank 20 items where a bundle has 30 saves a fifth of a ranking's time at 5,000 items.
        model = model.ranking(self._published)
        model.warm_up(self._warm_up_batches)
        return model
