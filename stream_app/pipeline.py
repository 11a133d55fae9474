"""A chunk's way through the worker, and the order in which its effects become durable.

rankings -> changelog -> RocksDB -> acknowledgement. A row says "the rankings up to this offset are out", so it must
never become durable before they are; an acknowledgement says the same of the row. Several chunks are in flight at once,
those of one partition end in the order of their offsets.

Chunks adapt to the load by themselves: what has come while others were computed is computed together, all partitions in
one call of the model, and what has been computed while others became durable becomes durable together.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from stream_app.recommend import RankedClick, Recommended, SourcedClick, advance, plan, rank
from stream_app.session import SessionRules, SessionState
from stream_app.state_codec import encode_state
from stream_app.table import SessionTable
from stream_app.transport import Chunk, ChunkConsumer, Fetch

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
        clicks_in_flight: clicks that may be unacknowledged at once; beyond that consumption waits.
        clicks_together: clicks after which no further chunk is computed together with those before it.
        session_timeout: seconds after the last confirmed heartbeat in which no other worker can have the partitions.
        rules: of sessions.
        limits: of clicks.
    """

    rankings: str
    rejected: str
    changelog: str
    published: int = 20
    clicks_in_flight: int = 8192
    clicks_together: int = 512
    session_timeout: float = 15.0
    rules: SessionRules = field(default_factory=SessionRules)
    limits: ClickLimits = field(default_factory=ClickLimits)


@dataclass(slots=True)
class _Partition:
    """One partition in one generation.

    Attributes:
        rows: of its chunks in flight; not in RocksDB yet.
        left: whether a chunk was left to the next owner: then all behind it are, as an acknowledgement covers every
            offset below it.
    """

    generation: int
    rows: dict[str, SessionState] = field(default_factory=dict)
    left: bool = False


@dataclass(slots=True)
class _Part:
    """Chunks of one partition, in order, on their way together.

    Attributes:
        rankings: their delivery.
        states, rows: what they lead to, as states and as bytes.
        reasons: of their rankings.
    """

    partition: _Partition
    rankings: list[Batch]
    chunks: list[tuple[Chunk, Message]] = field(default_factory=list)
    states: dict[str, SessionState] = field(default_factory=dict)
    rows: dict[bytes, bytes] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def last(self) -> Chunk:
        return self.chunks[-1][0]

    def join(self, later: "_Part") -> None:
        """Take in what comes behind; of a session's rows the newest says what the others said."""
        self.rankings += later.rankings
        self.chunks += later.chunks
        self.states |= later.states
        self.rows |= later.rows
        self.reasons += later.reasons


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
        self._clicks_in_flight = 0
        self._room = asyncio.Event()
        self._waiting: deque[tuple[Chunk, Message]] = deque()
        self._computing: asyncio.Task[None] | None = None
        self._computed: list[_Part] = []
        self._settling: asyncio.Task[None] | None = None
        self._abandoned: set[tuple[TP, int]] = set()
        self._partitions: dict[TP, _Partition] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pipeline")
        self.in_flight = 0
        self.finished = 0

    async def submit(self, fetch: Fetch) -> None:
        """Take what a fetch brought; waits while too many clicks are in flight. All else goes on by itself."""
        if any((chunk.tp, chunk.generation) in self._abandoned for chunk, _ in fetch.chunks):
            self._fail(StalledError("the agent was cancelled over a chunk, which will be redelivered"))
        self._moved(+len(fetch.chunks))
        clicks = sum(len(chunk.records) for chunk, _ in fetch.chunks)
        try:
            while self._clicks_in_flight and self._clicks_in_flight + clicks > self._settings.clicks_in_flight:
                self._room.clear()
                await self._room.wait()
        except BaseException:
            # Faust starts a cancelled agent anew; no chunk of a partition may pass the one that is dropped here.
            self._abandoned.update((chunk.tp, chunk.generation) for chunk, _ in fetch.chunks)
            self._moved(-len(fetch.chunks))
            raise
        self._clicks_in_flight += clicks
        self._waiting.extend(fetch.chunks)
        if self._computing is None:
            self._computing = asyncio.create_task(self._compute_waiting(), name="computing")

    async def drained(self) -> None:
        """Wait until no chunk is in flight."""
        while self.in_flight:
            await asyncio.sleep(_DRAIN_CHECK_SECONDS)

    async def stop(self) -> None:
        """Abandon what is still in flight; it is not acknowledged and will be redelivered."""
        for task in (self._computing, self._settling):
            if task is not None:
                task.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    # -- computing, on the pipeline's thread --------------------------------------------------------------------------

    async def _compute_waiting(self) -> None:
        """Compute what waits, together as far as it goes, until nothing does."""
        while self._waiting:
            parts: list[_Part] = []
            model = self._live.current
            assert model is not None, "the app does not start before there is a model"
            try:
                parts = list(self._take())
                if parts:
                    await self._in_thread(self._compute, parts, model)
            except Exception as error:  # noqa: BLE001 - the loop's edge: nothing is acknowledged, the worker stops
                self._leave(parts)
                self._fail(error)
                continue
            self._computed += parts
            if self._settling is None and self._computed:
                self._settling = asyncio.create_task(self._settle(), name="settling")
        self._computing = None

    def _take(self) -> Iterable[_Part]:
        """Of the chunks that wait those that are computed together, by partition."""
        parts: dict[TP, _Part] = {}
        clicks = 0
        while self._waiting and clicks < self._settings.clicks_together:
            chunk, message = self._waiting.popleft()
            clicks += len(chunk.records)
            if self._failed or not self._consumer().owns(chunk.tp, chunk.generation):
                self._leave([_Part(_Partition(chunk.generation), [], [(chunk, message)])])
                continue
            if chunk.tp not in parts:
                parts[chunk.tp] = _Part(self._partition(chunk), [])
            parts[chunk.tp].chunks.append((chunk, message))
        for part in parts.values():
            part.rankings.append(self._delivery.batch())
        return parts.values()

    def _partition(self, chunk: Chunk) -> _Partition:
        partition = self._partitions.get(chunk.tp)
        if partition is None or partition.generation != chunk.generation:
            # A new generation: what is left of the old one will be redelivered in this one.
            partition = self._partitions[chunk.tp] = _Partition(chunk.generation)
        return partition

    def _compute(self, parts: Sequence[_Part], model: Model) -> None:
        metrics, settings = self._metrics, self._settings
        now_ms = time.time_ns() // 1_000_000
        started = time.perf_counter()
        clicks = [self._decode(part, now_ms) for part in parts]
        decoded = time.perf_counter()
        states = [
            self._read(part.last, theirs, part.partition.rows) for part, theirs in zip(parts, clicks, strict=True)
        ]
        read = time.perf_counter()
        plans = [plan(rows, theirs, model, settings.rules) for rows, theirs in zip(states, clicks, strict=True)]
        advanced = advance(plans, model)
        moved = time.perf_counter()
        results = rank(plans, advanced, model)
        ranked = time.perf_counter()
        for part, result in zip(parts, results, strict=True):
            self._send_rankings(part, result, model, now_ms)
        encoded = time.perf_counter()

        steps = {
            "decode": decoded - started,
            "read": read - decoded,
            "advance": moved - read,
            "rank": ranked - moved,
            "encode": encoded - ranked,
        }
        for step, seconds in steps.items():
            metrics.step_seconds.labels(step=step).observe(seconds)
        records = sum(len(chunk.records) for part in parts for chunk, _ in part.chunks)
        metrics.clicks.inc(records)
        metrics.chunk_clicks.observe(records)
        metrics.redelivered.inc(sum(result.redelivered for result in results))
        metrics.rebuilt_rows.inc(sum(result.rebuilt for result in results))

    def _send_rankings(self, part: _Part, result: Recommended, model: Model, now_ms: int) -> None:
        topic, [delivery], tp = self._settings.rankings, part.rankings, part.last.tp
        for answer in result.ranked:
            ranking = self._ranking(answer, tp, model, now_ms)
            delivery.send(topic, answer.click.session_id.encode(), encode_ranking(ranking))
        delivery.seal()
        part.states = result.rows
        part.rows = {session_id.encode(): encode_state(state) for session_id, state in result.rows.items()}
        part.reasons = Counter(answer.reason.value for answer in result.ranked)
        part.partition.rows.update(result.rows)

    def _decode(self, part: _Part, now_ms: int) -> list[SourcedClick]:
        clicks, limits, tp, [delivery] = [], self._settings.limits, part.last.tp, part.rankings
        for chunk, _ in part.chunks:
            for record in chunk.records:
                # The broker's time where it keeps it: a redelivered click must be judged as it was the first time.
                judged_at = record.timestamp if record.timestamp_type == _LOG_APPEND_TIME else now_ms
                try:
                    click = decode_click(record.key, record.value, now_ms=judged_at, limits=limits)
                except ClickRejectedError as error:
                    source = Source(tp.topic, tp.partition, record.offset)
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

    def _ranking(self, answer: RankedClick, tp: TP, model: Model, now_ms: int) -> Ranking:
        click, published = answer.click, self._settings.published
        item = model.vocabulary.items.__getitem__  # a top k holds no negative index
        return Ranking(
            session_id=click.session_id,
            event_id=click.event_id,
            item_id=click.item_id,
            model_version=model.version,
            items=tuple(map(RankedItem, map(item, answer.top_index[:published]), answer.top_score[:published])),
            source=Source(tp.topic, tp.partition, answer.offset),
            click_timestamp=click.timestamp,
            produced_at=now_ms,
            reason=answer.reason,
        )

    # -- making durable, on the event loop ----------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Make durable what is computed, all that has come meanwhile together, until nothing is left."""
        while self._computed:
            computed, self._computed = self._computed, []
            parts: dict[int, _Part] = {}
            for part in computed:
                if id(part.partition) in parts:
                    parts[id(part.partition)].join(part)
                else:
                    parts[id(part.partition)] = part
            try:
                await self._make_durable(list(parts.values()))
            except Exception as error:  # noqa: BLE001 - the loop's edge: nothing is acknowledged, the worker stops
                for part in parts.values():
                    part.partition.left = True
                self._fail(error)
            self._leave(parts.values())
        self._settling = None

    async def _make_durable(self, parts: Sequence[_Part]) -> None:
        metrics = self._metrics
        started = time.perf_counter()
        for part in parts:
            for rankings in part.rankings:
                await rankings.delivered()
            self._count(part)
        delivered = time.perf_counter()
        for part in parts:
            part.partition.left = part.partition.left or not await self._still_owned(part.last)
        changelogs = [(part, self._delivery.batch()) for part in parts if not part.partition.left]
        if not changelogs:
            return
        await self._in_thread(self._send_changelogs, changelogs)
        offsets = [await changelog.delivered() for _, changelog in changelogs]
        await self._in_thread(self._write, [part for part, _ in changelogs], offsets)
        for part, _ in changelogs:
            if part.partition.left:
                continue
            for chunk, message in part.chunks:
                chunk.durable = True
                self._consumer().ack(message)
            if (end := part.last.end_offset) is not None:
                behind = max(0, end - 1 - part.last.records[-1].offset)
                metrics.lag.labels(partition=str(part.last.tp.partition)).set(behind)
        metrics.step_seconds.labels(step="deliver").observe(delivered - started)
        metrics.step_seconds.labels(step="write").observe(time.perf_counter() - delivered)

    def _send_changelogs(self, changelogs: Sequence[tuple[_Part, Batch]]) -> None:
        for part, changelog in changelogs:
            for key, row in part.rows.items():
                changelog.send(self._settings.changelog, key, row, partition=part.last.tp.partition)
            changelog.seal()

    def _write(self, parts: Sequence[_Part], changelog_offsets: Sequence[int]) -> None:
        for part, changelog_offset in zip(parts, changelog_offsets, strict=True):
            if not self._consumer().owns(part.last.tp, part.last.generation):
                part.partition.left = True  # lost since the last look
                continue
            if part.rows:
                self._table.write(part.last.tp.partition, part.rows, changelog_offset)
            rows = part.partition.rows
            for session_id, state in part.states.items():
                if rows.get(session_id) is state:
                    del rows[session_id]

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

    def _count(self, part: _Part) -> None:
        for reason, count in part.reasons.items():
            self._metrics.rankings.labels(reason=reason).inc(count)
        # The oldest click: the others waited less.
        oldest = part.chunks[0][0].records[0]
        self._metrics.end_to_end_seconds.observe(max(0.0, time.time() - oldest.timestamp / 1000))

    def _leave(self, parts: Iterable[_Part]) -> None:
        """What is not durable by now is its partitions' next owner's."""
        for part in parts:
            for chunk, _ in part.chunks:
                self._clicks_in_flight -= len(chunk.records)
                self._moved(-1)
                if chunk.durable:
                    self.finished += 1
                elif not self._failed:
                    self._metrics.dropped_chunks.inc()
                    log.info(
                        "chunk left to its partition's next owner",
                        partition=chunk.tp.partition,
                        clicks=len(chunk.records),
                    )
        self._room.set()

    def _moved(self, by: int) -> None:
        self.in_flight += by
        self._metrics.chunks_in_flight.set(self.in_flight)

    def _fail(self, error: BaseException) -> None:
        self._failed = True
        self._on_fatal(error)

    async def _in_thread(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args, **kwargs))
