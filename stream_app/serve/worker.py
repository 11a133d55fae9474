"""A worker from start to exit: wait for a model, run the Faust app, drain on a signal, never end silently."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, cast

import structlog
import uvloop

from schemas.bundle.signature import trusted_keys
from schemas.config.settings import CONFIG_VARIABLE
from schemas.errors import SchemaError
from schemas.formats.codec import formats_of
from schemas.kafka.admin import check_topics
from schemas.kafka.topics import changelog_topic
from stream_app.core.catalogue import Catalogue
from stream_app.core.diversity import DiversityRules
from stream_app.errors import StalledError, StoreError, StreamError
from stream_app.kafka.lag import Lag
from stream_app.kafka.transport import ChunkConsumer
from stream_app.serve.app import RecommenderApp, create_app, tables_folder
from stream_app.serve.delivery import Delivery, producer_config
from stream_app.serve.following import TopicFollower
from stream_app.serve.hot_swap import LiveModel, ModelWatcher
from stream_app.serve.live_catalogue import CatalogueFollower, LiveCatalogue
from stream_app.serve.metrics import Metrics
from stream_app.serve.shadows import Shadows, shadow_command
from stream_app.serve.splits import Copies, LiveSplit, SplitFollower, Watch
from stream_app.serve.watchdog import Deadline, Probe, Watchdog
from stream_app.serve.web import Web
from stream_app.settings import StreamSettings
from stream_app.state.data_lock import DataLock
from stream_app.state.member import member_id
from stream_app.state.topic_identity import check_identity, topic_ids, watch_identity
from stream_app.telemetry import tracing_of

log = structlog.get_logger(__name__)

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
_STOP_SECONDS: Final = 30.0
_FAILED_STOP_SECONDS: Final = 2.0  # nothing of what it still holds can be saved
_FAILED_EXIT_SECONDS: Final = 5.0  # whatever hangs
_MODEL_POLL_SECONDS: Final = 0.1
_YOUNG_OBJECTS: Final = 50_000


class Worker:
    """One process of the recommender."""

    def __init__(self, settings: StreamSettings, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is what a process of its own must be told beside this one's, to read the same settings."""
        self._settings = settings
        self._environment = dict(environment or {})
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._deadline = Deadline()
        self._app: RecommenderApp | None = None
        self._lag: Lag | None = None
        worker = settings.worker
        self._formats = formats_of(settings.schema_registry, settings.topics, stopping=self._stop.is_set)
        self._tracing = tracing_of(settings.telemetry, "nextclick-worker")
        self._metrics = Metrics()
        self._live = LiveModel()
        client_id = f"{settings.app_id}-{os.getpid()}"
        self._delivery = Delivery(
            producer_config(
                settings.kafka.librdkafka(),
                client_id=client_id,
                linger_ms=worker.linger * 1000,
                timeout_ms=int(worker.delivery_timeout * 1000),
                compression=worker.compression,
            ),
            on_fatal=self.fail,
        )
        consumer_config = settings.kafka.plain_consumer(settings.app_id, client_id, to_the_end=True)
        self._catalogue, follower = catalogue_of(settings, consumer_config, self._metrics, self.fail)
        self._models_topics = 1  # of that name, one after the other, since the start
        watch = watch_of(
            settings,
            consumer_config,
            self._metrics,
            self.fail,
            catalogue=self._catalogue,
            incarnation=lambda: self._models_topics,
        )
        self._watcher = watch(alias=worker.model_alias, live=self._live, cache_dir=worker.data_dir / "bundles")
        self._followers: list[TopicFollower] = [] if follower is None else [follower]
        self._split: LiveSplit | None = None
        self._shadows: Shadows | None = None
        self._variant_copies = Copies(worker.data_dir / "variants")
        self._shadow_copies = shadow_copies(worker.data_dir)
        if worker.splits:
            self._follow_splits(watch, consumer_config)
        self._web = Web(
            worker.web_host,
            worker.web_port,
            registry=self._metrics.registry,
            readiness=self.readiness,
            refresh=self._refresh,
        )
        self._watchdog = Watchdog(
            [Probe("chunks", self._chunk_progress), Probe("rebalance and recovery", self._recovery_progress)],
            timeout=worker.stall_timeout,
        )

    def _follow_splits(self, watch: "partial[ModelWatcher]", consumer_config: Mapping[str, Any]) -> None:
        worker = self._settings.worker
        self._shadows = Shadows(
            shadow_command(worker.data_dir),
            os.environ | self._environment,
            self._metrics,
            tidy=lambda: self._shadow_copies.keep(()),
        )
        self._split = LiveSplit(
            worker.model_alias,
            self._live,
            watched_apart(watch, self._variant_copies),
            self._metrics,
            want_shadows=self._shadows.want,
            copies=self._variant_copies,
        )
        follower = SplitFollower(
            consumer_config=consumer_config,
            topic=self._settings.topics.splits,
            app_id=worker.app_id,
            live=self._split,
            metrics=self._metrics,
            on_fatal=self.fail,
        )
        self._followers.append(follower)

    def stop(self) -> None:
        """Drain and end; safe to call more than once."""
        if not self._stop.is_set():
            self._deadline.set(2 * _STOP_SECONDS + _FAILED_EXIT_SECONDS, EXIT_FAILED)
        self._stop.set()

    def fail(self, error: BaseException) -> None:
        """End because of `error`; from any thread, the first one is told."""
        self._loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
            told = None if isinstance(error, StreamError | SchemaError) else error  # ours say it all in their text
            log.error("the worker cannot go on", error=str(error), kind=type(error).__name__, exc_info=told)
            self._deadline.set(_FAILED_EXIT_SECONDS, EXIT_FAILED)
        self._stop.set()

    async def run(self) -> int:
        """Serve until told to stop; returns the exit code."""
        settings = self._settings
        specs = [spec for spec in settings.topic_specs() if spec.name != settings.topics.scores]  # the scorer's
        for difference in await asyncio.to_thread(check_topics, settings.kafka, specs):
            log.warning("topic differs", difference=str(difference))
        await asyncio.to_thread(self._check_store)
        await self._web.start()
        log.info("health and metrics", url=f"http://{settings.worker.web_host}:{self._web.port}")
        self._delivery.start()
        self._watcher.start()
        for follower in self._followers:
            follower.start()
        self._watchdog.start()
        try:
            await self._start_formats()
            while not (self._live.is_loaded and self._topics_are_read) and not self._stop.is_set():
                await asyncio.sleep(_MODEL_POLL_SECONDS)
            if not self._stop.is_set():
                await asyncio.to_thread(self._tidy)
                await self._serve()
        finally:
            self._watchdog.stop()
            await self._web.stop()
            if self._tracing is not None:
                stop = self._tracing.stop
                await asyncio.to_thread(stop if self._failure is None else partial(stop, _FAILED_STOP_SECONDS))
            self._deadline.cancel()
        return EXIT_OK if self._failure is None else EXIT_FAILED

    async def _start_formats(self) -> None:
        """Wait for the schema registry, where rankings need one."""
        try:
            await asyncio.to_thread(self._formats.rankings.start)
        except SchemaError as error:
            if not self._stop.is_set():
                self._fail(error)

    @property
    def _topics_are_read(self) -> bool:
        return all(follower.is_ready for follower in self._followers)

    def _tidy(self) -> None:
        """Remove copies of bundles of aliases that took part in an experiment when this worker was not there."""
        variants, shadows = ((), ()) if self._split is None else self._split.aliases
        self._variant_copies.keep(variants)
        self._shadow_copies.keep(shadows)

    def _check_store(self) -> None:
        settings, data_dir = self._settings, self._settings.worker.data_dir
        clicks, changelog = settings.topics.clicks, changelog_topic(settings.app_id)
        ids = topic_ids(settings.kafka, [clicks, changelog])
        try:
            self._data_lock = DataLock(data_dir)  # until the process ends
            check_identity(
                data_dir,
                clicks=(clicks, ids[clicks]),
                changelog=(changelog, ids[changelog]),
                tables=tables_folder(data_dir),
            )
            self._member = settings.worker.group_instance_id or member_id(data_dir)
            self._topic_ids = ids
        except OSError as error:
            raise StoreError(f"worker.data_dir {data_dir} cannot be written: {error}") from error

    async def _serve(self) -> None:
        app = self._app = create_app(
            self._settings,
            live=self._split or self._live,
            delivery=self._delivery,
            metrics=self._metrics,
            on_fatal=self.fail,
            member=self._member,
            catalogue=self._catalogue,
            shadows=self._shadows,
            formats=self._formats,
            tracing=self._tracing,
        )
        app.clicks_id = self._topic_ids[app.clicks_topic]
        if self._shadows is not None:
            self._shadows.start()
        crashed = asyncio.create_task(self._watch_for_crash(app), name="crash watch")
        read: dict[str, str | None] = {topic: None for follower in self._followers for topic in follower.topics}
        models = self._settings.topics.models
        watch = watch_identity(
            self._settings.kafka,
            read | self._topic_ids | {models: None},
            on_fatal=self.fail,
            begins_anew={models: self._read_models_anew},
        )
        same = asyncio.create_task(watch, name="topic watch")
        # Not awaited to its end: Faust's start only returns when all brokers are there.
        starting = asyncio.create_task(app.start(), name="faust start")
        starting.add_done_callback(self._on_started)
        self._lag = Lag(
            self._settings.kafka.librdkafka(),
            group=self._settings.app_id,
            consumer=cast(ChunkConsumer, app.consumer),
        )
        self._lag.start()
        await self._stop.wait()
        self._lag.stop()
        crashed.cancel()
        same.cancel()
        limit = _STOP_SECONDS if self._failure is None else _FAILED_STOP_SECONDS
        app.leaves_group = self._failure is None
        log.info("stopping", draining=app.pipeline.in_flight.chunks)
        try:
            async with asyncio.timeout(limit):
                await app.stop()
                await app.pipeline.stop()
        except TimeoutError:
            self._fail(
                StalledError(f"the worker did not stop within {limit:g} s; what was in flight will be redelivered")
            )
        except Exception as error:  # noqa: BLE001 - Faust's services fail in their own ways; the exit code must tell
            self._fail(error)
        # After a failure nothing is acknowledged any more, and what is still to be sent would be sent again.
        await asyncio.to_thread(self._delivery.stop, limit if self._failure is None else 0.0)
        await asyncio.to_thread(self._watcher.stop)
        for follower in self._followers:
            await asyncio.to_thread(follower.stop)
        if self._shadows is not None:
            await asyncio.to_thread(self._shadows.stop)

    def _read_models_anew(self) -> None:
        self._models_topics += 1

    def _on_started(self, starting: "asyncio.Task[None]") -> None:
        if starting.cancelled():
            return
        if (error := starting.exception()) is not None:
            self.fail(error)
            return
        # What has been made by now stays; the collector went through all of it a few times a second. Without that, and
        # with fewer rounds for what is young (`main`), 1.25 times as many clicks are answered at 5,000 items.
        gc.collect()
        gc.freeze()

    async def _watch_for_crash(self, app: RecommenderApp) -> None:
        while not app.crashed:
            await asyncio.sleep(_MODEL_POLL_SECONDS)
        self.fail(app.crash_reason or RuntimeError("a Faust service crashed without saying why"))

    # -- what others ask ----------------------------------------------------------------------------------------------

    def readiness(self) -> Mapping[str, str | None]:
        """What must be true before clicks are served, each with None or why it is not."""
        app = self._app
        return {
            "model": None if self._live.is_loaded else self._watcher.waiting_for,
            **{follower.what: follower.waiting_for for follower in self._followers},
            **({} if self._formats.registry is None else {"schema registry": self._formats.waiting_for}),
            "tables": None if app is not None and app.tables.actives_ready else "not recovered yet",
            "worker": None if self._failure is None else str(self._failure),
        }

    def _refresh(self) -> None:
        app, metrics = self._app, self._metrics
        if app is None:
            return
        metrics.lag.clear()  # of partitions that have moved away
        for partition, clicks in self._lag.behind().items() if self._lag is not None else ():
            metrics.lag.labels(partition=str(partition)).set(clicks)
        metrics.recovering.set(0 if app.tables.actives_ready else 1)
        metrics.recovery_remaining.set(max(0, app.tables.recovery.active_remaining_total()))
        metrics.restored_rows.set(app.sessions.restored)
        metrics.stored_rows.set(app.sessions.data.live_rows())

    def _chunk_progress(self) -> Hashable | None:
        app = self._app
        if app is None or self._waits_for_kafka() or self._formats.waiting_for is not None:
            return None
        serves = app.tables.actives_ready and not self._stop.is_set()
        # An agent that died leaves the clicks where they are, with nothing in flight; a fetcher asks for no more.
        if app.pipeline.in_flight.chunks or (serves and app.clicks_wait()):
            return app.pipeline.in_flight.finished
        consumer = cast(ChunkConsumer, app.consumer)
        return ("reads", consumer.reader.reads) if serves and consumer.assigned_clicks() else None

    def _waits_for_kafka(self) -> bool:
        """Whether brokers are to blame that nothing moves; not for longer than an outage is waited out."""
        if self._delivery.unconfirmed:
            return True
        app, worker = self._app, self._settings.worker
        assert app is not None, "only a worker that serves has something to wait for"
        consumer = cast(ChunkConsumer, app.consumer)
        if consumer.reader.looks_up:
            return True  # it gives up by itself
        silent = consumer.seconds_since_heartbeat()
        return worker.session_timeout < silent < worker.delivery_timeout

    def _recovery_progress(self) -> Hashable | None:
        app = self._app
        if app is None or app.tables.actives_ready or self._stop.is_set() or self._waits_for_kafka():
            return None
        return app.sessions.restored, app.rebalancing_count


def catalogue_of(
    settings: StreamSettings,
    consumer_config: Mapping[str, Any],
    metrics: Metrics,
    on_fatal: Callable[[BaseException], None],
) -> tuple[LiveCatalogue | None, CatalogueFollower | None]:
    """What may be shown, and who follows that: neither where everything may be."""
    worker, topics = settings.worker, settings.topics
    if not worker.adjusts:
        return None, None
    diversity = None
    if worker.diversifies:
        diversity = DiversityRules(worker.max_per_category or None, worker.mmr_lambda, worker.mmr_candidates)
    if not (worker.items or worker.rules):
        return LiveCatalogue(None, diversity), None
    live = LiveCatalogue(Catalogue(attributes=worker.rule_attributes, keeps_items=worker.items), diversity)
    return live, CatalogueFollower(
        consumer_config=consumer_config,
        items_topic=topics.items if worker.items else None,
        rules_topic=topics.rules if worker.rules else None,
        live=live,
        metrics=metrics,
        on_fatal=on_fatal,
    )


def watch_of(
    settings: StreamSettings,
    consumer_config: Mapping[str, Any],
    metrics: Metrics,
    on_fatal: Callable[[BaseException], None],
    *,
    catalogue: LiveCatalogue | None,
    incarnation: Callable[[], int] = lambda: 1,
) -> "partial[ModelWatcher]":
    """What makes a watcher, but for its alias, its model and its folder."""
    worker = settings.worker
    return partial(
        ModelWatcher,
        consumer_config=consumer_config,
        topic=settings.topics.models,
        metrics=metrics,
        threads=worker.model_threads,
        published=worker.published,
        recent_items=worker.recent_items,
        bundle_timeout=worker.bundle_timeout,
        bundle_locations=worker.bundle_locations,
        trusted=trusted_keys(settings.bundles.trusted_keys),
        bundle_memory_mb=worker.bundle_memory_mb,
        warm_up_batches=(1, worker.chunk_clicks),
        on_fatal=on_fatal,
        catalogue=catalogue,
        rows=worker.mmr_lambda < 1,
        incarnation=incarnation,
    )


def watched_apart(watch: "partial[ModelWatcher]", copies: Copies) -> Watch:
    """Makes watchers of aliases beside `worker.model_alias`."""
    return lambda alias, live: watch(alias=alias, live=live, cache_dir=copies.of(alias), is_variant=True)


def shadow_copies(data_dir: Path) -> Copies:
    """Those of the shadows' process, which removes them while it runs."""
    return Copies(data_dir / "shadows")


async def run_worker(settings: StreamSettings, environment: Mapping[str, str] | None = None) -> int:
    """Run one worker in this process until SIGTERM or SIGINT; returns the exit code."""
    worker = Worker(settings, environment)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    return await worker.run()


async def _run_and_exit(settings: StreamSettings, environment: Mapping[str, str]) -> NoReturn:
    """Leaves from inside the event loop: its end would wait for Faust's tasks and threads, some of which never end."""
    code = await run_worker(settings, environment)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(settings: StreamSettings, config: Path | None) -> None:
    """`stream-app worker`: run, then leave with the exit code even if something of a library's hangs."""
    gc.set_threshold(_YOUNG_OBJECTS)  # see `_on_started`
    environment: dict[str, str] = {"NEXTCLICK_WORKER__LOG_FORMAT": settings.worker.log_format}
    if config is not None:
        environment[CONFIG_VARIABLE] = str(config)
    uvloop.run(_run_and_exit(settings, environment))
