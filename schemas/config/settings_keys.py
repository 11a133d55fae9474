"""The keys of a settings model: its sections are nested models, its settings everything else.

A key is the path of names from the root, `("worker", "web", "port")`.
"""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel

PREFIX: Final = "NEXTCLICK_"

Key = tuple[str, ...]


def variable_of(key: Key) -> str:
    """The environment variable of a setting."""
    return PREFIX + "__".join(key).upper()


def dotted_keys(model: type[BaseModel]) -> list[str]:
    """Every setting of a model as people write it: `worker.web.port`."""
    return [".".join(key) for key in keys(model, ())]


def keys(model: type[BaseModel], prefix: Key) -> Iterator[Key]:
    """Every setting of a model, its sections' included."""
    for name, info in model.model_fields.items():
        inner = section_of(info.annotation)
        if inner is None:
            yield (*prefix, name)
        else:
            yield from keys(inner, (*prefix, name))


def field_type(model: type[BaseModel], key: Key) -> Any:
    """The annotation of a setting, None when there is no such setting (or it is a whole section)."""
    for place, name in enumerate(key):
        info = model.model_fields.get(name)
        if info is None:
            return None
        inner = section_of(info.annotation)
        if inner is None:
            return info.annotation if place == len(key) - 1 else None
        model = inner
    return None


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The nested model that a field is, None when the field is a setting."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def alternatives(annotation: Any) -> list[Any]:
    """The types that a value may have: the members of a union, through Annotated."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [inner for one in get_args(annotation) for inner in alternatives(one)]
    return [annotation]


def known_part(root: type[BaseModel], place: tuple[int | str, ...]) -> Key:
    """The section or setting that pydantic means: it goes on into lists and the members of unions."""
    key: Key = ()
    model: type[BaseModel] | None = root
    for part in place:
        if model is None or part not in model.model_fields:
            break
        key = (*key, str(part))
        model = section_of(model.model_fields[str(part)].annotation)
    return key


def nest(root: type[BaseModel], values: Mapping[Key, Any]) -> dict[str, Any]:
    """The values as nested tables, for pydantic."""
    nested = _required_sections(root)
    for key, value in values.items():
        table = nested
        for name in key[:-1]:
            table = table.setdefault(name, {})
        table[key[-1]] = value
    return nested


def _required_sections(model: type[BaseModel]) -> dict[str, Any]:
    """Empty tables where there must be one, so that what is missing is told by setting and not by section."""
    sections = {name: section_of(info.annotation) for name, info in model.model_fields.items() if info.is_required()}
    return {name: _required_sections(section) for name, section in sections.items() if section is not None}
