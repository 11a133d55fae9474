"""What the dashboard makes of the rankings that come by, and when it raises an alarm."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from schemas.messages.announcement import ModelAnnouncement
from stream_app.api.backlog import Waiting
from stream_app.api.latest import Latest
from stream_app.api.overview import Known, alarms
from stream_app.api.traffic import SPAN_MS, STEP_MS, Traffic

NOW = 1_767_225_600_000


def ranking(at_ms: int, latency_ms: int = 10, **more: str) -> tuple[bytes, Latest]:
    """As the reader hands it over."""
    told = {"item_id": "a", "model_version": "v1", "reason": "model", "click_timestamp": at_ms - latency_ms, **more}
    return b"s", Latest(0, 0, at_ms, json.dumps(told).encode())


def traffic(*told: tuple[bytes, Latest]) -> Traffic:
    found = Traffic()
    found.take(told, NOW)
    return found


def test_rates_and_latencies_are_those_of_the_broker_s_clock() -> None:
    found = traffic(*(ranking(NOW - STEP_MS + n, latency_ms=n + 1) for n in range(100)))
    series = found.series(NOW)
    assert series.clicks_per_second[-1] == 100 / (STEP_MS / 1000)
    assert (series.latency_p50_ms[-1], series.latency_p99_ms[-1]) == (50, 99)
    assert series.latency_p50_ms[-2] is None
    assert series.since + len(series.clicks_per_second) * series.step_ms == NOW
    recent = found.recent(NOW)
    assert (recent.clicks_per_second, recent.latency_p50_ms, recent.latency_p99_ms) == (10, 50, 99)


def test_of_many_rankings_all_are_counted_and_an_even_sample_is_looked_into() -> None:
    # The first half of the step is quick, the second half slow: a sample of its beginning would not show that.
    found = traffic(*(ranking(NOW - STEP_MS, latency_ms=1 if n < 5_000 else 1_000) for n in range(10_000)))
    assert found.series(NOW).clicks_per_second[-1] == 10_000 / (STEP_MS / 1000)
    slow = sum(sample == 1_000 for sample in found._steps[NOW // STEP_MS - 1].samples)
    assert 60 < slow < 140


def test_a_clock_that_is_ahead_gives_no_negative_latency() -> None:
    assert traffic(ranking(NOW - 1, latency_ms=-5_000)).series(NOW).latency_p50_ms[-1] == 0


def test_what_is_old_is_forgotten_and_what_is_no_ranking_passed_over() -> None:
    found = traffic(
        ranking(NOW - 2 * SPAN_MS), (b"s", Latest(0, 0, NOW - 1, b"[]")), (b"s", Latest(0, 0, NOW - 1, b""))
    )
    assert sum(found.series(NOW).clicks_per_second) == 1 / (STEP_MS / 1000)  # counted, not looked into
    assert len(found._steps) == 1
    assert found.shares(NOW, SPAN_MS, "models") == {}
    found.reject(NOW, b'{"reason": "bad-id"}', NOW)
    found.reject(NOW, b"not ours", NOW)
    found.reject(NOW, None, NOW)
    assert found.rejected(NOW) == {"bad-id": 1}


def test_a_record_of_the_future_makes_no_other_old() -> None:
    found = traffic(ranking(NOW + 2 * SPAN_MS), ranking(NOW - 1))
    found.reject(NOW + 2 * SPAN_MS, b'{"reason": "bad-id"}', NOW)
    found.reject(NOW, b'{"reason": "bad-id"}', NOW)
    assert (found.rankings(NOW, SPAN_MS), found.rejected(NOW)) == (2, {"bad-id": 2})


SERVING = ModelAnnouncement("champion", "v1", "/v1", "0" * 64, NOW - 300_000, "test")
NEWER = ModelAnnouncement("champion", "v2", "/v2", "0" * 64, NOW - 300_000, "test")
MANY = [ranking(NOW - 1_000) for _ in range(100)]
UNKNOWN = [ranking(NOW - 1_000, reason="unknown-item") for _ in range(50)]
POPULAR = [ranking(NOW - 1_000, reason="popularity") for _ in range(50)]


@pytest.mark.parametrize(
    ("told", "known", "raised"),
    [
        (MANY, {}, []),
        ([], {}, []),  # a night without clicks
        (MANY, {"backlog": [Waiting(0, 900), Waiting(1, None)]}, []),
        (MANY, {"backlog": [Waiting(0, 900), Waiting(1, 900)]}, ["behind"]),
        ([], {"backlog": [Waiting(0, 1)]}, ["silent"]),
        (MANY, {"serving": None}, ["no-model"]),
        (MANY, {"serving": NEWER}, ["model-not-served"]),
        ([ranking(NOW - 1_000, variant="challenger")], {"serving": NEWER}, []),  # which has all sessions
        ([ranking(NOW - 1_000, variant="champion")], {"serving": NEWER}, ["model-not-served"]),
        (MANY, {"readiness": {"topics": "not read yet"}}, ["not-ready"]),
        (20 * MANY, {"backlog": [Waiting(0, 1_500)]}, []),  # more than that were answered
        (MANY, {"serving": replace(NEWER, announced_at=NOW - 59_000)}, []),
        (MANY + UNKNOWN, {}, ["unknown-items"]),
        (UNKNOWN[:49], {}, []),
        ([*MANY, *UNKNOWN[:30], *POPULAR[:30]], {}, ["unknown-items"]),
        ([*MANY, ranking(NOW - 1_000, reason="not-finite")], {}, ["not-finite"]),
    ],
)
def test_alarms(told: list[tuple[bytes, Latest]], known: dict[str, object], raised: list[str]) -> None:
    fine: dict[str, Any] = {"backlog": [], "backlog_problem": None, "serving": SERVING, "readiness": {"topics": None}}
    assert [alarm.name for alarm in alarms(traffic(*told), Known(NOW, **{**fine, **known}))] == raised


def test_rejections_raise_one_above_a_hundredth() -> None:
    found = traffic(*MANY)
    known = Known(NOW, [], None, SERVING, {})
    found.reject(NOW, b'{"reason": "bad-id"}', NOW)
    assert alarms(found, known) == []
    found.reject(NOW, b'{"reason": "bad-id"}', NOW)
    assert [alarm.name for alarm in alarms(found, known)] == ["rejected"]
