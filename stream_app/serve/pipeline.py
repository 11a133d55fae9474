"""A chunk's way through the worker: decode, read rows, advance, rank; then `settling` makes it durable.

Chunks adapt to the load by themselves: what has come while others were computed is computed together, all partitions in
one call of the model. Several chunks are in flight at once, those of one partition end in the order of their offsets.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
from faust.types import TP, Message

from schemas.bundle.runtime import Model
from schemas.errors import NoAnswerError, SchemaRegistryError, StoppedWaitingError
from schemas.formats.codec import PLAIN, Formats, RegistryCodec
from schemas.messages.click import ClickLimits, ClickRejectedError
from schemas.messages.forget import decode_forget
from schemas.messages.ranking import Applied
from schemas.messages.rejected import RejectedClick, reject
from schemas.messages.source import Source
from stream_app.core.apart import Clicks, recommend_apart
from stream_app.core.offer import Offer
from stream_app.core.plan import Plan, SourcedClick, SourcedForget, plan
from stream_app.core.query import Queries, no_queries, queries
from stream_app.core.recommend import Recommended, rank
from stream_app.core.session import SessionRules, SessionState, moves_on
from stream_app.errors import StalledError
from stream_app.kafka.click_reader import Record
from stream_app.kafka.transport import Chunk, ChunkConsumer, Fetch
from stream_app.serve.computing import Computing
from stream_app.serve.delivery import Delivery
from stream_app.serve.hot_swap import LiveModel
from stream_app.serve.in_flight import InFlight, Part, Partition
from stream_app.serve.live_catalogue import LiveCatalogue
from stream_app.serve.metrics import Metrics
from stream_app.serve.serving import Records, Serves, Serving
from stream_app.serve.settling import Computed, Settling, SettlingSettings
from stream_app.serve.shadows import Shadows
from stream_app.serve.splits import LiveSplit
from stream_app.state.table import SessionTable

if TYPE_CHECKING:
    from stream_app.serve.click_spans import ClickSpans

log = structlog.get_logger(__name__)

_LOG_APPEND_TIME: Final = 1
_DRAIN_CHECK_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """What the pipeline has to know.

    Attributes:
        settling: what comes behind the model.
        clicks_in_flight: clicks that may be unacknowledged at once; beyond that consumption waits.
        clicks_together: so many are computed together at most, unless one chunk has more.
        rules: of sessions.
        limits: of clicks.
    """

    settling: SettlingSettings
    clicks_in_flight: int = 8192
    clicks_together: int = 512
    rules: SessionRules = field(default_factory=SessionRules)
    limits: ClickLimits = field(default_factory=ClickLimits)


class _Seconds:
    """How long each step of a batch took, those of several models together."""

    def __init__(self) -> None:
        self.taken: dict[str, float] = {}
        self._since = time.perf_counter()

    def of(self, step: str) -> None:
        """What has passed since the last step was this one's."""
        now = time.perf_counter()
        self.taken[step] = self.taken.get(step, 0.0) + now - self._since
        self._since = now


class Pipeline:
    """Takes chunks from the agent and sees each of them through.

    Decoding, the model, encoding and RocksDB run one at a time, and beside the event loop where they take long.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        *,
        live: LiveModel | LiveSplit,
        table: SessionTable,
        delivery: Delivery,
        metrics: Metrics,
        consumer: ChunkConsumer,
        on_fatal: Callable[[BaseException], None],
        catalogue: LiveCatalogue | None = None,
        shadows: Shadows | None = None,
        formats: Formats = PLAIN,
        spans: "ClickSpans | None" = None,
    ) -> None:
        self._settings = settings
        self._schemas = formats.clicks if isinstance(formats.clicks, RegistryCodec) else None
        self._decode_click = formats.decode_click
        self._live = live
        self._catalogue = catalogue
        self._shadows = shadows
        self._table = table
        self._delivery = delivery
        self._metrics = metrics
        self.in_flight = InFlight(metrics, on_fatal)
        self._computing = Computing()
        self._settling = Settling(
            settings.settling,
            computing=self._computing,
            table=table,
            delivery=delivery,
            metrics=metrics,
            consumer=consumer,
            in_flight=self.in_flight,
            spans=spans,
        )
        self._consumer = consumer
        self._broken_off = False
        self._cannot_rank: str | None = None  # the version that was told of
        self._taken = asyncio.Event()
        self._waiting: deque[tuple[Chunk, Message]] = deque()
        self._begun: deque[tuple[list[Part], asyncio.Future[None]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._abandoned: set[tuple[TP, int]] = set()
        self._partitions: dict[TP, Partition] = {}

    async def submit(self, fetch: Fetch) -> None:
        """Take what a fetch brought; waits while too many clicks are in flight. All else goes on by itself."""
        if any((chunk.tp, chunk.generation) in self._abandoned for chunk, _ in fetch.chunks):
            self.in_flight.fail(StalledError("the agent was cancelled over a chunk, which will be redelivered"))
        if self._schemas is not None:
            await self._have_schemas(self._schemas, fetch)
        self.in_flight.moved(+len(fetch.chunks))
        clicks = sum(len(chunk.records) for chunk, _ in fetch.chunks)
        try:
            if not self.in_flight.has_room(clicks, self._settings.clicks_in_flight):
                with self._settling.at_once():
                    await self.in_flight.wait_for_room(clicks, self._settings.clicks_in_flight)
            self.in_flight.clicks += clicks
        except BaseException:
            self._abandon(fetch)
            self.in_flight.moved(-len(fetch.chunks))
            raise
        self._waiting.extend(fetch.chunks)
        if self._task is None:
            self._task = asyncio.create_task(self._compute_waiting(), name="computing")
        else:
            self._begin_waiting()

    async def _have_schemas(self, schemas: RegistryCodec, fetch: Fetch) -> None:
        """Ask the registry for those that clicks name for the first time; nothing is in flight for it meanwhile."""
        try:
            if heads := schemas.missing(record.value for chunk, _ in fetch.chunks for record in chunk.records):
                await asyncio.to_thread(schemas.load, heads)
        except StoppedWaitingError:
            # What is in flight has its time to end. Faust cancels the agent after that: these clicks are redelivered.
            self._abandon(fetch)
            await asyncio.Event().wait()
        except SchemaRegistryError as error:
            self.in_flight.fail(error)  # from here on nothing is computed or acknowledged
        except BaseException:
            self._abandon(fetch)
            raise

    def _abandon(self, fetch: Fetch) -> None:
        # Faust starts a cancelled agent anew; no chunk of a partition may pass the one that is dropped.
        self._abandoned.update((chunk.tp, chunk.generation) for chunk, _ in fetch.chunks)

    async def wants_more(self) -> None:
        """Wait until the model has taken all that was submitted.

        A fetch before that only costs time of its own: 7 % of the processor time at 1,000 clicks a second.
        """
        while self._waiting:
            self._taken.clear()
            await self._taken.wait()

    async def drained(self) -> None:
        """Wait until no chunk is in flight; what is taken from then on was fetched anew.

        A static member may get its partitions back in the generation in which it has left a chunk of them.
        """
        with self._settling.at_once():
            while self.in_flight.chunks:
                await asyncio.sleep(_DRAIN_CHECK_SECONDS)
        self._partitions.clear()

    async def stop(self) -> None:
        """Abandon what is still in flight; it is not acknowledged and will be redelivered."""
        if self._task is not None:
            self._task.cancel()
        self._settling.stop()
        # It waits for the call under way; the loop must not, or nobody could give that up.
        await asyncio.to_thread(self._computing.stop)

    # -- computing ----------------------------------------------------------------------------------------------------

    async def _compute_waiting(self) -> None:
        """Compute what waits, together as far as it goes, until nothing does."""
        while self._waiting or self._begun:
            self._begin_waiting()
            if not self._begun:
                continue
            parts, computed = self._begun[0]
            try:
                await computed
            except Exception as error:  # noqa: BLE001 - the loop's edge: nothing is acknowledged, the worker stops
                self.in_flight.ended(parts)
                self.in_flight.fail(error)
            else:
                self._settling.settle(parts)
            self._begun.popleft()
            await asyncio.sleep(0)  # what was computed here kept the loop from fetching and settling
        self._task = None

    def _begin_waiting(self) -> None:
        """Begin to compute what waits if nothing else is computed, and half a batch or more behind one that is.

        The pipeline's thread stood still for a tenth of the time until the event loop gave it the next batch.
        """
        while self._waiting and (not self._begun or (len(self._begun) == 1 and self._half_a_batch_waits())):
            taken: dict[TP, Part] = {}
            try:
                self._take(taken)
                if parts := list(taken.values()):
                    serving = self._live.serving()
                    clicks = sum(len(chunk.records) for part in parts for chunk, _ in part.chunks)
                    # By model: the first clicks of a new one have rows to rebuild.
                    kind, call = f"compute by {serving.kind}", partial(self._compute, parts, serving)
                    # On the event loop a worker would stand still as long as a leader is away.
                    may_wait = self._delivery.may_wait or any(part.may_be_redelivered for part in parts)
                    computed = self._computing.run(kind, clicks, call, may_wait=may_wait)
                    self._begun.append((parts, computed))
            except Exception as error:  # noqa: BLE001 - as above
                self.in_flight.ended(taken.values())
                self.in_flight.fail(error)

    def _half_a_batch_waits(self) -> bool:
        return sum(len(chunk.records) for chunk, _ in self._waiting) >= self._settings.clicks_together // 2

    def _take(self, parts: dict[TP, Part]) -> None:
        """Of the chunks that wait, move those that are computed together to `parts`, by partition."""
        clicks = 0
        while self._waiting:
            chunk, message = self._waiting[0]
            if parts and clicks + len(chunk.records) > self._settings.clicks_together:
                break
            lost = self.in_flight.failed or not self._consumer.owns(chunk.tp, chunk.generation)
            self._waiting.popleft()  # what raises before leaves it there, to be counted
            if lost:
                self.in_flight.ended([Part(Partition(chunk.generation), [], [(chunk, message)])])
                continue
            clicks += len(chunk.records)
            if chunk.tp not in parts:
                parts[chunk.tp] = Part(self._partition(chunk), [])
            parts[chunk.tp].chunks.append((chunk, message))
        if not self._waiting:
            self._taken.set()
        rankings = self._delivery.sending()
        for part in parts.values():
            part.rankings.append(rankings)

    def _partition(self, chunk: Chunk) -> Partition:
        partition = self._partitions.get(chunk.tp)
        if partition is None or partition.generation != chunk.generation:
            # A new generation: what is left of the old one will be redelivered in this one.
            ended_at = self._consumer.end_offset(chunk.tp) or 0
            partition = self._partitions[chunk.tp] = Partition(chunk.generation, ended_at=ended_at)
        return partition

    def _compute(self, parts: Sequence[Part], serving: Serving) -> None:
        if self._broken_off:
            raise StalledError("the clicks before these could not be computed")
        self._broken_off = True  # unless it comes to its end
        metrics, seconds = self._metrics, _Seconds()
        began_ns = time.time_ns()
        now_ms = began_ns // 1_000_000
        decoded = [self._decode(part, now_ms) for part in parts]
        clicks = [theirs for theirs, _ in decoded]
        seconds.of("decode")
        states = [self._read(part, theirs) for part, theirs in zip(parts, clicks, strict=True)]
        seconds.of("read")
        divided, without = serving.divided(clicks)
        computed: list[Computed] = []
        for n, (asked, theirs) in enumerate(divided):
            serves, results, applied = self._served(
                asked, divided[0][0], states, theirs, now_ms=now_ms, seconds=seconds
            )
            if serves is not asked:
                without += sum(map(len, theirs))
            for part, result, (_, rejected) in zip(parts, results, decoded, strict=True):
                part.states |= result.rows
                computed.append(Computed(part, result, serves, () if n else rejected, applied))
        for part in parts:
            part.partition.pending.update(part.states)
        self._settling.send(computed, began_ns, seconds.taken)
        if self._shadows is not None:
            for part, rows, records in zip(parts, states, clicks, strict=True):
                self._shadows.offer(part.last.tp.topic, part.last.tp.partition, now_ms, rows, records)

        for step, taken in seconds.taken.items():
            metrics.step(step).observe(taken)
        count = sum(len(chunk.records) for part in parts for chunk, _ in part.chunks)
        metrics.clicks.inc(count)
        metrics.chunk_clicks.observe(count)
        if redelivered := sum(one.result.redelivered for one in computed):
            metrics.redelivered.inc(redelivered)
        if unmoved := sum(one.result.unmoved for one in computed):
            metrics.unmoved.inc(unmoved)
        if rebuilt := sum(one.result.rebuilt for one in computed):
            metrics.rebuilt_rows.inc(rebuilt)
        if without:
            metrics.variant_fallbacks.inc(without)
        self._broken_off = False

    def _served(
        self,
        serves: Serves,
        first: Serves,
        states: Sequence[Mapping[str, SessionState]],
        clicks: Sequence[Records],
        *,
        now_ms: int,
        seconds: _Seconds,
    ) -> tuple[Serves, list[Recommended], Applied | None]:
        """Who ranked, and what came of it: `first` for a variant whose model cannot.

        A model that has no answer to one session must not keep all others from theirs, nor stop worker after worker.
        """
        if serves is not first and isinstance(self._live, LiveSplit):
            try:
                return serves, *self._recommend(serves.model, states, clicks, now_ms, seconds)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it
                self._live.withdraw(serves, error)
        try:
            return first, *self._recommend(first.model, states, clicks, now_ms, seconds)
        except NoAnswerError as error:
            self._tell(first.model, error)
        return first, *self._recommend_apart(first.model, states, clicks, now_ms, seconds)

    def _tell(self, model: Model, error: NoAnswerError) -> None:
        if model.version != self._cannot_rank:
            self._cannot_rank = model.version
            log.error(
                "the model cannot rank; the clicks of such a session get the most clicked items. Announce another one "
                "(`trainer rollback`)",
                version=model.version,
                error=str(error),
            )

    def _recommend(
        self,
        model: Model,
        states: Sequence[Mapping[str, SessionState]],
        clicks: Sequence[Records],
        now_ms: int,
        seconds: _Seconds,
    ) -> tuple[list[Recommended], Applied | None]:
        """One model's rankings and rows of each partition, and the state of items and rules that they keep to."""
        plans = self._plans(model, states, clicks)
        asked = queries(plans, model)
        seconds.of("advance")
        offers, applied = self._offers(model, plans, now_ms)
        results = rank(plans, asked, model, offers)
        seconds.of("rank")
        return results, applied

    def _recommend_apart(
        self,
        model: Model,
        states: Sequence[Mapping[str, SessionState]],
        clicks: Sequence[Records],
        now_ms: int,
        seconds: _Seconds,
    ) -> tuple[list[Recommended], Applied | None]:
        """The same where the model has no answer to some of the sessions."""
        offers, applied = self._offers(model, self._plans(model, states, clicks), now_ms)

        def recommend(asked: Callable[[Sequence[Plan], Model], Queries], some: Clicks) -> list[Recommended]:
            plans = self._plans(model, states, some)
            return rank(plans, asked(plans, model), model, offers)

        results = recommend_apart(partial(recommend, queries), partial(recommend, no_queries), clicks)
        seconds.of("rank")
        return results, applied

    def _plans(self, model: Model, states: Sequence[Mapping[str, SessionState]], clicks: Clicks) -> list[Plan]:
        return [plan(rows, theirs, model, self._settings.rules) for rows, theirs in zip(states, clicks, strict=True)]

    def _offers(
        self, model: Model, plans: Sequence[Plan], now_ms: int
    ) -> tuple[Mapping[str | None, Offer] | None, Applied | None]:
        """What may be shown in the markets of the clicks, and by which state of items and rules."""
        if self._catalogue is None:
            return None, None
        markets = {sourced.click.market for one in plans for sourced in one.clicks}
        offered = self._catalogue.offered(model, markets, now_ms)
        return offered.by_market, offered.applied

    def _decode(self, part: Part, now_ms: int) -> tuple[list[SourcedClick | SourcedForget], list[RejectedClick]]:
        clicks: list[SourcedClick | SourcedForget] = []
        rejected: list[RejectedClick] = []
        limits, tp, decode_click = self._settings.limits, part.last.tp, self._decode_click
        for chunk, _ in part.chunks:
            for record in chunk.records:
                judged_at = _judged_at(record, now_ms)
                if record.trace is not None:
                    part.traces[record.offset] = record.trace
                try:
                    click = decode_click(record.key, record.value, now_ms=judged_at, limits=limits)
                except ClickRejectedError as error:
                    if (request := decode_forget(record.key, record.value)) is not None:
                        clicks.append(SourcedForget(request.session_id, record.offset))
                        self._metrics.forgotten.inc()
                        continue
                    source = Source(tp.topic, tp.partition, record.offset)
                    rejected.append(reject(error, source=source, key=record.key, value=record.value, now_ms=now_ms))
                    self._metrics.rejected.labels(reason=error.reason.value).inc()
                else:
                    clicks.append(SourcedClick(click, record.offset))
        return clicks, rejected

    def _read(self, part: Part, clicks: list[SourcedClick | SourcedForget]) -> dict[str, SessionState]:
        session_ids = {one.session_id if isinstance(one, SourcedForget) else one.click.session_id for one in clicks}
        pending = part.partition.pending
        rows = {session_id: pending[session_id] for session_id in session_ids & pending.keys()}
        rows |= self._table.states(part.last.tp.partition, session_ids - rows.keys())
        first = part.chunks[0][0].records[0].offset
        if ahead := {session_id: row for session_id, row in rows.items() if row.offset >= first}:
            for session_id in self._of_lost_clicks(part, _ahead(ahead, clicks)):
                del rows[session_id]
                part.begun_anew.add(session_id)
        return rows

    def _of_lost_clicks(self, part: Part, ahead: Mapping[str, SessionState]) -> Sequence[str]:
        """The sessions whose rows name a click that the topic does not have.

        A row ahead of these clicks says that some of them are out. After Kafka has lost records that it had confirmed,
        it says so of other clicks, which have their offsets now.
        """
        tp, partition = part.last.tp, part.partition
        ordered = sorted(ahead, key=lambda session_id: ahead[session_id].offset)
        # What is lost is lost from some offset on: mostly one look at the furthest tells that nothing is.
        there, lost = 0, len(ordered)
        look = lost - 1
        while there < lost:
            row = ahead[ordered[look]]
            if row.offset <= partition.there or self._is_there(tp, ordered[look], row):
                partition.there = max(partition.there, row.offset)
                there = look + 1
            else:
                lost = look
            look = (there + lost) // 2
        if there < len(ordered):
            log.warning(
                "sessions begin anew: Kafka lost their last clicks, which it had confirmed",
                partition=tp.partition,
                sessions=len(ordered) - there,
                first=ahead[ordered[there]].offset,
            )
        return ordered[there:]

    def _is_there(self, tp: TP, session_id: str, row: SessionState) -> bool:
        """Whether the click that a row names is in the topic."""
        record = self._consumer.record_at(tp, row.offset)
        if record is None or record.key != session_id.encode():
            return False
        judged_at = _judged_at(record, time.time_ns() // 1_000_000)
        if self._schemas is not None:
            self._schemas.ready([record.value])
        try:
            click = self._decode_click(record.key, record.value, now_ms=judged_at, limits=self._settings.limits)
        except ClickRejectedError:
            return decode_forget(record.key, record.value) is not None
        # A later click of the same session may have come to this offset.
        same = row.recent[-1:] == (click.item_id,) and click.timestamp <= row.last_click
        return same or not moves_on(click, self._settings.rules)


def _ahead(rows: Mapping[str, SessionState], clicks: Sequence[SourcedClick | SourcedForget]) -> dict[str, SessionState]:
    """Those rows that are at the first click of their session, or ahead of it."""
    first: dict[str, int] = {}
    for one in clicks:
        first.setdefault(one.session_id if isinstance(one, SourcedForget) else one.click.session_id, one.offset)
    return {session_id: row for session_id, row in rows.items() if row.offset >= first[session_id]}


def _judged_at(record: Record, now_ms: int) -> int:
    """By which time a click is judged, in milliseconds since the epoch.

    The broker's where it keeps it: a redelivered click must be judged as it was the first time.
    """
    return record.timestamp if record.timestamp_type == _LOG_APPEND_TIME else now_ms
