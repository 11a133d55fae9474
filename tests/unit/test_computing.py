"""Where the pipeline's calls run, and that they take turns."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from stream_app import computing
from stream_app.computing import Computing

PATIENCE = 30.0


@pytest.fixture
def turns() -> Iterator[Computing]:
    made = Computing()
    yield made
    made.stop()


def here() -> int:
    return threading.get_ident()


def after(seconds: float) -> int:
    time.sleep(seconds)
    return threading.get_ident()


async def test_a_call_of_an_unknown_kind_may_be_long_and_goes_to_the_thread(turns: Computing) -> None:
    assert await turns.run("rank", 1, here) != here()


async def test_short_calls_run_where_they_are_asked_for(turns: Computing) -> None:
    await turns.run("rank", 1, here)
    assert await turns.run("rank", 1, here) == here()
    assert await turns.run("write", 1, here) != here()  # another kind


async def test_what_was_short_is_long_for_many(turns: Computing) -> None:
    await turns.run("rank", 1, after, 0.001)
    assert await turns.run("rank", 10_000, here) != here()


async def test_one_slow_call_sends_the_next_to_the_thread_until_a_few_were_short(turns: Computing) -> None:
    await turns.run("rank", 1, here)
    await turns.run("rank", 1, after, 2 * computing._SHORT_SECONDS)
    ran = [await turns.run("rank", 1, here) for _ in range(20)]
    assert ran[0] != here()
    assert ran[-1] == here()


async def test_a_short_call_waits_for_the_long_one_before_it(turns: Computing) -> None:
    await turns.run("rank", 1, here)
    began, go_on, order = threading.Event(), threading.Event(), []

    def long() -> None:
        began.set()
        assert go_on.wait(PATIENCE)
        order.append("long")

    first = asyncio.ensure_future(turns.run("write", 1, long))
    await asyncio.to_thread(began.wait, PATIENCE)
    second = asyncio.ensure_future(turns.run("rank", 1, order.append, "short"))
    await asyncio.sleep(0.01)
    assert order == []
    go_on.set()
    await asyncio.gather(first, second)
    assert order == ["long", "short"]


@pytest.mark.parametrize("calls", [1, 2])
async def test_an_error_reaches_who_asked_wherever_the_call_ran(turns: Computing, calls: int) -> None:
    def broken() -> None:
        raise OSError("disk full")

    for _ in range(calls):  # the second one runs here
        with pytest.raises(OSError, match="disk full"):
            await turns.run("write", 1, broken)


async def test_stopping_waits_for_the_call_under_way_and_drops_those_behind() -> None:
    made, done = Computing(), []
    began = threading.Event()

    def long() -> None:
        began.set()
        time.sleep(0.05)
        done.append("under way")

    calls = [
        asyncio.ensure_future(made.run("write", 1, long)),
        asyncio.ensure_future(made.run("rank", 1, done.append, "behind")),
    ]
    await asyncio.to_thread(began.wait, PATIENCE)
    made.stop()
    assert done == ["under way"]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
