"""Changelog records in, the row that people read out."""

import json
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs
from rich.console import Console

from stream_app.core.session import SessionRules, SessionState
from stream_app.core.state_codec import encode_state
from stream_app.errors import RowError
from stream_app.tools.inspect_session import FoundRow, as_json, as_table, newest_row
from stream_app.tools.terminal import duration, utc
from tests.unit.records import record

CLICKED = 1_767_225_600_000  # 2026-01-01 00:00:00 UTC
STATE = SessionState("v7", 41, CLICKED, 3, ("a", "b"), np.array([[3.0, 4.0], [0.0, 1.0]], dtype=np.float16))
FOUND = FoundRow("s", STATE, partition=5, changelog_offset=9, written_at=CLICKED + 1500)


def row(offset: int, clicks: int = 1) -> bytes:
    return encode_state(structs.replace(STATE, offset=offset, clicks=clicks))


def test_no_row() -> None:
    assert newest_row("s", []) is None
    assert newest_row("s", [record(0, b"other", row(1)), record(1, b"s2", row(2)), record(2, None, row(3))]) is None


def test_the_newest_row_of_the_session() -> None:
    records = [
        record(0, b"s", row(10), partition=5, time_ms=100),
        record(1, b"other", row(90), partition=5, time_ms=101),
        record(4, b"s", row(12), partition=5, time_ms=102),
        record(5, b"other", b"not a row of ours, and none of our business", partition=5),
    ]
    found = newest_row("s", records)
    assert found is not None
    assert found.state.offset == 12
    assert (found.session_id, found.partition, found.changelog_offset, found.written_at) == ("s", 5, 4, 102)


def test_a_row_that_a_worker_appended_too_late_is_not_the_newest() -> None:
    found = newest_row("s", [record(0, b"s", row(10)), record(1, b"s", row(20)), record(2, b"s", row(15))])
    assert found is not None
    assert found.state.offset == 20


def test_of_two_rows_of_one_click_the_later_counts() -> None:
    found = newest_row("s", [record(0, b"s", row(10, clicks=1)), record(1, b"s", row(10, clicks=2))])
    assert found is not None
    assert found.state.clicks == 2


def test_a_tombstone_takes_the_row_away() -> None:
    assert newest_row("s", [record(0, b"s", row(10)), record(1, b"s", None)]) is None
    found = newest_row("s", [record(0, b"s", row(10)), record(1, b"s", None), record(2, b"s", row(3))])
    assert found is not None
    assert found.state.offset == 3


def test_a_row_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(RowError, match="written by another version"):
        newest_row("s", [record(0, b"s", b"\xff" + row(10)[1:])])


def test_for_programs() -> None:
    assert json.loads(as_json(FOUND)) == {
        "session_id": "s",
        "model_version": "v7",
        "clicks": 3,
        "last_click": CLICKED,
        "recent": ["a", "b"],
        "hidden": {"layers": 2, "units": 2, "norm": [5.0, 1.0]},
        "source": {"partition": 5, "offset": 41},
        "changelog": {"offset": 9, "written_at": CLICKED + 1500},
    }
    unknown = replace(FOUND, state=structs.replace(STATE, model_version="", hidden=None))
    shown = json.loads(as_json(unknown))
    assert (shown["model_version"], shown["hidden"]) == (None, None)


def printed(found: FoundRow, now_ms: int) -> str:
    console = Console(width=100, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(as_table(found, SessionRules(), now_ms))
    return captured.get()


def test_for_people() -> None:
    text = printed(FOUND, CLICKED + 180_000)
    for part in (
        "Session s",
        "2026-01-01 00:00:00 UTC (3 min ago)",
        "a  b",
        "v7",
        "2 x 2, length 5.000, 1.000",
        "partition 5, offset 41 of the clicks",
        "2026-01-01 00:00:01 UTC, changelog offset 9",
    ):
        assert part in text


def test_an_ended_session_says_so() -> None:
    assert "(2 d ago; a click now would start it anew)" in printed(FOUND, CLICKED + 2 * 86_400_000)


def test_a_session_without_state_says_why() -> None:
    unknown = replace(FOUND, state=structs.replace(STATE, model_version="", hidden=None))
    text = printed(unknown, CLICKED)
    assert "none: its model knows no item of it, or keeps no hidden state" in text
    assert "units" not in text


def test_an_id_cannot_take_the_terminal_over() -> None:
    hostile = replace(
        FOUND, session_id="\x1b[31mred", state=structs.replace(STATE, recent=("[bold]x[/]", "a\nb\x1b]0;t\x07"))
    )
    text = printed(hostile, CLICKED)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]x[/]" in text
    assert "a\N{REPLACEMENT CHARACTER}b" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119.4, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172_800, "2 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_times_beyond_the_calendar() -> None:
    assert utc(2**62) == f"{2**62} ms"
