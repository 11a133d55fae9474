"""Rows: what is written is read, and whatever else the bytes are is refused with RowError."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from stream_app.core.session import SessionState
from stream_app.core.state_codec import FORMAT_VERSION, decode_state, encode_state, row_offset
from stream_app.errors import RowError

ROW = SessionState("v1", 41, 1_767_225_600_000, 3, ("a", "käse", "a"), np.array([[1.5, -2.0]], dtype=np.float16))

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=64).filter(lambda text: len(text.encode()) <= 256)
numbers = st.integers(0, 2**32 - 1) | st.integers(0, 2**65)
ids = texts | numbers.map(str) | st.sampled_from(["0", "007", "+7", "-7", "1_0", "1 ", "\u0661", str(2**64), "9" * 256])


@st.composite
def hidden_states(draw: st.DrawFn) -> NDArray[np.float16]:
    layers, size = draw(st.tuples(st.integers(1, 4), st.integers(1, 70)) | st.tuples(st.just(255), st.just(2)))
    raw = draw(st.binary(min_size=4, max_size=64))  # any bits: NaN and infinity are the model's affair
    return np.frombuffer((raw * (layers * size))[: 2 * layers * size], dtype="<f2").reshape(layers, size)


states = st.builds(
    SessionState,
    model_version=st.text(st.characters(codec="utf-8"), max_size=63),
    offset=st.integers(-1, 2**63 - 1),
    last_click=st.integers(-(2**63), 2**63 - 1),
    clicks=st.integers(0, 2**32 - 1),
    recent=st.lists(ids, max_size=30).map(tuple)
    | st.lists(numbers.map(str), max_size=255).map(tuple)
    | st.lists(st.sampled_from("abc"), max_size=255).map(tuple),
    hidden=st.none() | hidden_states(),
    purchased=st.just(()) | st.lists(ids, max_size=8).map(tuple) | st.just(("x" * 256,) * 255),
)


@settings(deadline=None)
@given(states)
@example(replace(ROW, recent=("x",) * 255))
@example(replace(ROW, recent=("🧀" * 64,) * 255, hidden=None))
@example(replace(ROW, hidden=np.zeros((255, 65_535 // 64), dtype=np.float16)))
@example(replace(ROW, hidden=np.zeros((255, 65_535 // 64), dtype=np.float16), purchased=("a",)))
@example(replace(ROW, hidden=np.frombuffer(b"\xff" * 16, dtype="<f2").reshape(2, 4)))  # ends as no finite state does
def test_what_is_written_is_read(state: SessionState) -> None:
    row = encode_state(state)
    read = decode_state(row)
    assert replace(read, hidden=None) == replace(state, hidden=None)
    assert row_offset(row) == state.offset
    if state.hidden is None:
        assert read.hidden is None
    else:
        assert read.hidden is not None
        assert read.hidden.shape == state.hidden.shape
        assert read.hidden.dtype == np.float16
        assert read.hidden.tobytes() == state.hidden.tobytes()
        assert not read.hidden.flags.writeable
    assert encode_state(read) == row


@settings(deadline=None)
@given(states, st.data())
def test_a_part_of_a_row_is_refused(state: SessionState, data: st.DataObject) -> None:
    row = encode_state(state)
    part = row[: data.draw(st.integers(0, len(row) - 1))]
    with pytest.raises(RowError):
        decode_state(part)


@settings(deadline=None)
@given(states, st.binary(min_size=1, max_size=9))
def test_a_row_with_something_behind_it_is_refused(state: SessionState, behind: bytes) -> None:
    with pytest.raises(RowError):
        decode_state(encode_state(state) + behind)


def refused_or_read(row: bytes) -> None:
    try:
        state = decode_state(row)
    except RowError:
        return
    again = decode_state(encode_state(state))  # nothing was lost or made up
    assert replace(again, hidden=None) == replace(state, hidden=None)
    assert repr(again.hidden) == repr(state.hidden)
    assert row_offset(row) == state.offset


@settings(deadline=None)
@given(states, st.data())
def test_damaged_bytes_are_refused_or_read_as_they_are(state: SessionState, data: st.DataObject) -> None:
    row = bytearray(encode_state(state))
    for place in data.draw(st.lists(st.integers(0, len(row) - 1), min_size=1, max_size=4)):
        row[place] = data.draw(st.integers(0, 255))
    refused_or_read(bytes(row))


@given(st.binary(max_size=100), st.booleans())
@example(bytes([1, 1, 0, 0, 0, 0]) + bytes(20), False)  # a layer without units
@example(bytes([1, 0, 5, 0, 0, 0]) + bytes(20), False)  # units without a layer
def test_any_bytes_are_refused_or_read_as_they_are(noise: bytes, with_version: bool) -> None:
    refused_or_read(bytes([FORMAT_VERSION]) + noise if with_version else noise)


@pytest.mark.parametrize("row", [b"", b"\x00", bytes([FORMAT_VERSION + 1]) + encode_state(ROW)[1:]])
def test_another_format_version_tells_the_operator_what_to_do(row: bytes) -> None:
    with pytest.raises(RowError, match=r"written by another version of the worker.*worker\.app_id"):
        decode_state(row)
    with pytest.raises(RowError, match="written by another version"):
        row_offset(row)


@pytest.mark.parametrize(
    "state",
    [
        replace(ROW, recent=("a",) * 256),
        replace(ROW, recent=("a" * 257,)),
        replace(ROW, recent=("",)),
        replace(ROW, purchased=("a",) * 256),
        replace(ROW, purchased=("",)),
        replace(ROW, recent=("\ud800",)),
        replace(ROW, model_version="v" * 256),
        replace(ROW, offset=2**63),
        replace(ROW, last_click=-(2**63) - 1),
        replace(ROW, clicks=2**32),
        replace(ROW, clicks=-1),
        replace(ROW, hidden=np.zeros((256, 1), dtype=np.float16)),
        replace(ROW, hidden=np.zeros((1, 65_536), dtype=np.float16)),
        replace(ROW, hidden=np.zeros((0, 4), dtype=np.float16)),
        replace(ROW, hidden=np.zeros((2, 0), dtype=np.float16)),
        replace(ROW, hidden=np.zeros(4, dtype=np.float16)),
    ],
)
def test_a_state_beyond_the_format_is_refused_before_it_is_written(state: SessionState) -> None:
    with pytest.raises(RowError, match="does not fit"):
        encode_state(state)
