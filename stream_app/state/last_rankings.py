"""The last ranking of each session on disk: a RocksDB of some partitions of the rankings topic.

A cache of that topic. It says up to where it was read; a store that is lost, damaged or of another topic costs reading
the last hours of rankings again.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import rocksdict
import structlog

from stream_app.errors import StoreError
from stream_app.state.damage import is_damage, is_held, known_damage, mark
from stream_app.state.database import StoreOptions, open_database

log = structlog.get_logger(__name__)

_POSITIONS: Final = b"position\xff"
"""No session's id: it is not UTF-8."""
_MOST_OFFSET: Final = 1 << 63


class LastRankings:
    """Session id (UTF-8) -> row, of partitions of one topic, by the topic's id. Raises StoreError throughout.

    Attributes:
        positions: of each partition, the offset of the first ranking that is not in the rows; empty in an empty store.
        was_of_another_topic: whether it was when it was opened.
    """

    positions: dict[int, int]
    was_of_another_topic: bool = False

    def __init__(self, path: Path, topic_id: str, options: StoreOptions, cache: Any, *, setting: str) -> None:
        self._path, self._topic_id = path, topic_id
        self._options, self._cache = options, cache
        damage = known_damage(path)
        if damage is None:
            try:
                self._db = open_database(path, options, cache)
                told = self._db.get(_POSITIONS)
            except Exception as error:
                if not is_damage(error, path):
                    hint = f". Is another process using the same {setting}?" if is_held(error) else ""
                    raise StoreError(f"RocksDB does not open {path}: {error}{hint}") from error
                damage = str(error)
            else:
                try:
                    self.positions = _positions_of(told or b"", topic_id)
                    self.was_of_another_topic = told is not None and not told.startswith(f"{topic_id} ".encode())
                except (ValueError, RecursionError) as error:
                    damage = f"how far it was read is not to be read from it: {error}"
                    self._db.close()
        if damage is not None:
            log.error("a store of last rankings is damaged and is made anew", path=str(path), error=damage)
            self._make_anew()

    def row(self, key: bytes) -> bytes | None:
        """The row under one key."""
        try:
            row: bytes | None = self._db.get(key)
        except Exception as error:
            raise self._failed(error) from error
        return row

    def rows(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The rows under `keys`, None where there is none."""
        try:
            rows: list[bytes | None] = self._db.get(list(keys))
        except Exception as error:
            raise self._failed(error) from error
        return rows

    def write(self, rows: Mapping[bytes, bytes | None], positions: Mapping[int, int]) -> None:
        """Rows, None for one that is to go, and the positions that they are of, all or none."""
        after = {**self.positions, **positions}
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, row in rows.items():
            if row is None:
                batch.delete(key)
            else:
                batch.put(key, row)
        batch.put(_POSITIONS, f"{self._topic_id} {json.dumps(after)}".encode())
        try:
            self._db.write(batch)
        except Exception as error:
            raise self._failed(error) from error
        self.positions = after

    def clear(self) -> None:
        """Forget all rows."""
        with suppress(Exception):  # what it cannot flush is to go in any case
            self._db.close()
        self._make_anew()

    def close(self) -> None:
        """Let another process open it."""
        try:
            self._db.close()
        except Exception as error:
            raise self._failed(error) from error

    def _make_anew(self) -> None:
        self._db = None  # or the damaged one keeps its lock
        try:
            shutil.rmtree(self._path, ignore_errors=True)
            self._db = open_database(self._path, self._options, self._cache)
        except Exception as error:
            raise StoreError(f"RocksDB does not open {self._path}: {error}") from error
        self.positions = {}

    def _failed(self, error: Exception) -> StoreError:
        if is_damage(error, self._path):
            mark(self._path, str(error))
        return StoreError(f"the store {self._path} cannot be used: {error}; the next start makes a damaged one anew")


def _positions_of(told: bytes, topic_id: str) -> dict[int, int]:
    """As a store tells them; none where they are of another topic. Raises ValueError, and RecursionError."""
    of_topic, _, positions = told.decode().partition(" ")
    found = json.loads(positions) if of_topic == topic_id else {}
    if isinstance(found, int):  # of a version that kept one partition a store
        return {}
    known = {int(number): offset for number, offset in found.items()} if isinstance(found, dict) else {}
    if not isinstance(found, dict) or not all(
        type(one) is int and 0 <= one < _MOST_OFFSET for pair in known.items() for one in pair
    ):
        raise ValueError(f"its positions are {positions[:100]}")
    return known
