"""The public formats as they are downloaded, written here row by row."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from schemas.click_files.forms import FORMS, Form
from schemas.click_files.options import Format, ReadOptions
from schemas.click_files.read import ClickLog, read_log
from schemas.errors import ClickFileError

RSC15 = """\
1,2014-04-07T10:51:09.277Z,214536502,0
1,2014-04-07T10:54:09.868Z,214536500,S
2,2014-01-02T00:00:00.001Z,214536502,7
"""
DIGINETICA = """\
sessionId;userId;itemId;timeframe;eventdate
1;NA;81766;526309;2016-05-09
1;NA;31331;1031018;2016-05-09
2;44;81766;3;2016-01-02
"""
RETAILROCKET = """\
timestamp,visitorid,event,itemid,transactionid
1433221332117,257597,view,355908,
1433224214164,992329,addtocart,248676,
1433221999827,111016,view,318965,
1433221955914,257597,transaction,355908,4000
"""
COVEO = """\
session_id_hash,event_type,product_action,product_sku_hash,server_timestamp_epoch_ms,hashed_url
s1,event_product,detail,skuA,1550885210881,u1
s1,pageview,,,1550885213307,u2
s2,event_product,add,skuB,1550885213308,u3
s2,event_product,detail,skuB,1550885213309,u3
"""
COVEO_2020 = COVEO.replace("product_sku_hash", "product_skus_hash")
REES46 = """\
event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session
2019-10-01 00:00:04 UTC,view,44600062,2103807459595387724,,shiseido,35.79,541312140,72d76fde
2019-10-01 00:00:05 UTC,cart,44600062,2103807459595387724,,shiseido,35.79,541312140,72d76fde
2019-01-02 00:00:01 UTC,view,3900821,2053013552326770905,appliances.environment.water_heater,aqua,33.20,554748717,9333
"""
OTTO = """\
{"session":42,"events":[{"aid":7,"ts":1661200010000,"type":"clicks"},{"aid":7,"ts":1661200020000,"type":"carts"}]}
{"session":43,"events":[{"aid":9,"ts":1661200030000,"type":"clicks"},{"aid":7,"ts":1661200040000,"type":"clicks"}]}
"""

EXPECTED = {
    "rsc15": (
        RSC15,
        [(0, "214536502", 1396867869277), (0, "214536500", 1396868049868), (1, "214536502", 1_388_620_800_001)],
    ),
    "diginetica": (
        DIGINETICA,
        [(0, "81766", 1462752000000 + 526309), (0, "31331", 1462752000000 + 1031018), (1, "81766", 1_451_692_800_003)],
    ),
    "retailrocket": (RETAILROCKET, [(0, "355908", 1433221332117), (1, "318965", 1433221999827)]),
    "coveo": (COVEO, [(0, "skuA", 1550885210881), (1, "skuB", 1550885213309)]),
    "coveo-2020": (COVEO_2020, [(0, "skuA", 1550885210881), (1, "skuB", 1550885213309)]),
    "rees46": (REES46, [(0, "44600062", 1569888004000), (1, "3900821", 1_546_387_201_000)]),
    "otto": (OTTO, [(0, "7", 1661200010000), (1, "9", 1661200030000), (1, "7", 1661200040000)]),
}


def rows(log: ClickLog) -> list[tuple[int, str, int]]:
    assert log.timestamp is not None
    items = [log.item_ids[i] for i in log.item.tolist()]
    return list(zip(log.session.tolist(), items, log.timestamp.tolist(), strict=True))


def read(path: Path, **options: Any) -> ClickLog:
    return read_log([path], ReadOptions(**options), now_ms=1_767_225_600_000)


def form_of(path: Path) -> Form:
    return read(path).files[0].layout.form


def bad_rows(log: ClickLog) -> int:
    return log.files[0].bad_rows


@pytest.mark.parametrize("name", list(EXPECTED))
@pytest.mark.parametrize("compressed", [False, True])
def test_each_format_is_known_by_its_first_line(tmp_path: Path, name: str, compressed: bool) -> None:
    text, expected = EXPECTED[name]
    path = tmp_path / ("downloaded.gz" if compressed else "downloaded")
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    assert form_of(path) is FORMS[Format(name)]
    assert rows(read(path)) == expected


@pytest.mark.parametrize("text", [RSC15.replace("\n", "\r\n"), RSC15.rstrip("\n"), RSC15.replace("\n", "\n\n")])
def test_line_ends_do_not_matter(tmp_path: Path, text: str) -> None:
    (tmp_path / "clicks.dat").write_bytes(text.encode())
    assert rows(read(tmp_path / "clicks.dat")) == EXPECTED["rsc15"][1]


def test_the_other_spelling_of_diginetica(tmp_path: Path) -> None:
    path = tmp_path / "train-item-views.csv"
    path.write_text(DIGINETICA.replace("sessionId;userId;itemId", "session_id;user_id;item_id"))
    assert rows(read(path)) == EXPECTED["diginetica"][1]


def test_whole_seconds_are_times_too(tmp_path: Path) -> None:
    (tmp_path / "clicks.dat").write_text("5,2014-01-01T00:01:02Z,8,0\n")
    assert rows(read(tmp_path / "clicks.dat")) == [(0, "8", 1_388_534_462_000)]


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("rsc15", "3,2014-02-30T10:00:00.000Z,5,0", "time '2014-02-30T10:00:00.000Z' is no date and time"),
        ("rsc15", "3,2014-02-03T25:00:00.000Z,5,0", "is no date and time"),
        ("rsc15", "3,2014-02-03T05:00:00.000Z,,0", "item is empty"),
        ("rsc15", "3,2014-02-03T05:00:00.000Z,5", "3 columns in place of 4"),
        ("diginetica", "3;NA;5;-1;2016-05-09", "or timeframe is no number of milliseconds"),
        ("diginetica", "3;NA;5;1;09.05.2016", "eventdate '09.05.2016' is no date"),
        ("diginetica", "3;NA;;1;2016-05-09", "itemId is empty"),
        (
            "retailrocket",
            "14332213321170000,1,view,3,",
            "timestamp '14332213321170000' (no date of ours) is not between",
        ),
        ("retailrocket", "1433221332117,1,stare,3,", "event 'stare' is none of view, addtocart, transaction"),
        ("coveo", "s3,event_product,detail,,1550885213307,u", "product_sku_hash is empty"),
        ("rees46", "2019-10-01 24:00:05 UTC,view,1,2,,,3.0,4,a", "event_time '2019-10-01 24:00:05 UTC' is no date"),
        ("rees46", "2019-10-01 00:00:05 UTC,stare,1,2,,,3.0,4,a", "eventtype 'stare' is none of view, cart"),
        ("otto", '{"session":1,"events":[{"aid":7,"ts":1,"type":"stare"}]}', "Invalid enum value 'stare'"),
        ("otto", '{"session":1,"events":[{"aid":7}]}', "missing required field `ts`"),
        ("otto", '{"session":1,', "truncated"),
    ],
)
def test_a_bad_row_is_refused_with_its_line_or_counted(tmp_path: Path, name: str, row: str, reason: str) -> None:
    text, expected = EXPECTED[name]
    path = tmp_path / "downloaded"
    path.write_text(text + row + "\n")
    line = len(text.splitlines()) + 1
    with pytest.raises(ClickFileError) as refused:
        read(path)
    assert f"1 bad row (line {line}: " in str(refused.value)
    assert reason in str(refused.value)
    log = read(path, skip_bad_rows=True)
    assert (rows(log), bad_rows(log)) == (expected, 1)


def test_a_yoochoose_file_that_begins_with_a_bad_row_is_still_one(tmp_path: Path) -> None:
    path = tmp_path / "yoochoose-clicks.dat"
    path.write_text("what\n" + RSC15)
    log = read(path, skip_bad_rows=True)
    assert (rows(log), bad_rows(log)) == (EXPECTED["rsc15"][1], 1)
    assert log.files[0].bad_examples[0].place == "line 1"


def test_a_click_file_is_none_of_them(tmp_path: Path) -> None:
    path = tmp_path / "clicks.tsv"
    path.write_text("session_id\titem_id\ttimestamp\na\tx\t1.5\n")
    assert form_of(path) is FORMS[Format.CLICK_FILE]
    assert rows(read(path)) == [(0, "x", 1500)]


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.csv.gz"
    path.write_bytes(gzip.compress(RETAILROCKET.encode())[:-9])
    with pytest.raises(ClickFileError, match=r"events\.csv\.gz"):
        read(path)
