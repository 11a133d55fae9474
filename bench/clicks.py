"""Clicks to measure with: sessions of RSC15's shape over a catalogue of any size."""

import time
from collections.abc import Iterator

import numpy as np

from schemas.messages.click import Click

MEAN_SESSION = 4
"""Clicks a session in RSC15's files (1/64 and the whole alike)."""


def item_ids(items: int) -> list[str]:
    """Ids of nine digits, as RSC15's have."""
    return [f"2{n:08d}" for n in range(items)]


def shop_clicks(clicks: int, items: int, *, seed: int = 7, open_sessions: int | None = None) -> Iterator[Click]:
    """Clicks of sessions that are open together, popular items first in the catalogue, all at the present time.

    `open_sessions` bounds the sessions; by default there is one for every MEAN_SESSION clicks.
    """
    rng = np.random.default_rng(seed)
    popular = (items * rng.random(clicks) ** 2).astype(np.int64)  # the first items are clicked more
    sessions = rng.integers(0, open_sessions or max(clicks // MEAN_SESSION, 1), clicks)
    now, ids = time.time_ns() // 1_000_000, item_ids(items)
    for n, (session, item) in enumerate(zip(sessions.tolist(), popular.tolist(), strict=True)):
        yield Click(f"session-{session}", ids[item], now, f"event-{n}")
