"""Types of clicks: in files of our own, in public logs, and in what `stream-app replay` sends."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.click_files.options import ReadOptions
from schemas.click_files.read import ClickLog, read_log
from schemas.errors import ClickFileError
from stream_app.tools.click_file import read_click_file
from stream_app.tools.pacing import rebase
from tests.unit.schemas.click_files.test_forms import COVEO, COVEO_2020, OTTO, REES46, RETAILROCKET

OURS = """\
session_id,item_id,timestamp,type
s1,a,1700000000000,
s1,a,1700000001000,cart
s1,b,1700000002000,view
s1,a,1700000003000,purchase
s2,c,1700000004000,wishlist
"""
OF_OURS = [("a", "view"), ("a", "cart"), ("b", "view"), ("a", "purchase"), ("c", "wishlist")]


def read(path: Path, **options: Any) -> ClickLog:
    return read_log([path], ReadOptions(**options), now_ms=1_767_225_600_000)


def typed(log: ClickLog) -> list[tuple[str, str]]:
    """Item and type of each click."""
    items = [log.item_ids[number] for number in log.item.tolist()]
    types = ["view"] * len(log) if log.types is None else [log.type_names[number] for number in log.types.tolist()]
    return list(zip(items, types, strict=True))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_of_ours_has_a_column_of_types(tmp_path: Path) -> None:
    path = write(tmp_path / "clicks.csv", OURS)
    assert typed(read(path)) == OF_OURS
    assert typed(read(path, types="view, purchase")) == [one for one in OF_OURS if one[1] in ("view", "purchase")]
    assert typed(read(path, types="all")) == OF_OURS


def test_json_lines_and_parquet_have_them_too(tmp_path: Path) -> None:
    lines = write(
        tmp_path / "clicks.jsonl",
        '{"session_id":"s","item_id":"a","timestamp":1700000000000}\n'
        '{"session_id":"s","item_id":"b","timestamp":1700000000000,"type":"cart"}\n'
        '{"session_id":"s","item_id":"c","timestamp":1700000000000,"type":null}\n',
    )
    assert typed(read(lines)) == [("a", "view"), ("b", "cart"), ("c", "view")]
    table = pa.table({"session_id": ["s"] * 3, "item_id": ["a", "b", "c"], "type": [None, "cart", "view"]})
    pq.write_table(table, tmp_path / "clicks.parquet")
    assert typed(read(tmp_path / "clicks.parquet")) == [("a", "view"), ("b", "cart"), ("c", "view")]


@pytest.mark.parametrize("types", [None, "all", "view"])
def test_where_all_are_views_there_are_no_types(tmp_path: Path, types: str | None) -> None:
    for name, text in {
        "without": "session_id,item_id\ns,a\ns,b\n",
        "with": "session_id,item_id,type\ns,a,\ns,b,view\n",
    }.items():
        log = read(write(tmp_path / f"{name}.csv", text), types=types)
        assert (log.types, log.type_names, len(log)) == (None, ("view",), 2)


PUBLIC = {
    "retailrocket": (RETAILROCKET, ["view", "cart", "view", "purchase"]),
    "coveo": (COVEO, ["view", "cart", "view"]),
    "coveo-2020": (COVEO_2020, ["view", "cart", "view"]),
    "rees46": (REES46, ["view", "cart", "view"]),
    "otto": (OTTO, ["view", "cart", "view", "view"]),
}


@pytest.mark.parametrize("name", list(PUBLIC))
def test_public_logs_have_the_types_that_are_asked_for(tmp_path: Path, name: str) -> None:
    text, types = PUBLIC[name]
    path = write(tmp_path / "downloaded", text)
    assert [kind for _, kind in typed(read(path, types="all"))] == types
    assert [kind for _, kind in typed(read(path, types="view,cart"))] == [one for one in types if one != "purchase"]
    assert [kind for _, kind in typed(read(path, types="cart"))] == ["cart"]
    views = read(path)
    assert (len(views), views.types) == (types.count("view"), None)


def test_types_of_public_logs_that_have_no_usual_name_stay_as_they_are(tmp_path: Path) -> None:
    removed = REES46.replace(",cart,", ",remove_from_cart,")
    assert ("44600062", "remove_from_cart") in typed(read(write(tmp_path / "rees46.csv", removed), types="all"))
    removed = COVEO.replace(",add,", ",remove,")
    assert ("skuB", "remove") in typed(read(write(tmp_path / "coveo.csv", removed), types="view,remove"))


def test_a_type_that_a_public_log_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClickFileError, match="retailrocket has no clicks of the type buy; it has cart, purchase, view"):
        read(write(tmp_path / "events.csv", RETAILROCKET), types="view,buy")


def test_no_types_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="name one at least"):
        ReadOptions(types=" , ")


def test_a_file_without_a_click_of_the_types_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClickFileError, match="holds no clicks"):
        read(write(tmp_path / "clicks.csv", "session_id,item_id\ns,a\ns,b\n"), types="cart")


def test_a_type_that_is_too_long_is_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "clicks.csv", OURS + f"s3,a,1700000005000,{'x' * 257}\n")
    with pytest.raises(ClickFileError, match="line 7: type has 257 bytes, the limit is 256"):
        read(path)
    log = read(path, skip_bad_rows=True)
    assert (typed(log), log.files[0].bad_rows) == (OF_OURS, 1)


def test_types_keep_their_numbers_over_files(tmp_path: Path) -> None:
    first = write(tmp_path / "1.csv", "session_id,item_id\ns,a\ns,b\n")
    second = write(tmp_path / "2.csv", "session_id,item_id,type\ns,c,purchase\ns,d,cart\n")
    third = write(tmp_path / "3.csv", "session_id,item_id,type\ns,e,cart\ns,f,\n")
    log = read_log([first, second, third], ReadOptions())
    expected = ["view", "view", "purchase", "cart", "cart", "view"]
    assert typed(log) == list(zip("abcdef", expected, strict=True))


def test_a_replay_sends_the_types(tmp_path: Path) -> None:
    file = read_click_file(write(tmp_path / "clicks.csv", OURS))
    sent = [None, "cart", None, "purchase", "wishlist"]
    assert [click.type or "view" for click in file] == [kind or "view" for kind in sent]
    assert [click.type or "view" for click in rebase(file, to_ms=1_767_225_600_000)] == [
        kind or "view" for kind in sent
    ]
    file = read_click_file(write(tmp_path / "events.csv", RETAILROCKET), ReadOptions(types="all"))
    assert sorted(click.type or "view" for click in file) == ["cart", "purchase", "view", "view"]
