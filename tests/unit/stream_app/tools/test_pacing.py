"""Due times of replayed clicks, with a clock that only moves when someone sleeps or works."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.messages.click import Click
from stream_app.tools.pacing import DueClicks, pace, rebase, wait_until_due


def at(*times_ms: int) -> list[Click]:
    return [Click(f"s{i % 2}", f"i{i}", time_ms, str(i)) for i, time_ms in enumerate(times_ms)]


def due(batches: Iterable[DueClicks]) -> list[tuple[float, list[str]]]:
    return [(batch.due_s, [click.item_id for click in batch.clicks]) for batch in batches]


@dataclass
class FakeClock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


# -- pace -------------------------------------------------------------------------------------------------------------


def test_real_time() -> None:
    assert due(pace(at(5_000, 5_500, 9_000), speed=1.0)) == [(0.0, ["i0"]), (0.5, ["i1"]), (4.0, ["i2"])]


def test_ten_times_as_fast() -> None:
    assert due(pace(at(5_000, 6_000, 25_000), speed=10.0)) == [(0.0, ["i0"]), (0.1, ["i1"]), (2.0, ["i2"])]


def test_half_as_fast() -> None:
    assert due(pace(at(0, 1_000), speed=0.5)) == [(0.0, ["i0"]), (2.0, ["i1"])]


def test_as_fast_as_possible_in_full_batches() -> None:
    assert due(pace(at(0, 10, 86_400_000), speed=None, max_clicks=2)) == [(0.0, ["i0", "i1"]), (0.0, ["i2"])]


def test_clicks_of_one_tick_go_together_when_the_last_is_due() -> None:
    clicks = at(0, 3, 9, 10, 30)
    assert due(pace(clicks, speed=1.0, tick_s=0.01)) == [(0.009, ["i0", "i1", "i2"]), (0.01, ["i3"]), (0.03, ["i4"])]


def test_a_gap_is_waited_for_no_longer_than_the_longest() -> None:
    clicks = at(0, 1_000, 500_000_000, 500_000_500)
    assert due(pace(clicks, speed=2.0, max_gap_ms=60_000)) == [
        (0.0, ["i0"]),
        (0.5, ["i1"]),
        (30.5, ["i2"]),
        (30.75, ["i3"]),
    ]


def test_a_click_older_than_the_one_before_is_due_with_it() -> None:
    assert due(pace(at(1_000, 3_000, 2_000), speed=1.0)) == [(0.0, ["i0"]), (2.0, ["i1", "i2"])]


def test_no_clicks_no_batches() -> None:
    assert due(pace([], speed=1.0)) == []


def test_an_endless_stream_is_paced_as_it_comes() -> None:
    def endless() -> Iterator[Click]:
        time_ms = 0
        while True:
            yield Click("s", "i", time_ms)
            time_ms += 1_000

    batches = pace(endless(), speed=1.0)
    assert [next(batches).due_s for _ in range(3)] == [0.0, 1.0, 2.0]


@settings(deadline=None)
@given(
    times=st.lists(st.integers(0, 10**7), max_size=60),
    speed=st.none() | st.floats(0.01, 1e4),
    tick_s=st.floats(0.001, 10),
    max_clicks=st.integers(1, 7),
)
def test_nothing_is_lost_early_or_out_of_order(
    times: list[int], speed: float | None, tick_s: float, max_clicks: int
) -> None:
    clicks = at(*times)
    batches = list(pace(clicks, speed, tick_s=tick_s, max_clicks=max_clicks))
    assert [click for batch in batches for click in batch.clicks] == clicks
    assert all(1 <= len(batch.clicks) <= max_clicks for batch in batches)
    assert all(earlier.due_s <= later.due_s for earlier, later in pairwise(batches))
    latest = 0.0
    for batch in batches:
        for click in batch.clicks:
            latest = max(latest, 0.0 if speed is None else (click.timestamp - times[0]) / 1000 / speed)
            assert latest <= batch.due_s < latest + 1.001 * tick_s


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed"):
        next(pace(at(0), speed))
    with pytest.raises(ValueError, match="speed"):
        next(rebase(at(0), to_ms=0, speed=speed))


# -- waiting ----------------------------------------------------------------------------------------------------------


def test_each_batch_comes_when_it_is_due() -> None:
    clock = FakeClock()
    batches = pace(at(0, 500, 4_000), speed=1.0)
    assert [clock.now for _ in wait_until_due(batches, clock, clock.sleep)] == [1000.0, 1000.5, 1004.0]


def test_a_slow_consumer_catches_up() -> None:
    clock = FakeClock()
    begun = []
    for batch in wait_until_due(pace(at(0, 1_000, 2_000, 9_000), speed=1.0), clock, clock.sleep):
        begun.append(clock.now)
        clock.now += 3.0 if batch.due_s == 0.0 else 0.25  # the first publish takes three seconds
    assert begun == [1000.0, 1003.0, 1003.25, 1009.0]


# -- new times --------------------------------------------------------------------------------------------------------


def test_rebased_clicks_keep_their_gaps_and_all_else() -> None:
    assert list(rebase(at(5_000, 5_250, 8_000), to_ms=1_000_000)) == at(1_000_000, 1_000_250, 1_003_000)


def test_rebased_at_a_speed_they_carry_the_time_at_which_they_are_sent() -> None:
    clock = FakeClock()
    clicks = rebase(at(0, 20_000, 50_000), to_ms=1_000_000, speed=10.0)
    for batch in wait_until_due(pace(at(0, 20_000, 50_000), speed=10.0), clock, clock.sleep):
        for _ in batch.clicks:
            assert next(clicks).timestamp == round(1000 * clock.now)
    assert next(clicks, None) is None


def test_rebased_clicks_are_paced_by_their_new_gaps() -> None:
    rebased = rebase(at(0, 20_000, 50_000), to_ms=1_000_000, speed=10.0)
    assert due(pace(rebased, speed=1.0)) == due(pace(at(0, 20_000, 50_000), speed=10.0))
