"""The last ranking of each session on disk: a RocksDB for each partition of the rankings topic.

A cache of that topic. It says up to where it was read; a store that is lost, damaged or of another topic costs reading
the last hour or so of rankings again (`stream_app.score.restore`).
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import rocksdict
import structlog

from stream_app.errors import StoreError
from stream_app.state.damage import is_damage, is_held, known_damage, mark
from stream_app.state.database import StoreOptions, open_database

log = structlog.get_logger(__name__)

_POSITION: Final = b"position\xff"
"""No session's id: it is not UTF-8."""


class LastRankings:
    """Session id (UTF-8) -> row, of one partition of one topic, by the topic's id. Raises StoreError throughout."""

    def __init__(self, path: Path, topic_id: str, options: StoreOptions, cache: Any) -> None:
        self._path, self._topic_id = path, topic_id
        self._options, self._cache = options, cache
        damage = known_damage(path)
        if damage is None:
            try:
                self._db = open_database(path, options, cache)
                self.position = self._read_position()
            except Exception as error:
                if not is_damage(error, path):
                    hint = ". Is another process using the same scores.data_dir?" if is_held(error) else ""
                    raise StoreError(f"RocksDB does not open {path}: {error}{hint}") from error
                damage = str(error)
        if damage is not None:
            log.error("a store of last rankings is damaged and is made anew", path=str(path), error=damage)
            self._make_anew()

    position: int | None
    """The offset of the first ranking that is not in the rows; None in an empty store."""

    def rows(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The rows under `keys`, None where there is none."""
        try:
            rows: list[bytes | None] = self._db.get(list(keys))
        except Exception as error:
            raise self._failed(error) from error
        return rows

    def write(self, rows: Mapping[bytes, bytes | None], position: int) -> None:
        """Rows, None for one that is to go, and the position that they are of, all or none."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, row in rows.items():
            if row is None:
                batch.delete(key)
            else:
                batch.put(key, row)
        batch.put(_POSITION, f"{self._topic_id} {position}".encode())
        try:
            self._db.write(batch)
        except Exception as error:
            raise self._failed(error) from error
        self.position = position

    def clear(self) -> None:
        """Forget all rows."""
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
        self.position = None

    def _read_position(self) -> int | None:
        told = self._db.get(_POSITION)
        if told is None:
            return None
        topic_id, position = told.decode().split(" ")
        return int(position) if topic_id == self._topic_id else None

    def _failed(self, error: Exception) -> StoreError:
        if is_damage(error, self._path):
            mark(self._path, str(error))
        return StoreError(f"the store {self._path} cannot be used: {error}; the next start makes a damaged one anew")
