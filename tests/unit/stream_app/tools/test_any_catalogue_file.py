"""Whatever is in a file of items or rules, each line is a record that workers take, or the file is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import to_builtins

from schemas.messages import examples
from schemas.messages.item import decode_item
from schemas.messages.refused import RecordRefusedError
from schemas.messages.rule import decode_rule
from stream_app.tools.publish_catalogue import ITEMS, RULES, CatalogueFileError, Kind, _lines
from tests.unit.test_decoders import changed, damaged

ITEM, RULE = (json.dumps(to_builtins(one)).encode() for one in (examples.ITEM, examples.RULE))
DEEP = b'{"item_id": "a", "attributes": {"x": ' + b"[" * 100_000
COLUMNS = ("item_id", "available", "available_from", "markets", "categories", "created_at", "brand", "", "item_id ")
cells = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "a", "true", "No", "0", "1767225600000", "-1", "1e3", "a|b", "|", "9" * 5000, "٣", '"', "\0", "x" * 300]
    ),
)
tables = st.lists(st.lists(cells, max_size=6), max_size=6).flatmap(
    lambda rows: st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=6).map(
        lambda header: "".join(",".join(row) + "\n" for row in [header, *rows]).encode("utf-8", "surrogatepass")
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("catalogue")


def check(path: Path, kind: Kind) -> None:
    """As the command reads it, before it sends anything."""
    try:
        for _, fields in _lines(path):
            own_id, value = kind.record(fields)
            (decode_item if kind is ITEMS else decode_rule)(own_id.encode(), value)
    except (CatalogueFileError, RecordRefusedError) as error:
        str(error).encode()


@pytest.mark.parametrize(("kind", "example"), [(ITEMS, ITEM), (RULES, RULE)], ids=["items", "rules"])
@given(data=st.data())
def test_any_lines_of_json_are_read_or_refused(folder: Path, kind: Kind, example: bytes, data: st.DataObject) -> None:
    path = folder / "file.jsonl"
    path.write_bytes(
        b"\n".join(
            data.draw(
                st.lists(changed(example) | damaged(example) | st.binary(max_size=20) | st.just(DEEP), max_size=3)
            )
        )
    )
    check(path, kind)


@given(content=tables | damaged(b"item_id,available,markets,brand\na,true,de|at,x\nb,,,\n"))
def test_any_table_is_read_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "file.csv"
    path.write_bytes(content)
    check(path, ITEMS)


@pytest.mark.parametrize("last", ["", 'b,"on two\nlines"\n'], ids=["to the end", "to the next quote"])
def test_a_quote_that_is_never_closed_swallows_no_items(folder: Path, last: str) -> None:
    """With `--complete` those that it swallowed would be published as gone."""
    path = folder / "file.csv"
    path.write_text('item_id,title\na,"55 inch tv\n' + "".join(f"c{n},x\n" for n in range(20)) + last)
    with pytest.raises(CatalogueFileError, match=r"line 2: .*is a quote not closed.* Nothing was published"):
        list(_lines(path))


def test_quotes_as_the_format_has_them_are_read(folder: Path) -> None:
    path = folder / "file.csv"
    path.write_text('item_id,title\na,"a ""55 inch"" tv,\nblack"\nb,55" tv\n')
    assert [fields["attributes"]["title"] for _, fields in _lines(path)] == ['a "55 inch" tv,\nblack', '55" tv']
