"""Where lookups find the latest ranking of a session: in this process's RocksDB, or in the Redis that a sink fills."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, urlsplit

import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import RedisError
from redis.retry import Retry

from stream_app.api.latest import Latest, decode_row, encode_row, value_of
from stream_app.api.redis_rows import RANKING, ranking_key
from stream_app.errors import StoreError
from stream_app.state.database import StoreOptions, block_cache
from stream_app.state.last_rankings import LastRankings

_FOLDER: Final = "rankings"
_ANSWER_SECONDS: Final = 2.0


class Store(Protocol):
    """What lookups ask."""

    async def ranking(self, session: bytes) -> bytes | None:
        """The JSON of a session's latest ranking, None without one. Raises StoreError."""

    async def close(self) -> None:
        """Leave it."""


class EmbeddedStore:
    """RocksDB, in this process alone. Filled by the thread that reads rankings, asked by the event loop."""

    def __init__(self, data_dir: Path, topic_id: str, *, ttl_ms: int, cache_mb: int) -> None:
        self.topic_id = topic_id
        options = StoreOptions(cache_mb=cache_mb, ttl_seconds=max(1, ttl_ms // 1000))
        self._rows = LastRankings(data_dir / _FOLDER, topic_id, options, block_cache(options), setting="api.data_dir")
        self._ttl_ms = ttl_ms

    @property
    def positions(self) -> Mapping[int, int]:
        """Of each partition of rankings, the first offset that is not in the store."""
        return self._rows.positions

    def clear(self) -> None:
        """Forget everything. Raises StoreError."""
        self._rows.clear()

    def apply(self, changes: Mapping[bytes, Latest], positions: Mapping[int, int]) -> None:
        """What a batch of rankings comes to, and the positions behind it: all or nothing. Raises StoreError."""
        keys = list(changes)
        rows: dict[bytes, bytes | None] = {}
        for key, row in zip(keys, self._rows.rows(keys), strict=True):
            latest = changes[key]
            if latest.replaces(None if row is None else decode_row(row)):
                rows[key] = None if latest.is_forgotten else encode_row(latest)
        self._rows.write(rows, positions)

    async def ranking(self, session: bytes) -> bytes | None:
        """The JSON of a session's latest ranking."""
        row = self._rows.row(session)  # some µs: a thread would cost more
        return None if row is None else value_of(row, since_ms=time.time_ns() // 1_000_000 - self._ttl_ms)

    async def close(self) -> None:
        """Let another process have the folder. Raises StoreError."""
        self._rows.close()


class RedisStore:
    """Redis or Valkey, which `stream-app sink` fills."""

    def __init__(self, url: str, prefix: str) -> None:
        self._client: Any = store_client(redis.asyncio.Redis, url, seconds=_ANSWER_SECONDS)
        self._prefix = prefix.encode()

    async def ranking(self, session: bytes) -> bytes | None:
        """The JSON of a session's latest ranking."""
        try:
            value: bytes | None = await self._client.hget(ranking_key(self._prefix, session), RANKING)
        except (RedisError, OSError) as error:
            raise StoreError(f"the store of rankings (api.store_url) does not answer: {error}") from error
        return value

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def store_client(kind: Any, url: str, *, seconds: float) -> Any:
    """A client of a class of redis-py for `api.store_url`, which waits so long for an answer.

    Raises StoreError for a URL that says what the client does not understand, which it would tell at the first command.
    """
    # It knows Valkey under Redis's name.
    plain = "redis" + url.removeprefix("valkey") if url.startswith("valkey") else url
    # Once, for a connection that was lost while nobody used it. By itself the client tries ten times, each so long.
    retry = (Retry if kind is redis.Redis else AsyncRetry)(NoBackoff(), 1, supported_errors=(LostError,))
    try:
        client = kind.from_url(plain, socket_timeout=seconds, socket_connect_timeout=seconds, retry=retry)
        client.connection_pool.make_connection()  # connects to nobody
    except (TypeError, ValueError, RedisError) as error:
        given = ", ".join(parse_qs(urlsplit(url).query)) or "the database"
        raise StoreError(
            f"api.store_url: its client knows no such option, or not this value of it ({given}); see the arguments of "
            "Redis in redis-py's documentation"
        ) from error
    return client
