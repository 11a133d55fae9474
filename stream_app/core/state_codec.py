"""Session states as the bytes that RocksDB and the changelog hold, with a format version.

Layout, little endian: format version u8, hidden layers u8 (0: no hidden state), hidden size u16, length of the model
version u8, number of recent items u8, source offset i64, last click i64, clicks u32; then the model version (UTF-8);
how the item ids follow, u8; the item ids; the hidden state (float16[L, H]). Item ids follow as numbers, u32 (4) or u64
(8) each, where all of them are plain decimal numbers; else (0) as the length of each less 1, u8, and the ids in UTF-8.
30 ids of nine digits take 120 bytes instead of 330.

Where a session has purchased something that is to be remembered, what stands in the place of the hidden state is one of
other layers and units, which holds: the hidden state; how the ids of purchased items follow, u8, and these; zeros; and
last hidden layers u8, hidden size u16, number of purchased items u8, and the mark FF FF FF FF, which is no two finite
numbers. A worker that does not know of this finds a state of a size that no model of its has, and takes it for that of
another model: it rebuilds the state from the recent items, and forgets what was purchased.
"""

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream_app.core.session import SessionState
from stream_app.errors import RowError

FORMAT_VERSION: Final = 2

_HEAD = struct.Struct("<BBHBBqqI")
_OFFSET = struct.Struct("<q")
_OFFSET_AT = 6
_TAIL = struct.Struct("<BHB4s")
_MARK: Final = b"\xff" * 4
_MOST_UNITS: Final = 65_535
_TEXT: Final = 0
_NUMBERS: Final = {4: "I", 8: "Q"}


def encode_state(state: SessionState) -> bytes:
    """The row's bytes.

    Raises:
        RowError: the state does not fit the format's limits.
    """
    try:
        version = state.model_version.encode()
        layers, size, units = _encode_units(state)
        return b"".join(
            (
                _HEAD.pack(
                    FORMAT_VERSION,
                    layers,
                    size,
                    len(version),
                    len(state.recent),
                    state.offset,
                    state.last_click,
                    state.clicks,
                ),
                version,
                _encode_items(state.recent),
                units,
            )
        )
    except (struct.error, ValueError) as error:
        raise RowError(f"a session state does not fit a row: {error}") from error


def _encode_units(state: SessionState) -> tuple[int, int, bytes]:
    """Layers, units, and what they hold: the hidden state, or more than that."""
    layers, size = (0, 0) if state.hidden is None else _shape(state.hidden)
    hidden = b"" if state.hidden is None else state.hidden.astype("<f2", copy=False).tobytes()
    if not state.purchased and not hidden.endswith(_MARK):
        return layers, size, hidden
    held = hidden + _encode_items(state.purchased)
    units = -(-(len(held) + _TAIL.size) // 2)
    wide = -(-units // _MOST_UNITS)
    long = -(-units // wide)
    tail = _TAIL.pack(layers, size, len(state.purchased), _MARK)
    return wide, long, held.ljust(2 * wide * long - _TAIL.size, b"\0") + tail


def _shape(hidden: NDArray[np.float16]) -> tuple[int, int]:
    if hidden.ndim != 2 or not hidden.size:
        raise ValueError(f"the hidden state has the shape {hidden.shape}, not [layers, units]")
    return hidden.shape[0], hidden.shape[1]


def _encode_items(recent: Sequence[str]) -> bytes:
    try:
        numbers = list(map(int, recent))
    except ValueError:
        numbers = []
    # No leading zero, no plus: the number must give the id back.
    if numbers and list(map(str, numbers)) == list(recent) and min(numbers) >= 0 and max(numbers) < 2**64:
        width = 4 if max(numbers) < 2**32 else 8
        return struct.pack(f"<B{len(numbers)}{_NUMBERS[width]}", width, *numbers)
    items = [item_id.encode() for item_id in recent]
    return struct.pack(f"<{1 + len(items)}B", _TEXT, *[len(item) - 1 for item in items]) + b"".join(items)


def decode_state(row: bytes) -> SessionState:
    """The state in a row's bytes.

    Raises:
        RowError: not a row of a format that is known.
    """
    if not row or row[0] != FORMAT_VERSION:
        found = row[0] if row else "nothing"
        raise RowError(
            f"a session row has format version {found}, this worker reads {FORMAT_VERSION}: it was written by another "
            f"version of the worker. Run that version, or start with a new application id (worker.app_id)"
        )
    try:
        _, layers, size, n_version, n_items, offset, last_click, clicks = _HEAD.unpack_from(row)
        at = _HEAD.size
        version = row[at : at + n_version].decode()
        at += n_version
        recent, at = _decode_items(row, at, n_items)
        if len(row) != at + 2 * layers * size:
            raise RowError(f"a session row is damaged: {len(row)} bytes where {at + 2 * layers * size} were expected")
        purchased: tuple[str, ...] = ()
        if 2 * layers * size >= _TAIL.size and row.endswith(_MARK):
            tail = len(row) - _TAIL.size
            layers, size, n_purchased, _ = _TAIL.unpack_from(row, tail)
            purchased, end = _decode_items(row, at + 2 * layers * size, n_purchased)
            if end > tail:
                raise RowError(f"a session row is damaged: its purchased items end {end - tail} bytes too late")
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise RowError(f"a session row of {len(row)} bytes is damaged: {error}") from error
    if bool(layers) != bool(size):
        raise RowError(f"a session row is damaged: it has a hidden state of {layers} layers of {size} units")
    hidden = None
    if layers:
        hidden = np.frombuffer(row, dtype="<f2", count=layers * size, offset=at).reshape(layers, size)  # [L, H]
    return SessionState(version, offset, last_click, clicks, recent, hidden, purchased)


def _decode_items(row: bytes, at: int, n_items: int) -> tuple[tuple[str, ...], int]:
    """The item ids that begin at `at`, and where they end."""
    width = row[at]
    if width == _TEXT:
        return _decode_texts(row, at + 1, n_items)
    if width not in _NUMBERS:
        raise RowError(f"a session row is damaged: its item ids are of the unknown kind {width}")
    numbers = struct.unpack_from(f"<{n_items}{_NUMBERS[width]}", row, at + 1)
    return tuple(map(str, numbers)), at + 1 + n_items * width


def _decode_texts(row: bytes, at: int, n_items: int) -> tuple[tuple[str, ...], int]:
    """Item ids as text behind their lengths."""
    recent, begin = [], at + n_items
    for less_one in struct.unpack_from(f"<{n_items}B", row, at):
        end = begin + less_one + 1
        recent.append(row[begin:end].decode())
        begin = end
    return tuple(recent), begin


def row_offset(row: bytes) -> int:
    """The source offset in a row's bytes, without decoding the rest.

    Raises:
        RowError: not a row of a format that is known.
    """
    if len(row) < _HEAD.size or row[0] != FORMAT_VERSION:
        return decode_state(row).offset
    return int(_OFFSET.unpack_from(row, _OFFSET_AT)[0])
