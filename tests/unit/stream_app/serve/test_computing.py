"""Where the pipeline's calls run, and that they take turns."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from types import SimpleNamespace

import pytest

from stream_app.serve import computing
from stream_app.serve.computing import Computing
from tests.patience import PATIENCE


class Turns(Computing):
    """What a call of a kind takes can be told."""

    def known(self, kind: str, seconds_each: float = 0.0) -> None:
        self._seconds_each[kind] = seconds_each


@pytest.fixture
def turns() -> Iterator[Turns]:
    made = Turns()
    yield made
    made.stop()


def here() -> int:
    return threading.get_ident()


async def a_few_turns() -> None:
    """Of the loop: whatever may begin has begun."""
    for _ in range(5):
        await asyncio.sleep(0)


def held() -> tuple[Callable[[], None], threading.Event, threading.Event]:
    """A call that begins, and goes on when it is told to."""
    began, go_on = threading.Event(), threading.Event()

    def call() -> None:
        began.set()
        assert go_on.wait(PATIENCE)

    return call, began, go_on


async def test_a_call_of_an_unknown_kind_may_be_long_and_goes_to_the_thread(turns: Turns) -> None:
    assert await turns.run("rank", 1, here, may_wait=False) != here()
    assert "rank" in turns._seconds_each  # it is known now


@pytest.mark.parametrize(
    ("seconds_each", "size", "may_wait", "on_the_loop"),
    [
        (0.0002, 5, False, True),
        (0.0002, 0, False, True),
        (0.0002, 40, False, False),  # long
        (0.002, 1, False, False),  # long, however few
        (0.0, computing._FEW, False, True),
        (0.0, computing._FEW + 1, False, False),  # whatever the last ones took
        (0.0002, 5, True, False),
    ],
)
async def test_only_short_calls_run_where_they_are_asked_for(
    turns: Turns, seconds_each: float, size: int, may_wait: bool, on_the_loop: bool
) -> None:
    turns.known("rank", seconds_each)
    assert (await turns.run("rank", size, here, may_wait=may_wait) == here()) is on_the_loop


async def test_one_slow_call_makes_its_kind_long_at_once_and_short_ones_by_and_by(turns: Turns) -> None:
    turns.known("write")
    await turns.run("write", 2, partial(time.sleep, 2 * computing._SHORT_SECONDS), may_wait=False)
    assert await turns.run("write", 2, here, may_wait=False) != here()
    after_it = turns._seconds_each["write"]
    await turns.run("write", 1_000_000, here, may_wait=False)
    assert after_it * 0.8 < turns._seconds_each["write"] < after_it
    await turns.run("write", 0, here, may_wait=False)  # nothing to learn from
    assert after_it * 0.8 < turns._seconds_each["write"] < after_it


async def test_one_short_call_does_not_make_the_next_one_of_many_look_long(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of what a call with one click takes is not the click's."""
    turns.known("rank")
    clock = count(0, computing._SHORT_SECONDS / 10)  # what each call takes
    monkeypatch.setattr(computing, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    await turns.run("rank", 1, here, may_wait=False)
    assert await turns.run("rank", computing._BASE, here, may_wait=False) == here()


async def test_a_short_call_waits_for_the_long_one_before_it(turns: Turns) -> None:
    turns.known("rank")
    order: list[str] = []
    wait, began, go_on = held()

    def long() -> None:
        wait()
        order.append("long")

    first = asyncio.ensure_future(turns.run("write", 1, long, may_wait=False))
    await asyncio.to_thread(began.wait, PATIENCE)
    second = asyncio.ensure_future(turns.run("rank", 1, lambda: order.append("short"), may_wait=False))
    await a_few_turns()
    assert order == []  # it would have run by now, had it not to wait
    go_on.set()
    await asyncio.gather(first, second)
    assert order == ["long", "short"]


async def test_who_stops_waiting_does_not_let_the_next_call_in(turns: Turns) -> None:
    turns.known("rank")
    long, began, go_on = held()
    first = asyncio.ensure_future(turns.run("write", 1, long, may_wait=False))
    await asyncio.to_thread(began.wait, PATIENCE)
    impatient = asyncio.ensure_future(turns.run("write", 1, here, may_wait=False))
    await a_few_turns()
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    third = asyncio.ensure_future(turns.run("rank", 1, here, may_wait=False))
    await a_few_turns()
    assert not third.done()  # a short call is done when it may begin
    go_on.set()
    await first
    assert await third != here()


async def test_an_error_reaches_who_asked_wherever_the_call_ran(turns: Turns) -> None:
    ran = []

    def broken() -> None:
        ran.append(here())
        raise OSError("disk full")

    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            await turns.run("write", 1, broken, may_wait=False)
        turns.known("write")
    assert ran[0] != here()
    assert ran[1] == here()


async def test_stopping_waits_for_the_call_under_way_and_drops_those_behind(turns: Turns) -> None:
    turns.known("rank")
    long, began, go_on = held()
    under_way = asyncio.ensure_future(turns.run("write", 1, long, may_wait=False))
    behind = asyncio.ensure_future(turns.run("write", 1, here, may_wait=False))
    await asyncio.to_thread(began.wait, PATIENCE)
    threading.Timer(0.05, go_on.set).start()
    turns.stop()
    assert go_on.is_set()
    await under_way
    with pytest.raises(asyncio.CancelledError):
        await behind
    with pytest.raises(RuntimeError, match="nothing is computed any more: rank"):
        await turns.run("rank", 1, here, may_wait=False)
