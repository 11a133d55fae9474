"""One reader: click files in, clicks out; and for every way a file can be bad, an error that says where and why."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.click_files.options import Format, ReadOptions
from schemas.click_files.read import ClickLog, read_log
from schemas.errors import ClickFileError

NOW = 1_767_225_600_000  # 2026
TSV = "session_id\titem_id\ttimestamp\na\tx\t1.5\nb\ty\t2\na\ty\t3.250\n"


def rows(log: ClickLog) -> list[tuple[int, str, int | None]]:
    times = [None] * len(log) if log.timestamp is None else log.timestamp.tolist()
    items = [log.item_ids[i] for i in log.item.tolist()]
    return list(zip(log.session.tolist(), items, times, strict=True))


def read_clicks(path: Path, **options: Any) -> ClickLog:
    return read_log([path], ReadOptions(**options), now_ms=NOW)


def bad_rows(log: ClickLog) -> int:
    return sum(file.bad_rows for file in log.files)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_reads_seconds_with_fractions_as_milliseconds(tmp_path: Path) -> None:
    assert rows(read_clicks(write(tmp_path / "clicks.tsv", TSV))) == [(0, "x", 1500), (1, "y", 2000), (0, "y", 3250)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("clicks.tsv.gz", gzip.compress(TSV.encode(), mtime=0)),
        ("clicks.csv", TSV.replace("\t", ",")),
        ("quoted.csv", 'session_id,item_id,timestamp\n"a",x,1.5\nb,"y",2\na,y,3.250\n'),
        ("windows.tsv", TSV.replace("\n", "\r\n")),
        ("marked.tsv", "\ufeff" + TSV),
        ("columns.tsv", "timestamp\textra\titem_id\tsession_id\n1.5\t-\tx\ta\n2\t-\ty\tb\n3.250\t-\ty\ta\n"),
        ("blank-lines.tsv", TSV + "\n\n"),
    ],
)
def test_every_form_of_a_click_file_is_the_same_log(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert rows(read_clicks(write(tmp_path / name, content))) == [(0, "x", 1500), (1, "y", 2000), (0, "y", 3250)]


def test_a_file_without_times_has_none(tmp_path: Path) -> None:
    log = read_clicks(write(tmp_path / "clicks.tsv", "session_id\titem_id\n1\t7\n1\t8\n"))
    assert rows(log) == [(0, "7", None), (0, "8", None)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("c\tz", "2 columns in place of 3"),
        ("c\tz\t4\t5", "4 columns in place of 3"),
        ("\tz\t4", "session_id is empty"),
        ("c\t\t4", "item_id is empty"),
        ("c\tz\tnoon", "timestamp 'noon' is no number"),
        ("c\tz\tnan", "timestamp 'nan'"),
        ("c\tz\t-4", "timestamp '-4'"),
        ("c\tz\t", "timestamp is missing"),
        ("c\t" + "z" * 257 + "\t4", "item_id has 257 bytes, the limit is 256"),
        (b"c\t\xff\xfe\t4", "item_id is not UTF-8"),
    ],
)
def test_a_bad_row_is_an_error_with_its_line_or_is_counted(tmp_path: Path, row: str | bytes, reason: str) -> None:
    bad = row if isinstance(row, bytes) else row.encode()
    path = write(tmp_path / "clicks.tsv", TSV.encode() + b"\n" + bad + b"\nd\tx\t9\n")
    with pytest.raises(ClickFileError, match="1 bad row") as caught:
        read_clicks(path)
    assert f"line 6: {reason}" in str(caught.value)  # the header is line 1, and line 5 is blank
    log = read_clicks(path, skip_bad_rows=True)
    assert bad_rows(log) == 1
    assert [item for _, item, _ in rows(log)] == ["x", "y", "y", "x"]


def test_only_the_first_bad_rows_are_named_and_all_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "clicks.tsv", TSV + "c\t\t4\n" * 250)
    log = read_clicks(path, skip_bad_rows=True)
    assert bad_rows(log) == 250
    assert [row.place for row in log.files[0].bad_examples] == [f"line {number}" for number in range(5, 105)]
    told = "; ".join(f"line {number}: item_id is empty" for number in range(5, 10))
    with pytest.raises(ClickFileError, match=rf"250 bad rows \({told}; \.\.\)"):
        read_clicks(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "empty"),
        ("user\titem_id\n1\t2\n", "has no column session_id; it has user, item_id"),
        ("session_id\titem_id\titem_id\n1\t2\t3\n", "two columns have the name item_id"),
        ("session_id\titem_id\n", "holds no clicks"),
    ],
)
def test_a_file_that_is_no_click_file_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    with pytest.raises(ClickFileError, match=reason):
        read_clicks(write(tmp_path / "clicks.tsv", content))


def test_a_truncated_gzip_is_refused(tmp_path: Path) -> None:
    text = "session_id\titem_id\n" + "".join(f"{i}\t{i * 7919 % 10007}\n" for i in range(50_000))
    with pytest.raises(ClickFileError, match=r"clicks\.tsv\.gz"):
        read_clicks(write(tmp_path / "clicks.tsv.gz", gzip.compress(text.encode(), mtime=0)[:-2000]))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClickFileError, match="no such file"):
        read_clicks(tmp_path / "nothing.tsv")


def parquet(path: Path, sessions: list[str | None], items: list[str | None], times: list[int | None]) -> None:
    table = pa.table(
        {
            "session_id": pa.array(sessions, pa.string()),
            "item_id": pa.array(items, pa.string()),
            "timestamp": pa.array(times, pa.int64()),
            "partition": pa.array([0] * len(items), pa.int32()),  # what else a log keeps is ignored
        }
    )
    pq.write_table(table, path)


def test_reads_a_folder_of_parquet_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    parquet(tmp_path / "part-1.parquet", ["b"], ["y"], [2000])
    parquet(tmp_path / "part-0.parquet", ["a", "a"], ["x", "y"], [1000, 1500])
    (tmp_path / "part-2.parquet.unfinished").write_text("not yet")
    assert rows(read_clicks(tmp_path)) == [(0, "x", 1000), (0, "y", 1500), (1, "y", 2000)]


def test_a_bad_row_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    parquet(tmp_path / "part-0.parquet", ["a"], ["x"], [1000])
    parquet(tmp_path / "part-1.parquet", ["a", "b", None], ["y", None, "z"], [None, 5, 6])
    with pytest.raises(ClickFileError) as caught:
        read_clicks(tmp_path)
    assert "part-1.parquet: 3 bad rows (row 1: timestamp is missing; row 2: item_id is empty; row 3" in str(
        caught.value
    )
    log = read_clicks(tmp_path, skip_bad_rows=True)
    assert (bad_rows(log), rows(log)) == (3, [(0, "x", 1000)])


def test_parquet_with_a_damaged_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    parquet(path, ["a"], ["x"], [1000])
    content = bytearray(path.read_bytes())
    content[content.index(b"item_id")] = 0xFF
    path.write_bytes(content)
    with pytest.raises(ClickFileError, match=r"part\.parquet: cannot be read as Parquet: 'utf-8' codec"):
        read_clicks(path)


@pytest.mark.parametrize("error", [IndexError("index out of bounds"), OSError(), ValueError("\nmore\nlines")])
@pytest.mark.parametrize("where", ["ParquetFile", "ParquetFile.iter_batches"])
def test_whatever_pyarrow_raises_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    parquet(tmp_path / "part.parquet", ["a"], ["x"], [1000])
    monkeypatch.setattr(f"pyarrow.parquet.{where}", fail)
    with pytest.raises(ClickFileError, match=r"part\.parquet: cannot be read as Parquet: (index|OSError|more$)"):
        read_clicks(tmp_path)


def test_names_of_parquet_columns_are_names(tmp_path: Path) -> None:
    """A file of RSC15's may have no header; a Parquet file has one always."""
    parquet(tmp_path / "part.parquet", ["a"], ["x"], [1000])
    with pytest.raises(ClickFileError, match=r"part\.parquet: has no column session and no column item"):
        read_clicks(tmp_path, format=Format.RSC15)


def test_what_is_no_parquet_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClickFileError, match=r"no \.parquet files"):
        read_clicks(tmp_path)
    (tmp_path / "part.parquet").write_text("damaged")
    with pytest.raises(ClickFileError, match=r"part\.parquet"):
        read_clicks(tmp_path)
    pq.write_table(pa.table({"session_id": ["a"], "timestamp": [1]}), tmp_path / "part.parquet")
    with pytest.raises(ClickFileError, match="has no column item_id"):
        read_clicks(tmp_path)
