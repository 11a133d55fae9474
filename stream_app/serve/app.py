"""The one place where the Faust app, its agent and its table are put together."""

import asyncio
import gc
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import faust
import structlog
from faust.tables.manager import TableManager
from faust.types.transports import TransportT
from yarl import URL

from schemas.formats.codec import PLAIN, Formats, RegistryCodec
from schemas.kafka.topics import TABLE, changelog_topic
from schemas.messages.ranking import Ranking, encode_ranking
from stream_app.core.session import SessionRules
from stream_app.kafka.click_reader import ClickReader
from stream_app.kafka.credentials import faust_credentials
from stream_app.kafka.transport import ChunkConsumer, ChunkSchema, ChunkTransport
from stream_app.serve.delivery import Delivery
from stream_app.serve.hot_swap import LiveModel
from stream_app.serve.live_catalogue import LiveCatalogue
from stream_app.serve.metrics import Metrics
from stream_app.serve.pipeline import Pipeline, PipelineSettings
from stream_app.serve.settling import SettlingSettings
from stream_app.serve.shadows import Shadows
from stream_app.serve.splits import LiveSplit
from stream_app.settings import StreamSettings
from stream_app.state.database import StoreOptions
from stream_app.state.table import SessionTable

if TYPE_CHECKING:
    from stream_app.serve.click_spans import ClickSpans
    from stream_app.tracing import Tracing

log = structlog.get_logger(__name__)

# Fetches that wait in the agent's queue beside the clicks in flight. Each holds up to `worker.chunk_clicks` records.
_QUEUED_FETCHES = 4
_QUEUED_CHANGELOG_CHUNKS = 64  # of all partitions, while they are restored
_REBALANCE_SECONDS = 60.0
_START_CHECK_SECONDS = 0.01
_APP_VERSION = 1


def tables_folder(data_dir: Path) -> Path:
    """Where Faust keeps the tables of an app with this data folder."""
    return data_dir / f"v{_APP_VERSION}" / "tables"


class _Tables(TableManager):
    """Starts once the agent has asked for its topic; Faust waits a second for that, whether it takes one or not."""

    async def on_start(self) -> None:
        """Ask for the changelog, and start what restores the tables."""
        while not self.should_stop and not self.app.agent_topics():
            await asyncio.sleep(_START_CHECK_SECONDS)
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()


class RecommenderApp(faust.App):
    """A Faust app whose consumer hands over chunks."""

    logger = logging.getLogger("faust")  # as quiet as the services it is one of
    clicks_topic: str
    clicks_id: str = ""  # of the present incarnation of that topic
    client_rack: str | None
    new_click_reader: Callable[[], ClickReader]
    sessions: SessionTable
    pipeline: Pipeline
    on_fatal: Callable[[BaseException], None]
    leaves_group: bool = False  # when it stops; a worker that starts again soon keeps its place

    def _new_transport(self) -> TransportT:
        return cast(TransportT, ChunkTransport(self.conf.broker_consumer, self))

    def agent_topics(self) -> list[Any]:
        """What the agent reads from, once it has asked for it; from any thread."""
        return [topic for topic in list(self.topics) if self.clicks_topic in topic.topics]

    def clicks_wait(self) -> bool:
        """Whether clicks that were read are on their way to the pipeline; from any thread."""
        return any(topic.queue.qsize() for topic in self.agent_topics())

    def takes_clicks(self) -> bool:
        """Whether the agent's queue has room for a fetch."""
        return not any(topic.queue.full() for topic in self.topics if self.clicks_topic in topic.topics)


def _faust_app(settings: StreamSettings, member: str | None) -> RecommenderApp:
    worker = settings.worker
    return RecommenderApp(
        settings.app_id,
        broker=[URL(f"kafka://{server}") for server in settings.kafka.bootstrap_servers.split(",")],
        broker_credentials=faust_credentials(settings.kafka),
        datadir=str(worker.data_dir),
        version=_APP_VERSION,
        autodiscover=False,
        web_enabled=False,  # ours shows health and metrics only; Faust's shows table contents
        topic_allow_declare=False,  # `stream-app topics` makes them
        topic_disable_leader=True,
        table_standby_replicas=0,  # a standby would apply the changelog a second time for each partition
        processing_guarantee="at_least_once",
        TableManager=_Tables,
        broker_session_timeout=worker.session_timeout,
        broker_request_timeout=max(90.0, worker.session_timeout),  # Faust refuses less; 90 s is its default
        # Members hear of a rebalance by their heartbeats, and all wait for the last one.
        broker_heartbeat_interval=min(3.0, worker.session_timeout / 5),
        # So long others wait for a worker that ends what it holds. Faust gives a request to join up after 90 s.
        broker_rebalance_timeout=max(_REBALANCE_SECONDS, worker.session_timeout),
        broker_max_poll_records=worker.chunk_clicks,
        broker_commit_interval=1.0,
        consumer_group_instance_id=member,
        # Recovery seeks to before a changelog's start when retention has moved it, and relies on this to come back.
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=True,  # a partition is handed over only after its chunks in flight have ended
        stream_recovery_delay=0.0,
        stream_buffer_maxsize=_QUEUED_CHANGELOG_CHUNKS,
        stream_processing_timeout=worker.stall_timeout,
    )


def _click_reader(settings: StreamSettings, delivery: Delivery, metrics: Metrics, *, traces: bool) -> ClickReader:
    worker = settings.worker
    return ClickReader(
        settings.kafka.plain_consumer(settings.app_id, f"{settings.app_id}-{os.getpid()}-clicks"),
        most=worker.chunk_clicks,
        on_look=delivery.serve,
        on_expired=metrics.expired.inc,
        patience=worker.delivery_timeout,
        traces=traces,
    )


def _session_table(
    app: RecommenderApp, settings: StreamSettings, on_fatal: Callable[[BaseException], None]
) -> SessionTable:
    worker = settings.worker
    return SessionTable(
        app,
        name=TABLE,
        store_options=StoreOptions(
            cache_mb=worker.store_cache_mb,
            write_buffer_mb=worker.store_write_buffer_mb,
            ttl_seconds=int(worker.session_ttl),
        ),
        on_fatal=on_fatal,
        recovery_buffer_size=2,  # chunks; 1 means something else to Faust
    )


def create_app(
    settings: StreamSettings,
    *,
    live: LiveModel | LiveSplit,
    delivery: Delivery,
    metrics: Metrics,
    on_fatal: Callable[[BaseException], None],
    member: str | None = None,
    catalogue: LiveCatalogue | None = None,
    shadows: Shadows | None = None,
    formats: Formats = PLAIN,
    tracing: "Tracing | None" = None,
) -> RecommenderApp:
    """A worker's app. A factory, because a Faust app belongs to the event loop that first touches it.

    Args:
        settings: of the worker.
        live: the model that serves, or several.
        delivery: what sends rankings and changelog.
        metrics: what is counted.
        on_fatal: told what the worker cannot go on with, from any thread.
        member: id under which the worker joins the group and takes its place again after a restart, or None.
        catalogue: what may be shown; everything without.
        shadows: who ranks beside the models that serve.
        formats: how clicks and rankings lie on their topics.
        tracing: what tells the spans of traced clicks, if anything does.
    """
    app = _faust_app(settings, member)
    app.on_fatal = on_fatal
    app.clicks_topic = settings.topics.clicks
    app.client_rack = settings.kafka.client_rack
    traces = settings.worker.headers or tracing is not None
    app.new_click_reader = partial(_click_reader, settings, delivery, metrics, traces=traces)
    app.sessions = _session_table(app, settings, on_fatal)
    app.tables.add(app.sessions)
    # Made here: a service of Faust belongs to the thread that first asks for it, and the watchdog's asks too.
    consumer = cast(ChunkConsumer, app.consumer)
    pipeline = partial(
        Pipeline, _pipeline_settings(settings, formats), table=app.sessions, consumer=consumer, on_fatal=on_fatal
    )
    app.pipeline = pipeline(
        live=live, delivery=delivery, metrics=metrics, catalogue=catalogue, shadows=shadows, formats=formats,
        spans=_click_spans(settings, tracing),
    )  # fmt: skip
    clicks = app.topic(settings.topics.clicks, schema=ChunkSchema())
    clicks.maxsize = _QUEUED_FETCHES  # its argument of that name is ignored: it would be the changelog's

    async def rank_clicks(fetches: Any) -> None:
        async for event in fetches.noack().events():
            await app.pipeline.submit(event.value)

    app.agent(clicks, name="rank-clicks")(rank_clicks)

    _end_rebalances(app, consumer)
    return app


def _end_rebalances(app: RecommenderApp, consumer: ChunkConsumer) -> None:
    async def tell_and_tidy(*_: Any, **__: Any) -> None:
        mine = sorted(tp.partition for tp in consumer.assignment() if tp.topic == app.clicks_topic)
        log.info("tables recovered", partitions=mine, restored_records=app.sessions.restored)
        # What aiokafka fetched and did not hand over refers to itself: megabytes in a few objects, for which Python's
        # collector, which counts objects, did not come for hundreds of rebalances.
        gc.collect()

    app.on_rebalance_complete.connect(tell_and_tidy, weak=False)


def _click_spans(settings: StreamSettings, tracing: "Tracing | None") -> "ClickSpans | None":
    if tracing is None:
        return None
    from stream_app.serve.click_spans import ClickSpans

    return ClickSpans(tracing, group=settings.app_id, rankings=settings.topics.rankings)


def session_rules(settings: StreamSettings) -> SessionRules:
    """What a worker is told of sessions."""
    return SessionRules(
        idle_gap_ms=settings.clicks.idle_gap_ms,
        recent_items=settings.worker.recent_items,
        advance_on=settings.clicks.moving,
        hide=settings.worker.hide == "clicked",
        hide_type=settings.worker.hide_type,
    )


def ranking_encoder(formats: Formats) -> Callable[[Ranking], bytes]:
    """From a ranking to the value of its record."""
    codec = formats.rankings
    return (
        (lambda ranking: codec.to_wire(encode_ranking(ranking))) if isinstance(codec, RegistryCodec) else encode_ranking
    )


def _pipeline_settings(settings: StreamSettings, formats: Formats) -> PipelineSettings:
    worker = settings.worker
    return PipelineSettings(
        settling=SettlingSettings(
            rankings=settings.topics.rankings,
            rejected=settings.topics.rejected,
            changelog=changelog_topic(settings.app_id),
            headers=worker.headers,
            encode=ranking_encoder(formats),
            content_type=formats.rankings.content_type,
        ),
        clicks_in_flight=worker.chunks_in_flight * worker.chunk_clicks,
        clicks_together=worker.chunk_clicks,
        rules=session_rules(settings),
        limits=settings.clicks.limits,
    )
