"""Where the demo's clicks come from: the simulated shop, or a click file."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.shop import Shop, ShopSettings
from schemas.click import Click
from stream_app.click_file import ClickFileFormat, read_click_file
from stream_app.pacing import Batch, pace, rebase

_HISTORY_SESSIONS = 8_000
_HISTORY_SHARE = 0.5


@dataclass(frozen=True)
class ClickSource:
    """Clicks in two parts.

    Attributes:
        name: for people.
        history: clicks from before the demo, that the first model learns from; called with the time of the start (ms).
        live: clicks as they happen from the time of the start (ms), each batch when it is due; a file is replayed in
            the number of seconds that it is given, the shop never closes.
    """

    name: str
    history: Callable[[int], Iterator[Click]]
    live: Callable[[int, float], Iterator[Batch]]


def shop(*, clicks_per_second: float, seed: int) -> ClickSource:
    """The simulated shop: yesterday's clicks, and today's with a part of the catalogue changed overnight."""
    settings = ShopSettings(seed=seed)
    settings = ShopSettings(seed=seed, sessions_per_second=clicks_per_second / settings.mean_length)

    def live(start_ms: int, _: float) -> Iterator[Batch]:
        return pace(Shop(settings).live(start_ms), speed=1.0)

    return ClickSource(
        name="a simulated shop",
        history=lambda start_ms: Shop(settings).history(_HISTORY_SESSIONS, before_ms=start_ms - 60_000),
        live=live,
    )


def click_file(path: Path) -> ClickSource:
    """A click file: its first sessions are history, the others are replayed in the time that the demo has."""
    clicks = read_click_file(path, ClickFileFormat())
    starts: dict[str, int] = {}
    for click in clicks:
        starts.setdefault(click.session_id, click.timestamp)
    split = sorted(starts.values())[round(len(starts) * _HISTORY_SHARE)]
    later = {session_id for session_id, started in starts.items() if started >= split}

    def history(start_ms: int) -> Iterator[Click]:
        part = (click for click in clicks if click.session_id not in later)
        return rebase(part, start_ms - (clicks.last_ms - clicks.first_ms) - 60_000)

    def live(start_ms: int, seconds: float) -> Iterator[Batch]:
        part, timed = itertools.tee(click for click in clicks if click.session_id in later)
        first = next(timed).timestamp
        speed = max(1e-6, (clicks.last_ms - first) / 1000 / seconds)
        return pace(rebase(part, start_ms, speed=speed), speed=1.0)

    return ClickSource(name=str(path), history=history, live=live)
