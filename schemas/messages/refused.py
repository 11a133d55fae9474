"""Why a record of the topics `items`, `rules` and `splits` was refused; its key keeps the last value that was good."""

from enum import StrEnum
from typing import Final, TypeVar

import msgspec

from schemas.errors import MessageError
from schemas.messages.click import MAX_ID_BYTES

T = TypeVar("T")

MOST_BYTES: Final = 65_536
LATEST: Final = 2**63 - 1
"""The latest moment, in milliseconds since the epoch: what follows it fits no worker's columns."""
_DETAIL_CHARACTERS: Final = 300


class RefuseReason(StrEnum):
    """Why a record is no item, no rule or no split."""

    TOO_LARGE = "too-large"
    """The value is over 65,536 bytes."""
    NOT_JSON = "not-json"
    """The value is not JSON in UTF-8, or is nested too deep."""
    WRONG_TYPE = "wrong-type"
    """A field is missing, unknown, of another type or out of its limits."""
    BAD_ID = "bad-id"
    """An id, a market or a category is empty or over 256 bytes."""
    KEY_MISMATCH = "key-mismatch"
    """The Kafka key is missing or differs from the id."""
    BAD_TIMES = "bad-times"
    """It ends before it begins."""
    BAD_RULE = "bad-rule"
    """The rule's fields do not fit its action, or ask for what this worker does not keep."""
    BAD_SPLIT = "bad-split"
    """The shares do not add up to 100, have more than two decimals, or are of too many models."""


class RecordRefusedError(MessageError):
    """`reason` is for counting, `detail` for people."""

    def __init__(self, reason: RefuseReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def decode_record(key: bytes | None, value: bytes, decoder: "msgspec.json.Decoder[T]", id_field: str) -> T:
    """The message in a record whose key must be its id. Raises RecordRefusedError, and nothing else."""
    if len(value) > MOST_BYTES:
        raise RecordRefusedError(RefuseReason.TOO_LARGE, f"{len(value)} bytes, the limit is {MOST_BYTES}")
    try:
        message = decoder.decode(value)
    except msgspec.ValidationError as error:
        raise RecordRefusedError(RefuseReason.WRONG_TYPE, str(error)[:_DETAIL_CHARACTERS]) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordRefusedError(RefuseReason.NOT_JSON, str(error)[:_DETAIL_CHARACTERS]) from error
    own: str = getattr(message, id_field)
    check_text(id_field, own)
    if key != own.encode():
        found = "has no key" if key is None else "has another key"
        raise RecordRefusedError(RefuseReason.KEY_MISMATCH, f"the record {found}; it must be the {id_field}")
    return message


def check_text(field: str, value: str) -> None:
    """An id, a market or a category: 1 to 256 bytes. Raises RecordRefusedError."""
    # A string never has more characters than bytes: most need not be encoded.
    if not value or (4 * len(value) > MAX_ID_BYTES and len(value.encode()) > MAX_ID_BYTES):
        problem = f"{len(value.encode())} bytes, the limit is {MAX_ID_BYTES}" if value else "empty"
        raise RecordRefusedError(RefuseReason.BAD_ID, f"{field} is {problem}")


def check_times(begin: int | None, end: int | None, names: tuple[str, str]) -> None:
    """Raises RecordRefusedError unless the end, if there is one, lies behind the begin."""
    if begin is not None and end is not None and end <= begin:
        raise RecordRefusedError(RefuseReason.BAD_TIMES, f"{names[1]} {end} is not after {names[0]} {begin}")
