"""The RocksDB side of the sessions table: one database a partition, multi-get, one write batch a chunk."""

import logging
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import rocksdict
import structlog
from faust.stores import rocksdb

from stream_app.core.state_codec import row_offset
from stream_app.errors import RowError, StoreError
from stream_app.state.damage import is_damage, is_held, known_damage, mark, set_aside
from stream_app.state.database import StoreOptions, block_cache, open_database

log = structlog.get_logger(__name__)


_OFFSET: Final = re.compile(rb"\d{1,18}")


class _UnreadableOffsetError(Exception):
    """Nobody knows which part of the changelog a store has."""


class SessionStore(rocksdb.Store):
    """Faust's RocksDB store, addressed by partition instead of by the current event."""

    logger = logging.getLogger("faust")  # as quiet as the services it is one of
    # Faust's name would be a valid session id. This one is not UTF-8.
    offset_key = rocksdb.Store.offset_key + b"\xff"

    def __init__(self, *args: Any, store_options: StoreOptions, **kwargs: Any) -> None:
        super().__init__(*args, driver="rocksdict", **kwargs)
        self._store_options = store_options
        # The pipeline's thread reads and writes, as the event loop does, which also opens, restores and closes.
        self._lock = threading.RLock()
        self._cache = block_cache(store_options)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, partition: int, keys: Sequence[bytes]) -> list[bytes | None]:
        """The rows under `keys`, None where there is none."""
        with self._lock, self._marking_damage(partition):
            rows: list[bytes | None] = self._db_for_partition(partition).get(list(keys))
        return rows

    def write_rows(self, partition: int, rows: Mapping[bytes, bytes | None], changelog_offset: int | None) -> None:
        """Write rows and the changelog offset that a restore may begin behind, all or none; None leaves that offset.

        A row of None is deleted.
        """
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, row in rows.items():
            if row is None:
                batch.delete(key)
            else:
                batch.put(key, row)
        if changelog_offset is not None:
            batch.put(self.offset_key, str(changelog_offset).encode())
        with self._lock, self._marking_damage(partition):
            self._db_for_partition(partition).write(batch)

    def apply_changelog(self, partition: int, records: Iterable[tuple[bytes, bytes | None, int]]) -> int:
        """Restore rows from changelog records (key, row, changelog offset); returns how many were stale.

        A record never takes a row's source offset back: a worker that was frozen while its partition moved on may have
        appended an older row behind its successor's.
        """
        newest: dict[bytes, bytes | None] = {}
        stale, last = 0, -1
        listed = list(records)
        keys = list({key for key, _, _ in listed})
        known = {k: row_offset(row) for k, row in zip(keys, self.rows(partition, keys), strict=True) if row is not None}
        for key, row, changelog_offset in listed:
            last = max(last, changelog_offset)
            if row is None:
                newest[key] = None
                known.pop(key, None)
                continue
            try:
                offset = row_offset(row)
            except RowError as error:
                where = f"record {changelog_offset} of the changelog's partition {partition}, key {key[:300]!r}"
                raise RowError(f"{where}: {error}") from error
            if offset < known.get(key, -1):
                stale += 1
                continue
            known[key] = offset
            newest[key] = row
        self.write_rows(partition, newest, last if last >= 0 else None)
        return stale

    def live_rows(self) -> int:
        """RocksDB's estimate of the number of rows in all open partitions."""
        with self._lock:
            return sum(db.property_int_value("rocksdb.estimate-num-keys") or 0 for db in self._dbs.values())

    # -- databases ----------------------------------------------------------------------------------------------------

    def _open_for_partition(self, partition: int) -> Any:
        path = self.partition_path(partition)
        damage = known_damage(path)
        try:
            try:
                db = self._open(path)
            except Exception as error:
                if not (isinstance(error, _UnreadableOffsetError) or is_damage(error, path)):
                    raise
                damage = damage or str(error)
            else:
                if damage is None:
                    return db
                with suppress(Exception):  # it may say once more that it is damaged
                    db.close()  # only now is it certain that no other process has it
                del db
            # The changelog has it all: a damaged copy is not worth a stopped worker.
            log.error(
                "local store is damaged; it is set aside, and the partition is restored from the changelog",
                error=damage,
                path=str(path),
                aside=str(set_aside(path)),
            )
            return self._open(path)
        except Exception as error:
            hint = ". Is another worker using the same worker.data_dir?" if is_held(error) else ""
            raise StoreError(f"RocksDB does not open {path}: {error}{hint}") from error

    @contextmanager
    def _marking_damage(self, partition: int) -> Iterator[None]:
        """Damage that shows in service ends the worker, since only a start restores; that start must know of it.

        So does all else that RocksDB says: StoreError.
        """
        try:
            yield
        except Exception as error:
            path = self.partition_path(partition)
            if type(error) is not Exception:  # what RocksDB says comes as just that
                raise
            if not is_damage(error, path):
                raise StoreError(
                    f"the local store {path} cannot be used: {error}. Is there room on its disk, and may this user "
                    f"write to it?"
                ) from error
            mark(path, str(error))
            raise StoreError(
                f"the local store {path} is damaged: {error}. The next start sets it aside and restores the partition "
                f"from the changelog; look at the disk if it comes again"
            ) from error

    def _open(self, path: Path) -> Any:
        db = open_database(path, self._store_options, self._cache)
        covered = db.get(self.offset_key)  # a store of which not even this can be read is damaged; here it is mended
        if covered is not None and _OFFSET.fullmatch(covered) is None:
            db.close()
            raise _UnreadableOffsetError(f"the changelog offset that it covers is {covered[:40]!r}")
        return db

    def _db_for_partition(self, partition: int) -> Any:
        with self._lock:
            return super()._db_for_partition(partition)

    def revoke_partitions(self, table: Any, tps: Any) -> None:
        """Close the databases of partitions that are gone; Faust leaves that to the garbage collector."""
        with self._lock:
            for tp in tps:
                if tp.topic in table.changelog_topic.topics and (db := self._dbs.pop(tp.partition, None)) is not None:
                    self._close(tp.partition, db)

    async def stop(self) -> None:
        """Close all databases."""
        with self._lock:
            while self._dbs:
                self._close(*self._dbs.popitem())

    def _close(self, partition: int, db: Any) -> None:
        """What cannot be flushed because of damage is in the changelog, too; else raises what RocksDB says."""
        try:
            db.close()
        except Exception as error:
            path = self.partition_path(partition)
            if not is_damage(error, path):
                raise
            mark(path, str(error))
            log.error(
                "local store is damaged; it is restored from the changelog when it is opened again",
                error=str(error),
                path=str(path),
            )
