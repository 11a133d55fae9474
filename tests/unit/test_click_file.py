"""Click files in, lists of clicks out; and for every way a file can be bad, an error that says where and why."""

import gzip
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.click import Click
from stream_app.click_file import ClickFile, ClickFileError, ClickFileFormat, read_click_file

SHARED = Path(__file__).parents[3] / "shared" / "data"
HEADER = "session_id\titem_id\ttimestamp\n"


def file(folder: Path, content: str | bytes, name: str = "clicks.tsv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, file_format: ClickFileFormat | None = None) -> list[Click]:
    return list(read_click_file(path, file_format))


# -- what is read -----------------------------------------------------------------------------------------------------


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


def test_gzip_is_told_by_the_content(tmp_path: Path) -> None:
    plain = (HEADER + "a\tx\t1\n").encode()
    expected = [Click("a", "x", 1_000, "2")]
    assert read(file(tmp_path, gzip.compress(plain), "clicks.tsv.gz")) == expected
    assert read(file(tmp_path, gzip.compress(plain), "clicks.tsv")) == expected
    assert read(file(tmp_path, plain, "misnamed.tsv.gz")) == expected


def test_csv_with_quotes_other_columns_and_windows_line_ends(tmp_path: Path) -> None:
    path = file(tmp_path, '\ufeffprice,item_id,session_id,timestamp\r\n1,"lamp, red",a,1\r\n\r\n2,x,a,2\r\n', "c.csv")
    assert read(path) == [Click("a", "lamp, red", 1_000, "2"), Click("a", "x", 2_000, "4")]


def test_quotes_mean_nothing_between_tabs(tmp_path: Path) -> None:
    assert read(file(tmp_path, HEADER + 'a\t19" rack\t1\n'))[0].item_id == '19" rack'


def test_columns_delimiter_and_unit_by_other_names(tmp_path: Path) -> None:
    path = file(tmp_path, "when;visitor;sku;key\n1396321341719;v1;p9;k-7\n1396321341720;v1;p8;\n", "clicks.dat")
    names = ClickFileFormat(
        delimiter=";",
        session_column="visitor",
        item_column="sku",
        time_column="when",
        event_column="key",
        time_unit="ms",
    )
    assert read(path, names) == [Click("v1", "p9", 1396321341719, "k-7"), Click("v1", "p8", 1396321341720, "3")]


def test_seconds_with_milliseconds_lose_none_of_them(tmp_path: Path) -> None:
    @settings(max_examples=200, deadline=None)
    @given(st.integers(0, 10**13))
    def check(time_ms: int) -> None:
        path = file(tmp_path, f"{HEADER}a\tx\t{time_ms // 1000}.{time_ms % 1000:03d}\n")
        assert read(path)[0].timestamp == time_ms

    check()


def test_without_times_sessions_start_one_after_the_other_and_overlap(tmp_path: Path) -> None:
    path = file(tmp_path, "session_id\titem_id\na\tx\na\ty\nb\tz\nb\tz\n")
    clicks = read(path, ClickFileFormat(synthetic_session_ms=1_000, synthetic_click_ms=5_000))
    assert clicks == [
        Click("a", "x", 0, "2"),
        Click("b", "z", 1_000, "4"),
        Click("a", "y", 5_000, "3"),
        Click("b", "z", 6_000, "5"),
    ]


ids = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n"), min_size=1, max_size=64)


def test_every_click_that_is_written_is_read(tmp_path: Path) -> None:
    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(ids, ids, st.integers(0, 10**13)), min_size=1, max_size=30))
    def check(rows: list[tuple[str, str, int]]) -> None:
        path = file(tmp_path, HEADER + "".join(f"{session}\t{item}\t{time}\n" for session, item, time in rows))
        clicks = read(path, ClickFileFormat(time_unit="ms"))
        expected = [Click(session, item, time, str(i + 2)) for i, (session, item, time) in enumerate(rows)]
        assert clicks == sorted(expected, key=lambda click: click.timestamp)

    check()


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("a\tx", "2 fields, the header has 3"),
        ("a\tx\t1\t2", "4 fields"),
        ("\tx\t1", "the session id is empty"),
        ("a\t\t1", "the item id is empty"),
        ("a\t" + "x" * 257 + "\t1", "item id has 257 bytes, the limit is 256"),
        ("ü" * 129 + "\tx\t1", "session id has 258 bytes"),
        ("a\tx\tyesterday", "the time 'yesterday' is not a number of seconds"),
        ("a\tx\t", "the time '' is not a number"),
        ("a\tx\tnan", "not a time since 1970"),
        ("a\tx\t-1", "not a time since 1970"),
        ("a\tx\tinf", "after the year 5000"),
        ("a\tx\t1396321341719", "in milliseconds"),
    ],
)
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path: Path, row: str, says: str) -> None:
    path = file(tmp_path, f"{HEADER}a\tx\t1\n{row}\nb\ty\t2\n")
    with pytest.raises(ClickFileError, match=rf"clicks\.tsv, line 3: .*{says}"):
        read_click_file(path)
    lenient = read_click_file(path, ClickFileFormat(skip_bad_rows=True))
    assert list(lenient) == [Click("a", "x", 1_000, "2"), Click("b", "y", 2_000, "4")]
    assert lenient.skipped == 1
    assert says in lenient.first_skipped[0]


def test_bytes_that_are_no_utf_8_spoil_their_row_only(tmp_path: Path) -> None:
    path = file(tmp_path, HEADER.encode() + b"a\tx\xff\t1\nb\ty\t2\n")
    with pytest.raises(ClickFileError, match="line 2: the item id is not UTF-8"):
        read_click_file(path)
    assert list(read_click_file(path, ClickFileFormat(skip_bad_rows=True))) == [Click("b", "y", 2_000, "3")]


@pytest.mark.parametrize("time", ["1.5", "9" * 5000, "1e12", "-5"])
def test_milliseconds_are_whole_numbers_of_our_time(tmp_path: Path, time: str) -> None:
    with pytest.raises(ClickFileError, match="line 2: the time"):
        read_click_file(file(tmp_path, f"{HEADER}a\tx\t{time}\n"), ClickFileFormat(time_unit="ms"))


def test_many_bad_rows_are_counted_and_a_few_named(tmp_path: Path) -> None:
    path = file(tmp_path, HEADER + "a\tx\t1\n" + "bad\n" * 1_000)
    clicks = read_click_file(path, ClickFileFormat(skip_bad_rows=True))
    assert (len(clicks), clicks.skipped, len(clicks.first_skipped)) == (1, 1_000, 5)


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        ("", "c.tsv", "is empty"),
        (HEADER, "c.tsv", "holds no clicks"),
        ("session,item_id\na,x\n", "c.csv", "no column session_id; it has session, item_id"),
        ("a\tx\t1\n", "c.tsv", "no column session_id and no column item_id; it has a, x, 1"),
        (HEADER, "c.csv", "or the right delimiter"),
        ("session_id\titem_id\titem_id\n", "c.tsv", "two columns have the same name"),
        (HEADER, "clicks", "name does not tell the delimiter"),
        (HEADER, "clicks.parquet", "name does not tell the delimiter"),
        ('session_id,item_id\na,"x\nb,y\n', "c.csv", "line 3: unexpected end of data"),
        (b"\xff\xfes\x00e\x00s\x00", "c.tsv", r"it has \\udcff"),
        (
            gzip.compress((HEADER + "a\tx\t1\n" * 1000).encode(), mtime=0)[:-12],
            "c.tsv.gz",
            "cannot be read: Compressed file ended",
        ),
        (gzip.compress(HEADER.encode(), mtime=0)[:12] + b"\xff" * 40, "c.tsv.gz", "cannot be read"),
    ],
)
def test_a_file_that_is_no_click_file_is_refused(tmp_path: Path, content: str | bytes, name: str, says: str) -> None:
    path = file(tmp_path, content, name)
    for lenient in (False, True):
        with pytest.raises(ClickFileError, match=says) as refusal:
            read_click_file(path, ClickFileFormat(skip_bad_rows=lenient))
        str(refusal.value).encode()  # can be printed


def test_a_file_of_bad_rows_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClickFileError, match="holds no clicks, only 2 bad rows"):
        read_click_file(file(tmp_path, HEADER + "bad\nbad\n"), ClickFileFormat(skip_bad_rows=True))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClickFileError, match="cannot be read: No such file or directory"):
        read_click_file(tmp_path / "none.tsv")


def test_a_time_column_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    path = file(tmp_path, "session_id\titem_id\na\tx\n")
    with pytest.raises(ClickFileError, match="no column time"):
        read_click_file(path, ClickFileFormat(time_column="time"))


@pytest.mark.parametrize("wrong", [{"delimiter": "||"}, {"delimiter": '"'}, {"synthetic_click_ms": 0}])
def test_a_format_that_cannot_be_is_refused(wrong: dict[str, str | int]) -> None:
    with pytest.raises(ValueError, match=r"delimiter|synthetic_click_ms"):
        ClickFileFormat(**wrong)  # type: ignore[arg-type]


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
    in_file: dict[str, list[str]] = {}
    for session, item in zip(file_of_clicks.session_ids, file_of_clicks.item_ids, strict=True):
        in_file.setdefault(session, []).append(item)
    replayed: dict[str, list[str]] = {}
    for click in file_of_clicks:
        replayed.setdefault(click.session_id, []).append(click.item_id)
    assert len(file_of_clicks) == 71_222
    assert replayed == in_file
    assert list(file_of_clicks) != sorted(file_of_clicks, key=lambda click: int(click.event_id or 0))  # interleaved
