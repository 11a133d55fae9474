"""Several files as one log: what continues across them, and what cannot be put together."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.click_files.options import ReadOptions
from schemas.click_files.read import ClickLog, read_log
from schemas.errors import ClickFileError
from tests.unit.schemas.click_files.test_forms import EXPECTED
from trainer.data.datasets import load
from trainer.data.options import DataOptions

Write = Callable[[str, str], Path]
_REES46 = EXPECTED["rees46"][0].splitlines()[0]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return written


def clicks_of(*paths: Path) -> list[list[str]]:
    """The items of each session, in the order in which sessions end."""
    data = load(DataOptions([*paths], [*paths]))
    bounds = zip(data.test.offsets[:-1].tolist(), data.test.offsets[1:].tolist(), strict=True)
    return [[data.test.item_ids[i] for i in data.test.items[start:stop].tolist()] for start, stop in bounds]


def test_a_session_goes_on_in_the_next_file(write: Write) -> None:
    first = write("a.tsv", "session_id\titem_id\ttimestamp\ns1\tx\t1\ns2\ty\t2\n")
    second = write("b.csv", "timestamp,item_id,session_id\n4,z,s2\n3,y,s1\n5,y,s3\n6,x,s3\n")
    assert clicks_of(first, second) == clicks_of(second, first) == [["x", "y"], ["y", "z"], ["y", "x"]]


def test_without_times_the_order_is_that_of_the_files(write: Write) -> None:
    first = write("b.tsv", "session_id\titem_id\ns1\tx\ns1\ty\n")
    second = write("a.tsv", "session_id\titem_id\ns2\tz\ns2\ty\ns1\tz\n")
    assert clicks_of(first, second) == [["z", "y"], ["x", "y", "z"]]
    assert clicks_of(second, first) == [["z", "y"], ["z", "x", "y"]]


def test_a_visitor_goes_on_in_the_next_month_until_the_idle_gap(write: Write) -> None:
    def month(name: str, *rows: str) -> Path:
        views = [f"{time} UTC,view,{item},1,,,1.0,{user},u" for time, item, user in (row.split(",") for row in rows)]
        return write(name, "\n".join([_REES46, *views]) + "\n")

    october = month("2019-Oct.csv", "2019-10-31 23:00:00,1,7", "2019-10-31 23:50:00,2,7", "2019-10-31 23:58:00,1,8")
    november = month(
        "2019-Nov.csv", "2019-11-01 00:49:00,3,7", "2019-11-01 02:00:00,1,7", "2019-11-01 02:01:00,2,7",
        "2019-11-01 00:59:00,3,8", "2019-11-01 01:00:00,2,8",
    )  # fmt: skip
    assert clicks_of(october, november) == [["1", "2", "3"], ["3", "2"], ["1", "2"]]


@pytest.mark.parametrize("name", list(EXPECTED))
def test_a_log_in_pieces_is_the_log(write: Write, name: str) -> None:
    header, *rows = EXPECTED[name][0].splitlines(keepends=True)
    if name in ("rsc15", "otto"):
        header, rows = "", [header, *rows]
    pieces = [rows[n:] + rows[:n] for n in range(len(rows))]  # ids come in another order in each
    joined = read_log([write(f"{n}.dat", header + "".join(piece)) for n, piece in enumerate(pieces)])
    whole = read_log([write("whole.dat", header + "".join(map("".join, pieces)))])
    items, times, sessions = zip(*map(columns, (joined, whole)), strict=True)
    assert (items[0], times[0]) == (items[1], times[1])
    # The codes of the sessions may be others, one for one.
    pairs = set(zip(*sessions, strict=True))
    assert len(pairs) == len(set(sessions[0])) == len(set(sessions[1]))


def columns(log: ClickLog) -> tuple[list[str], list[int], list[int]]:
    assert log.timestamp is not None
    return [log.item_ids[i] for i in log.item.tolist()], log.timestamp.tolist(), log.session.tolist()


def test_a_parquet_log_goes_on_in_a_click_file(write: Write, tmp_path: Path) -> None:
    table = pa.table({"session_id": ["s1", "s2"], "item_id": ["x", "x"], "timestamp": [1000, 2000]})
    pq.write_table(table, tmp_path / "log.parquet")
    rest = write("rest.tsv", "session_id\titem_id\ttimestamp\ns2\ty\t3\ns1\tz\t4\n")
    assert clicks_of(tmp_path / "log.parquet", rest) == [["x", "y"], ["x", "z"]]


def test_a_bad_row_is_named_with_its_file_and_line(write: Write) -> None:
    good = write("a.tsv", "session_id\titem_id\ttimestamp\ns1\tx\t1\ns1\ty\t2\n")
    bad = write("b.tsv", "session_id\titem_id\ttimestamp\ns2\tx\t1\n\ty\t2\ns2\ty\tnoon\ns1\tx\t5\n")
    with pytest.raises(ClickFileError, match=r"b\.tsv: 2 bad rows \(line 3: session_id is empty; line 4: timestamp"):
        load(DataOptions([good, bad], [good]))
    data = load(DataOptions([good, bad], [good], reading=ReadOptions(skip_bad_rows=True)))
    assert [file.bad_rows for file in data.files] == [0, 2, 0]
    assert [row.place for row in data.files[1].bad_examples] == ["line 3", "line 4"]
    assert data.train.lengths.tolist() == [3]


def test_files_that_are_no_one_log_are_refused(write: Write) -> None:
    timed = write("timed.tsv", "session_id\titem_id\ttimestamp\ns1\tx\t1\ns1\ty\t2\n")
    timeless = write("timeless.tsv", "session_id\titem_id\ns1\tx\n")
    rsc15 = write("clicks.dat", EXPECTED["rsc15"][0])
    with pytest.raises(
        ClickFileError, match=r"clicks\.dat: is of the form rsc15, and .*timed\.tsv of the form click-f"
    ):
        read_log([timed, rsc15])
    for files in ([timed, timeless], [timeless, timed]):
        with pytest.raises(ClickFileError, match=r"timeless\.tsv: has no timestamps, and .*/timed\.tsv has some: give"):
            read_log(files)
    with pytest.raises(ClickFileError, match=r"timed\.tsv: is named twice"):
        read_log([timed, timed])
