"""The bytes of a session row: a worker must read what last week's wrote into RocksDB and the changelog.

Bytes that must change are a new `FORMAT_VERSION`, which must read or refuse the old ones; say so in the changelog.
"""

import struct
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from schemas.messages.click import Click
from stream_app.core.plan import SourcedClick
from stream_app.core.recommend import recommend
from stream_app.core.session import SessionRules, SessionState
from stream_app.core.state_codec import FORMAT_VERSION, decode_state, encode_state, row_offset
from tests.conftest import REPOSITORY
from tests.doc_pages import blocks
from tests.unit.models import exact_model

PAGE = REPOSITORY / "docs" / "row-format.md"

FULL = SessionState(
    model_version="2026-01-01T00",
    offset=1234567890123,
    last_click=1_767_225_600_000,
    clicks=33,
    recent=("käse", "214716935", "käse"),
    hidden=np.array([[0.5, -1.0, 0.0], [1e-3, 2.0, -0.0]], dtype=np.float16),  # [L=2, H=3]
)
UNKNOWN = SessionState("", 0, 0, 1, ("a",), None)

NUMBERS = replace(FULL, recent=("214716935", "0", "7"))
LARGE_NUMBERS = replace(UNKNOWN, recent=(str(2**64 - 1),))

PURCHASED = replace(FULL, purchased=("käse", "7"))
PURCHASED_WITHOUT_A_STATE = replace(UNKNOWN, purchased=("214716935",))

GOLDEN = {
    "a row with all there is": (
        FULL,
        "02 02 0300 0d 03 cb04fb711f010000 00a8da769b010000 21000000"
        "323032362d30312d3031543030000408046bc3a473653231343731363933356bc3a47365003800bc0000191400400080",
    ),
    "a row without a hidden state": (
        UNKNOWN,
        "02 00 0000 00 01 0000000000000000 0000000000000000 01000000000061",
    ),
    "a row whose items are numbers": (
        NUMBERS,
        "02 02 0300 0d 03 cb04fb711f010000 00a8da769b010000 21000000"
        "323032362d30312d3031543030040752cc0c0000000007000000003800bc0000191400400080",
    ),
    "a row with an item that is a large number": (
        LARGE_NUMBERS,
        "02 00 0000 00 01 0000000000000000 0000000000000000 0100000008ffffffffffffffff",
    ),
    "a row of a session that purchased": (
        PURCHASED,
        "02 01 0f00 0d 03 cb04fb711f010000 00a8da769b010000 21000000"
        "323032362d30312d3031543030000408046bc3a473653231343731363933356bc3"
        "a47365003800bc00001914004000800004006bc3a47365370002030002ffffffff",
    ),
    "a row of a session that purchased, without a hidden state": (
        PURCHASED_WITHOUT_A_STATE,
        "02 01 0700 00 01 0000000000000000 0000000000000000 01000000000061040752cc0c0000000001ffffffff",
    ),
}


@pytest.mark.parametrize(("state", "text"), GOLDEN.values(), ids=GOLDEN)
def test_a_row_as_it_was(state: SessionState, text: str) -> None:
    row = bytes.fromhex(text)
    assert encode_state(state).hex() == row.hex()
    assert encode_state(decode_state(row)) == row
    assert row_offset(row) == state.offset


@pytest.mark.parametrize(("state", "text"), GOLDEN.values(), ids=GOLDEN)
def test_the_code_of_the_page_reads_it(state: SessionState, text: str) -> None:
    [code] = blocks(PAGE, "python")
    exec(code, page := dict[str, Any]())
    hidden = () if state.hidden is None else tuple(state.hidden.ravel().tolist())
    told = {name: getattr(state, name) for name in ("model_version", "offset", "last_click", "clicks")}
    lists = {"recent": list(state.recent), "hidden": hidden, "purchased": list(state.purchased)}
    assert page["read_row"](bytes.fromhex(text)) == told | lists


def test_the_golden_rows_are_of_this_version() -> None:
    assert [bytes.fromhex(text)[0] for _, text in GOLDEN.values()] == [FORMAT_VERSION] * len(GOLDEN)


def as_the_version_before_reads_it(row: bytes) -> SessionState:
    """A row of texts by the reader that knew of no purchases, written down anew: it must not change with ours."""
    version, layers, size, n_version, n_items, offset, last_click, clicks = struct.unpack_from("<BBHBBqqI", row)
    assert version == 2
    at = 26 + n_version
    assert row[at] == 0
    lengths = [less_one + 1 for less_one in row[at + 1 : at + 1 + n_items]]
    begin, recent = at + 1 + n_items, []
    for length in lengths:
        recent.append(row[begin : begin + length].decode())
        begin += length
    assert bool(layers) == bool(size)
    assert len(row) == begin + 2 * layers * size  # else it stops, and the worker with it
    hidden = np.frombuffer(row, dtype="<f2", offset=begin).reshape(layers, size) if layers else None
    return SessionState(row[26:at].decode(), offset, last_click, clicks, tuple(recent), hidden)


@pytest.mark.parametrize("state", [PURCHASED, PURCHASED_WITHOUT_A_STATE, replace(FULL, purchased=("x" * 256,) * 255)])
def test_the_version_before_reads_a_row_with_purchases_and_lacks_the_state_alone(state: SessionState) -> None:
    read = as_the_version_before_reads_it(encode_state(state))
    assert replace(read, hidden=None) == replace(state, hidden=None, purchased=())
    assert read.hidden is not None
    assert state.hidden is None or read.hidden.size > state.hidden.size  # so it is of no model's shape
    plain = encode_state(replace(state, purchased=()))
    assert repr(as_the_version_before_reads_it(plain)) == repr(replace(state, purchased=()))


def test_a_session_goes_through_the_version_before_and_back() -> None:
    """Each click by one of the two versions: rankings are the same, but for what was purchased before an old one."""
    model, now = exact_model("v1", ("a", "b", "c", "d", "e")), 1_767_225_600_000
    clicks = [
        SourcedClick(Click("s", item, now + n, type=kind), n)
        for n, (item, kind) in enumerate([("a", None), ("b", "purchase"), ("c", None), ("d", "purchase"), ("e", None)])
    ]
    new, old = SessionRules(hide_type="purchase"), SessionRules()
    row: bytes | None = None
    alone: SessionState | None = None
    rebuilt, purchased = [], []
    for click, rules in zip(clicks, (new, new, old, new, new), strict=True):
        read = None if row is None else (as_the_version_before_reads_it if rules is old else decode_state)(row)
        done = recommend({} if read is None else {"s": read}, [click], model, rules)
        plain = recommend({} if alone is None else {"s": alone}, [click], model, old)
        alone = plain.rows["s"]
        assert replace(done.rows["s"], purchased=(), hidden=None) == replace(alone, hidden=None)
        assert repr(done.rows["s"].hidden) == repr(alone.hidden)
        rebuilt.append(done.rebuilt)
        purchased.append(done.rows["s"].purchased)
        row = encode_state(done.rows["s"])
    assert rebuilt == [0, 0, 1, 0, 0]
    assert purchased == [(), ("b",), (), ("d",), ("d",)]
