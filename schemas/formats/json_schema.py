"""Messages in JSON Schema: what is published, and what a registry is given."""

import inspect
from typing import Any, Final

import msgspec

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def json_schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The schema of a message."""
    found: dict[str, Any] = dedented({"$schema": DIALECT, **msgspec.json.schema(kind)})
    return found


def dedented(schema: Any) -> Any:
    """The schema with docstrings as Python 3.13 keeps them; older ones leave their indentation in."""
    if isinstance(schema, dict):
        return {
            name: inspect.cleandoc(value) if name == "description" and isinstance(value, str) else dedented(value)
            for name, value in schema.items()
        }
    return [dedented(value) for value in schema] if isinstance(schema, list) else schema
