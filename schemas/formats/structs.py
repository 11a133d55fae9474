"""The fields of a message as Avro and Protobuf see them: one description, from which both schemas are made."""

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import inspect

_SCALARS: Final[dict[type[inspect.Type], str]] = {
    inspect.StrType: "string",
    inspect.EnumType: "string",  # a reader of today must not fail at a name that is added tomorrow
    inspect.IntType: "int64",
    inspect.FloatType: "double",
}


@dataclass(frozen=True)
class Field:
    """One field of a message.

    Attributes:
        scalar: `string`, `int64` or `double`; None where the field is a message.
        message: its type, where it is one.
        optional: whether it may be absent, as null in JSON.
        repeated: whether it is a list.
        doc: what the JSON Schema says of it.
    """

    name: str
    scalar: str | None
    message: type[msgspec.Struct] | None
    optional: bool
    repeated: bool
    doc: str | None


def fields_of(kind: type[msgspec.Struct]) -> list[Field]:
    """In the order of the message's definition. Raises TypeError for a type that neither format has."""
    found = inspect.type_info(kind)
    assert isinstance(found, inspect.StructType)
    return [_field(field.name, field.type) for field in found.fields]


def messages_of(kind: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """The message and those inside it, each once, the outermost first."""
    found = [kind]
    for message in found:  # grows meanwhile
        inner = (field.message for field in fields_of(message))
        found += [one for one in dict.fromkeys(inner) if one is not None and one not in found]
    return found


def _field(name: str, kind: inspect.Type) -> Field:
    doc, kind = _bare(kind)
    optional = repeated = False
    if isinstance(kind, inspect.UnionType):
        [kind] = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
        optional = True
        inner_doc, kind = _bare(kind)
        doc = doc or inner_doc
    if isinstance(kind, inspect.VarTupleType):
        repeated = True
        _, kind = _bare(kind.item_type)
    message = kind.cls if isinstance(kind, inspect.StructType) else None
    if message is None and type(kind) not in _SCALARS:
        raise TypeError(f"{name}: neither Avro nor Protobuf is made of {kind}")
    return Field(name, None if message else _SCALARS[type(kind)], message, optional, repeated, doc)


def _bare(kind: inspect.Type) -> tuple[str | None, Any]:
    """What the JSON Schema says of a type, and the type."""
    doc: str | None = None
    while isinstance(kind, inspect.Metadata):
        doc = doc or (kind.extra_json_schema or {}).get("description")
        kind = kind.type
    return doc, kind
