"""Files as people have them in their hands: read by their content, or refused with what they are and what helps."""

import bz2
import gzip
import io
import json
import lzma
import sys
import tarfile
import zipfile
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.click_files.options import Format, ReadOptions, TimeUnit
from schemas.click_files.read import ClickLog, read_log
from schemas.errors import ClickFileError

NOW = 1_767_225_600_000  # 2026
CSV = "session_id,item_id,timestamp\ns1,i1,1700000000\ns1,i2,1700000010\n"
CLICKS = [("s1", "i1", 1_700_000_000_000), ("s1", "i2", 1_700_000_010_000)]
CASES = Path(__file__).parents[5] / "shared" / "cases"


def read(path: Path, **options: Any) -> ClickLog:
    return read_log([path], ReadOptions(**options), now_ms=NOW, events=True)


def clicks(log: ClickLog) -> list[tuple[str, str, int]]:
    assert log.timestamp is not None
    assert log.session_ids is not None
    columns = (log.session.tolist(), log.item.tolist(), log.timestamp.tolist())
    return [(log.session_ids[session], log.item_ids[item], time) for session, item, time in zip(*columns, strict=True)]


def write(folder: Path, content: str | bytes, name: str = "clicks") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zip_of(files: dict[str, str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return file.getvalue()


def tar_of(text: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo("clicks.csv")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text.encode()))
    return file.getvalue()


# -- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "described"),
    [
        (gzip.compress(CSV.encode()), "click-file: text with commas, gzip;"),
        (gzip.compress(CSV.encode()[:40]) + gzip.compress(CSV.encode()[40:]), "gzip"),
        (bz2.compress(CSV.encode()), "bzip2"),
        (lzma.compress(CSV.encode()), "xz"),
        (zip_of({"events.csv": CSV}), "zip"),
        (zip_of({"data/": "", "data/events.csv": CSV, "__MACOSX/._events.csv": "?"}), "zip"),
        (CSV.encode("utf-16"), "UTF-16"),
        (CSV.encode("utf-32"), "UTF-32"),
        ("\ufeff" + CSV, "commas"),
        (CSV.replace(",", ";"), "semicolons"),
        (CSV.replace(",", "|"), "bars"),
        (CSV.replace(",", "\t").replace("\n", "\r\n"), "tabs"),
        ("\n\n" + CSV, "commas"),
        ('"session_id"\t"item_id"\t"timestamp"\n"s1"\t"i1"\t1700000000\n"s1"\t"i2"\t1700000010\n', "tabs"),
        (CSV.replace("session_id,item_id,timestamp", "SessionId,ItemId,Time"), "session-rec"),
        (CSV.replace("session_id,item_id,timestamp", "session_id:token,item_id:token,timestamp:float"), "click-file"),
        (CSV.replace("1700000000", "1700000000000").replace("1700000010", "1700000010000"), "in milliseconds"),
        (CSV.replace("1700000000", "1700000000000000").replace("1700000010", "1700000010000000"), "in microseconds"),
        (CSV.replace("1700000000", "1700000000000000000").replace("1700000010", "1700000010000000000"), "in nanosec"),
        (CSV.replace("1700000000", "1.7e+09"), "in seconds"),
        (CSV.replace("1700000000", "2023-11-14T22:13:20Z").replace("1700000010", "2023-11-14T22:13:30.000Z"), "dates"),
        (CSV.replace("1700000000", "2023-11-14 22:13:20").replace("1700000010", "2023-11-14 23:13:30+01:00"), "dates"),
    ],
)
def test_all_of_these_are_the_same_clicks(tmp_path: Path, content: str | bytes, described: str) -> None:
    log = read(write(tmp_path, content))
    assert clicks(log) == CLICKS
    assert described in log.files[0].described


OURS = [{"session_id": session, "item_id": item, "timestamp": time} for session, item, time in CLICKS]


@pytest.mark.parametrize(
    "rows",
    [
        OURS,
        [{**row, "events": [], "session": 5} for row in OURS],  # OTTO's keys beside ours
        [{"topic": "clicks", "offset": n, "key": "s1", "payload": json.dumps(row)} for n, row in enumerate(OURS)],
        [{**row, "timestamp": row["timestamp"] / 1000} for row in OURS],  # type: ignore[operator]
        [{**row, "timestamp": datetime.fromtimestamp(row["timestamp"] / 1000, UTC).isoformat()} for row in OURS],  # type: ignore[operator]
    ],
)
def test_json_lines_of_ours_are_never_taken_for_others(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    assert clicks(read(write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows)))) == CLICKS


def test_session_and_item_ids_win_over_what_a_public_log_has(tmp_path: Path) -> None:
    rows = CSV.replace("timestamp\n", "timestamp,visitorid,event,session,time\n").replace("00\n", "00,v,stare,9,0\n")
    log = read(write(tmp_path, rows.replace("10\n", "10,v,view,9,0\n")))
    assert clicks(log) == CLICKS
    assert log.files[0].layout.form.name == Format.CLICK_FILE
    assert "session session_id, item item_id, time timestamp in seconds" in log.files[0].described


def test_the_format_says_it_outright(tmp_path: Path) -> None:
    header = "session_id,item_id,timestamp,visitorid,event,itemid\n"
    path = write(tmp_path, header + "s1,i1,1700000000000,v,view,j1\ns2,i2,1700000010000,v,addtocart,j2\n")
    with pytest.raises(ClickFileError, match="two columns have the name"):  # item_id and itemid
        read(path, format=Format.RETAILROCKET)
    log = read(path, format=Format.RETAILROCKET, item_column="itemid")
    assert clicks(log) == [("v", "j1", 1_700_000_000_000)]
    assert log.files[0].layout.form.idle_gap_minutes == 60


def test_names_units_and_delimiters_that_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, "when who what\n1700000000 s1 i1\n1700000010 s1 i2\n")
    names = {"session_column": "who", "item_column": "what", "time_column": "when"}
    assert clicks(read(path, delimiter=" ", timestamps=TimeUnit.SECONDS, **names)) == CLICKS
    with pytest.raises(ClickFileError, match=r"no milliseconds .*1970-01-20.* but seconds .*2023-11-14"):
        read(path, delimiter=" ", timestamps=TimeUnit.MILLISECONDS, **names)
    with pytest.raises(ClickFileError, match="no column nobody; it has when, who, what: name the right ones"):
        read(path, delimiter=" ", **(names | {"session_column": "nobody"}))


@pytest.mark.parametrize("delimiter", ["", "||", '"', "\n", "ü"])
def test_a_delimiter_that_is_none(delimiter: str) -> None:
    with pytest.raises(ValueError, match="delimiter"):
        ReadOptions(delimiter=delimiter)


BERLIN = timezone(timedelta(hours=1))


@pytest.mark.parametrize(
    "times",
    [
        pa.array([time for _, _, time in CLICKS]),
        pa.array([time // 1000 for _, _, time in CLICKS]),
        pa.array([time / 1000 for _, _, time in CLICKS]),
        *[
            pa.array([time for _, _, time in CLICKS], pa.timestamp("ms")).cast(pa.timestamp(unit))
            for unit in ("s", "us", "ns")
        ],
        pa.array(
            [datetime.fromtimestamp(time / 1000, BERLIN) for _, _, time in CLICKS], pa.timestamp("us", "Europe/Berlin")
        ),
        pa.array([datetime.fromtimestamp(time / 1000, UTC).isoformat() for _, _, time in CLICKS]),
    ],
)
def test_parquet_times_are_read_by_their_type(tmp_path: Path, times: Any) -> None:
    path = tmp_path / "clicks"
    pq.write_table(pa.table({"session_id": ["s1", "s1"], "item_id": ["i1", "i2"], "timestamp": times}), path)
    assert clicks(read(path)) == CLICKS


def test_parquet_has_whole_numbers_as_ids_dates_and_dictionaries(tmp_path: Path) -> None:
    path = tmp_path / "clicks.parquet"
    items = pa.array(["i1", "i2", "i1"]).dictionary_encode()
    days = [date(2023, 11, 14), date(2023, 11, 15), date(2023, 11, 15)]
    pq.write_table(pa.table({"session_id": [7, 7, 8], "item_id": items, "timestamp": days}), path)
    day = 1_699_920_000_000
    assert clicks(read(path)) == [("7", "i1", day), ("7", "i2", day + 86_400_000), ("8", "i1", day + 86_400_000)]
    pq.write_table(pa.table({"session_id": [7.5], "item_id": ["i"], "timestamp": days[:1]}), path)
    with pytest.raises(ClickFileError, match="session_id is of the type double: write ids as text or whole numbers"):
        read(path)


@pytest.mark.parametrize(
    ("ids", "times"),
    [(kind, kind) for kind in (pa.string_view(), pa.large_string())]
    + [(kind, pa.string()) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())],
)
def test_parquet_has_text_of_every_type(tmp_path: Path, ids: Any, times: Any) -> None:
    path = tmp_path / "clicks"
    moments = [datetime.fromtimestamp(time / 1000, UTC).isoformat() for _, _, time in CLICKS]
    columns = {"session_id": pa.array(["s1", "s1"]).cast(ids), "item_id": pa.array(["i1", "i2"]).cast(ids)}
    pq.write_table(pa.table({**columns, "timestamp": pa.array(moments).cast(times)}), path)
    assert clicks(read(path)) == CLICKS


def test_without_pyarrow_parquet_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clicks"
    pq.write_table(pa.table({"session_id": ["s"], "item_id": ["i"]}), path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ClickFileError, match="is Parquet, and pyarrow is not installed: `pip install pyarrow`"):
        read(path)


# -- wrong clocks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "reason"),
    [
        ("0", "'0' (1970-01-01) is not between 1995 and tomorrow: a wrong clock?"),
        ("4102444800", "'4102444800' (2100-01-01) is not between 1995 and tomorrow: a wrong clock?"),
        ("-5", "'-5' (1969-12-31) is not between"),
        ("1700000000000", "'1700000000000' (no date of ours) is not between"),
        ("inf", "'inf' is no number"),
        ("9" * 400, "is no number"),
    ],
)
def test_a_row_of_another_age_is_a_bad_one(tmp_path: Path, time: str, reason: str) -> None:
    path = write(tmp_path, CSV + f"s2,i1,{time}\n")
    with pytest.raises(ClickFileError, match=r"1 bad row \(line 4: timestamp ") as refused:
        read(path)
    assert reason in str(refused.value)
    log = read(path, skip_bad_rows=True)
    assert (clicks(log), log.files[0].bad_rows) == (CLICKS, 1)


def test_a_parquet_row_of_another_age_too(tmp_path: Path) -> None:
    path = tmp_path / "clicks"
    columns = {"session_id": ["s", "s", "s"], "item_id": ["i", "i", "i"], "timestamp": [1_700_000_000_000] * 2 + [-5]}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ClickFileError, match=r"row 3: timestamp -5.0 \(1969-12-31\) is not between"):
        read(path)


def test_clicks_far_from_all_others_are_told(tmp_path: Path) -> None:
    log = read(write(tmp_path, CSV + "s9,i1,1400000000\n"))
    assert log.files[0].warnings == [
        "1 of 3 clicks lie 3,472 days before all others (first: session 's9'): a wrong clock?"
    ]
    assert read(write(tmp_path, CSV)).files[0].warnings == []


def test_times_since_a_beginning_of_their_own_are_told(tmp_path: Path) -> None:
    log = read(write(tmp_path, "session_id,item_id,timestamp\ns1,i1,0\ns1,i2,7\n"))
    assert [time for _, _, time in clicks(log)] == [0, 7000]
    assert log.files[0].warnings == ["its times are no dates, and are taken as seconds since a beginning"]


# -- what is refused --------------------------------------------------------------------------------------------------


def with_titles(count: int, line: int, title: str) -> str:
    """Rows with a title each; that of one line is another one."""
    rows = [f"s{n // 4},i{n % 7},{1_700_000_000 + n},x" for n in range(count)]
    rows[line - 2] = rows[line - 2][:-1] + title
    return "\n".join(["session_id,item_id,timestamp,title", *rows, ""])


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (with_titles(1600, 802, '"55 inch tv'), "line 802: a quote is opened and never closed"),
        (with_titles(20_000, 802, '"55 inch tv'), "line 802: a field of more than 131,072 characters"),
        (with_titles(20, 9, '"55" inch tv'), "line 9: ',' expected after '\"'"),
        ('"session_id"\t"item_id"\n"s"\t"i\n"t"\t"i"\n', "line 2: "),
    ],
)
def test_a_quote_that_is_never_closed_swallows_nothing(tmp_path: Path, text: str, says: str, skip: bool) -> None:
    with pytest.raises(ClickFileError, match=says):
        read(write(tmp_path, text, "clicks.csv"), skip_bad_rows=skip)


def test_records_over_several_lines_are_read_and_told(tmp_path: Path) -> None:
    log = read(
        write(tmp_path, with_titles(9, 5, '"two\nlines, ""quoted"""') + "\n,i,1700000000,x\n"), skip_bad_rows=True
    )
    assert len(log) == 9
    assert log.line is not None
    assert log.line.tolist() == [2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert log.files[0].warnings == ["records over several lines: 1 (first: lines 5 to 6): is a quote missing?"]
    assert log.files[0].bad_examples[0].place == "line 13"


def test_a_quote_in_the_middle_is_a_character(tmp_path: Path) -> None:
    log = read(write(tmp_path, with_titles(9, 5, '19" rack') + 's,"a ""b"", c",1700000000,"\n'.replace(',"\n', ",\n")))
    assert log.item_ids[-1] == 'a "b", c'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(CSV.encode() * 9000)[:-9], "is damaged or ends too early, after line "),
        (lzma.compress(CSV.encode())[:-9], "is damaged or ends too early|cannot be read"),
        (bz2.compress(CSV.encode())[:-9], "is damaged or ends too early|cannot be read"),
        (gzip.compress(CSV.encode())[:12] + b"\xff" * 40, "cannot be read"),
        (zip_of({"a.csv": CSV})[:-30], "cannot be read: File is not a zip file"),
        (CSV.encode("utf-16")[:-1], "after line .*truncated data"),
        (zip_of({"a.csv": CSV, "b.csv": CSV}), r"an archive of 2 files \(a.csv, b.csv\): unpack the one"),
        (zip_of({"[Content_Types].xml": "", "sheet.xml": ""}), "a spreadsheet: save it as CSV"),
        (tar_of(CSV), "a tar archive: unpack it"),
        (gzip.compress(gzip.compress(CSV.encode())), "packed twice"),
        (b"\x28\xb5\x2f\xfd" + bytes(40), "is no text: zstd: unpack it with `zstd -d`"),
        (CSV.encode("utf-16-le"), "UTF-16 without a mark: save it as UTF-8"),
        (CSV.replace("\n", "\r"), r"its lines end with \\r alone"),
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("s1\ti1\t1700000000\n", "has no column session_id and no column item_id; it has s1, i1"),
        ('s1\t{"session_id":"s1","item_id":"i1","timestamp":1}\n', "a dump of a topic must hold the values alone"),
        ('[{"session_id":"s1"}]', "is no JSON object: .*: one object a line is expected"),
        ("PAR1" + "x" * 40, "Parquet"),
        ("x" * 140_000, r"line 1: field larger than field limit"),
        ("session_id,item_id,timestamp\ns,i,50000000000\n", "between 1995 and tomorrow in no unit"),
    ],
)
def test_what_is_refused_says_what_it_is(tmp_path: Path, content: str | bytes, says: str) -> None:
    for skip in (False, True):
        with pytest.raises(ClickFileError, match=rf"(?s)^{tmp_path}/clicks: .*{says}"):
            read(write(tmp_path, content), skip_bad_rows=skip)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"session_id":"s","item_id":"i","timestamp":1700000000000', "truncated"),
        (b'{"session_id":"\xff","item_id":"i","timestamp":1}', "utf-8"),
        (b"[" * 200_000, "Expected `object`, got `array`"),
        (b'{"session_id":"s","item_id":"i","x":' + b"[" * 200_000, "nested too deep"),
        (b'{"session_id":"s","timestamp":1700000000000}', "item_id is empty"),
        (b'{"session_id":"s","item_id":[1],"timestamp":1700000000000}', "an id must be a text or a whole number"),
        (b'{"session_id":"s","item_id":"i","timestamp":true}', "timestamp True (1970-01-01) is not between"),
        (b'{"session_id":"s","item_id":"i"}', "timestamp is missing"),
        (b'{"session_id":"s","item_id":"\\ud800","timestamp":1}', "surrogate"),
        (b'{"topic":"clicks","payload":5}', "session_id is empty"),
        (b'{"topic":"clicks","payload":"5"}', "Expected `object`, got `int`"),
        (b"null", "Expected `object`, got `null`"),
    ],
)
@pytest.mark.parametrize("number", [1, 3])
def test_a_bad_line_of_json_is_refused_with_its_number(tmp_path: Path, line: bytes, reason: str, number: int) -> None:
    lines = [json.dumps(row).encode() for row in OURS]
    lines.insert(number - 1, line)
    path = write(tmp_path, b"\n".join(lines) + b"\n")
    with pytest.raises(ClickFileError, match=rf"1 bad row \(line {number}: ") as refused:
        read(path)
    assert reason in str(refused.value)
    log = read(path, skip_bad_rows=True)
    assert (clicks(log), log.files[0].bad_rows) == (CLICKS, 1)


_LINES = [json.dumps({**row, "event_id": f"e{number}"}) for number, row in enumerate(OURS)]
_RSC15 = "1,2023-11-14T22:13:20.000Z,i1,0\n1,2023-11-14T22:13:30.000Z,i2,0\n"


@pytest.mark.parametrize(
    ("name", "content", "options", "number"),
    [
        ("clicks", gzip.compress("\n".join(['ion_id":"s0","item_id":"i0"}', *_LINES]).encode()), {}, 1),
        ("clicks", "\n".join(["\0" * 9 + _LINES[0][9:], *_LINES]), {}, 1),  # a log that was cut while it was written
        ("clicks", "\n".join(["", "# clicks of today", *_LINES]), {}, 2),
        ("clicks", "\n".join(['{"session_id":"s0","action":"forget"}', *_LINES]), {}, 1),
        ("otto.jsonl", '1}]}\n{"session":1,"events":[{"aid":1,"ts":1700000000000,"type":"clicks"}]}', {}, 1),
        ("yoochoose-clicks.dat", "14T22:13:20.000Z,i1,0\n" + _RSC15, {}, 1),
        ("clicks", "14T22:13:20.000Z,i1,0\n" + _RSC15, {"format": Format.RSC15}, 1),
    ],
)
def test_a_torn_first_line_is_a_bad_row(
    tmp_path: Path, name: str, content: str | bytes, options: dict[str, Any], number: int
) -> None:
    path = write(tmp_path, content, name)
    with pytest.raises(ClickFileError, match=rf"1 bad row \(line {number}: .*--skip-bad-rows"):
        read(path, **options)
    log = read(path, skip_bad_rows=True, **options)
    assert log.files[0].bad_rows == 1
    assert [time for _, _, time in clicks(log)] == [1_700_000_000_000, 1_700_000_010_000][: len(log)]


def test_what_the_first_object_lacks_the_next_ones_have(tmp_path: Path) -> None:
    later = write(tmp_path, "\n".join([json.dumps(OURS[0]), *_LINES[1:]]))
    assert read(later).event_ids == ("", "e1")
    without_time = json.dumps({"session_id": "s0", "item_id": "i0"})
    with pytest.raises(ClickFileError, match=r"1 bad row \(line 1: timestamp is missing\)"):
        read(write(tmp_path, "\n".join([without_time, *_LINES])))


@pytest.mark.parametrize("rows", [2, 200])
def test_a_list_over_several_lines_is_no_json_lines(tmp_path: Path, rows: int) -> None:
    path = write(tmp_path, json.dumps([OURS[0]] * rows, indent=1).replace("\n  ", "").replace("\n },", "},"))
    with pytest.raises(ClickFileError, match=r"line 1: is no JSON object: .*: one object a line is expected"):
        read(path, skip_bad_rows=True)


# -- the small inputs of public bug reports, where they are there ------------------------------------------------------

_REFUSED = {
    "damaged.tsv.gz": "cannot be read",
    "unclosed_quote_mid.csv": "line 802: a quote is opened and never closed",
    "future_outlier.tsv": r"2 bad rows \(line 162: timestamp '4102444800'",
    "zero_time.tsv": r"1 bad row \(line 162: timestamp '0'",
    "pq_negative.parquet": r"2 bad rows \(row 161: ",
    "otto_bad_utf8.jsonl": r"1 bad row \(line 21: ",
}
_CLICKS = {
    "extra_columns_600.csv": (2400, 600),
    "extra_columns_600_plain.csv": (2400, 600),
    "ms.csv": (60, 20),
    "r_write_table.tsv": (60, 20),
    "yoochoose-clicks.dat": (60, 20),
    "otto.jsonl": (40, 20),
    "otto_bad_utf8.jsonl": (40, 20),
}


def test_the_cases() -> None:
    if not CASES.exists():
        pytest.skip("../shared/cases is not there")
    for path in sorted(CASES.iterdir()):
        if path.name in _REFUSED:
            with pytest.raises(ClickFileError, match=_REFUSED[path.name]):
                read(path)
        if path.name in {"damaged.tsv.gz", "unclosed_quote_mid.csv"}:
            continue
        log = read(path, skip_bad_rows=True)
        assert (len(log), len(set(log.session.tolist()))) == _CLICKS.get(path.name, (160, 40)), path.name
        assert log.timestamp is not None
        assert 1_390_000_000_000 < log.timestamp.min() <= log.timestamp.max() < 1_710_000_000_000, path.name
