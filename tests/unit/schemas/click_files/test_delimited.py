"""Quoted text: the quick way through regular lines and the csv module agree on every text."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.click_files.delimited import Delimited, whole_lines
from schemas.click_files.forms import Form, Layout
from schemas.click_files.options import Format
from schemas.errors import ClickFileError

LAYOUT = Layout(Form(Format.CLICK_FILE), ("session_id", "item_id"), session=0, item=1, time=None)

Read = list[tuple[int, bytes, bytes]] | str


class ByTheCsvModule(Delimited):
    """Never quick."""

    def _regular(self, block: bytes, quotes: int) -> None:
        return None


def read(kind: type[Delimited], text: str) -> Read:
    """Line, session and item of each row, or what was refused; broken rows are left out."""
    found = []
    try:
        for rows in kind(whole_lines(iter([text.encode()])), LAYOUT, ",", quotes=True, first=2):
            found += list(zip(rows.numbers.tolist(), rows.session, rows.item, strict=True))
    except ClickFileError as error:
        return str(error)
    return found


@given(st.text('ab",\n', max_size=40))
@example('"a",b\n"",""\n')
@example('"a"",""b"\n')
@example('"a,b",c\nd\n')
@example('"a\nb",c\n')
@example('a,"b\n","c"\n')
def test_both_ways_read_the_same(text: str) -> None:
    assert read(Delimited, text) == read(ByTheCsvModule, text)


def test_quotes_around_whole_fields_need_no_csv_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes ten times as long."""
    monkeypatch.setattr(Delimited, "_quoted", None)
    assert read(Delimited, '"a","x"\n"b",\nc,"z"\n') == [(2, b"a", b"x"), (3, b"b", b""), (4, b"c", b"z")]
