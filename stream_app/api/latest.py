"""What a record of the rankings topic does to the latest ranking of its session. Pure.

A store holds, for each session, the ranking of its newest click. Workers may publish rankings again after a crash: a
ranking of an earlier click, by source offset, changes nothing. A record without value forgets the session.
"""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from schemas.formats.unreadable import UnreadableError
from schemas.messages.source import Offset, Partition
from stream_app.errors import RowError

_HEADER: Final = struct.Struct("<qiq")


@dataclass(frozen=True, slots=True)
class Latest:
    """A ranking as its record has it.

    Attributes:
        partition, offset: where its click lies.
        at_ms: when the record was written, by the broker's clock.
        value: its JSON; empty: the session is forgotten.
        anew: what is stored of the session goes first, because it was forgotten before this ranking.
    """

    partition: int
    offset: int
    at_ms: int
    value: bytes
    anew: bool = False

    @property
    def is_forgotten(self) -> bool:
        """Whether the session has no ranking any more."""
        return not self.value

    def replaces(self, stored: "Latest | None") -> bool:
        """Whether it is of a later click than what is stored; offsets of another partition tell nothing."""
        return stored is None or self.anew or stored.partition != self.partition or stored.offset < self.offset


class _Source(msgspec.Struct, gc=False):
    partition: Partition
    offset: Offset


class _Sourced(msgspec.Struct, gc=False):
    source: _Source


_decode: Final = msgspec.json.Decoder(_Sourced).decode


def read(record: Any, to_json: Callable[[bytes], bytes]) -> Latest | None:
    """The ranking, or the mark of a forgotten session, in a Kafka message; None where it is neither.

    `to_json`: see :class:`schemas.formats.codec.Codec`.
    """
    value = record.value()
    if record.key() is None:
        return None
    if value is None:
        return Latest(-1, -1, record.timestamp()[1], b"", anew=True)
    try:
        return of_value(to_json(value), at_ms=record.timestamp()[1])
    except UnreadableError:
        return None


def of_value(value: bytes, *, at_ms: int = 0) -> Latest | None:
    """The ranking that is this JSON; None where it is none."""
    try:
        source = _decode(value).source
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return Latest(source.partition, source.offset, at_ms, value)


def newest(told: Iterable[tuple[bytes, Latest]]) -> dict[bytes, Latest]:
    """What a batch, in the order of its topic, comes to for each session."""
    found: dict[bytes, Latest] = {}
    for key, latest in told:
        before = found.get(key)
        if before is not None and before.is_forgotten and not latest.is_forgotten:
            found[key] = replace(latest, anew=True)
        elif before is None or latest.replaces(before):
            found[key] = latest if before is None or latest.anew else replace(latest, anew=before.anew)
    return found


def encode_row(latest: Latest) -> bytes:
    """As a store of bytes keeps it."""
    return _HEADER.pack(latest.at_ms, latest.partition, latest.offset) + latest.value


def decode_row(row: bytes) -> Latest:
    """Inverse of `encode_row`. Raises RowError."""
    if len(row) < _HEADER.size:
        raise RowError(f"a row of latest rankings is damaged: it has {len(row)} bytes")
    at_ms, partition, offset = _HEADER.unpack_from(row)
    return Latest(partition, offset, at_ms, row[_HEADER.size :])


def value_of(row: bytes, *, since_ms: int) -> bytes | None:
    """The ranking's JSON in a row, None in one that was written before a time and has only not been removed yet.

    Raises RowError.
    """
    latest = decode_row(row)
    return latest.value if latest.at_ms >= since_ms else None
