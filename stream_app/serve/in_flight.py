"""What is on its way through the worker: fetched, and not acknowledged yet."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from faust.types import Message

from schemas.messages.headers import Headers
from stream_app.core.session import SessionState
from stream_app.kafka.transport import Chunk
from stream_app.serve.delivery import Sending
from stream_app.serve.metrics import Metrics

if TYPE_CHECKING:
    from stream_app.serve.click_spans import OpenSpans

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Partition:
    """One partition in one generation.

    Attributes:
        pending: newest states of its sessions that are not in RocksDB yet.
        given_up: whether a chunk was left to the next owner: then all behind it are, as an acknowledgement covers
            every offset below it.
        there: the furthest offset of a row that is known to be of a click in the topic; -1 as long as none is.
        ended_at: where the partition ended when its first chunk came: clicks from there on are not redelivered.
    """

    generation: int
    pending: dict[str, SessionState] = field(default_factory=dict)
    given_up: bool = False
    there: int = -1
    ended_at: int = 0


@dataclass(slots=True)
class Part:
    """Chunks of one partition, in order, on their way together.

    Attributes:
        rankings: their delivery, which other parts share with whom they were computed.
        states: what they lead to.
        rows: the same by key, as bytes, once they are on their way to the changelog.
        begun_anew: sessions among them whose rows named a click that Kafka has lost.
        reasons: one of each of their rankings.
        traces: by the offset of a click, the trace headers of its ranking: the click's own, unless spans are told.
        spans: of traced clicks, which Kafka's confirmation ends.
    """

    partition: Partition
    rankings: list[Sending]
    chunks: list[tuple[Chunk, Message]] = field(default_factory=list)
    states: dict[str, SessionState] = field(default_factory=dict)
    rows: dict[bytes, bytes] = field(default_factory=dict)
    begun_anew: set[str] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)
    traces: dict[int, Headers] = field(default_factory=dict)
    spans: list["OpenSpans"] = field(default_factory=list)

    @property
    def may_be_redelivered(self) -> bool:
        """Whether rows may be ahead of its clicks: then Kafka is asked for the clicks that they name."""
        return self.chunks[0][0].records[0].offset < self.partition.ended_at

    @property
    def last(self) -> Chunk:
        """The chunk with the highest offsets."""
        return self.chunks[-1][0]

    def join(self, later: "Part") -> None:
        """Take in what comes behind; of a session's rows the newest says what the others said."""
        self.rankings += later.rankings
        self.chunks += later.chunks
        self.states |= later.states
        self.begun_anew |= later.begun_anew
        self.reasons += later.reasons
        self.spans += later.spans


class InFlight:
    """Counts what is on its way; everything on the event loop.

    Attributes:
        chunks: taken, and neither acknowledged nor given up.
        clicks: of those that have room.
        finished: chunks that were acknowledged.
        failed: whether the worker ends: then nothing more is begun.
    """

    def __init__(self, metrics: Metrics, on_fatal: Callable[[BaseException], None]) -> None:
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._room = asyncio.Event()
        self.chunks = self.clicks = self.finished = 0
        self.failed = False

    def has_room(self, clicks: int, most: int) -> bool:
        """Whether so many more clicks fit; any number does where there are none."""
        return not self.clicks or self.clicks + clicks <= most

    async def wait_for_room(self, clicks: int, most: int) -> None:
        """Wait until they fit."""
        while not self.has_room(clicks, most):
            self._room.clear()
            await self._room.wait()

    def moved(self, by: int) -> None:
        """So many chunks came, or went."""
        self.chunks += by
        self._metrics.chunks_in_flight.set(self.chunks)

    def ended(self, parts: Iterable[Part]) -> None:
        """Chunks that are acknowledged, or are their partitions' next owner's: whatever is not durable by now."""
        for part in parts:
            for chunk, _ in part.chunks:
                self.clicks -= len(chunk.records)
                self.moved(-1)
                if chunk.durable:
                    self.finished += 1
                elif not self.failed:
                    self._metrics.dropped_chunks.inc()
                    log.info(
                        "chunk left to its partition's next owner",
                        partition=chunk.tp.partition,
                        clicks=len(chunk.records),
                    )
        self._room.set()

    def fail(self, error: BaseException) -> None:
        """The worker cannot go on; the first error tells why."""
        if not self.failed:
            self.failed = True
            self._on_fatal(error)
