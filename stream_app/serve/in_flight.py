"""What is on its way through the worker: fetched, and not acknowledged yet."""

from collections import Counter
from dataclasses import dataclass, field

from faust.types import Message

from stream_app.core.session import SessionState
from stream_app.kafka.transport import Chunk
from stream_app.serve.delivery import Batch


@dataclass(slots=True)
class Partition:
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
class Part:
    """Chunks of one partition, in order, on their way together.

    Attributes:
        rankings: their delivery.
        states: what they lead to.
        rows: the same as bytes, once they are on their way to the changelog.
        reasons: of their rankings.
    """

    partition: Partition
    rankings: list[Batch]
    chunks: list[tuple[Chunk, Message]] = field(default_factory=list)
    states: dict[str, SessionState] = field(default_factory=dict)
    rows: dict[bytes, bytes] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def last(self) -> Chunk:
        """The chunk with the highest offsets."""
        return self.chunks[-1][0]

    def join(self, later: "Part") -> None:
        """Take in what comes behind; of a session's rows the newest says what the others said."""
        self.rankings += later.rankings
        self.chunks += later.chunks
        self.states |= later.states
        self.reasons += later.reasons
