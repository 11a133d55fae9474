"""Where the demo's clicks come from: the simulated shop, or a click file."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from deploy.demo.shop import Shop, ShopSettings
from deploy.demo.shown_items import shown_items
from schemas.messages.click import Click
from schemas.messages.item import Item
from stream_app.tools.click_file import read_click_file
from stream_app.tools.pacing import DueClicks, pace, rebase

HISTORY_SESSIONS = 8_000
_HISTORY_SHARE = 0.5
_PAUSE_SECONDS = 1.0
_SHOWN_SEASONS = 4
HISTORY_CLICKS = 60_000
LIVE_CLICKS_PER_SECOND = 1500.0


@dataclass(frozen=True)
class ClickSource:
    """Clicks in two parts.

    Attributes:
        name: for people.
        history: clicks from before the demo, that the first model learns from; called with the time of the start (ms).
        live: clicks as they happen from the time of the start (ms), each batch when it is due; a file is replayed in
            the number of seconds that it is given, over and over; the shop never closes.
        items: what the page shows of the items; nothing where only their ids are known.
    """

    name: str
    history: Callable[[int], Iterator[Click]]
    live: Callable[[int, float], Iterator[DueClicks]]
    items: Callable[[], Iterator[Item]] = lambda: iter(())


def shop(*, clicks_per_second: float, seed: int, history: int = HISTORY_SESSIONS) -> ClickSource:
    """The simulated shop: yesterday's clicks, and today's with a part of the catalogue changed overnight."""
    settings = ShopSettings(seed=seed)
    settings = ShopSettings(seed=seed, sessions_per_second=clicks_per_second / settings.mean_length)

    def live(start_ms: int, _: float) -> Iterator[DueClicks]:
        return pace(Shop(settings).live(start_ms), speed=1.0)

    return ClickSource(
        name="a simulated shop",
        history=lambda start_ms: Shop(settings).history(history, before_ms=start_ms - 60_000),
        live=live,
        items=lambda: shown_items(Shop(settings).catalogue(_SHOWN_SEASONS).names),
    )


def from_now_on(batches: Iterable[DueClicks], now_ms: Callable[[], int]) -> Iterator[DueClicks]:
    """The clicks at other times: the last of the first batch at the moment in which that batch is handed over.

    What it takes to make the first clicks would else count as latency, of them and of all that follow.
    """
    later_ms: int | None = None
    for batch in batches:
        if later_ms is None:
            later_ms = now_ms() - batch.clicks[-1].timestamp
        moved = tuple(replace(click, timestamp=click.timestamp + later_ms) for click in batch.clicks)
        yield DueClicks(batch.due_s, moved)


def click_file(path: Path) -> ClickSource:
    """A click file: its first half is history, its second half is replayed in the time that the demo has.

    Of a large file the history is what was clicked last before the split, so that the model is trained within the demo,
    and the demo ends before the replay does. A replay that comes to its end begins again, as other sessions: a slow
    machine may not have swapped the model by then.
    """
    clicks = read_click_file(path)
    starts: dict[str, int] = {}
    for click in clicks:
        starts.setdefault(click.session_id, click.timestamp)
    counts = Counter(click.session_id for click in clicks)
    ordered = sorted(starts, key=starts.__getitem__)
    split = round(len(ordered) * _HISTORY_SHARE)
    later = set(ordered[split:])
    sums = itertools.accumulate(counts[session_id] for session_id in reversed(ordered[:split]))
    earlier = {
        session_id for session_id, total in zip(reversed(ordered[:split]), sums, strict=True) if total <= HISTORY_CLICKS
    }

    def history(start_ms: int) -> Iterator[Click]:
        part = (click for click in clicks if click.session_id in earlier)
        return rebase(part, start_ms - (clicks.last_ms - clicks.first_ms) - 60_000)

    def turns(start_ms: int, seconds: float) -> Iterator[Click]:
        first = min(starts[session_id] for session_id in later)
        lasts = max(seconds, sum(counts[session_id] for session_id in later) / LIVE_CLICKS_PER_SECOND)
        speed = max(1e-6, (clicks.last_ms - first) / 1000 / lasts)
        for turn in itertools.count():
            part = (click for click in clicks if click.session_id in later)
            for click in rebase(part, start_ms + round(turn * (lasts + _PAUSE_SECONDS) * 1000), speed=speed):
                yield replace(click, session_id=f"{click.session_id}~{turn}") if turn else click

    return ClickSource(
        name=str(path), history=history, live=lambda start_ms, seconds: pace(turns(start_ms, seconds), speed=1.0)
    )
