"""From what was computed to the acknowledgement: the order in which a chunk's effects become durable.

rankings -> changelog -> RocksDB -> acknowledgement. A row says "the rankings up to this offset are out", so it must
never become durable before they are; an acknowledgement says the same of the row. What has been computed while other
chunks became durable becomes durable together.
"""

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Final, TypeVar

from faust.types import TP
from msgspec.structs import replace

from schemas.messages.headers import JSON, Headers, ranking_headers, rejected_headers
from schemas.messages.ranking import Applied, RankedItem, Ranking, encode_ranking
from schemas.messages.rejected import RejectedClick, encode_rejected
from schemas.messages.source import Source
from stream_app.core.ranked import RankedClick
from stream_app.core.ranked_offers import with_pins
from stream_app.core.recommend import Recommended
from stream_app.core.state_codec import encode_state
from stream_app.kafka.transport import ChunkConsumer
from stream_app.serve.computing import Computing
from stream_app.serve.delivery import Delivery, Record, Sending
from stream_app.serve.in_flight import InFlight, Part
from stream_app.serve.metrics import Metrics
from stream_app.serve.serving import Serves
from stream_app.state.table import SessionTable

if TYPE_CHECKING:
    from stream_app.serve.click_spans import ClickSpans

T = TypeVar("T")
_HEARTBEAT_CHECK_SECONDS: Final = 0.05
# Each partition costs a request to the changelog and a write to RocksDB, however few its rows are: as long as fewer
# clicks than these wait, they wait so long for others. Nobody waits for them: their rankings are out.
_FEW_CLICKS: Final = 256
_COMPANY_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class SettlingSettings:
    """What settling has to know.

    Attributes:
        rankings: topic of the rankings.
        rejected: topic of the records that are no click.
        changelog: the table's changelog topic.
        headers: whether rankings have headers beside those of a trace.
        encode: from a ranking to the value of its record.
        content_type: of such values.
    """

    rankings: str
    rejected: str
    changelog: str
    headers: bool = False
    encode: Callable[[Ranking], bytes] = encode_ranking
    content_type: bytes = JSON


@dataclass(frozen=True, slots=True)
class Computed:
    """What a model made of a part's clicks.

    Attributes:
        result: rankings and rows.
        rejected: records that are no click.
        applied: state of items and rules that the rankings keep to.
    """

    part: Part
    result: Recommended
    serves: Serves
    rejected: Sequence[RejectedClick] = ()
    applied: Applied | None = None


class Settling:
    """Sees computed parts through to their acknowledgement; those of one partition in the order of their offsets.

    Takes turns with what computes: a thread of its own answered 0.9 times as many clicks at 5,000 items, since the two
    took the interpreter from each other.
    """

    def __init__(
        self,
        settings: SettlingSettings,
        *,
        computing: Computing,
        table: SessionTable,
        delivery: Delivery,
        metrics: Metrics,
        consumer: ChunkConsumer,
        in_flight: InFlight,
        spans: "ClickSpans | None" = None,
    ) -> None:
        self._settings = settings
        self._table = table
        self._delivery = delivery
        self._metrics = metrics
        self._consumer = consumer
        self._in_flight = in_flight
        self._spans = spans
        self._waiting: list[Part] = []
        self._clicks = 0  # of those that wait
        self._enough = asyncio.Event()
        self._urgent = 0
        self._settling: asyncio.Task[None] | None = None
        self._computing = computing

    def settle(self, parts: Sequence[Part]) -> None:
        """Make durable and acknowledge what was sent; goes on by itself."""
        self._waiting += parts
        self._clicks += sum(len(chunk.records) for part in parts for chunk, _ in part.chunks)
        if self._urgent or self._clicks >= _FEW_CLICKS:
            self._enough.set()
        if self._settling is None and self._waiting:
            self._settling = asyncio.create_task(self._settle(), name="settling")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """As long as somebody waits for what is in flight to end, nothing waits for company."""
        self._urgent += 1
        self._enough.set()
        try:
            yield
        finally:
            self._urgent -= 1
            if not self._urgent and self._clicks < _FEW_CLICKS:
                self._enough.clear()

    def stop(self) -> None:
        """Abandon what is not durable yet."""
        if self._settling is not None:
            self._settling.cancel()

    # -- on the event loop --------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Settle what waits together, and what came meanwhile after it.

        As long as each chunk was settled alone, half waited over 64 ms at 1,000 clicks a second, and 14 ms since.
        """
        loop = asyncio.get_running_loop()
        while self._waiting:
            timer = loop.call_later(_COMPANY_SECONDS, self._enough.set)
            await self._enough.wait()
            timer.cancel()
            waiting, self._waiting = self._waiting, []
            self._clicks = 0
            if not self._urgent:
                self._enough.clear()
            together: dict[int, Part] = {}
            for part in waiting:
                if id(part.partition) in together:
                    together[id(part.partition)].join(part)
                else:
                    together[id(part.partition)] = part
            try:
                await self._make_durable(list(together.values()))
            except Exception as error:  # noqa: BLE001 - the loop's edge: nothing is acknowledged, the worker stops
                for part in together.values():
                    part.partition.given_up = True
                self._in_flight.fail(error)
            self._in_flight.ended(together.values())
        self._settling = None

    async def _make_durable(self, parts: Sequence[Part]) -> None:
        metrics = self._metrics
        started = time.perf_counter()
        for part in parts:
            for rankings in part.rankings:
                await rankings.delivered()
            self._count(part)
        delivered = time.perf_counter()
        await self._leave_what_is_lost(parts)
        changelogs = [(part, self._delivery.sending()) for part in parts if not part.partition.given_up]
        if not changelogs:
            return
        changed = sum(len(part.states) for part, _ in changelogs)
        send = partial(self._send_changelogs, changelogs)
        await self._computing.run("changelog", changed, send, may_wait=self._delivery.may_wait)
        offsets = [await changelog.delivered() for _, changelog in changelogs]
        # Once more: it may have taken longer than a session timeout, and then others' rows lie between these.
        await self._leave_what_is_lost([part for part, _ in changelogs])
        write = partial(self._write, [part for part, _ in changelogs], offsets)
        await self._computing.run("write", changed, write, may_wait=False)
        for part, _ in changelogs:
            if part.partition.given_up:
                continue
            for chunk, message in part.chunks:
                chunk.durable = True
                self._consumer.ack(message)
        metrics.step("deliver").observe(delivered - started)
        metrics.step("write").observe(time.perf_counter() - delivered)

    async def _leave_what_is_lost(self, parts: Sequence[Part]) -> None:
        """Leave to the next owner the partitions that are no longer this worker's. Before each step that outlives it.

        While heartbeats are overdue (this host was frozen, or cut off) another worker may have a partition without our
        knowing: wait for the broker's word.
        """
        while True:
            for part in parts:
                if not part.partition.given_up and not self._consumer.owns(part.last.tp, part.last.generation):
                    part.partition.given_up = True
            if all(part.partition.given_up for part in parts) or not self._consumer.may_be_expelled():
                return
            await asyncio.sleep(_HEARTBEAT_CHECK_SECONDS)

    def _count(self, part: Part) -> None:
        for reason, count in Counter(part.reasons).items():
            self._metrics.ranked(reason).inc(count)
        # The oldest click: the others waited less.
        oldest, confirmed = part.chunks[0][0].records[0], part.rankings[0].finished_at
        self._metrics.end_to_end_seconds.observe(max(0.0, confirmed - oldest.timestamp / 1000))
        for spans in part.spans:
            spans.end()

    # -- in turn with what computes -----------------------------------------------------------------------------------

    def send(self, computed: Sequence[Computed], began_ns: int, steps: Mapping[str, float]) -> None:
        """Hand the models' rankings to librdkafka; `settle` has to follow on the event loop, in the same order.

        They were computed since `began_ns`, in nanoseconds since the epoch; each of the `steps` took so many seconds.
        """
        started = time.perf_counter()
        topics, now_ms = self._settings, began_ns // 1_000_000
        if self._spans is not None:
            self._spans.begin(computed, began_ns, steps)
        [rankings] = computed[0].part.rankings  # shared by all
        for one in computed:
            part, tp = one.part, one.part.last.tp
            parked = [(record.key, encode_rejected(record)) for record in one.rejected]
            rankings.send(topics.rejected, parked, headers=map(rejected_headers, one.rejected))
            answered = answers(one.result, tp, one.serves, now_ms, applied=one.applied, encode=topics.encode)
            if topics.headers or part.traces:
                common = ranking_headers(one.serves.model.version, topics.content_type) if topics.headers else []
                headers = headers_of(one.result, part.traces, common)
                rankings.send(topics.rankings, answered, headers=headers)
            else:
                rankings.send(topics.rankings, answered)
            part.reasons += [answer.reason.value for answer in one.result.ranked]
        rankings.seal()
        self._delivery.serve()
        self._metrics.step("encode").observe(time.perf_counter() - started)

    def _send_changelogs(self, changelogs: Sequence[tuple[Part, Sending]]) -> None:
        for part, changelog in changelogs:
            # Only now: of the rows that came meanwhile the newest of each session is enough.
            part.rows = {session_id.encode(): encode_state(state) for session_id, state in part.states.items()}
            # A restore keeps the row with the highest offset: first the one that names a lost click has to go.
            records: list[Record] = [(session_id.encode(), None) for session_id in part.begun_anew]
            records += part.rows.items()
            changelog.send(self._settings.changelog, records, partition=part.last.tp.partition)
            changelog.seal()
        self._delivery.serve()

    def _write(self, parts: Sequence[Part], changelog_offsets: Sequence[int]) -> None:
        for part, changelog_offset in zip(parts, changelog_offsets, strict=True):
            if not self._consumer.owns(part.last.tp, part.last.generation):
                part.partition.given_up = True  # lost since the last look
                continue
            if part.rows:
                deleted = len(part.begun_anew)
                self._table.write(part.last.tp.partition, part.rows, changelog_offset, deleted=deleted)
            pending = part.partition.pending
            for session_id, state in part.states.items():
                if pending.get(session_id) is state:
                    del pending[session_id]  # RocksDB has it now


def answers(
    result: Recommended,
    tp: TP,
    serves: Serves,
    now_ms: int,
    *,
    applied: Applied | None = None,
    follows: Sequence[int] | None = None,
    encode: Callable[[Ranking], bytes] = encode_ranking,
) -> list[Record]:
    """A model's rankings of a partition's clicks, and where a session was forgotten its key without a value.

    That stands behind the session's last ranking and before the first one of a session that begins anew: whoever keeps
    the latest one learns that there is none, and must not go on from it. `follows`: see `Ranking`, of each of them.
    """
    rankings = (_ranking(answer, tp, serves, now_ms, applied) for answer in result.ranked)
    if follows is not None:
        rankings = (replace(ranking, follows=offset) for ranking, offset in zip(rankings, follows, strict=True))
    records: list[Record] = [(ranking.session_id.encode(), encode(ranking)) for ranking in rankings]
    _insert_requests(records, result, [(request.session_id.encode(), None) for request in result.requests])
    return records


def headers_of(result: Recommended, traces: Mapping[int, Headers], common: Headers) -> list[Headers | None]:
    """The headers of each record of `answers`: those of all, and those of a trace by the offset of the click."""
    found: list[Headers | None]
    if traces:
        found = [common + traces.get(answer.offset, []) or None for answer in result.ranked]
    else:
        found = [common] * len(result.ranked)
    _insert_requests(found, result, [None] * len(result.requests))
    return found


def _insert_requests(found: list[T], result: Recommended, marks: Sequence[T]) -> None:
    for request, mark in zip(reversed(result.requests), reversed(marks), strict=True):  # those before keep their places
        found.insert(bisect_left(result.ranked, request.offset, key=attrgetter("offset")), mark)


def _ranking(answer: RankedClick, tp: TP, serves: Serves, now_ms: int, applied: Applied | None) -> Ranking:
    click, model = answer.click, serves.model
    item = model.vocabulary.items.__getitem__  # a top k holds no negative index
    items = tuple(map(RankedItem, map(item, answer.top_index), answer.top_score))
    return Ranking(
        session_id=click.session_id,
        event_id=click.event_id,
        item_id=click.item_id,
        model_version=model.version,
        items=with_pins(items, answer.pins, model.k) if answer.pins else items,
        source=Source(tp.topic, tp.partition, answer.offset),
        click_timestamp=click.timestamp,
        produced_at=now_ms,
        reason=answer.reason,
        rules=answer.rules,
        diversity=answer.diversity,
        applied=applied,
        type=click.type,
        market=click.market,
        variant=serves.variant,
    )
