"""Publishes items or rules from a file: `stream-app items` and `stream-app rules`."""

import csv
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from rich.console import Console

from schemas.messages.item import Item, decode_item, encode_item
from schemas.messages.refused import RecordRefusedError
from schemas.messages.rule import Rule, decode_rule, encode_rule
from stream_app.errors import StreamError
from stream_app.kafka.plain_consumer import plain_consumer
from stream_app.serve.delivery import producer_config
from stream_app.settings import StreamSettings

Record = tuple[bytes, bytes | None]

_LINGER_MS: Final = 5.0
_POLL_SECONDS: Final = 0.1
_LISTS: Final = ("markets", "categories")
_NUMBERS: Final = ("available_from", "available_until", "created_at")
_MOST_DIGITS: Final = 19
_TRUTHS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_SEPARATOR: Final = "|"


class CatalogueFileError(StreamError):
    """The file cannot be published; nothing of it was."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What is published: where to, how a line is read."""

    name: str
    setting: str
    record: Callable[[Mapping[str, Any]], tuple[str, bytes]]


def _item(fields: Mapping[str, Any]) -> tuple[str, bytes]:
    value = msgspec.json.encode(fields)
    item: Item = decode_item(str(fields.get("item_id", "")).encode(), value)
    return item.item_id, encode_item(item)


def _rule(fields: Mapping[str, Any]) -> tuple[str, bytes]:
    value = msgspec.json.encode(fields)
    rule: Rule = decode_rule(str(fields.get("rule_id", "")).encode(), value)
    return rule.rule_id, encode_rule(rule)


ITEMS: Final = Kind("items", "items", _item)
RULES: Final = Kind("rules", "rules", _rule)


def publish_file(path: Path, settings: StreamSettings, kind: Kind, *, complete: bool, out: Console) -> int:
    """Publish every item or rule of a file, checked before any is sent; the exit code, 1 if one was not confirmed.

    With ``complete`` what is on the topic and not in the file is gone afterwards.
    """
    topic = str(getattr(settings.topics, kind.setting))
    records: dict[bytes, bytes | None] = {}
    with out.status("reading the file"):
        for number, fields in _lines(path):
            try:
                own_id, value = kind.record(fields)
            except RecordRefusedError as error:
                raise CatalogueFileError(f"{path}: line {number}: {error}; nothing was published") from error
            records[own_id.encode()] = value  # of several lines the last one counts
    gone = 0
    # Asked first: it tells when there is no such topic.
    with plain_consumer(settings.kafka, topic, name=f"{settings.app_id}-{kind.name}") as consumer:
        if complete:
            there: set[bytes] = set()
            with out.status(f"reading {topic}"):
                for partition in consumer.partitions:
                    for message in consumer.history(partition):
                        if (key := message.key()) is not None:
                            (there.discard if message.value() is None else there.add)(key)
            missing = sorted(there - records.keys())
            gone = len(missing)
            records |= dict.fromkeys(missing)
    began = time.monotonic()
    with out.status(f"publishing {len(records):,} {kind.name}"):
        unconfirmed, reasons = _send(settings, topic, kind, iter(records.items()))
    seconds = time.monotonic() - began
    text = f"{len(records) - gone:,} {kind.name} on {topic}, {gone:,} gone, in {seconds:.1f} s"
    if unconfirmed:
        text += f"; {unconfirmed:,} records NOT confirmed: {', '.join(reasons)}"
    out.print(text, markup=False, highlight=False)
    return 1 if unconfirmed else 0


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects of a file, CSV or JSON lines by its name, with their line numbers."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                yield from _csv(path, file)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _of_json(path, number, line)
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogueFileError(f"{path}: cannot be read: {error}") from error


def _csv(path: Path, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(file, strict=True)  # else a quote that is never closed swallows the rest of the file
    begins = 1
    try:
        _ = reader.fieldnames  # reads the header
        begins = reader.line_num + 1
        for row in reader:
            yield reader.line_num, _of_row(path, reader.line_num, row)
            begins = reader.line_num + 1
    except csv.Error as error:
        raise CatalogueFileError(
            f"{path}: line {begins}: {error}; is a quote not closed, or not doubled within quotes? "
            "Nothing was published"
        ) from error


def _of_json(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise CatalogueFileError(f"{path}: line {number}: no JSON object: {error}; nothing was published") from error


def _of_row(path: Path, number: int, row: Mapping[str | None, Any]) -> Mapping[str, Any]:
    """An item from a row of CSV: known columns by their names, all others as attributes; empty cells are left out."""
    fields: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    for name, cell in row.items():
        if name is None or cell is None:
            raise CatalogueFileError(
                f"{path}: line {number}: has {'more' if name is None else 'fewer'} cells than the header; nothing was "
                "published"
            )
        if name == "item_id" or not cell:
            fields |= {name: cell} if name == "item_id" else {}
        elif name in _LISTS:
            fields[name] = cell.split(_SEPARATOR)
        elif name == "available" and cell.lower() in _TRUTHS:
            fields[name] = _TRUTHS[cell.lower()]
        elif name in _NUMBERS and cell.isdecimal() and len(cell) <= _MOST_DIGITS:
            fields[name] = int(cell)
        elif name in (*_NUMBERS, "available"):
            fields[name] = cell  # is refused with its name
        else:
            attributes[name] = cell
    return fields | {"attributes": attributes}


def _send(settings: StreamSettings, topic: str, kind: Kind, records: Iterator[Record]) -> tuple[int, list[str]]:
    """How many were not confirmed, and why."""
    config = producer_config(
        settings.kafka.librdkafka(),
        client_id=f"{settings.app_id}-{kind.name}",
        linger_ms=_LINGER_MS,
        timeout_ms=int(settings.worker.delivery_timeout * 1000),
        compression=settings.worker.compression,
    )
    unconfirmed, reasons = 0, set[str]()

    def confirm(error: KafkaError | None, _: Message) -> None:
        nonlocal unconfirmed
        if error is None:
            unconfirmed -= 1
        else:
            reasons.add(error.str())

    producer = Producer({**config, "error_cb": lambda _: None, "log_level": 0})
    for key, value in records:
        unconfirmed += 1
        while True:
            try:
                producer.produce(topic, value, key, on_delivery=confirm)
            except BufferError:
                producer.poll(_POLL_SECONDS)
            except KafkaException as error:
                raise CatalogueFileError(f"a record for {topic} was refused: {error.args[0].str()}") from error
            else:
                break
        producer.poll(0)
    producer.flush()
    return unconfirmed, sorted(reasons)
