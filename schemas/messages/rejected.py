"""RejectedClick: a record of `clicks` that is no click, parked on `clicks.rejected` with its reason and position."""

from typing import Annotated, Final

import msgspec

from schemas.errors import MessageError
from schemas.messages.click import ClickRejectedError, Moment, RejectReason
from schemas.messages.source import Count, Source

KEPT_BYTES: Final = 65_536
"""How much of a rejected record's key and value is kept: base64 of both stays below Kafka's default limit of 1 MiB."""


class RejectedClick(msgspec.Struct, frozen=True):
    """The raw record, as much of it as is kept, and why it was rejected."""

    reason: RejectReason
    detail: str
    source: Source
    key: Annotated[bytes | None, msgspec.Meta(description="The record's key, base64, its first 65,536 bytes.")]
    value: Annotated[bytes | None, msgspec.Meta(description="The record's value, base64, its first 65,536 bytes.")]
    value_size: Annotated[Count | None, msgspec.Meta(description="Bytes of the whole value; null for a tombstone.")]
    rejected_at: Moment


_decoder: Final = msgspec.json.Decoder(RejectedClick)
_encoder: Final = msgspec.json.Encoder()


def reject(
    error: ClickRejectedError, *, source: Source, key: bytes | None, value: bytes | None, now_ms: int
) -> RejectedClick:
    """The message that parks a record which `decode_click` refused with `error`."""
    return RejectedClick(
        reason=error.reason,
        detail=error.detail,
        source=source,
        key=None if key is None else bytes(key[:KEPT_BYTES]),
        value=None if value is None else bytes(value[:KEPT_BYTES]),
        value_size=None if value is None else len(value),
        rejected_at=now_ms,
    )


def encode_rejected(rejected: RejectedClick) -> bytes:
    """The JSON value of a rejected click; its Kafka key is the rejected record's own."""
    return _encoder.encode(rejected)


def decode_rejected(value: bytes) -> RejectedClick:
    """Inverse of `encode_rejected`. Raises MessageError."""
    try:
        return _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a rejected click: {error}") from error
