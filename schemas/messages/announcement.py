"""ModelAnnouncement: which model bundle an alias means from now on, on the compacted `models` topic."""

import re
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any, Final

import msgspec

from schemas.errors import AnnouncementError
from schemas.messages.click import Moment

CHAMPION: Final = "champion"
"""The alias that every worker serves."""

VERSION_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$(?!\n)"
"""A version names a folder, so it is one plain path component. Python's `$` alone would allow a newline at the end."""

SHA256_PATTERN: Final = r"^[0-9a-f]{64}$(?!\n)"

_version = re.compile(VERSION_PATTERN)


class ModelAnnouncement(msgspec.Struct, frozen=True, omit_defaults=True):
    """Kafka key = alias: the newest announcement of an alias is the one that counts. Rolling back announces again."""

    alias: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    version: Annotated[str, msgspec.Meta(pattern=VERSION_PATTERN)]
    uri: Annotated[
        str,
        msgspec.Meta(min_length=1, max_length=4096, description="The bundle's folder: local path or fsspec URL."),
    ]
    manifest_sha256: Annotated[str, msgspec.Meta(pattern=SHA256_PATTERN)]
    announced_at: Moment
    why: Annotated[str, msgspec.Meta(max_length=4096, description="For people: promoted by the gate, rolled back, ...")]
    evidence: Annotated[
        dict[str, Any] | None, msgspec.Meta(description="For programs: the figures of a decision by the guard.")
    ] = None


_decoder: Final = msgspec.json.Decoder(ModelAnnouncement)
_encoder: Final = msgspec.json.Encoder()


def encode_announcement(announcement: ModelAnnouncement) -> bytes:
    """The JSON value of an announcement; its Kafka key is `announcement.alias.encode()`.

    Raises AnnouncementError rather than announce what `decode_announcement` would refuse.
    """
    value = _encoder.encode(announcement)
    decode_announcement(value)
    return value


def decode_announcement(value: bytes | None, key: bytes | None = None) -> ModelAnnouncement:
    """The announcement in a record's value. A key, when given, must be the alias. Raises AnnouncementError."""
    if value is None:
        raise AnnouncementError("not a model announcement: the record has no value")
    try:
        announcement = _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AnnouncementError(f"not a model announcement: {error}") from error
    if key is not None and key != announcement.alias.encode():
        raise AnnouncementError(f"the record's key {key!r} is not its alias {announcement.alias!r}")
    return announcement


def is_version(version: str) -> bool:
    """Whether a string may name a model version."""
    return _version.fullmatch(version) is not None


def version_name(created_at: int, content: bytes) -> str:
    """A name for a version: its time (ms since the epoch), so that names sort, and a bit of a hash of its content."""
    moment = datetime.fromtimestamp(created_at / 1000, UTC)
    return f"{moment:%Y%m%dT%H%M%S}{created_at % 1000:03d}Z-{sha256(content).hexdigest()[:8]}"
