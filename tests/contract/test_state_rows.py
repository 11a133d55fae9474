"""The bytes of a session row: a worker must read what last week's wrote into RocksDB and the changelog.

Bytes that must change are a new `FORMAT_VERSION`, which must read or refuse the old ones; say so in the changelog.
"""

import numpy as np
import pytest
from msgspec.structs import replace

from stream_app.core.session import SessionState
from stream_app.core.state_codec import FORMAT_VERSION, decode_state, encode_state, row_offset

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
}


@pytest.mark.parametrize(("state", "text"), GOLDEN.values(), ids=GOLDEN)
def test_a_row_as_it_was(state: SessionState, text: str) -> None:
    row = bytes.fromhex(text)
    assert encode_state(state).hex() == row.hex()
    assert encode_state(decode_state(row)) == row
    assert row_offset(row) == state.offset


def test_the_golden_rows_are_of_this_version() -> None:
    assert [bytes.fromhex(text)[0] for _, text in GOLDEN.values()] == [FORMAT_VERSION] * len(GOLDEN)
