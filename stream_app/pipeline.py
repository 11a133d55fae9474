"""A chunk's way through the worker, and the order in which its effects become durable.

rankings -> changelog -> RocksDB -> acknowledgement. A row says "the rankings up to this offset are out", so it must
never become durable before they are; an acknowledgement says the same of the row. Several chunks are in flight at once,
those of one partition end in the order of their offsets.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, ParamSpec, TypeVar

import structlog
from faust.types import TP, Message

from schemas.click import ClickLimits, ClickRejectedError, decode_click
from schemas.model import Model
from schemas.ranking import RankedItem, Ranking, encode_ranking
from schemas.rejected import encode_rejected, reject
from schemas.source import Source
from stream_app.delivery import Batch, Delivery
from stream_app.errors import StalledError, StoreError
from stream_app.hot_swap import LiveModel
from stream_app.metrics import Metrics
from stream_app.recommend import RankedClick, SourcedClick, recommend
from stream_app.session import SessionRules, SessionState
from stream_app.state_codec import encode_state
from stream_app.table import SessionTable
from stream_app.transport import Chunk, ChunkConsumer

log = structlog.get_logger(__name__)

_LOG_APPEND_TIME: Final = 1
_HEARTBEAT_CHECK_SECONDS: Final = 0.05
_DRAIN_CHECK_SECONDS: Final = 0.01

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """What the pipeline has to know.

    Attributes:
        rankings: topic of the rankings.
        rejected: topic of the records that are no click.
        changelog: the table's changelog topic.
        published: length of a published ranking.
        chunks_in_flight: chunks that may be unacknowledged at once; beyond that consumption waits.
        session_timeout: seconds after the last confirmed heartbeat in which no other worker can have the partitions.
        rules: of sessions.
        limits: of clicks.
    """

    rankings: str
    rejected: str
    changelog: str
    published: int = 20
    chunks_in_flight: int = 16
    session_timeout: float = 15.0
    rules: SessionRules = field(default_factory=SessionRules)
    limits: ClickLimits = field(default_factory=ClickLimits)


@dataclass(slots=True)
class _InFlight:
    """One partition in one generation: its chunks in order, and the rows that are not in RocksDB yet."""

    generation: int
    chunks: "asyncio.Queue[_Computed | None]" = field(default_factory=asyncio.Queue)
    rows: dict[str, SessionState] = field(default_factory=dict)
    task: "asyncio.Task[None] | None" = None


@dataclass(slots=True)
class _Computed:
    """A chunk whose rankings are on their way to Kafka."""

    chunk: Chunk
    message: Message
    states: dict[str, SessionState]
    rows: dict[bytes, bytes]
    reasons: Counter[str]
    delivery: Batch


class Pipeline:
    """Takes chunks from the agent and sees each of them through.

    Decoding, the model and RocksDB run on one thread of the pipeline's own: in order, and beside the event loop.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        *,
        live: LiveModel,
        table: SessionTable,
        delivery: Delivery,
        metrics: Metrics,
        consumer: Callable[[], ChunkConsumer],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._settings = settings
        self._live = live
        self._table = table
        self._delivery = delivery
        self._metrics = metrics
        self._consumer = consumer
        self._on_fatal = on_fatal
        self._failed = False
        self._slots = asyncio.Semaphore(settings.chunks_in_flight)
        self._partitions: dict[TP, _InFlight] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pipeline")
        self.in_flight = 0
        self.finished = 0

    async def submit(self, chunk: Chunk, message: Message) -> None:
        """Compute a chunk and send its rankings; what follows goes on by itself.

        Returns as soon as the next chunk may be computed; waits while too many chunks are in flight.
        """
        self._moved(+1)
        try:
            await self._slots.acquire()
        except BaseException:
            self._moved(-1)
            raise
        try:
            if self._failed or not self._consumer().owns(chunk.tp, chunk.generation):
                self._leave(chunk)
                return
            model = self._live.current
            assert model is not None, "the app does not start before there is a model"
            partition = self._partition(chunk)
            computed = await self._in_thread(self._compute, chunk, message, model, partition, self._delivery.batch())
            partition.chunks.put_nowait(computed)
        except Exception as error:  # noqa: BLE001 - the loop's edge: nothing is acknowledged, the worker stops
            self._leave(chunk)
            self._fail(error)
        except asyncio.CancelledError:
            # The thread may still be computing: nothing may build on rows that will never become durable.
            self._leave(chunk)
            self._fail(StalledError("the agent was cancelled in the middle of a chunk, which will be redelivered"))
            raise

    async def drained(self) -> None:
        """Wait until no chunk is in flight."""
        while self.in_flight:
            await asyncio.sleep(_DRAIN_CHECK_SECONDS)

    async def stop(self) -> None:
        """Abandon what is still in flight; it is not acknowledged and will be redelivered."""
        for partition in self._partitions.values():
            if partition.task is not None:
                partition.task.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    # -- computing, on the pipeline's thread --------------------------------------------------------------------------

    def _compute(
        self, chunk: Chunk, message: Message, model: Model, partition: _InFlight, delivery: Batch
    ) -> _Computed:
        metrics, settings = self._metrics, self._settings
        now_ms = time.time_ns() // 1_000_000
        started = time.perf_counter()
        clicks = self._decode(chunk, now_ms, delivery)
        decoded = time.perf_counter()
        states = self._read(chunk, clicks, partition.rows)
        read = time.perf_counter()
        result = recommend(states, clicks, model, settings.rules)
        ranked = time.perf_counter()
        for answer in result.ranked:
            ranking = self._ranking(answer, chunk, model, now_ms)
            delivery.send(settings.rankings, answer.click.session_id.encode(), encode_ranking(ranking))
        delivery.seal()
        rows = {session_id.encode(): encode_state(state) for session_id, state in result.rows.items()}
        encoded = time.perf_counter()

        metrics.clicks.inc(len(chunk.records))
        metrics.chunk_clicks.observe(len(chunk.records))
        metrics.redelivered.inc(result.redelivered)
        metrics.rebuilt_rows.inc(result.rebuilt)
        steps = {
            "decode": decoded - started,
            "read": read - decoded,
            "model": ranked - read,
            "encode": encoded - ranked,
        }
        for step, seconds in steps.items():
            metrics.step_seconds.labels(step=step).observe(seconds)
        reasons = Counter(answer.reason.value for answer in result.ranked)
        partition.rows.update(result.rows)
        return _Computed(chunk, message, result.rows, rows, reasons, delivery)

    def _decode(self, chunk: Chunk, now_ms: int, delivery: Batch) -> list[SourcedClick]:
        clicks, limits = [], self._settings.limits
        for record in chunk.records:
            # The broker's time where it keeps it: a redelivered click must be judged as it was the first time.
            judged_at = record.timestamp if record.timestamp_type == _LOG_APPEND_TIME else now_ms
            try:
                click = decode_click(record.key, record.value, now_ms=judged_at, limits=limits)
            except ClickRejectedError as error:
                source = Source(chunk.tp.topic, chunk.tp.partition, record.offset)
                parked = reject(error, source=source, key=record.key, value=record.value, now_ms=now_ms)
                delivery.send(self._settings.rejected, parked.key, encode_rejected(parked))
                self._metrics.rejected.labels(reason=error.reason.value).inc()
            else:
                clicks.append(SourcedClick(click, record.offset))
        return clicks

    def _read(
        self, chunk: Chunk, clicks: list[SourcedClick], pending: Mapping[str, SessionState]
    ) -> dict[str, SessionState]:
        session_ids = {sourced.click.session_id for sourced in clicks}
        states = {session_id: pending[session_id] for session_id in session_ids if session_id in pending}
        stored = self._table.states(chunk.tp.partition, session_ids - states.keys())
        if chunk.end_offset is not None:
            ahead = next((state for state in stored.values() if state.offset > chunk.records[-1].offset), None)
            if ahead is not None and ahead.offset >= chunk.end_offset:
                raise StoreError(
                    f"a session row has applied offset {ahead.offset} of {chunk.tp.topic} partition "
                    f"{chunk.tp.partition}, which ends at {chunk.end_offset}: the topic was deleted and created again, "
                    f"and its new clicks would be taken for redelivered ones. Start with a new worker.app_id and an "
                    f"empty worker.data_dir"
                )
        return states | stored

    def _ranking(self, answer: RankedClick, chunk: Chunk, model: Model, now_ms: int) -> Ranking:
        click, published = answer.click, self._settings.published
        item = model.vocabulary.item
        return Ranking(
            session_id=click.session_id,
            event_id=click.event_id,
            item_id=click.item_id,
            model_version=model.version,
            items=tuple(
                RankedItem(item(index), score)
                for index, score in zip(
                    answer.top_index[:published].tolist(), answer.top_score[:published].tolist(), strict=True
                )
            ),
            source=Source(chunk.tp.topic, chunk.tp.partition, answer.offset),
            click_timestamp=click.timestamp,
            produced_at=now_ms,
            reason=answer.reason,
        )

    # -- making durable, on the event loop ----------------------------------------------------------------------------

    def _partition(self, chunk: Chunk) -> _InFlight:
        partition = self._partitions.get(chunk.tp)
        if partition is None or partition.generation != chunk.generation:
            # A new generation: what is left of the old one will be redelivered in this one.
            if partition is not None:
                partition.chunks.put_nowait(None)
            partition = self._partitions[chunk.tp] = _InFlight(chunk.generation)
            partition.task = asyncio.create_task(self._see_through(partition), name=f"chunks of {chunk.tp}")
        return partition

    async def _see_through(self, partition: _InFlight) -> None:
        durable = True
        while (computed := await partition.chunks.get()) is not None:
            try:
                # Behind a chunk that was left, all are: an acknowledgement covers every offset below it.
                durable = durable and await self._make_durable(computed, partition)
            except Exception as error:  # noqa: BLE001 - the loop's edge: nothing is acknowledged, the worker stops
                self._fail(error)
                durable = False
            self._leave(computed.chunk, durable=durable)

    async def _make_durable(self, computed: _Computed, partition: _InFlight) -> bool:
        chunk, metrics = computed.chunk, self._metrics
        started = time.perf_counter()
        await computed.delivery.delivered()
        delivered = time.perf_counter()
        self._count(computed)
        if computed.rows:
            if not await self._still_owned(chunk):
                return False
            changelog = self._delivery.batch()
            await self._in_thread(self._send_changelog, computed, changelog)
            changelog_offset = await changelog.delivered()
            if not await self._in_thread(self._write, computed, partition, changelog_offset):
                return False
        elif not await self._still_owned(chunk):
            return False
        chunk.durable = True
        self._consumer().ack(computed.message)
        metrics.step_seconds.labels(step="deliver").observe(delivered - started)
        metrics.step_seconds.labels(step="write").observe(time.perf_counter() - delivered)
        if chunk.end_offset is not None:
            behind = max(0, chunk.end_offset - 1 - chunk.records[-1].offset)
            metrics.lag.labels(partition=str(chunk.tp.partition)).set(behind)
        return True

    def _send_changelog(self, computed: _Computed, delivery: Batch) -> None:
        for key, row in computed.rows.items():
            delivery.send(self._settings.changelog, key, row, partition=computed.chunk.tp.partition)
        delivery.seal()

    def _write(self, computed: _Computed, partition: _InFlight, changelog_offset: int) -> bool:
        if not self._consumer().owns(computed.chunk.tp, computed.chunk.generation):
            return False  # lost since the last look
        self._table.write(computed.chunk.tp.partition, computed.rows, changelog_offset)
        for session_id, state in computed.states.items():
            if partition.rows.get(session_id) is state:
                del partition.rows[session_id]
        return True

    async def _still_owned(self, chunk: Chunk) -> bool:
        """Whether the partition is still this worker's. Asked before each step that would outlive the worker.

        While heartbeats are overdue (this host was frozen, or cut off) another worker may have the partition without
        our knowing: wait for the broker's word.
        """
        consumer = self._consumer()
        while consumer.owns(chunk.tp, chunk.generation):
            if consumer.seconds_since_heartbeat() < self._settings.session_timeout:
                return True
            await asyncio.sleep(_HEARTBEAT_CHECK_SECONDS)
        return False

    def _count(self, computed: _Computed) -> None:
        for reason, count in computed.reasons.items():
            self._metrics.rankings.labels(reason=reason).inc(count)
        # The oldest click of the chunk: the others waited less.
        self._metrics.end_to_end_seconds.observe(max(0.0, time.time() - computed.chunk.records[0].timestamp / 1000))

    def _leave(self, chunk: Chunk, *, durable: bool = False) -> None:
        self._slots.release()
        self._moved(-1)
        if durable:
            self.finished += 1
        elif not self._failed:
            self._metrics.dropped_chunks.inc()
            log.info(
                "chunk left to its partition's next owner", partition=chunk.tp.partition, clicks=len(chunk.records)
            )

    def _moved(self, by: int) -> None:
        self.in_flight += by
        self._metrics.chunks_in_flight.set(self.in_flight)

    def _fail(self, error: BaseException) -> None:
        self._failed = True
        self._on_fatal(error)

    async def _in_thread(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args, **kwargs))
