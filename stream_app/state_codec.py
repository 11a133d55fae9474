"""Session states as the bytes that RocksDB and the changelog hold, with a format version.

Layout, little endian: format version u8, hidden layers u8 (0: no hidden state), hidden size u16, length of the model
version u8, number of recent items u8, source offset i64, last click i64, clicks u32; then the model version (UTF-8),
the length of each item id (u16 each), the item ids (UTF-8), the hidden state (float32[L, H]).
"""

import struct

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import RowError
from stream_app.session import SessionState

FORMAT_VERSION = 1

_HEAD = struct.Struct("<BBHBBqqI")
_OFFSET = struct.Struct("<q")
_OFFSET_AT = 6


def encode_state(state: SessionState) -> bytes:
    """The row's bytes.

    Raises:
        RowError: the state does not fit the format's limits.
    """
    try:
        version = state.model_version.encode()
        items = [item_id.encode() for item_id in state.recent]
        layers, size = (0, 0) if state.hidden is None else _shape(state.hidden)
        return b"".join(
            (
                _HEAD.pack(
                    FORMAT_VERSION,
                    layers,
                    size,
                    len(version),
                    len(items),
                    state.offset,
                    state.last_click,
                    state.clicks,
                ),
                version,
                struct.pack(f"<{len(items)}H", *map(len, items)),
                *items,
                b"" if state.hidden is None else state.hidden.astype("<f4", copy=False).tobytes(),
            )
        )
    except (struct.error, ValueError) as error:
        raise RowError(f"a session state does not fit a row: {error}") from error


def _shape(hidden: NDArray[np.float32]) -> tuple[int, int]:
    if hidden.ndim != 2 or not hidden.size:
        raise ValueError(f"the hidden state has the shape {hidden.shape}, not [layers, units]")
    return hidden.shape[0], hidden.shape[1]


def decode_state(row: bytes) -> SessionState:
    """The state in a row's bytes.

    Raises:
        RowError: not a row of this format.
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
        lengths = struct.unpack_from(f"<{n_items}H", row, at)
        at += 2 * n_items
        recent = []
        for length in lengths:
            recent.append(row[at : at + length].decode())
            at += length
    except (struct.error, UnicodeDecodeError) as error:
        raise RowError(f"a session row of {len(row)} bytes is damaged: {error}") from error
    if bool(layers) != bool(size):
        raise RowError(f"a session row is damaged: it has a hidden state of {layers} layers of {size} units")
    if len(row) != at + 4 * layers * size:
        raise RowError(f"a session row is damaged: {len(row)} bytes where {at + 4 * layers * size} were expected")
    hidden = np.frombuffer(row, dtype="<f4", offset=at).reshape(layers, size) if layers else None  # [L, H]
    return SessionState(version, offset, last_click, clicks, tuple(recent), hidden)


def row_offset(row: bytes) -> int:
    """The source offset in a row's bytes, without decoding the rest.

    Raises:
        RowError: not a row of this format.
    """
    if len(row) < _HEAD.size or row[0] != FORMAT_VERSION:
        return decode_state(row).offset
    return int(_OFFSET.unpack_from(row, _OFFSET_AT)[0])
