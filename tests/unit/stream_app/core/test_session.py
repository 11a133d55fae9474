"""The rules of a session, at their edges."""

import pytest

from stream_app.core.session import SessionRules, SessionState, is_over, is_redelivered

RULES = SessionRules(idle_gap_ms=1000)


@pytest.mark.parametrize(
    ("last_click", "timestamp", "over"),
    [
        (5000, 5000, False),
        (5000, 6000, False),  # the gap itself still belongs to the session
        (5000, 6001, True),
        (5000, 1_000_000, True),
        (5000, 4999, False),  # late: producers' clocks differ
        (5000, 0, False),
    ],
)
def test_a_click_later_than_the_idle_gap_starts_the_session_anew(last_click: int, timestamp: int, over: bool) -> None:
    assert is_over(last_click, timestamp, RULES) is over


@pytest.mark.parametrize(("offset", "redelivered"), [(0, True), (41, True), (42, True), (43, False)])
def test_a_row_has_passed_every_offset_up_to_its_own(offset: int, redelivered: bool) -> None:
    row = SessionState("v1", offset=42, last_click=0, clicks=1, recent=("a",), hidden=None)
    assert is_redelivered(row.offset, offset) is redelivered


def test_thirty_minutes_and_thirty_items_unless_told_otherwise() -> None:
    assert SessionRules() == SessionRules(idle_gap_ms=1_800_000, recent_items=30)
