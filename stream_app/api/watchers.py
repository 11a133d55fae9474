"""Who waits for a session's rankings: requests that stream them, and clicks that wait for their answer."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from stream_app.api.latest import Latest

_MOST_QUEUED: Final = 64
"""Rankings that a slow reader is behind, beyond which it misses the oldest: the latest is what counts."""


class Watch:
    """The rankings of one session from now on. Belongs to the event loop."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[Latest | None] = asyncio.Queue(_MOST_QUEUED)

    def put(self, latest: Latest | None) -> None:
        """Tell of a ranking; None: there will be no more."""
        if self._told.full():
            self._told.get_nowait()
        self._told.put_nowait(latest)

    async def next(self) -> Latest | None:
        """The next one, when it comes; None when the server stops."""
        return await self._told.get()

    async def of_click(self, partition: int, offset: int) -> Latest | None:
        """The ranking of one click, when it comes; None when the server stops."""
        while (latest := await self.next()) and (latest.partition, latest.offset) != (partition, offset):
            pass
        return latest


class Watchers:
    """All of them, by session. `tell` may be called on any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watches: dict[bytes, set[Watch]] = {}
        self._closed = False

    @contextmanager
    def watch(self, session: bytes) -> Iterator[Watch]:
        """Watch a session for as long as the context lasts."""
        watch = Watch()
        self._watches.setdefault(session, set()).add(watch)
        if self._closed:
            watch.put(None)
        try:
            yield watch
        finally:
            left = self._watches[session]
            left.discard(watch)
            if not left:
                del self._watches[session]

    def close(self) -> None:
        """End every watch, and those to come."""
        self._closed = True
        for watch in [watch for watches in self._watches.values() for watch in watches]:
            watch.put(None)

    def tell(self, told: Sequence[tuple[bytes, Latest]]) -> None:
        """Rankings in the order of their topic; those that nobody waits for cost a look each."""
        watched = [one for one in told if one[0] in self._watches]
        if watched:
            self._loop.call_soon_threadsafe(self._hand_over, watched)

    def _hand_over(self, told: Sequence[tuple[bytes, Latest]]) -> None:
        for key, latest in told:
            for watch in self._watches.get(key, ()):
                watch.put(latest)
