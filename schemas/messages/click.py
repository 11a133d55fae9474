"""Click: what producers put on the `clicks` topic, and the rules by which one is accepted.

Decoding reads no clock: `now_ms` comes from the caller, so that a replay decides as the first run did.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Final, NoReturn

import msgspec

from schemas.errors import MessageError

MAX_ID_BYTES: Final = 256
VIEW: Final = "view"
"""The type of a click that names none."""
CART: Final = "cart"
PURCHASE: Final = "purchase"
_DETAIL_CHARACTERS: Final = 300

# extra_json_schema documents without making the decoder check: the rules below tell a reason, msgspec would not.
Id = Annotated[str, msgspec.Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_ID_BYTES})]
Milliseconds = Annotated[
    int, msgspec.Meta(description="Milliseconds since the epoch.", extra_json_schema={"minimum": 0})
]
LATEST_MS: Final = 253_402_300_799_999
"""The end of the year 9999. JSON has whole numbers of any length, which no row, no calendar and no float can hold."""
Moment = Annotated[Milliseconds, msgspec.Meta(ge=0, le=LATEST_MS)]
"""Of messages that programs write; of a click the rules below tell why it is refused."""


class Click(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One click of one session. Fields that are not named here are ignored, so that producers can add theirs."""

    session_id: Annotated[Id, msgspec.Meta(description="Equals the Kafka key; 1 to 256 bytes of UTF-8.")]
    item_id: Annotated[Id, msgspec.Meta(description="The item clicked; 1 to 256 bytes of UTF-8.")]
    timestamp: Annotated[
        Milliseconds, msgspec.Meta(description="Milliseconds since the epoch, by default of 2000 or later.")
    ]
    event_id: Annotated[Id, msgspec.Meta(description="The producer's own id, repeated on the ranking.")] | None = None
    type: (
        Annotated[
            Id,
            msgspec.Meta(description="What was done: `view` when absent, `cart`, `purchase`, or a type of your own."),
        ]
        | None
    ) = None
    market: Annotated[Id, msgspec.Meta(description="Where items are wanted: decides which may be shown.")] | None = None


class RejectReason(StrEnum):
    """Why a record is no click. The rules are tried in this order and the first that fails is told."""

    NO_VALUE = "no-value"
    """A tombstone: the record has a null value."""
    TOO_LARGE = "too-large"
    """The value is over `ClickLimits.max_bytes`."""
    UNKNOWN_SCHEMA = "unknown-schema"
    """The schema registry knows no schema of the id in the value."""
    INCOMPATIBLE_SCHEMA = "incompatible-schema"
    """By its schema in the registry the value is no click: a field is missing, or of another type."""
    MALFORMED = "malformed"
    """The value is not what its schema in the registry says."""
    NOT_JSON = "not-json"
    """The value is not JSON in UTF-8, or is nested too deep."""
    WRONG_TYPE = "wrong-type"
    """Not an object, or a field is missing or of another type, or the timestamp is no whole number."""
    BAD_ID = "bad-id"
    """An id, a type or the market is empty, over 256 bytes, or has half of a surrogate pair, which is no UTF-8."""
    KEY_MISMATCH = "key-mismatch"
    """The Kafka key is missing, is not UTF-8, or differs from `session_id`."""
    BAD_TIMESTAMP = "bad-timestamp"
    """Before `ClickLimits.min_timestamp_ms`."""
    FUTURE_TIMESTAMP = "future-timestamp"
    """Further ahead of the worker's clock than `ClickLimits.max_future_ms`."""


class ClickRejectedError(MessageError):
    """The record is no click; `reason` is for counting, `detail` for people."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class ClickLimits:
    """What a worker accepts."""

    max_bytes: int = 16_384
    """Longest value of a record."""
    max_future_ms: int = 60_000
    """How far a producer's clock may run ahead of ours; a click from the future would keep its session open."""
    min_timestamp_ms: int = 946_684_800_000
    """Oldest click, by default of 2000: seconds since the epoch, taken for milliseconds, are of 1970, and a session of
    such clicks would never end."""


OWN_KEY: Final = b"\xff\xff"
"""In place of a record's key (no UTF-8, so it is nobody's): the click is yet to be produced, under its session id.

Two bytes: of a single one Python has one object only, which a record's key would be as well."""

_decoder: Final = msgspec.json.Decoder(Click)
_encoder: Final = msgspec.json.Encoder()


def decode_click(key: bytes | None, value: bytes | None, *, now_ms: int, limits: ClickLimits) -> Click:
    """The click in a Kafka record, or in one that is to be made (``key`` is then `OWN_KEY`).

    `now_ms` is the worker's time in milliseconds since the epoch. Raises ClickRejectedError, and nothing else, whatever
    the bytes are.
    """
    if value is None:
        raise ClickRejectedError(RejectReason.NO_VALUE, "the record has no value (a tombstone)")
    if len(value) > limits.max_bytes:
        raise ClickRejectedError(RejectReason.TOO_LARGE, f"{len(value)} bytes, the limit is {limits.max_bytes}")
    try:
        click = _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        click = _decode_slowly(value, error)
    session_id = click.session_id.encode()
    # len() counts characters, of which a UTF-8 string never has more than bytes: most ids need no second encoding.
    if not session_id or len(session_id) > MAX_ID_BYTES:
        raise _bad_id("session_id", click.session_id)
    if not click.item_id or 4 * len(click.item_id) > MAX_ID_BYTES:
        _check_id("item_id", click.item_id)
    if click.event_id is not None:
        _check_id("event_id", click.event_id)
    if click.type is not None:
        _check_id("type", click.type)
    if click.market is not None:
        _check_id("market", click.market)
    if key != session_id and key is not OWN_KEY:
        raise _key_mismatch(key, session_id)
    timestamp = click.timestamp
    if timestamp < limits.min_timestamp_ms:
        first = limits.min_timestamp_ms
        problem = f"timestamp {_short(timestamp)} is before {first} ({_day(first)})"
        raise ClickRejectedError(RejectReason.BAD_TIMESTAMP, problem + _likely_unit(timestamp, now_ms, limits))
    if timestamp > now_ms + limits.max_future_ms:
        problem = f"timestamp {_short(timestamp)} is ahead of {now_ms} by more than {limits.max_future_ms} ms"
        raise ClickRejectedError(RejectReason.FUTURE_TIMESTAMP, problem + _likely_unit(timestamp, now_ms, limits))
    return click


def encode_click(click: Click) -> bytes:
    """The JSON value of a click; its Kafka key is `click.session_id.encode()`."""
    return _encoder.encode(click)


def _decode_slowly(value: bytes, error: Exception) -> Click:
    """What msgspec refuses with `error` and JSON allows, or ClickRejectedError.

    Whole numbers that are written as 1.7e12, and half of a surrogate pair in a field that nobody reads.
    """
    if isinstance(error, RecursionError):
        raise _undecodable(value, error) from error
    try:
        fields = json.loads(value.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as broken:
        raise _undecodable(value, error) from broken
    if isinstance(fields, dict):
        fields = {name: fields[name] for name in Click.__struct_fields__ if name in fields}
        timestamp = fields.get("timestamp")
        if isinstance(timestamp, float):
            if not timestamp.is_integer():
                raise ClickRejectedError(
                    RejectReason.WRONG_TYPE, f"timestamp {timestamp} is no whole number; it is in milliseconds"
                )
            fields["timestamp"] = int(timestamp)
    try:
        click = msgspec.convert(fields, Click)
    except msgspec.ValidationError as wrong:
        raise ClickRejectedError(RejectReason.WRONG_TYPE, str(wrong)[:_DETAIL_CHARACTERS]) from wrong
    except UnicodeEncodeError as half:  # msgspec looks into a text that stands for a number
        raise ClickRejectedError(RejectReason.WRONG_TYPE, "Expected `int`, got `str` - at `$.timestamp`") from half
    for name in ("session_id", "item_id", "event_id", "type", "market"):
        try:
            (getattr(click, name) or "").encode()
        except UnicodeEncodeError as half:
            detail = f"{name} has half of a surrogate pair at character {half.start}, which is no UTF-8"
            raise ClickRejectedError(RejectReason.BAD_ID, detail) from half
    return click


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _undecodable(value: bytes, error: Exception) -> ClickRejectedError:
    """msgspec stops at the first wrong type, which may stand before broken JSON: tell the two apart."""
    if isinstance(error, RecursionError):
        return ClickRejectedError(RejectReason.NOT_JSON, "nested too deep")
    if isinstance(error, msgspec.ValidationError):
        try:
            msgspec.json.decode(value)
        except msgspec.ValidationError:
            pass  # an integer of hundreds of digits: JSON, and nothing that we take
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as broken:
            return ClickRejectedError(RejectReason.NOT_JSON, str(broken)[:_DETAIL_CHARACTERS])
        return ClickRejectedError(RejectReason.WRONG_TYPE, str(error)[:_DETAIL_CHARACTERS])
    return ClickRejectedError(RejectReason.NOT_JSON, str(error)[:_DETAIL_CHARACTERS])


def _check_id(field: str, value: str) -> None:
    if not value or len(value.encode()) > MAX_ID_BYTES:
        raise _bad_id(field, value)


def _bad_id(field: str, value: str) -> ClickRejectedError:
    problem = f"{len(value.encode())} bytes, the limit is {MAX_ID_BYTES}" if value else "empty"
    return ClickRejectedError(RejectReason.BAD_ID, f"{field} is {problem}")


def _key_mismatch(key: bytes | None, session_id: bytes) -> ClickRejectedError:
    if key is None:
        return ClickRejectedError(RejectReason.KEY_MISMATCH, "the record has no key; it must be the session_id")
    try:
        key.decode()
    except UnicodeDecodeError:
        return ClickRejectedError(RejectReason.KEY_MISMATCH, "the key is not UTF-8; it must be the session_id")
    return ClickRejectedError(RejectReason.KEY_MISMATCH, "the key differs from session_id")


def _likely_unit(timestamp: int, now_ms: int, limits: ClickLimits) -> str:
    """What to do about a timestamp that would be one of our time in another unit."""
    first, last = limits.min_timestamp_ms, now_ms + limits.max_future_ms
    if first <= timestamp * 1000 <= last:
        return "; it looks like seconds: multiply by 1000, clicks are in milliseconds since the epoch"
    for unit, factor in (("microseconds", 1_000), ("nanoseconds", 1_000_000)):
        if first <= timestamp // factor <= last:
            return f"; it looks like {unit}: divide by {factor}, clicks are in milliseconds since the epoch"
    return "; clicks are in milliseconds since the epoch"


def _day(timestamp_ms: int) -> str:
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).date().isoformat()


def _short(number: int) -> str:
    # A JSON integer may have thousands of digits, more than Python is willing to print.
    return str(number) if number.bit_length() <= 64 else f"of {number.bit_length()} bits"
