"""Click files in, clicks in the order of time out. How files are read: tests/unit/click_files."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from schemas.click_files.options import ReadOptions
from schemas.messages.click import Click
from stream_app.tools.click_file import ClickFile, read_click_file

SHARED = Path(__file__).parents[5] / "shared" / "data"
HEADER = "session_id\titem_id\ttimestamp\n"
HOUR_MS = 3_600_000


def file(folder: Path, content: str, name: str = "clicks.tsv") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def read(path: Path, options: ReadOptions | None = None) -> list[Click]:
    return list(read_click_file(path, options))


def test_sessions_interleave_in_the_order_of_time(tmp_path: Path) -> None:
    path = file(tmp_path, HEADER + "a\tx\t10.5\na\ty\t30\nb\tz\t20.001\n")
    assert read(path) == [Click("a", "x", 10_500, "2"), Click("b", "z", 20_001, "4"), Click("a", "y", 30_000, "3")]


def test_clicks_of_the_same_time_stay_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, HEADER + "b\tx\t1\nb\ty\t1\na\tx\t1\n")
    assert [(click.session_id, click.item_id) for click in read(path)] == [("b", "x"), ("b", "y"), ("a", "x")]


def test_a_file_can_be_iterated_again_and_knows_its_span(tmp_path: Path) -> None:
    clicks = read_click_file(file(tmp_path, HEADER + "a\tx\t3\nb\ty\t1\n"))
    assert list(clicks) == list(clicks)
    assert (len(clicks), clicks.first_ms, clicks.last_ms, clicks.skipped) == (2, 1_000, 3_000, 0)


def test_an_id_of_the_producer_goes_before_the_number_of_the_line(tmp_path: Path) -> None:
    path = file(tmp_path, "when;visitor;sku;key\n1396321341719;v1;p9;k-7\n\n1396321341720;v1;p8;\n", "clicks.dat")
    names = ReadOptions(session_column="visitor", item_column="sku", time_column="when", event_column="key")
    assert read(path, names) == [Click("v1", "p9", 1396321341719, "k-7"), Click("v1", "p8", 1396321341720, "4")]


def test_a_dump_of_the_topic_keeps_its_event_ids(tmp_path: Path) -> None:
    rows = '{"session_id":"a","item_id":"x","timestamp":1700000000500,"event_id":"e1"}\n' * 2
    assert read(file(tmp_path, rows)) == [Click("a", "x", 1_700_000_000_500, "e1")] * 2


def test_bad_rows_keep_lines_and_ids_together(tmp_path: Path) -> None:
    path = file(tmp_path, HEADER + "a\tx\t3\n\ty\t1\nb\ty\tnoon\n\nc\tz\t2\n")
    clicks = read_click_file(path, ReadOptions(skip_bad_rows=True))
    assert list(clicks) == [Click("c", "z", 2_000, "6"), Click("a", "x", 3_000, "2")]
    assert clicks.skipped == 2


def test_without_times_sessions_start_one_after_the_other_and_overlap(tmp_path: Path) -> None:
    path = file(tmp_path, "session_id\titem_id\na\tx\na\ty\n" + "".join(f"b{n}\tz\n" for n in range(11)))
    made_up = [(click.session_id, click.timestamp) for click in read(path)]
    assert made_up[:3] == [("a", 0), ("b0", 1_000), ("b1", 2_000)]
    # a's second click comes 10 s after its first one, with the start of b9, and the file names it first.
    assert made_up[10:] == [("a", 10_000), ("b9", 10_000), ("b10", 11_000)]


def test_long_gaps_are_shortened(tmp_path: Path) -> None:
    day = 86_400
    times = [1_700_000_000, 1_700_000_010, 1_700_000_010 + 5 * day, 1_700_000_020 + 5 * day, 1_700_000_020 + 9 * day]
    path = file(tmp_path, HEADER + "".join(f"a\ti{n}\t{time}\n" for n, time in enumerate(times)))
    as_it_is = read_click_file(path)
    clicks = as_it_is.shortened(HOUR_MS)
    assert np.diff([click.timestamp for click in clicks]).tolist() == [10_000, HOUR_MS, 10_000, HOUR_MS]
    assert (clicks.first_ms, as_it_is.last_ms) == (1_700_000_000_000, times[-1] * 1000)
    assert as_it_is.gaps_ms().tolist() == [0, 10_000, 5 * day * 1000, 10_000, 4 * day * 1000]


# -- real files -------------------------------------------------------------------------------------------------------


def real(name: str) -> ClickFile:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not in ../shared/data")
    return read_click_file(path)


def test_a_real_file_comes_in_the_order_of_time() -> None:
    file_of_clicks = real("rsc15_100k.tsv.gz")
    clicks = list(file_of_clicks)
    assert len(clicks) == 83_846
    assert len({click.session_id for click in clicks}) == 21_210
    assert len({click.event_id for click in clicks}) == 83_846
    assert all(earlier.timestamp <= later.timestamp for earlier, later in pairwise(clicks))
    first_of_5182 = next(click for click in clicks if click.session_id == "5182")
    assert first_of_5182 == Click("5182", "214821026", 1396321341719, "2")


def test_a_real_file_without_times_keeps_the_order_within_sessions() -> None:
    file_of_clicks = real("rsc15_64_test.tsv.gz")
    log = file_of_clicks.log
    in_file: dict[str, list[str]] = {}
    for session, item in zip(log.session.tolist(), log.item.tolist(), strict=True):
        in_file.setdefault(file_of_clicks.session_ids[session], []).append(log.item_ids[item])
    replayed: dict[str, list[str]] = {}
    for click in file_of_clicks:
        replayed.setdefault(click.session_id, []).append(click.item_id)
    assert len(file_of_clicks) == 71_222
    assert replayed == in_file
    assert list(file_of_clicks) != sorted(file_of_clicks, key=lambda click: int(click.event_id or 0))  # interleaved
