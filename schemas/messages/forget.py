"""A request to forget a session: a record on the clicks topic, in order with the session's clicks.

There, every reader of clicks meets it where it counts: after the last click that is to be forgotten and before the
first one of a session that begins anew under the same id.
"""

from typing import Annotated, Final, Literal

import msgspec

from schemas.messages.click import MAX_ID_BYTES


class Forget(msgspec.Struct, frozen=True, gc=False):
    """The Kafka key is the session id, as a click's."""

    session_id: Annotated[
        str,
        msgspec.Meta(
            description="The session that is forgotten.",
            extra_json_schema={"minLength": 1, "maxLength": MAX_ID_BYTES},
        ),
    ]
    action: Literal["forget"]


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Forget)


def encode_forget(request: Forget) -> bytes:
    """The JSON value; its Kafka key is `request.session_id.encode()`. Raises ValueError for an id that no click has."""
    if not 0 < len(request.session_id.encode()) <= MAX_ID_BYTES:
        raise ValueError(f"a session id has 1 to {MAX_ID_BYTES} bytes, this one has {len(request.session_id.encode())}")
    return _encoder.encode(request)


def decode_forget(key: bytes | None, value: bytes | None) -> Forget | None:
    """The request in a record that is no click; None where it is none."""
    try:
        found = _decoder.decode(value or b"")
        session_id = found.session_id.encode()
        return found if session_id == key and 0 < len(session_id) <= MAX_ID_BYTES else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
