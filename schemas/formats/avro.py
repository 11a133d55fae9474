"""Messages in Avro: the schema that we publish, and what reads and writes by it."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from schemas.formats.structs import Field, fields_of
from schemas.formats.unreadable import UnreadableError
from schemas.messages.click import RejectReason

NAMESPACE: Final = "nextclick"
_SCALARS: Final = {"string": "string", "int64": "long", "double": "double"}
# What fastavro makes of bytes that are not what their schema says.
_MALFORMED: Final = (
    EOFError, ValueError, LookupError, TypeError, ArithmeticError, StopIteration, AttributeError, RecursionError,
)  # fmt: skip
# And of a schema that is none.
_NO_SCHEMA: Final = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def avro_schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The schema of a message, as Avro's JSON has it."""
    found: dict[str, Any] = _record(kind, set())
    return found


def _record(kind: type[msgspec.Struct], known: set[type]) -> Any:
    if kind in known:
        return f"{NAMESPACE}.{kind.__name__}"
    known.add(kind)
    fields = [_field(field, known) for field in fields_of(kind)]
    return {"type": "record", "name": kind.__name__, "namespace": NAMESPACE, "fields": fields}


def _field(field: Field, known: set[type]) -> dict[str, Any]:
    kind: Any = _SCALARS[str(field.scalar)] if field.message is None else _record(field.message, known)
    told: dict[str, Any] = {"name": field.name, "type": kind}
    if field.repeated:
        told |= {"type": {"type": "array", "items": kind}, "default": []}
    elif field.optional:
        told |= {"type": ["null", kind], "default": None}
    return told | ({} if field.doc is None else {"doc": field.doc})


def avro_reader(kind: type[msgspec.Struct], writer: str, references: Sequence[str]) -> Callable[[bytes], bytes]:
    """From the bytes of a message to its JSON, by the schema that it was written with and by ours.

    Args:
        writer: the schema of the writer.
        references: the schemas that it refers to, those first that others refer to.

    Raises UnreadableError for a schema that is none, or no record's; and so does the reader for its bytes.
    """
    from fastavro import parse_schema, schemaless_reader
    from fastavro.read import SchemaResolutionError
    from fastavro.schema import SchemaParseException

    named: dict[str, Any] = {}
    try:
        for text in references:
            parse_schema(_without_logical_types(text), named_schemas=named)
        # fastavro marks what is parsed, and has then no need to look for names again.
        written = parse_schema(_without_logical_types(writer), named_schemas=named)
        _takes_bytes(written, named, {})
    except (SchemaParseException, *_NO_SCHEMA) as error:
        raise UnreadableError(RejectReason.INCOMPATIBLE_SCHEMA, f"no usable Avro schema: {error}") from error
    if not isinstance(written, dict) or written.get("type") != "record":
        raise UnreadableError(RejectReason.INCOMPATIBLE_SCHEMA, "the Avro schema is not of a record")
    # Whatever the writer calls its record: what counts is its fields.
    ours = parse_schema({**avro_schema(kind), "name": written["name"].rpartition(".")[2], "namespace": _space(written)})
    encode = msgspec.json.Encoder().encode

    def read(data: bytes) -> bytes:
        try:
            fields = schemaless_reader(io.BytesIO(data), written, ours)
            return encode(msgspec.convert(fields, kind))
        except (SchemaResolutionError, msgspec.ValidationError) as error:
            raise UnreadableError(RejectReason.INCOMPATIBLE_SCHEMA, _told(error, written, kind)) from error
        except _MALFORMED as error:
            raise UnreadableError(
                RejectReason.MALFORMED, f"not what its Avro schema says: {type(error).__name__}: {error}"
            ) from error

    return read


def avro_writer(kind: type[msgspec.Struct]) -> Callable[[bytes], bytes]:
    """From the JSON of a message to its bytes by our schema."""
    from fastavro import parse_schema, schemaless_writer

    schema = parse_schema(avro_schema(kind))
    decode = msgspec.json.Decoder(dict[str, Any]).decode

    def write(value: bytes) -> bytes:
        data = io.BytesIO()
        schemaless_writer(data, schema, decode(value))
        return data.getvalue()

    return write


def _takes_bytes(schema: Any, named: Mapping[str, Any], known: dict[str, bool | None]) -> bool:
    """Whether each value of a schema takes bytes. `known` are the records that were looked at; None: it is under way.

    Raises ValueError where a message of a few bytes could take any time, or calls so deep that they end the process:
    lists and records of what takes none, and records inside themselves.
    """
    if isinstance(schema, list):
        for branch in schema:
            _takes_bytes(branch, named, known)
        return True
    kind = schema["type"] if isinstance(schema, dict) else schema
    if not isinstance(kind, str):
        return _takes_bytes(kind, named, known)
    if kind == "array" and not _takes_bytes(schema["items"], named, known):
        raise ValueError("it has lists of elements that take no bytes")
    if kind == "map":
        _takes_bytes(schema["values"], named, known)
    if kind == "fixed":
        return bool(schema["size"] > 0)
    if kind == "record":
        name = schema["name"]
        if name not in known:
            known[name] = None
            takes = [_takes_bytes(field["type"], named, known) for field in schema["fields"]]
            if takes and not any(takes):
                raise ValueError(f"its record {name} has fields, and takes no bytes")
            known[name] = bool(takes)
        if known[name] is None:
            raise ValueError(f"its record {name} is inside itself")
        return bool(known[name])
    return _takes_bytes(named[kind], named, known) if kind in named else kind != "null"


def _without_logical_types(text: str) -> Any:
    """A time or a decimal would be an object of Python's; as a number it is what our schema has."""
    return json.loads(text, object_hook=lambda found: {k: v for k, v in found.items() if k != "logicalType"})


def _space(record: Mapping[str, Any]) -> str:
    return str(record["name"].rpartition(".")[0] or record.get("namespace", ""))


def _told(error: Exception, written: Mapping[str, Any], kind: type[msgspec.Struct]) -> str:
    return f"the writer's Avro schema {written['name']} does not fit a {kind.__name__}: {error}"
