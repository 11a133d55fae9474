"""`stream-app rejected --send` and `--resend`: rejected records go to their topic again, repaired or as they were.

A record that is sent and a mark on the rejected topic that it was are one Kafka transaction. Whoever sends reads the
marks first, behind `init_transactions`, which ends the transaction of whoever sent before. So no record is sent twice,
whatever is killed or run at the same time.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer
from rich.console import Console

from schemas.formats.codec import Formats, formats_of
from schemas.messages.click import ClickRejectedError
from schemas.messages.forget import decode_forget
from schemas.messages.headers import RESENT
from stream_app.kafka.plain_consumer import plain_consumer
from stream_app.settings import StreamSettings
from stream_app.tools.rejected import Filters, Place, RejectedError, RejectedTopic, rejected_topic

_TOGETHER: Final = 1000
"""Records of a transaction: it holds back every later click of its partitions until it ends."""
_ANSWER_SECONDS: Final = 30.0
_TRANSACTION_MS: Final = 10_000


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """What a line of an exported file must and may have; what is `Any` only tells people."""

    partition: int
    offset: int
    key: str | None = None
    key_base64: bytes | None = None
    value: msgspec.Raw = msgspec.Raw(b"")
    value_base64: bytes | None = None
    cut: bool = False
    reason: Any = None
    detail: Any = None
    source: Any = None
    rejected_at: Any = None
    resent: Any = None


@dataclass(frozen=True, slots=True)
class Repaired:
    """What is sent in the place of a rejected record.

    Attributes:
        where: the line of the file, for messages.
    """

    place: Place
    key: bytes | None
    value: bytes | None
    where: str


def read_lines(path: Path) -> list[Repaired]:
    """The records of an exported file. Raises RejectedError for a line that cannot be sent."""
    decoder = msgspec.json.Decoder(_Line)
    found: dict[Place, Repaired] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise RejectedError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            fields = decoder.decode(line)
            one = Repaired((fields.partition, fields.offset), _key_of(fields), _value_of(fields), where)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise RejectedError(f"{where}: {error}; nothing was sent") from error
        if (twin := found.setdefault(one.place, one)) is not one:
            raise RejectedError(f"{where}: is the same record as {twin.where}; nothing was sent")
    return list(found.values())


def _key_of(fields: _Line) -> bytes | None:
    if fields.key_base64 is not None:
        if fields.key is not None:
            raise ValueError("has key and key_base64; leave one of them out")
        return fields.key_base64
    return None if fields.key is None else fields.key.encode()


def _value_of(fields: _Line) -> bytes | None:
    raw = bytes(fields.value)
    if fields.cut:
        raise ValueError("holds the beginning of the record only; put the whole value in, and remove `cut`")
    if bool(raw) == (fields.value_base64 is not None):
        raise ValueError("has value and value_base64; leave one of them out" if raw else "has no value")
    if fields.value_base64 is not None or raw.startswith(b"{"):
        return fields.value_base64 or raw
    text = msgspec.json.decode(raw, type=str | None)
    return None if text is None else text.encode()


def send_file(path: Path, settings: StreamSettings, *, out: Console, err: Console) -> int:
    """Send the records of an exported file; returns the exit code.

    Raises RejectedError, with nothing sent, where one of them is no click.
    """
    repaired, formats = read_lines(path), formats_of(settings.schema_registry, settings.topics)
    with _producer(settings) as producer, rejected_topic(settings, Filters(), err=err) as found:
        places = {one.place for one in repaired}
        topics = {one.place: one.rejected.source.topic for one in found.records() if one.place in places}
        for one in repaired:
            if one.place not in topics:
                raise RejectedError(
                    f"{one.where}: {_at(one.place)} is not on {settings.topics.rejected} (any more), so nobody knows "
                    "whether it was sent; nothing was sent"
                )
            if one.place not in found.resent and (problem := _problem(one, settings, formats)) is not None:
                raise RejectedError(f"{one.where}: would be rejected again: {problem}; nothing was sent")
        unsent = [(one, topics[one.place]) for one in repaired if one.place not in found.resent]
        with err.status(f"sending {len(unsent):,} records"):
            sent = _send(producer, iter(unsent), settings)
    _tell(out, sent, len(repaired) - len(unsent))
    return 0


def send_matching(filters: Filters, settings: StreamSettings, *, out: Console, err: Console) -> int:
    """Send those that match as they are, except those that would be rejected again; returns the exit code."""
    formats = formats_of(settings.schema_registry, settings.topics)
    left: Counter[str] = Counter()

    def good(found: RejectedTopic) -> Iterator[tuple[Repaired, str]]:
        for parked in found.records():
            one = Repaired(parked.place, parked.rejected.key, parked.rejected.value, "")
            if parked.place in found.resent:
                left["before"] += 1
            elif parked.is_cut or _problem(one, settings, formats) is not None:
                left["wrong"] += 1
            else:
                yield one, parked.rejected.source.topic

    with _producer(settings) as producer, rejected_topic(settings, filters, err=err) as found, err.status("sending"):
        sent = _send(producer, good(found), settings)
    _tell(out, sent, left["before"], still_wrong=left["wrong"])
    return 0


def _problem(one: Repaired, settings: StreamSettings, formats: Formats) -> str | None:
    """Why a worker would reject it, None if none would."""
    try:
        formats.decode_click(one.key, one.value, now_ms=time.time_ns() // 1_000_000, limits=settings.clicks.limits)
    except ClickRejectedError as error:
        return None if decode_forget(one.key, one.value) is not None else str(error)
    return None


def _tell(out: Console, sent: Counter[str], before: int, *, still_wrong: int = 0) -> None:
    parts = [f"{count:,} sent again to {topic}" for topic, count in sent.items()] or ["nothing sent"]
    if before:
        parts.append(f"{before:,} were sent before")
    if still_wrong:
        parts.append(f"{still_wrong:,} would be rejected again and are left (--export, repair them, --send)")
    out.print("; ".join(parts), markup=False, highlight=False, soft_wrap=True)


# -- Kafka ------------------------------------------------------------------------------------------------------------


@contextmanager
def _producer(settings: StreamSettings) -> Iterator[Producer]:
    """One that nobody else sends with from now on. Errors of Kafka's become RejectedError."""
    config = {
        **settings.kafka.librdkafka(),
        "client.id": f"{settings.app_id}-rejected",
        "transactional.id": settings.topics.rejected,  # one for all who send from there, of whatever app_id
        "transaction.timeout.ms": _TRANSACTION_MS,
        "partitioner": "murmur2_random",
    }
    producer = Producer(config, logger=logging.getLogger("librdkafka"))
    try:
        producer.init_transactions(_ANSWER_SECONDS)
        yield producer
    except KafkaException as error:
        problem = error.args[0]
        why = "somebody else is sending" if problem.code() == KafkaError._FENCED else problem.str()
        raise RejectedError(f"sending failed: {why}; run the command again, it sends nothing twice") from error


def _send(producer: Producer, records: Iterator[tuple[Repaired, str]], settings: StreamSettings) -> Counter[str]:
    """Send each to its topic; returns how many went where."""
    sent: Counter[str] = Counter()
    while batch := list(islice(records, _TOGETHER)):
        topics = Counter(topic for _, topic in batch)
        for topic in topics.keys() - sent.keys():
            with plain_consumer(settings.kafka, topic, name=f"{settings.app_id}-rejected"):
                pass  # it is there; producing to one that is not may create it
        producer.begin_transaction()
        try:
            _produce(producer, batch, settings.topics.rejected)
            producer.commit_transaction(_ANSWER_SECONDS)
        except KafkaException as error:
            if not (error.args[0].fatal() or error.args[0].retriable()):
                producer.abort_transaction(_ANSWER_SECONDS)
            raise
        sent += topics
    return sent


def _produce(producer: Producer, records: Iterable[tuple[Repaired, str]], rejected_topic: str) -> None:
    for one, topic in records:
        headers = [(RESENT, f"{rejected_topic}/{one.place[0]}/{one.place[1]}".encode())]
        producer.produce(topic, one.value, one.key, headers=headers)
        producer.produce(rejected_topic, None, partition=one.place[0], headers=headers)


def _at(place: Place) -> str:
    return f"{place[0]}:{place[1]}"
