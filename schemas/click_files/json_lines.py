"""One JSON object a line, in columns: our own clicks, dumps of the topic, and OTTO's sessions."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np

from schemas.click_files.forms import OTTO, Layout, layout_of, plain
from schemas.click_files.options import ReadOptions
from schemas.click_files.rows import BadRow, Rows

_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Event(msgspec.Struct):
    aid: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    ts: Annotated[int, msgspec.Meta(ge=0, lt=10**14)]
    type: Literal["clicks", "carts", "orders"]


class _Session(msgspec.Struct):
    session: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    events: list[_Event]


def objects_of(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """The objects that a file's first lines are, none where it holds no JSON lines.

    The first line may be torn, where a log was cut. A list that is written over lines has an object in a line of its
    own as well, but not in half of them.
    """
    objects = []
    for line in lines:
        with suppress(*_UNREADABLE):
            objects.append(_object(line))
    return objects if objects and (2 * len(objects) >= len(lines) or not why_no_object(lines[0])) else []


def why_no_object(line: bytes) -> str:
    """What keeps a line from being an object; empty for one that is."""
    try:
        _object(line)
    except _UNREADABLE as error:
        return _told(error)
    return ""


def layout_of_json(objects: Sequence[dict[str, Any]], options: ReadOptions) -> Layout:
    """The layout of a file by its first objects: what one of them lacks, another may have.

    Raises ClickFileError without naming the file.
    """
    names: list[str] = []
    for one in objects:
        known = set(map(plain, names))
        names += [name for name in one if plain(name) not in known]
    ours = {"session_id", "item_id"} <= set(names)
    if options.format == OTTO.name or (options.format is None and not ours and {"session", "events"} <= set(names)):
        return Layout(OTTO, ("session", "aid", "ts", "type"), 0, 1, 2, kind=3)
    layout = layout_of(names, options)
    if layout.kind is None and layout.form.kind:  # the first clicks name no type, and others may
        return replace(layout, names=(*layout.names, layout.form.kind), kind=len(layout.names))
    return layout


def read_json(lines: Iterator[bytes], layout: Layout) -> Iterator[Rows]:
    """The rows of blocks of whole lines; a line that is no click is a broken one."""
    taken = _sessions if layout.form is OTTO else _clicks
    number = 1
    for block in lines:
        texts = block.split(b"\n")[:-1]
        yield taken(texts, number, layout)
        number += len(texts)


def _clicks(lines: list[bytes], first: int, layout: Layout) -> Rows:
    at = (layout.session, layout.item, layout.time, layout.since, layout.kind, layout.event)
    names = [None if place is None else layout.names[place] for place in at]
    numbers: list[int] = []
    broken: list[BadRow] = []
    columns: list[list[Any]] = [[] for _ in names]
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        try:
            click = _object(line)
            session, item, time, since, kind, event = (None if name is None else click.get(name) for name in names)
            values = (_text(session), _text(item), time, since, _text(kind), _text(event))
        except (*_UNREADABLE, _NoIdError) as error:
            broken.append(BadRow(f"line {number}", _told(error)))
            continue
        numbers.append(number)
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    session_ids, items, *others = columns
    time, since, kind, event = (column if name else None for column, name in zip(others, names[2:], strict=True))
    return Rows(np.array(numbers, np.int64), session_ids, items, time, since, kind, event, broken)


def _sessions(lines: list[bytes], first: int, _: Layout) -> Rows:
    numbers: list[int] = []
    sessions: list[bytes] = []
    items: list[bytes] = []
    times: list[int] = []
    kinds: list[bytes] = []
    broken: list[BadRow] = []
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        try:
            session = _otto.decode(line)
        except _UNREADABLE as error:
            broken.append(BadRow(f"line {number}", _told(error)))
            continue
        events = session.events
        numbers += [number] * len(events)
        sessions += [b"%d" % session.session] * len(events)
        items += [b"%d" % event.aid for event in events]
        times += [event.ts for event in events]
        kinds += [event.type.encode() for event in events]
    return Rows(np.array(numbers, np.int64), sessions, items, times, kind=kinds, broken=broken)


class _NoIdError(Exception):
    """A value that cannot be an id."""


def _object(line: bytes) -> dict[str, Any]:
    """The object of a line; of a dump that wraps each record (kcat -J) the record's own."""
    found = _any.decode(line)
    payload = found.get("payload")
    if isinstance(payload, str) and "topic" in found and "session_id" not in found:
        return _any.decode(payload)
    return found


def _text(value: Any) -> bytes:
    """An id as bytes; nothing is an empty one. Whole numbers are ids, too."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int) and not isinstance(value, bool):
        return b"%d" % value
    if value is None:
        return b""
    raise _NoIdError(f"an id must be a text or a whole number, not {str(value)[:40]}")


def _told(error: Exception) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else str(error)[:200]


_any: Final = msgspec.json.Decoder(dict[str, Any])
_otto: Final = msgspec.json.Decoder(_Session)
