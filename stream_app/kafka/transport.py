"""The Faust transport that hands the records of one partition over in chunks; clicks are read by `ClickReader`.

Faust makes several asyncio tasks for each message it passes to a stream (about 500 µs), and a few for each that it
restores a table from; a chunk pays that once for hundreds of clicks, or rows. All else goes its usual way.

The overridden methods are private to faust-streaming, which is why its version is pinned exactly;
`tests/integration/test_transport.py` holds what we rely on.
"""

import asyncio
import logging
import math
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import faust
import structlog
from aiokafka.errors import ConsumerStoppedError
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage, Message

from stream_app.kafka.click_reader import ClickReader, Record
from stream_app.kafka.membership import StaticMembership

log = structlog.get_logger(__name__)

_RECOVERY_CHECK_SECONDS = 0.02
_LONGEST_WAIT_MS = 50
_REST_SECONDS = 1.0
"""How often aiokafka looks for something to fetch when there is nothing."""
# A rebalance waits for the fetch under way, and a fetch at most so long for a record.
_LONGEST_FETCH_SECONDS = 0.1
_OF_TOPIC = " is the leader epoch of topic "
_NOTED = re.compile(rf"(?P<epoch>-?[0-9]{{1,9}}){_OF_TOPIC}(?P<topic>.*)", re.ASCII | re.DOTALL)


def now() -> float:
    """Seconds on a clock that also runs while the host is suspended: a session timeout does."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(slots=True)
class Chunk:
    """Records of one partition that are handled together; of the clicks topic made durable and acknowledged together.

    Attributes:
        tp: the partition.
        records: at least one, ascending offsets.
        generation: of the consumer group in which they were fetched.
        durable: set once rankings and rows are durable; only then does the consumer take an acknowledgement.
        read_ns: when it was read, in nanoseconds since the epoch.
    """

    tp: TP
    records: Sequence[Record]
    generation: int
    durable: bool = False
    read_ns: int = field(default_factory=time.time_ns)


@dataclass(slots=True, weakref_slot=True)
class Fetch:
    """Chunks that one fetch brought, of several partitions: one event to Faust, whose way for each is long.

    Attributes:
        chunks: each with the message by which it is acknowledged.
    """

    chunks: Sequence[tuple[Chunk, ConsumerMessage]]


class ChunkSchema(faust.Schema):
    """Passes a fetch through to the agent, or a chunk to the table, as it is; they decode the records."""

    def loads_key(self, app: Any, message: Message, **_: Any) -> None:
        """There is none."""
        return

    def loads_value(self, app: Any, message: Message, **_: Any) -> Any:
        """The fetch or chunk itself."""
        return message.value


class _ChunkConsumerThread(driver.AIOKafkaConsumerThread):
    """A member of the group that fetches the changelog only, and remembers what it was told.

    Attributes:
        last_heartbeat: when the broker last confirmed that this worker is a member of its group; before it has joined,
            when it asked to.
        last_at_rest: the last of those confirmations that told of no rebalance.
    """

    logger = logging.getLogger("faust")  # as quiet as the services it is one of
    last_heartbeat: float = -math.inf  # not asked yet: the clock begins when the machine does
    last_at_rest: float = -math.inf
    membership: StaticMembership | None = None

    def on_crash(self, msg: str, *fmt: Any, **_: Any) -> None:
        """Log the error at hand; Faust prints it, in the middle of a JSON log."""
        log.error("the consumer's thread has ended", error=msg.format(*fmt), exc_info=True)

    async def on_start(self) -> None:
        await super().on_start()
        if (instance := self.app.conf.consumer_group_instance_id) is not None:
            coordinator = self._ensure_consumer()._coordinator
            self.membership = StaticMembership(coordinator, instance, self.app.on_fatal)
        self._observe_heartbeats()
        self._commit_epochs()
        self._fetch_the_changelog_only()

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Ask to join the group. A coordinator that is away from the start is waited for as in any outage."""
        if self.last_heartbeat == -math.inf:
            self.last_heartbeat = now()  # `last_at_rest` stays: nobody has confirmed anything yet
        await super().subscribe(topics)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Wait for the worker's own thread, but not beyond a stop.

        That thread asks this one in turn. A stop cancels its question or leaves it without an answer, and aiokafka
        waited for that before it left the group: a worker that stopped in a rebalance took a minute and stayed in it.
        """
        await self.wait(super().on_partitions_revoked(revoked))

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """As `on_partitions_revoked`."""
        await self.wait(super().on_partitions_assigned(assigned, generation_id))

    async def on_thread_stop(self) -> None:
        """Leave the group on a stop that was asked for: others take the partitions over at once.

        A worker that fails keeps its place for its next start.
        """
        if self.membership is not None and self.app.leaves_group:
            self.membership.leave()
        await super().on_thread_stop()

    def _fetch_the_changelog_only(self) -> None:
        """Let aiokafka rest but for the changelog, and that while tables are restored: `ClickReader` reads the clicks.

        What Faust pauses, aiokafka fetches all the same: an idle worker asked for its own changelog twenty times a
        second.
        """
        fetcher = self._ensure_consumer()._fetcher
        actions, send = fetcher._get_actions_per_node, fetcher._proc_fetch_request

        def rested(assignment: Any) -> Any:
            restoring = not self.app.tables.actives_ready
            for tp in assignment.tps:
                state = assignment.state_value(tp)
                if restoring and tp.topic != self.app.clicks_topic:
                    state.resume()
                else:
                    state.pause()
            requests, resets, seconds, *others = actions(assignment)
            return requests, resets, seconds if restoring else _REST_SECONDS, *others

        async def answered(assignment: Any, node_id: int, request: Any) -> Any:
            try:
                return await send(assignment, node_id, request)
            except asyncio.CancelledError:
                # Whoever closes the fetcher does not expect more, and its own answers so too; but not while it rests
                # after a broker that did not answer. The thread then ended without a word, and a stop waited a minute.
                return False

        fetcher._get_actions_per_node = rested
        fetcher._proc_fetch_request = answered
        fetcher._client_rack = self.app.client_rack  # Faust has no setting for it
        fetcher._fetch_max_wait_ms = _LONGEST_WAIT_MS  # a seek waits for the fetch under way: Faust lets it take 1.5 s

    def _commit_epochs(self) -> None:
        """Note beside each committed offset the epoch of the leader that had the clicks below it, and their topic.

        aiokafka commits offsets alone. They do not tell whether the partition is still the one that was read.
        """
        consumer = self._ensure_consumer()
        commit = consumer.commit

        async def commit_with_epochs(offsets: Mapping[TP, OffsetAndMetadata]) -> None:
            known = self.consumer.reader.epochs
            noted = {
                tp: OffsetAndMetadata(one.offset, f"{known[tp]}{_OF_TOPIC}{self.app.clicks_id}")
                for tp, one in offsets.items()
                if tp in known
            }
            await commit({**offsets, **noted})

        consumer.commit = commit_with_epochs

    async def committed_epochs(self, partitions: Iterable[TP]) -> tuple[dict[TP, int], set[TP]]:
        """Those epochs, of the partitions that have one; and the partitions whose offset is of another topic.

        A worker that runs while its topic is created anew commits to the new one what it had of the old one.
        """
        coordinator = self._ensure_consumer()._coordinator
        asked = [driver.ensure_aiokafka_TP(tp) for tp in partitions]
        committed = await self.call_thread(coordinator.fetch_committed_offsets, asked)
        noted = {TP(*tp): _NOTED.fullmatch(one.metadata or "") for tp, one in committed.items()}
        ours = {tp: found for tp, found in noted.items() if found}  # what others committed for the group says nothing
        epochs = {tp: int(found["epoch"]) for tp, found in ours.items() if found["topic"] == self.app.clicks_id}
        return epochs, ours.keys() - epochs.keys()

    def _observe_heartbeats(self) -> None:
        coordinator = self._ensure_consumer()._coordinator
        beat = coordinator._do_heartbeat

        async def observed_heartbeat() -> bool:
            asked = now()  # before: the host may be frozen between the answer and our reading it
            confirmed = bool(await beat())
            if confirmed:
                self.last_heartbeat = asked
                # aiokafka takes "a rebalance is in progress" for a confirmation too, and remembers it.
                if not coordinator._rejoin_needed_fut.done():
                    self.last_at_rest = asked
            return confirmed

        coordinator._do_heartbeat = observed_heartbeat

    @property
    def is_started(self) -> bool:
        return self._consumer is not None

    def assigned(self) -> Set[TP]:
        """The partitions as aiokafka has them, which are equal to Faust's: turning all into those cost 30 µs a look."""
        assigned: Set[TP] = self._ensure_consumer().assignment()
        return assigned

    def positions(self, partitions: Iterable[TP]) -> dict[TP, int]:
        """Where aiokafka would read on, of those partitions that have a position."""
        subscription = self._ensure_consumer()._subscription.subscription
        if subscription is None or subscription.assignment is None:
            return {}
        states = {tp: subscription.assignment.state_value(tp) for tp in partitions}
        return {tp: state.position for tp, state in states.items() if state is not None and state.has_valid_position}

    def reading(self) -> Any:
        """A context in which clicks are read: aiokafka leaves a group for which nothing is read."""
        return self._ensure_consumer()._subscription.fetch_context()

    def group_generation(self) -> int:
        """The generation in which the broker knows this worker; -1 once it was told that it is no member."""
        if self.membership is not None and self.membership.fenced:
            return -1
        return int(self._ensure_consumer()._coordinator.generation)


class _ReadOffsets(defaultdict[TP, int | None]):
    """Faust's last read offsets, unknown for clicks.

    Faust drops a message whose offset is below the last one that it handed over before it sought back. A chunk's
    offset is that of its last record: after a seek a shorter chunk would be dropped with clicks that nobody saw.
    What is read twice is recognised by its rows.
    """

    def __init__(self, clicks_topic: str) -> None:
        super().__init__(lambda: None)
        self._clicks_topic = clicks_topic

    def __getitem__(self, tp: TP) -> int | None:
        return None if tp.topic == self._clicks_topic else super().__getitem__(tp)


class ChunkConsumer(driver.Consumer):
    """One message for all clicks of a fetch, acknowledged chunk by chunk; one for each chunk of changelog records."""

    logger = logging.getLogger("faust")  # as quiet as the services it is one of
    _thread: _ChunkConsumerThread
    _joining_since: float = -math.inf

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_offset = _ReadOffsets(self.app.clicks_topic)
        self._no_fetch = asyncio.Event()
        self._no_fetch.set()
        # Read once: a look at Faust's settings takes 15 µs, and each batch asks four times.
        conf = self.app.conf
        self._expelled_seconds = float(conf.broker_session_timeout), float(conf.broker_rebalance_timeout)
        self._settled: dict[TP, int] = {}
        self.reader: ClickReader = self.app.new_click_reader()

    def _new_consumer_thread(self) -> _ChunkConsumerThread:
        return _ChunkConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _is_clicks(self, tp: TP) -> bool:
        return bool(tp.topic == self.app.clicks_topic)

    def _in_chunks(self, tp: TP) -> bool:
        return self._is_clicks(tp) or bool(tp.topic == self.app.sessions.changelog_topic_name)

    async def _getmany(self, active_partitions: set[TP], timeout: float) -> Any:
        self._no_fetch.clear()
        try:
            return await self._fetch(active_partitions, min(timeout, _LONGEST_FETCH_SECONDS))
        finally:
            self._no_fetch.set()

    async def _fetch(self, active_partitions: set[TP], timeout: float) -> Any:
        """The changelog until the tables are recovered, then clicks.

        Faust lets the clicks partitions go before it seeks them to their committed offsets, and then empties the
        queues that what was read meanwhile has gone to. It empties its own set of partitions while a fetch goes on,
        too, and to aiokafka an empty set means all that are assigned: a fetch has one of its own.
        """
        ready = self.app.tables.actives_ready
        partitions = {tp for tp in active_partitions if ready == self._is_clicks(tp)}
        if not partitions:
            await asyncio.sleep(_RECOVERY_CHECK_SECONDS)
            return {}
        if not ready:
            return await super()._getmany(partitions, timeout)
        await self.app.pipeline.wants_more()
        with self._thread.reading():
            records = await self.reader.read()
        while self.reader.went_back:  # Kafka has lost what was acknowledged last
            tp, at = self.reader.went_back.popitem()
            self._settled[tp], self._committed_offset[tp] = at, None
            self._acked.setdefault(tp, [])
        for tp in self.reader.passed:
            self._acked.setdefault(tp, [])  # or Faust does not ask for its offset
        return records

    async def _drain_messages(self, fetcher: Any) -> None:
        """Hand over what is fetched, until the fetcher stops.

        As Faust does, without its timer for each fetch and its four tasks for each message, which tell it of a
        rebalance while a queue is full: 60 µs of each batch.
        """
        try:
            while not (self.should_stop or fetcher.should_stop):
                async for tp, message in self.getmany(timeout=1.0):
                    read = self._read_offset[tp]
                    if read is not None and message.offset < read:
                        continue
                    if self._is_clicks(tp) and self.flow_active and self.app.takes_clicks():
                        await self.callback(message)
                    else:
                        await self.wait_first(self.callback(message), self.suspend_flow.wait())
                    self._read_offset[tp] = message.offset
        except (ConsumerStoppedError, asyncio.CancelledError):
            if not self.app.should_stop:
                raise

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Message]]:
        """One message a fetch for clicks, one a partition and fetch for the changelog, one a record for all others."""
        records, active = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        if records is None or active is None or self.should_stop:
            return
        if not self.flow_active:
            await self._seek_back()
            return
        wanted = {tp: batch for tp, batch in records.items() if tp in active or tp in self._buffered_partitions}
        for tp, message in self._messages(wanted, generation):
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return  # a rebalance: what is left will be fetched again by whoever gets the partition
            yield tp, message

    def _messages(
        self, records: Mapping[TP, Sequence[Record]], generation: int
    ) -> Iterator[tuple[TP, ConsumerMessage]]:
        clicks = [self._chunk(tp, batch, generation) for tp, batch in records.items() if self._is_clicks(tp) and batch]
        if clicks:
            first, _ = clicks[0]
            yield first.tp, self._message(first.tp, first.records, generation, Fetch(clicks))
        for tp, batch in records.items():
            if self._is_clicks(tp):
                continue
            if self._in_chunks(tp):
                if batch:
                    chunk, message = self._chunk(tp, batch, generation)
                    yield chunk.tp, message
                continue
            for record in batch:
                yield tp, self._to_message(tp, record)

    def _chunk(self, tp: TP, records: Sequence[Record], generation: int) -> tuple[Chunk, ConsumerMessage]:
        chunk = Chunk(tp, records, generation)
        return chunk, self._message(tp, records, generation, chunk)

    def _message(self, tp: TP, records: Sequence[Record], generation: int, value: Chunk | Fetch) -> ConsumerMessage:
        last = records[-1]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            (),
            None,
            value,
            None,
            0,
            0,
            tp,
            generation_id=generation,
        )

    def end_offset(self, tp: TP) -> int | None:
        """Where a clicks partition ended when it was last fetched, with what is open yet; None before that."""
        return self.reader.end_offset(tp)

    def record_at(self, tp: TP, offset: int) -> Record | None:
        """The record of a clicks partition at an offset, None if there is none. Raises ClicksUnreadableError."""
        return self.reader.record_at(tp, offset)

    async def verify_all_partitions_active(self) -> None:
        """Do without Faust's look for partitions that stand still.

        It reads positions that aiokafka's thread is changing, and one that a rebalance is seeking has none: aiokafka's
        assertion then ends the consumer, and the worker with it. What it finds it only logs, and of a fetch it knows
        the first partition alone. The watchdog ends a worker of which no partition moves; one that stands still alone
        shows in the metric of its lag (`stream_app.kafka.lag`).
        """

    async def perform_seek(self) -> None:
        """Seek to the committed offsets; clicks without one to their beginning.

        A fetch that a rebalance overtakes ends in the new generation and moves its positions past clicks that nobody
        gets. aiokafka leaves a partition that has no committed offset where it is.
        """
        await super().perform_seek()
        clicks = [tp for tp in self.assignment() if self._is_clicks(tp)]
        epochs, of_another_topic = await self._thread.committed_epochs(clicks)
        if of_another_topic:
            log.warning(
                "the group's offsets are of a clicks topic that is no more: all clicks of the present one are read",
                partitions=sorted(tp.partition for tp in of_another_topic),
            )
            self._committed_offset.update(dict.fromkeys(of_another_topic))
        uncommitted = [driver.ensure_aiokafka_TP(tp) for tp in clicks if not self._committed_offset[tp]]
        if uncommitted:
            await self._thread.seek_to_beginning(*uncommitted)
        begin = self._thread.positions(uncommitted)
        starts = {tp: self._committed_offset[tp] or begin.get(tp) for tp in clicks}
        for tp, at in starts.items():
            if at is not None:  # what is acknowledged and not committed yet stays so
                self._settled[tp] = max(at, self._settled.get(tp, 0))
        await self.reader.assign(starts, epochs)

    def on_buffer_full(self, tp: TP) -> None:
        """Faust would take the partition out of the fetches, and look again only after up to a second.

        Handing a chunk over waits for room in the agent's queue: that is back-pressure enough.
        """
        if not self._in_chunks(tp):
            super().on_buffer_full(tp)

    async def _seek_back(self) -> None:
        # Fetched while the flow was being stopped: the position has moved past records that nobody saw.
        try:
            await self.perform_seek()
        except Exception as error:  # noqa: BLE001 - Faust's consumer does the same; a lost seek means a rebalance is under way
            log.warning("could not seek back to the committed offsets during a rebalance", error=str(error))

    def ack(self, message: Message) -> bool:
        """Acknowledge a chunk, if it is durable: Faust itself acknowledges whatever an agent fails on."""
        if isinstance(message.value, Fetch) or (isinstance(message.value, Chunk) and not message.value.durable):
            return False
        if not super().ack(message):
            return False
        if self._is_clicks(message.tp):
            # Chunks are acknowledged in order, so the newest acknowledged offset says it all.
            self._settled[message.tp] = max(self._settled.get(message.tp, 0), message.offset + 1)
        return True

    def settled(self, tp: TP) -> int | None:
        """The offset of a clicks partition below which no click is left to do; None before it is known.

        It reaches the end of a partition that ends with the mark of a transaction, or with clicks of an aborted one:
        what a fetch passed over comes right after the last click that is acknowledged, or is still to be reached.
        """
        settled = self._settled.get(tp)
        begin, end = self.reader.passed.get(tp, (0, 0))
        return end if settled is not None and begin <= settled < end else settled

    def _new_offset(self, tp: TP) -> int | None:
        if not self._is_clicks(tp):
            offset: int | None = super()._new_offset(tp)
            return offset
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        return self.settled(tp)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        # Between two chunks' offsets there are the clicks of the second one, not a gap.
        if not self._is_clicks(tp):
            await super()._add_gap(tp, offset_from, offset_to)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Commit what is acknowledged first: Faust forgets it before its own last commit."""
        await self.commit()
        self._settled.clear()  # known again once it is sought
        await super().on_partitions_revoked(revoked)
        self._joining_since = now()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """A new generation begins; the broker confirmed this member at some time since it asked to join.

        A fetch of the old one ends first: its clicks would come behind the new one's seek.
        """
        self._thread.last_heartbeat = self._thread.last_at_rest = self._joining_since
        await self._no_fetch.wait()
        await self.reader.prepare(self.app.clicks_topic)
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_stop(self) -> None:
        """Commit, and read no more."""
        await super().on_stop()
        await asyncio.to_thread(self.reader.close)

    async def wait_empty(self) -> None:
        """Wait until no chunk is in flight, then commit.

        Faust waits until every message is acknowledged, which those never are whose partition was lost meanwhile.
        """
        await self.app.pipeline.drained()
        await self.commit_and_end_transactions()

    def owns(self, tp: TP, generation: int) -> bool:
        """Whether this worker still has the partition in the generation in which a chunk of it was fetched."""
        return (
            self.app.consumer_generation_id == generation
            and self._thread.group_generation() == generation
            and tp in self._thread.assigned()
        )

    def assigned_clicks(self) -> set[TP]:
        """The clicks partitions of this worker; none before the consumer has started."""
        return {TP(*tp) for tp in self._thread.assigned() if self._is_clicks(tp)} if self._thread.is_started else set()

    def seconds_since_heartbeat(self) -> float:
        """Since the broker last confirmed this member, or since it first asked to join.

        Beyond the session timeout another may have its partitions.
        """
        return now() - self._thread.last_heartbeat

    def may_be_expelled(self) -> bool:
        """Whether another worker may have this one's partitions without its knowing.

        The broker expels a member from which it has not heard for the session timeout. One that does not join a
        rebalance within the rebalance timeout it expels however often it hears from it; and that rebalance began after
        the last heartbeat that told of none.
        """
        session, rebalance = self._expelled_seconds
        return self.seconds_since_heartbeat() >= session or now() - self._thread.last_at_rest >= rebalance


class ChunkTransport(driver.Transport):
    """Faust's aiokafka transport with the chunk-wise consumer."""

    Consumer = ChunkConsumer
