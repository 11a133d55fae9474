"""The simulated worker: what it must agree with whoever does the sum by hand."""

import numpy as np
import pytest

from bench.capacity import answered
from bench.simulation import Plan, Service, Times, simulate

SERVICE = Service((1.0, 16.0, 512.0), (0.001, 0.0015, 0.016))
"""A worker that answers 32,000 clicks a second in full batches, and looks for clicks every 5 ms."""
TIMES = Times(session_timeout=6.0, opening=1.0, transit=0.001)
MISSED, MET = 6.0 - 0.6, 1.2 + 1.0
"""Seconds until the last heartbeat is 6 s old, and from then until the survivors read again."""


def plan(rate: float, workers: int = 2, records: float = 0.0) -> Plan:
    return Plan(rate, workers, 8, records, swap_at=10.0, lost_at=20.0, seconds=40.0)


def test_a_batch_takes_what_has_come_and_no_more_than_a_full_one() -> None:
    comes = np.array([0.0, 0.5, 1.5, 1.6, *[10.0] * 600])
    done = answered(comes, lambda _clicks, _at: 1.0)
    # The second comes while the first is computed, the next two during the second; 600 take two batches.
    np.testing.assert_array_equal(done[:4], [1.0, 2.0, 3.0, 3.0])
    assert (done[4:516] == 11.0).all()
    assert (done[516:] == 12.0).all()


def test_a_look_waits_for_the_pace_unless_the_last_one_was_full_and_for_the_end_of_a_stop() -> None:
    comes = np.array([1.0, 1.2, *[5.0] * 600])
    done = answered(comes, lambda _clicks, _at: 0.1, pace=2.0, stops=[(4.9, 6.0)])
    np.testing.assert_allclose(done[[0, 1, 2, 514]], [1.1, 3.1, 6.1, 6.2])


def test_few_clicks_wait_for_the_next_look_and_their_own_batch() -> None:
    one = plan(rate=200)
    told = simulate(one, SERVICE, TIMES).told(one)
    # A batch and the transit take 2 ms, and a look comes 0 to 5 ms after a click.
    assert 2.0 < told["p50_ms"] < 4.5
    assert 6.0 < told["p99_ms"] < 9.0


def test_a_swap_stops_all_and_then_costs_what_is_rebuilt() -> None:
    one = plan(rate=2_000)
    told = simulate(one, SERVICE, Times(swap=0.5)).told(one)
    assert told["swap_p99_ms"] == pytest.approx(500, rel=0.1)
    slow = simulate(one, SERVICE, Times(swap=0.0, rebuilding=9.0)).told(one)
    assert slow["swap_p99_ms"] > 2 * slow["p99_ms"]


def test_a_loss_costs_the_time_until_the_survivors_read_again() -> None:
    one = plan(rate=2_000)
    told = simulate(one, SERVICE, TIMES).told(one)
    # Until the loss is noticed half of the clicks wait, then all of them; but for the last second they are late.
    assert told["longest_wait_seconds"] == pytest.approx(MISSED + MET, abs=0.5)
    assert told["late_clicks"] == pytest.approx(1_000 * MISSED + 2_000 * (MET - 1.0), rel=0.05)
    assert told["caught_up_seconds"] == pytest.approx(MISSED + MET - 1.0, abs=0.5)


def test_records_to_restore_hold_up_the_heirs_alone() -> None:
    one = plan(rate=2_000, workers=8, records=334_000 * 5)
    told = simulate(one, SERVICE, TIMES).told(one)
    assert told["longest_wait_seconds"] == pytest.approx(MISSED + MET + 5.0, abs=0.5)
    of_lost, of_heir, of_others = 250 * (MISSED + MET + 4.0), 250 * (MET + 4.0), 6 * 250 * (MET - 1.0)
    assert told["late_clicks"] == pytest.approx(of_lost + of_heir + of_others, rel=0.05)


def test_heirs_that_cannot_keep_up_are_told_to_be_behind_at_the_end() -> None:
    one = plan(rate=40_000)
    outcome = simulate(one, SERVICE, TIMES)
    assert outcome.told(one)["caught_up_seconds"] is None
    assert (outcome.latency > 0).all()
