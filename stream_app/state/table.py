"""The sessions table: a Faust table whose rows are read and written a chunk at a time.

Faust stays in charge of its changelog topic, its partitions and its recovery. Writes do not go through Faust's
`table[key] = value`: that is one changelog message and two RocksDB writes a row, and acknowledges nothing.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import faust
import structlog
from faust.types import TP, EventT

from stream_app.core.session import SessionState
from stream_app.core.state_codec import decode_state
from stream_app.errors import StoreError
from stream_app.kafka.transport import ChunkSchema
from stream_app.state.database import StoreOptions
from stream_app.state.store import SessionStore

log = structlog.get_logger(__name__)


class SessionTable(faust.Table):
    """Session id (UTF-8) -> session row (`state_codec`), one RocksDB a partition of the clicks topic."""

    logger = logging.getLogger("faust")  # as quiet as the services it is one of
    data: SessionStore

    def __init__(
        self, app: Any, *, store_options: StoreOptions, on_fatal: Callable[[BaseException], None], **kwargs: Any
    ) -> None:
        self._store_options = store_options
        self._on_fatal = on_fatal
        self.restored = 0
        self.stale = 0
        # By partition: the changelog offset up to which this worker has restored or written every record.
        self._seen: dict[int, int] = {}
        super().__init__(app, key_type=bytes, value_type=bytes, **kwargs)

    def _new_store(self) -> SessionStore:
        return SessionStore(
            "rocksdb://",
            self.app,
            self,
            table_name=self.name,
            key_type=self.key_type,
            key_serializer=self.key_serializer,
            value_type=self.value_type,
            value_serializer=self.value_serializer,
            loop=self.loop,
            store_options=self._store_options,
        )

    def _new_changelog_topic(self, **kwargs: Any) -> Any:
        topic = super()._new_changelog_topic(**kwargs)
        topic.schema = ChunkSchema()  # the transport hands its records over in chunks
        return topic

    def states(self, partition: int, session_ids: Iterable[str]) -> dict[str, SessionState]:
        """The states of those sessions that have a row. Raises RowError for a row that cannot be read."""
        ids = list(session_ids)
        rows = self.data.rows(partition, [session_id.encode() for session_id in ids])
        return {session_id: decode_state(row) for session_id, row in zip(ids, rows, strict=True) if row is not None}

    def write(self, partition: int, rows: Mapping[bytes, bytes], changelog_offset: int, *, deleted: int = 0) -> None:
        """Write rows whose changelog records are durable, the last of them at `changelog_offset`.

        Before them the changelog got records that delete so many older ones.

        The store then covers the changelog up to there, and a restore begins behind it; but only if all records up to
        there are this worker's or restored by it. One more (of a worker that was cut off, or that took this one's
        partition; an operator's) may hold a newer row than the store: until the next restore, it covers no more.
        """
        seen = self._seen.pop(partition, None)
        if seen is not None and changelog_offset == seen + deleted + len(rows):
            self._seen[partition] = changelog_offset
        elif seen is not None:
            log.warning(
                "others have written to the changelog beside this worker; the next restore begins before that",
                partition=partition,
                covered=seen,
                written=changelog_offset,
            )
        self.data.write_rows(partition, rows, self._seen.get(partition))

    def apply_changelog_batch(self, batch: Iterable[EventT]) -> None:
        """Restore rows during recovery; an event holds a chunk of changelog records.

        Faust's recovery logs and forgets whatever is raised here, and then waits forever for the rows that are missing:
        any error stops the worker instead.
        """
        by_partition: dict[int, list[tuple[bytes, bytes | None, int]]] = {}
        ends: dict[int, int] = {}
        for event in batch:
            chunk = event.message.value
            records = by_partition.setdefault(chunk.tp.partition, [])
            ends[chunk.tp.partition] = chunk.records[-1].offset
            for record in chunk.records:
                if record.key is None:
                    log.warning(
                        "a changelog record without a key is not ours",
                        partition=chunk.tp.partition,
                        offset=record.offset,
                    )
                    continue
                records.append((record.key, record.value, record.offset))
        try:
            for partition, records in by_partition.items():
                stale = self.data.apply_changelog(partition, records)
                self.restored += len(records)
                self.stale += stale
                self._seen[partition] = max(self._seen.get(partition, -1), ends[partition])
                if stale:
                    log.info(
                        "rows in the changelog that are older than the store's were left out",
                        rows=stale,
                        partition=partition,
                    )
        except Exception as error:
            self._on_fatal(error)
            raise

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Open and close partitions, and make sure that the changelog still covers what is stored locally."""
        await super().on_rebalance(assigned, revoked, newly_assigned, generation_id)
        # All, not the new ones alone: a partition that this worker lost and got back meanwhile is none of these.
        mine = {tp for tp in assigned if tp.topic == self.changelog_topic_name}
        if not mine:
            return
        ends = await self.app.consumer.highwaters(*mine)
        covered = {tp.partition: self.data.persisted_offset(tp) for tp in ends}
        log.info("restoring tables", covered={partition: covered[partition] for partition in sorted(covered)})
        for tp, end in ends.items():
            self.begin_restore(tp, covered[tp.partition], end)

    def begin_restore(self, tp: TP, covered: int | None, end: int | None) -> None:
        """Note what will have been seen when the changelog is restored up to its end; raises StoreError.

        Args:
            tp: the changelog's partition.
            covered: the changelog offset that the store covers; None if it is new.
            end: the changelog's end offset; None if it is not known.
        """
        # Clicks come only when all below the end is restored. What comes behind it until then is others'.
        self._seen[tp.partition] = max(-1 if covered is None else covered, (end or 0) - 1)
        if covered is not None and end is not None and covered >= end:
            raise StoreError(
                f"the local store of {tp.topic} partition {tp.partition} covers the changelog up to offset "
                f"{covered}, but the changelog ends at {end}: the topic was deleted and created again, or the "
                f"brokers lost records that they had confirmed. Delete {self.data.partition_path(tp.partition)} to "
                f"restore the partition from what the changelog has; if the clicks topic was created anew too, "
                f"start with a new worker.app_id"
            )
