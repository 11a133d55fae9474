"""Messages in Protobuf: the file that we publish, and what reads and writes by it.

A field's number is its place in the message's definition. Fields are added at its end, and none is ever removed:
`tests/contract` holds the bytes of an example of each.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import msgspec

from schemas.formats.structs import Field, fields_of, messages_of
from schemas.formats.unreadable import UnreadableError
from schemas.messages.click import RejectReason

PACKAGE: Final = "nextclick"
_MOST_NESTED: Final = 64


def proto_file(kind: type[msgspec.Struct]) -> str:
    """The text of the .proto file of a message; the message is the first in it."""
    lines = ['syntax = "proto3";', "", f"package {PACKAGE};"]
    for message in messages_of(kind):
        lines += ["", f"message {message.__name__} {{"]
        for number, field in enumerate(fields_of(message), 1):
            if field.doc:
                lines.append(f"  // {field.doc}")
            lines.append(f"  {_label(field)}{_type(field)} {field.name} = {number};")
        lines.append("}")
    return "\n".join(lines) + "\n"


def _label(field: Field) -> str:
    return "repeated " if field.repeated else "optional " if field.optional and field.message is None else ""


def _type(field: Field) -> str:
    return field.message.__name__ if field.message is not None else str(field.scalar)


@cache
def message_class(kind: type[msgspec.Struct]) -> Any:
    """The class of Protobuf's runtime, as protoc makes it of `proto_file`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{PACKAGE}/{kind.__name__.lower()}.proto", package=PACKAGE, syntax="proto3"
    )
    for message in messages_of(kind):
        described = file.message_type.add(name=message.__name__)
        for number, field in enumerate(fields_of(message), 1):
            one = described.field.add(name=field.name, number=number)
            one.label = types.LABEL_REPEATED if field.repeated else types.LABEL_OPTIONAL
            if field.message is None:
                one.type = getattr(types, f"TYPE_{str(field.scalar).upper()}")
            else:
                one.type, one.type_name = types.TYPE_MESSAGE, f".{PACKAGE}.{field.message.__name__}"
            if _label(field) == "optional ":
                one.proto3_optional, one.oneof_index = True, len(described.oneof_decl)
                described.oneof_decl.add(name=f"_{field.name}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{kind.__name__}"))


def protobuf_reader(kind: type[msgspec.Struct]) -> Callable[[bytes], bytes]:
    """From the bytes behind a schema's id to the message's JSON. It raises UnreadableError.

    Which message of which file was written does not matter: numbers and types of our fields do.
    """
    from google.protobuf.message import DecodeError

    parse = message_class(kind).FromString
    plain, encode = _plain_of(kind), msgspec.json.Encoder().encode
    needed = [field.name for field in fields_of(kind) if field.scalar and not (field.optional or field.repeated)]

    def read(data: bytes) -> bytes:
        try:
            message = parse(data[_behind_indexes(data) :])
            if not all(getattr(message, name) for name in needed):
                _check_types(message, kind)
            return encode(msgspec.convert(plain(message), kind))
        except DecodeError as error:
            raise UnreadableError(RejectReason.MALFORMED, f"no Protobuf message {kind.__name__}: {error}") from error
        except msgspec.ValidationError as error:
            raise UnreadableError(RejectReason.INCOMPATIBLE_SCHEMA, f"no {kind.__name__}: {error}") from error

    return read


def protobuf_writer(kind: type[msgspec.Struct]) -> Callable[[bytes], bytes]:
    """From the JSON of a message to what follows a schema's id: the place of the message in its file, and its bytes."""
    make = message_class(kind)
    decode = msgspec.json.Decoder(dict[str, Any]).decode

    def write(value: bytes) -> bytes:
        # The first message of a file has a short form: a single 0.
        return b"\0" + bytes(make(**decode(value)).SerializeToString())

    return write


def _check_types(message: Any, kind: type[msgspec.Struct]) -> None:
    """Raise UnreadableError where a field of ours was written as another type: Protobuf's runtime passes over it."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    names = dict(enumerate((field.name for field in fields_of(kind)), 1))
    for unknown in UnknownFieldSet(message):
        if unknown.field_number in names:
            told = (
                f"{names[unknown.field_number]} (field {unknown.field_number}) has another type than in {kind.__name__}"
            )
            raise UnreadableError(RejectReason.INCOMPATIBLE_SCHEMA, f"{told}; see schemas/protobuf")


def _behind_indexes(data: bytes) -> int:
    """Where a message begins: behind the path to its type, a count and as many numbers, as zigzag varints."""
    count, at = _number(data, 0)
    for _ in range(count):
        _, at = _number(data, at)
    return at


def _number(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data) and shift < 32:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            number = (number >> 1) ^ -(number & 1)
            if 0 <= number <= _MOST_NESTED * 1024:
                return number, at
            break
    raise UnreadableError(RejectReason.MALFORMED, "the path to the Protobuf message's type is broken")


def _plain_of(kind: type[msgspec.Struct]) -> Callable[[Any], dict[str, Any]]:
    """From a message of Protobuf's to what JSON can hold."""
    fields = fields_of(kind)
    inner = {field.name: _plain_of(field.message) for field in fields if field.message is not None}

    def plain(message: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field in fields:
            name = field.name
            if (field.optional or field.message is not None) and not field.repeated and not message.HasField(name):
                if field.optional:
                    found[name] = None
                continue
            value = getattr(message, name)
            if field.repeated:
                value = list(map(inner[name], value)) if name in inner else list(value)
            elif name in inner:
                value = inner[name](value)
            found[name] = value
        return found

    return plain
