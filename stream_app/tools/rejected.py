"""`stream-app rejected`: what is on the rejected topic, as a table, as JSON lines to be edited, or one in full."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from confluent_kafka import Message
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.errors import MessageError
from schemas.messages.headers import RESENT
from schemas.messages.rejected import KEPT_BYTES, RejectedClick, decode_rejected
from stream_app.errors import StreamError
from stream_app.kafka.plain_consumer import PlainConsumer, plain_consumer
from stream_app.settings import StreamSettings
from stream_app.tools.terminal import shown, utc

Place = tuple[int, int]
"""Partition and offset on the rejected topic: which rejected record it is."""

_SHOWN: Final = 50
"""Records of a table, where nobody says how many."""
_DUMPED: Final = 16
"""Bytes of a line, where they are no text."""


class RejectedError(StreamError):
    """The command cannot do what it was asked for, and has done nothing."""


def place_of(text: str) -> Place:
    """A place as people write it, 3:1043. Raises RejectedError."""
    partition, _, offset = text.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise RejectedError(f"{text!r} is no place on the rejected topic: PARTITION:OFFSET, as the list shows it")
    return int(partition), int(offset)


@dataclass(frozen=True, slots=True)
class Parked:
    """A record of the rejected topic."""

    place: Place
    rejected: RejectedClick

    @property
    def is_cut(self) -> bool:
        """Whether more was rejected than is kept."""
        return (self.rejected.value_size or 0) > KEPT_BYTES or len(self.rejected.key or b"") == KEPT_BYTES


@dataclass(frozen=True, slots=True)
class Filters:
    """Which records are meant; None is any.

    Attributes:
        topic: on which they were rejected.
        last_ms: how long ago they came to the rejected topic, at most.
        limit: the newest so many.
    """

    reasons: Collection[str] = ()
    topic: str | None = None
    last_ms: int | None = None
    limit: int | None = None

    def chosen(self, records: Iterable[Parked]) -> list[Parked]:
        """Those that are meant, the newest last."""
        found = [
            one
            for one in records
            if (not self.reasons or one.rejected.reason in self.reasons)
            and (self.topic is None or one.rejected.source.topic == self.topic)
        ]
        found.sort(key=lambda one: (one.rejected.rejected_at, one.place))
        return found if self.limit is None else found[-self.limit :]


class RejectedTopic:
    """The rejected topic, read to its end.

    Attributes:
        records: those that came in the time that was asked for.
        resent: the places of those that were sent again.
    """

    def __init__(self, topic: PlainConsumer, *, last_ms: int | None, warn: Callable[[str], None]) -> None:
        self.records: list[Parked] = []
        self.resent: set[Place] = set()
        since = None if last_ms is None else time.time_ns() // 1_000_000 - last_ms
        for partition in topic.partitions:
            for message in _from(topic, partition, since):
                self._take(message, warn)

    def _take(self, message: Message, warn: Callable[[str], None]) -> None:
        place = message.partition(), message.offset()
        mark = dict(message.headers() or ()).get(RESENT) if message.value() is None else None
        if mark is not None and (offset := mark.rpartition(b"/")[2]).isdigit():
            self.resent.add((place[0], int(offset)))
            return
        try:
            self.records.append(Parked(place, decode_rejected(message.value() or b"")))
        except MessageError as error:
            warn(f"partition {place[0]}, offset {place[1]}: {error}")


def _from(topic: PlainConsumer, partition: int, since_ms: int | None) -> Iterator[Message]:
    if since_ms is None:
        return topic.history(partition)
    start = topic.offset_at(partition, since_ms)
    return iter(()) if start < 0 else topic.history(partition, start=start)


def read_rejected(settings: StreamSettings, *, last_ms: int | None, err: Console) -> RejectedTopic:
    """All of it, or of the last so many ms. Raises ReadError."""

    def warn(text: str) -> None:
        err.print(text, style="yellow", markup=False, highlight=False)

    name = settings.topics.rejected
    err.print(f"reading {name}", style="dim", markup=False, highlight=False, soft_wrap=True)
    with plain_consumer(settings.kafka, name, name=f"{settings.app_id}-rejected") as topic:
        return RejectedTopic(topic, last_ms=last_ms, warn=warn)


def show(
    settings: StreamSettings, filters: Filters, *, export: Path | None, json: bool, out: Console, err: Console
) -> int:
    """Print or export those that match; returns the exit code. Raises RejectedError and ReadError."""
    if export is not None and export.exists():
        raise RejectedError(f"{export} exists, and may hold repairs: name another file, or remove it")
    found = read_rejected(settings, last_ms=filters.last_ms, err=err)
    chosen = filters.chosen(found.records)
    if export is not None:
        unsent = [one for one in chosen if one.place not in found.resent]
        _write(export, (as_line(one) for one in unsent))
        left = len(chosen) - len(unsent)
        text = f"{len(unsent):,} records in {export}" + (f"; {left:,} were sent again before" if left else "")
        out.print(text, markup=False, highlight=False, soft_wrap=True)
    elif json:
        for one in chosen:
            print(as_line(one, is_resent=one.place in found.resent).decode())
    else:
        newest = chosen if filters.limit is not None else chosen[-_SHOWN:]
        out.print(_as_table(newest, found.resent, settings.topics.rejected, _told(chosen, newest)))
    return 0


def show_one(place: Place, settings: StreamSettings, *, json: bool, out: Console, err: Console) -> int:
    """Print one record in full; returns the exit code. Raises RejectedError and ReadError."""
    found = read_rejected(settings, last_ms=None, err=err)
    one = next((one for one in found.records if one.place == place), None)
    if one is None:
        raise RejectedError(f"no rejected record is at {place[0]}:{place[1]} of {settings.topics.rejected}")
    if json:
        print(as_line(one, is_resent=place in found.resent).decode())
        return 0
    out.print(_as_text(one, is_resent=place in found.resent), soft_wrap=True)
    return 0


# -- JSON lines -------------------------------------------------------------------------------------------------------


def as_line(one: Parked, *, is_resent: bool = False) -> bytes:
    """A record as one line of JSON, which `stream_app/tools/resend.py` reads when it was edited.

    Key and value are texts where they are UTF-8, else base64 under names of their own; an object of JSON stands as it
    is.
    """
    rejected = one.rejected
    fields: dict[str, Any] = {
        "partition": one.place[0],
        "offset": one.place[1],
        "reason": rejected.reason,
        "detail": rejected.detail,
        "source": rejected.source,
        "rejected_at": rejected.rejected_at,
    }
    if is_resent:
        fields["resent"] = True
    if one.is_cut:
        fields["cut"] = True
    return msgspec.json.encode(fields | _part("key", rejected.key) | _part("value", rejected.value, is_value=True))


def _part(name: str, data: bytes | None, *, is_value: bool = False) -> dict[str, Any]:
    text = _text(data)
    if data is not None and text is None:
        return {f"{name}_base64": data}
    if is_value and text is not None and _is_object(text):
        return {name: msgspec.Raw(msgspec.json.format(text, indent=-1).encode())}
    return {name: text}


def _text(data: bytes | None) -> str | None:
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        return None


def _is_object(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _write(path: Path, lines: Iterable[bytes]) -> None:
    try:
        with path.open("xb") as file:
            file.writelines(line + b"\n" for line in lines)
    except OSError as error:
        raise RejectedError(f"{path} cannot be written: {error.strerror}") from error


# -- for people -------------------------------------------------------------------------------------------------------


def _told(chosen: list[Parked], shown_ones: list[Parked]) -> str:
    reasons = Counter(str(one.rejected.reason) for one in chosen)
    text = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common()) or "none"
    return text if len(shown_ones) == len(chosen) else f"{text}; the newest {len(shown_ones)} are shown (--limit)"


def _as_table(records: list[Parked], resent: Collection[Place], title: str, caption: str) -> Table:
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("at", "rejected", "reason"):
        table.add_column(name, no_wrap=True)
    table.add_column("detail")
    table.add_column("from")
    table.add_column("key")
    table.add_column("", no_wrap=True)
    for one in records:
        rejected, source = one.rejected, one.rejected.source
        table.add_row(
            f"{one.place[0]}:{one.place[1]}",
            utc(rejected.rejected_at),
            rejected.reason,
            shown(rejected.detail),
            shown(f"{source.topic} {source.partition}:{source.offset}"),
            _key(rejected.key),
            "resent" if one.place in resent else "",
        )
    return table


def _key(key: bytes | None) -> Text:
    if key is None:
        return Text("none", "dim")
    return shown(key[:256].decode(errors="replace"))


def _as_text(one: Parked, *, is_resent: bool) -> Text:
    rejected, source = one.rejected, one.rejected.source
    size = "none" if rejected.value_size is None else f"{rejected.value_size:,} bytes"
    if one.is_cut:
        size += f", of which the first {KEPT_BYTES:,} are kept"
    lines = [
        Text.assemble(("reason    ", "dim"), shown(f"{rejected.reason}: {rejected.detail}")),
        Text.assemble(("rejected  ", "dim"), utc(rejected.rejected_at), ", sent again since" if is_resent else ""),
        Text.assemble(("from      ", "dim"), shown(source.topic), f" {source.partition}:{source.offset}"),
        Text.assemble(("key       ", "dim"), _in_full(rejected.key) if rejected.key is not None else Text("none")),
        Text.assemble(("value     ", "dim"), size),
    ]
    if rejected.value is not None:
        lines.append(_in_full(rejected.value))
    return Text("\n").join(lines)


def _in_full(data: bytes) -> Text:
    """A text as it is, line by line; what is none, or holds what a terminal might obey, byte by byte."""
    text = (_text(data) or "").expandtabs(4)
    if text and all(line.isprintable() for line in text.split("\n")):
        return Text(text)
    rows = [data[at : at + _DUMPED] for at in range(0, len(data), _DUMPED)]
    dump = (
        f"{number * _DUMPED:06x}  {row.hex(' '):{3 * _DUMPED}} "
        + "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        for number, row in enumerate(rows)
    )
    return Text("\n" + "\n".join(dump)) if len(rows) > 1 else Text("".join(dump))
