"""When replayed clicks are due. Pure but for `wait_until_due`, which is handed its clock and its sleep.

batches = pace(rebase(clicks, to_ms=now_ms, speed=10.0), speed=10.0)
for batch in wait_until_due(batches, clock=time.monotonic, sleep=time.sleep):
    publish(batch.clicks)
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite

from msgspec.structs import replace

from schemas.messages.click import Click


def rebase(clicks: Iterable[Click], to_ms: int, speed: float = 1.0) -> Iterator[Click]:
    """The clicks at new times: the first at `to_ms`, the others as long after it as before, divided by `speed`.

    With the speed that is given to `pace`, and `to_ms` the time of the start, each click carries the time at which it
    is sent, and idle gaps shrink accordingly. With speed 1 the gaps stay as they were; clicks that are then sent faster
    than in real time run ahead of the clock, and workers reject clicks from the future: let the last one be due now,
    with `to_ms = now_ms - (file.last_ms - file.first_ms)`.
    """
    if not (isfinite(speed) and speed > 0):
        raise ValueError(f"speed is {speed}; it must be above 0")
    first: int | None = None
    for click in clicks:
        first = click.timestamp if first is None else first
        after = click.timestamp - first
        moved = to_ms + (after if speed == 1 else round(after / speed))
        yield replace(click, timestamp=moved)


@dataclass(frozen=True)
class DueClicks:
    """Clicks to publish together, `due_s` seconds after the start."""

    due_s: float
    clicks: tuple[Click, ...]


def pace(
    clicks: Iterable[Click],
    speed: float | None,
    *,
    tick_s: float = 0.01,
    max_clicks: int = 1000,
    max_gap_ms: int | None = None,
) -> Iterator[DueClicks]:
    """Give each click its due time: real time at speed 1, ten times as fast at 10, at once at None.

    `clicks` in the order of time; one that is older than the one before it is due with it. Clicks due within the same
    tick of `tick_s` seconds come as one batch, due when its last one is, so that no click goes out before its time; at
    most `max_clicks` a batch. A gap of more than `max_gap_ms` between two clicks counts as one of so much. Reads no
    clock.
    """
    if speed is not None and not (isfinite(speed) and speed > 0):
        raise ValueError(f"speed is {speed}; it must be above 0, or None for as fast as possible")
    if max_clicks < 1 or tick_s <= 0:
        raise ValueError("max_clicks must be at least 1 and tick_s above 0")
    last_ms: int | None = None
    since_first_ms = 0
    waiting: list[Click] = []
    tick, due_s = 0, 0.0
    for click in clicks:
        gap_ms = 0 if last_ms is None else click.timestamp - last_ms
        last_ms = click.timestamp
        since_first_ms += gap_ms if max_gap_ms is None else min(gap_ms, max_gap_ms)
        due = due_s if speed is None else max(due_s, since_first_ms / 1000 / speed)
        if waiting and (int(due / tick_s) != tick or len(waiting) == max_clicks):
            yield DueClicks(due_s, tuple(waiting))
            waiting = []
        tick, due_s = int(due / tick_s), due
        waiting.append(click)
    if waiting:
        yield DueClicks(due_s, tuple(waiting))


def wait_until_due(
    batches: Iterable[DueClicks], clock: Callable[[], float], sleep: Callable[[float], None]
) -> Iterator[DueClicks]:
    """Hand each batch over when it is due, counted in seconds of `clock` from the first batch; late ones at once.

    A wait is measured from the start, not from the batch before: a slow consumer falls behind and catches up again.
    """
    start: float | None = None
    for batch in batches:
        now = clock()
        start = now if start is None else start
        if (early := start + batch.due_s - now) > 0:
            sleep(early)
        yield batch
