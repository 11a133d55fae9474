"""From the value of a record to the JSON that all code works with, and back: one place for every format.

Without a registry both are the same bytes. With one, a value begins with a zero byte and the id of its schema in four,
the highest first; what begins otherwise is JSON still, so that producers can change over one by one.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Final

import msgspec

from schemas.config.schema_registry_settings import Format, SchemaRegistrySettings
from schemas.errors import SettingsError
from schemas.formats.avro import avro_reader, avro_schema, avro_writer
from schemas.formats.json_schema import json_schema
from schemas.formats.protobuf import proto_file, protobuf_reader, protobuf_writer
from schemas.formats.registry import NoSuchSchemaError, SchemaRegistry, WrittenSchema
from schemas.formats.unreadable import UnreadableError
from schemas.kafka.connection import TopicSettings
from schemas.messages.click import Click, ClickLimits, ClickRejectedError, RejectReason, decode_click
from schemas.messages.headers import JSON
from schemas.messages.ranking import Ranking

_MAGIC: Final = b"\0"
_HEAD_BYTES: Final = 5
_MOST_UNKNOWN: Final = 1_000
_ASK_AGAIN_SECONDS: Final = 5.0
_BEHIND_SECONDS: Final = 1.0
"""How far a replica of the registry may be behind the one that a schema was registered with."""
_PATIENT_SECONDS: Final = 30.0
"""How often that is waited for, at most: whatever garbage comes, little time is lost."""
_KINDS: Final[dict[str, str]] = {"avro": "AVRO", "protobuf": "PROTOBUF", "json-schema": "JSON"}
_CONTENT_TYPES: Final = {"avro": b"application/avro", "protobuf": b"application/protobuf", "json-schema": JSON}

Read = Callable[[bytes], bytes]
DecodeClick = Callable[..., Click]


class Codec:
    """What a topic holds without a registry: the JSON itself."""

    content_type: bytes = JSON

    @property
    def can_write(self) -> bool:
        """Whether there is what `start` gets."""
        return True

    def start(self) -> None:
        """Have what writing needs. Raises SchemaRegistryError."""

    def ready(self, values: Iterable[bytes | None]) -> None:
        """Have every schema that these values name. Raises SchemaRegistryError."""

    def to_json(self, value: bytes) -> bytes:
        """The JSON in a value. Raises UnreadableError, and SchemaRegistryError unless it is `ready`."""
        return value

    def to_wire(self, value: bytes) -> bytes:
        """The value that holds this JSON, which must be a message's. Raises SchemaRegistryError before `start`."""
        return value


class RegistryCodec(Codec):
    """Values of one kind of message that begin with the id of a schema.

    Args:
        kind: the message.
        format_: what is written; whatever its schema says is read.
        topic: its subject in the registry is the topic's name and `-value`, as Confluent's clients have it.
    """

    def __init__(self, kind: type[msgspec.Struct], format_: str, topic: str, registry: SchemaRegistry) -> None:
        self._kind, self._format, self._topic = kind, format_, topic
        self._registry = registry
        self._readers: dict[bytes, Read] = {}
        self._unknown: dict[bytes, float] = {}  # when the registry said so
        self._patient_from = -math.inf
        self._head = b""
        self._write = _writer_of(kind, format_)
        self.content_type = _CONTENT_TYPES[format_]

    @property
    def can_write(self) -> bool:
        """Whether our schema has its id."""
        return bool(self._head)

    def start(self) -> None:
        """Register our schema, or look its id up."""
        schema_id = self._registry.id_of(
            f"{self._topic}-value", _KINDS[self._format], schema_text(self._kind, self._format)
        )
        self._head = _MAGIC + schema_id.to_bytes(4, "big")

    def missing(self, values: Iterable[bytes | None]) -> set[bytes]:
        """The beginnings of values whose schemas are not known, or were not a while ago."""
        heads = {value[:_HEAD_BYTES] for value in values if value is not None and value[:1] == _MAGIC}
        heads -= self._readers.keys()
        since = time.monotonic() - _ASK_AGAIN_SECONDS
        return {head for head in heads if len(head) == _HEAD_BYTES and self._unknown.get(head, -math.inf) < since}

    def load(self, heads: Iterable[bytes]) -> None:
        """Ask the registry for these schemas; a second time for what it does not know."""
        unknown = [head for head in heads if not self._learn(head)]
        if unknown and time.monotonic() >= self._patient_from:
            time.sleep(_BEHIND_SECONDS)
            unknown = [head for head in unknown if not self._learn(head)]
            self._patient_from = time.monotonic() + _PATIENT_SECONDS
        if len(self._unknown) + len(unknown) > _MOST_UNKNOWN:  # of a producer of anything but Confluent's format
            self._unknown.clear()
        self._unknown |= dict.fromkeys(unknown, time.monotonic())

    def _learn(self, head: bytes) -> bool:
        """Whether the registry knows the schema."""
        try:
            self._readers[head] = _reader_of(self._kind, self._registry.schema(int.from_bytes(head[1:], "big")))
        except NoSuchSchemaError:
            return False
        except UnreadableError as error:
            self._readers[head] = partial(_refuse, error)
        return True

    def ready(self, values: Iterable[bytes | None]) -> None:
        """Have every schema that these values name."""
        if heads := self.missing(values):
            self.load(heads)

    def to_json(self, value: bytes) -> bytes:
        """The JSON in a value."""
        if value[:1] != _MAGIC:
            return value
        head = value[:_HEAD_BYTES]
        if (read := self._readers.get(head)) is None:
            if len(head) < _HEAD_BYTES:
                raise UnreadableError(RejectReason.MALFORMED, "it ends within the id of its schema")
            if head not in self._unknown:
                self.load([head])
                return self.to_json(value)
            schema_id = int.from_bytes(head[1:], "big")
            raise UnreadableError(RejectReason.UNKNOWN_SCHEMA, f"the registry knows no schema {schema_id}")
        return read(value[_HEAD_BYTES:])

    def to_wire(self, value: bytes) -> bytes:
        """The value that holds this JSON."""
        if not self._head:
            self.start()
        return self._head + self._write(value)


def _refuse(error: UnreadableError, _: bytes) -> bytes:
    raise UnreadableError(error.reason, error.detail)


def _same(value: bytes) -> bytes:
    return value


def _reader_of(kind: type[msgspec.Struct], schema: WrittenSchema) -> Read:
    if schema.kind == "AVRO":
        return avro_reader(kind, schema.text, schema.references)
    if schema.kind == "PROTOBUF":
        return protobuf_reader(kind)
    return _same  # JSON: what reads it next checks it


def _writer_of(kind: type[msgspec.Struct], format_: str) -> Read:
    """Raises SettingsError where a package is missing."""
    try:
        return {"avro": avro_writer, "protobuf": protobuf_writer}[format_](kind) if format_ != "json-schema" else _same
    except ImportError as error:
        raise SettingsError(
            f"the format {format_} needs {error.name}, which is not installed: pip install 'nextclick[registry]'"
        ) from error


def schema_text(kind: type[msgspec.Struct], format_: str) -> str:
    """The schema of a message as it is registered and published."""
    if format_ == "protobuf":
        return proto_file(kind)
    found = avro_schema(kind) if format_ == "avro" else json_schema(kind)
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


@lru_cache
def _of_any_size(limits: ClickLimits) -> ClickLimits:
    return replace(limits, max_bytes=sys.maxsize)


def _decode_framed(codec: Codec, key: bytes | None, value: bytes | None, *, now_ms: int, limits: ClickLimits) -> Click:
    """As `decode_click`, whatever format the value is in. The limit is of the value as it lies on the topic."""
    if value is None or value[:1] != _MAGIC or len(value) > limits.max_bytes:
        return decode_click(key, value, now_ms=now_ms, limits=limits)
    try:
        plain = codec.to_json(value)
    except UnreadableError as error:
        raise ClickRejectedError(error.reason, error.detail) from error
    return decode_click(key, plain, now_ms=now_ms, limits=_of_any_size(limits))


@dataclass(frozen=True)
class Formats:
    """How a deployment's clicks and rankings lie on their topics.

    Attributes:
        decode_click: `schemas.messages.click.decode_click`, for whatever format clicks are in.
        registry: None where all is plain JSON.
    """

    clicks: Codec
    rankings: Codec
    decode_click: DecodeClick = decode_click
    registry: SchemaRegistry | None = None

    @property
    def waiting_for(self) -> str | None:
        """What the registry is waited for with; None while it is not."""
        return None if self.registry is None else self.registry.waiting_for


PLAIN: Final = Formats(Codec(), Codec())


def formats_of(
    settings: SchemaRegistrySettings,
    topics: TopicSettings,
    *,
    rankings: str | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Formats:
    """What the settings say.

    Args:
        rankings: the topic of the rankings, if it is another than `topics.rankings`.
        stopping: whether whoever waits for the registry is told to stop.

    Raises SettingsError where a package is missing.
    """
    if settings.url is None:
        return PLAIN
    return formats_by(SchemaRegistry(settings, stopping), settings, topics, rankings or topics.rankings)


def formats_by(
    registry: SchemaRegistry, settings: SchemaRegistrySettings, topics: TopicSettings, rankings: str
) -> Formats:
    """The same, by a registry that is known already."""

    def codec(kind: type[msgspec.Struct], format_: Format, topic: str) -> Codec:
        return Codec() if format_ == "json" else RegistryCodec(kind, format_, topic, registry)

    clicks = codec(Click, settings.clicks, topics.clicks)
    decode: Any = partial(_decode_framed, clicks) if isinstance(clicks, RegistryCodec) else decode_click
    return Formats(clicks, codec(Ranking, settings.rankings, rankings), decode, registry)
