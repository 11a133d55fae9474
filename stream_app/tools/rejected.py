"""`stream-app rejected`: what is on the rejected topic, as a table, as JSON lines to be edited, or one in full."""

import heapq
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
from confluent_kafka import Message
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.errors import MessageError
from schemas.kafka.record_headers import headers_of
from schemas.messages.headers import RESENT
from schemas.messages.rejected import KEPT_BYTES, RejectedClick, decode_rejected
from stream_app.errors import StreamError
from stream_app.kafka.plain_consumer import PlainConsumer, plain_consumer
from stream_app.settings import StreamSettings
from stream_app.tools.terminal import escaped, shown, utc

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

    def match(self, one: RejectedClick) -> bool:
        """Whether a record is of the reasons and the topic that are meant."""
        return (not self.reasons or one.reason in self.reasons) and self.topic in (None, one.source.topic)


class RejectedTopic:
    """The rejected topic up to its present end: first read through, then once more for the records that are meant.

    None is kept: a topic may hold more of them than memory does.

    Attributes:
        reasons: how many records of each reason match.
        resent: the places of those that were sent again.
    """

    def __init__(self, topic: PlainConsumer, filters: Filters, warn: Callable[[str], None]) -> None:
        self._topic, self._filters = topic, filters
        self._since = None if filters.last_ms is None else time.time_ns() // 1_000_000 - filters.last_ms
        self._ends = topic.ends(topic.partitions)  # what is sent again may be rejected again, behind them
        self.reasons: Counter[str] = Counter()
        self.resent: set[Place] = set()
        newest: list[tuple[int, Place]] = []
        for one in self._read(warn):
            self.reasons[one.rejected.reason] += 1
            if filters.limit is not None:
                heapq.heappush(newest, (one.rejected.rejected_at, one.place))
                if len(newest) > filters.limit:
                    heapq.heappop(newest)
        self._meant = None if filters.limit is None else {place for _, place in newest}

    def records(self) -> Iterator[Parked]:
        """Those that are meant, partition by partition, the oldest first."""
        return (one for one in self._read() if self._meant is None or one.place in self._meant)

    def _read(self, warn: Callable[[str], None] = lambda _: None) -> Iterator[Parked]:
        for partition in self._topic.partitions:
            for message in self._messages(partition):
                if message.offset() >= self._ends[partition]:
                    break
                one = self._parked(message, warn)
                if one is not None and self._filters.match(one.rejected):
                    yield one

    def _messages(self, partition: int) -> Iterator[Message]:
        if self._since is None:
            return self._topic.history(partition)
        start = self._topic.offset_at(partition, self._since)
        return iter(()) if start < 0 else self._topic.history(partition, start=start)

    def _parked(self, message: Message, warn: Callable[[str], None]) -> Parked | None:
        place = message.partition(), message.offset()
        mark = dict(headers_of(message)).get(RESENT) if message.value() is None else None
        if mark is not None and (offset := mark.rpartition(b"/")[2]).isdigit():
            self.resent.add((place[0], int(offset)))
            return None
        try:
            return Parked(place, decode_rejected(message.value() or b""))
        except MessageError as error:
            warn(f"partition {place[0]}, offset {place[1]}: {error}")
            return None


@contextmanager
def rejected_topic(settings: StreamSettings, filters: Filters, *, err: Console) -> Iterator[RejectedTopic]:
    """Open it. Raises ReadError, then and as it is read."""

    def warn(text: str) -> None:
        err.print(text, style="yellow", markup=False, highlight=False)

    name = settings.topics.rejected
    err.print(f"reading {name}", style="dim", markup=False, highlight=False, soft_wrap=True)
    with plain_consumer(settings.kafka, name, name=f"{settings.app_id}-rejected") as topic:
        yield RejectedTopic(topic, filters, warn)


def show(
    settings: StreamSettings, filters: Filters, *, export: Path | None, json: bool, out: Console, err: Console
) -> int:
    """Print or export those that match; returns the exit code. Raises RejectedError and ReadError."""
    if export is not None and export.exists():
        raise RejectedError(f"{export} exists, and may hold repairs: name another file, or remove it")
    is_table = export is None and not json
    told = replace(filters, limit=filters.limit or _SHOWN) if is_table else filters
    with rejected_topic(settings, told, err=err) as found:
        if export is not None:
            out.print(_exported(export, found), markup=False, highlight=False, soft_wrap=True)
        elif json:
            for one in found.records():
                print(escaped(as_line(one, is_resent=one.place in found.resent)))
        else:
            newest = sorted(found.records(), key=lambda one: (one.rejected.rejected_at, one.place))
            caption = _told(found.reasons, len(newest))
            out.print(_as_table(newest, found.resent, settings.topics.rejected, caption))
    return 0


def show_one(place: Place, settings: StreamSettings, *, json: bool, out: Console, err: Console) -> int:
    """Print one record in full; returns the exit code. Raises RejectedError and ReadError."""
    with rejected_topic(settings, Filters(), err=err) as found:
        one = next((one for one in found.records() if one.place == place), None)
        if one is None:
            raise RejectedError(f"no rejected record is at {place[0]}:{place[1]} of {settings.topics.rejected}")
        if json:
            print(escaped(as_line(one, is_resent=place in found.resent)))
        else:
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


def _exported(path: Path, found: RejectedTopic) -> str:
    """Write those that were not sent again; returns what is told of it."""
    written = left = 0
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            for one in found.records():
                if one.place in found.resent:
                    left += 1
                else:
                    file.write(as_line(one) + b"\n")
                    written += 1
        unfinished.rename(path)
    except OSError as error:
        raise RejectedError(f"{path} cannot be written: {error.strerror}") from error
    return f"{written:,} records in {path}" + (f"; {left:,} were sent again before" if left else "")


# -- for people -------------------------------------------------------------------------------------------------------


def _told(reasons: Counter[str], shown_ones: int) -> str:
    text = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common()) or "none"
    return text if shown_ones == reasons.total() else f"{text}; the newest {shown_ones} are shown (--limit)"


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
