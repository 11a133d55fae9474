"""Publishes a click file as live clicks: `stream-app replay`."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from schemas.click_files.options import ReadOptions
from schemas.formats.codec import Codec, formats_of
from schemas.kafka.absent import not_listed
from schemas.messages.click import Click, encode_click
from stream_app.errors import StreamError
from stream_app.serve.delivery import producer_config
from stream_app.settings import StreamSettings
from stream_app.tools.click_file import ClickFile, read_click_file
from stream_app.tools.pacing import pace, rebase, wait_until_due

_ANSWER_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 0.1
_LINGER_MS: Final = 5.0


class ReplayError(StreamError):
    """The replay could not begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a replay did.

    Attributes:
        clicks: confirmed by Kafka.
        unconfirmed: handed over and not confirmed; whether Kafka has them is not known.
        seconds: from the first click to the last confirmation.
        skipped_rows: rows of the file that are no click.
        read_as: what the file was taken for.
        warnings: what may be wrong with it.
        interrupted: ended before the file did.
        error: why a click was not confirmed.
    """

    clicks: int
    unconfirmed: int
    seconds: float
    skipped_rows: int
    interrupted: bool
    error: str | None
    read_as: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def clicks_per_second(self) -> float:
        """Of the whole replay; 0 if it took no time."""
        return self.clicks / self.seconds if self.seconds > 0 else 0.0


@dataclass(slots=True)
class _Publisher:
    """Hands clicks to librdkafka and counts what comes back."""

    producer: Producer
    topic: str
    codec: Codec
    sent: int = 0
    confirmed: int = 0
    error: KafkaError | None = None

    def publish(self, click: Click) -> None:
        """Queue a click; waits while the queue is full."""
        self.sent += 1
        value, key = self.codec.to_wire(encode_click(click)), click.session_id.encode()
        while self.error is None:
            try:
                self.producer.produce(self.topic, value, key, on_delivery=self._on_delivery)
            except BufferError:
                self.producer.poll(_POLL_SECONDS)
            except KafkaException as error:
                self.error = error.args[0]
            else:
                return

    def _on_delivery(self, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self.confirmed += 1
        else:
            self.error = error


@dataclass(slots=True)
class Interruption:
    """Whether someone asked to stop; the second time is an order."""

    asked: bool = False

    def ask(self, *_: object) -> None:
        """A signal handler."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def _until_interrupted() -> Iterator[Interruption]:
    interruption = Interruption()
    before = {number: signal.signal(number, interruption.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def timed(file: ClickFile, *, limit: int | None, speed: float | None, rebased: bool, now_ms: int) -> Iterator[Click]:
    """The first `limit` clicks of the file, with the times at which they are sent if `rebased`.

    As fast as possible (speed None) there is no such time: the gaps stay, and the last click is due now.
    """
    clicks = islice(iter(file), limit)
    if not rebased:
        return clicks
    if speed is not None:
        return rebase(clicks, to_ms=now_ms, speed=speed)
    count = len(file) if limit is None else min(limit, len(file))
    last_ms = int(file.times_ms[file.order[count - 1]]) if count else file.first_ms
    return rebase(clicks, to_ms=now_ms - (last_ms - file.first_ms))


def publish(
    clicks: Iterator[Click],
    producer: Producer,
    topic: str,
    *,
    speed: float | None,
    interruption: Interruption,
    progress: Callable[[int], None],
    max_gap_ms: int | None = None,
    codec: Codec | None = None,
) -> Replayed:
    """Send each click when it is due, and wait for all confirmations. Stops at the first that is refused.

    A gap longer than `max_gap_ms` is waited for so long alone.
    """
    publisher = _Publisher(producer, topic, codec or Codec())

    def sleep(seconds: float) -> None:
        end = time.monotonic() + seconds
        while not interruption.asked and (left := end - time.monotonic()) > 0:
            producer.poll(min(left, _POLL_SECONDS))
            progress(publisher.confirmed)

    started = time.monotonic()
    interrupted = False
    for batch in wait_until_due(pace(clicks, speed, max_gap_ms=max_gap_ms), time.monotonic, sleep):
        if interruption.asked or publisher.error is not None:
            interrupted = interruption.asked
            break
        for click in batch.clicks:
            if publisher.error is None:
                publisher.publish(click)
        producer.poll(0)
        progress(publisher.confirmed)
    while producer.flush(_POLL_SECONDS):  # each record is confirmed or given up within message.timeout.ms
        progress(publisher.confirmed)
    progress(publisher.confirmed)
    return Replayed(
        clicks=publisher.confirmed,
        unconfirmed=publisher.sent - publisher.confirmed,
        seconds=time.monotonic() - started,
        skipped_rows=0,
        interrupted=interrupted,
        error=None if publisher.error is None else publisher.error.str(),
    )


def replay(
    path: Path,
    settings: StreamSettings,
    *,
    reading: ReadOptions,
    speed: float | None,
    limit: int | None,
    rebased: bool,
    max_gap_ms: int,
    topic: str | None,
    json: bool,
    out: Console,
    err: Console,
) -> int:
    """`stream-app replay`: publish the file's clicks; returns the exit code, 1 if a click was not confirmed."""
    topic = topic or settings.topics.clicks
    producer = _producer(settings, topic)
    codec = formats_of(settings.schema_registry, settings.topics).clicks
    codec.start()
    file = read_click_file(path, reading)
    warnings = tuple(warnings_of(file, max_gap_ms))
    if rebased:
        file = file.shortened(max_gap_ms)
    for read in file.files:
        err.print(f"{read.path}: {read.described}", markup=False, highlight=False, soft_wrap=True)
    for warning in warnings:
        err.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    clicks = timed(file, limit=limit, speed=speed, rebased=rebased, now_ms=time.time_ns() // 1_000_000)
    total = len(file) if limit is None else min(limit, len(file))
    with _until_interrupted() as interruption, _progress_bar(total, err) as progress:
        done = publish(
            clicks,
            producer,
            topic,
            speed=speed,
            interruption=interruption,
            progress=progress,
            max_gap_ms=max_gap_ms,
            codec=codec,
        )
    read_as = tuple(read.described for read in file.files)
    done = replace(done, skipped_rows=file.skipped, read_as=read_as, warnings=warnings)
    if json:
        print(as_json(done))
    else:
        out.print(as_text(done, topic), markup=False, highlight=False)
    return 1 if done.unconfirmed else 0


def warnings_of(file: ClickFile, max_gap_ms: int) -> Iterator[str]:
    """What may be wrong with a file, one sentence each."""
    for read in file.files:
        if read.bad_rows:
            yield f"{read.path}: left out {read.bad_rows_told()}"
        yield from (f"{read.path}: {warning}" for warning in read.warnings)
    gaps = file.gaps_ms()
    if long := int(np.count_nonzero(gaps > max_gap_ms)):
        yield (
            f"{long} gap{'s' if long > 1 else ''} without a click, up to {_span(int(gaps.max()))}, shortened to "
            f"{_span(max_gap_ms)}: --max-gap says how long a gap may be"
        )


def _span(milliseconds: int) -> str:
    hours = milliseconds / 3_600_000
    return f"{hours / 24:,.0f} days" if hours >= 48 else f"{hours:.3g} h" if hours >= 1 else f"{hours * 3600:.3g} s"


def as_json(done: Replayed) -> str:
    """What a replay did, as one JSON object."""
    fields: Mapping[str, Any] = {name: getattr(done, name) for name in Replayed.__dataclass_fields__}
    return msgspec.json.encode({**fields, "clicks_per_second": done.clicks_per_second}).decode()


def as_text(done: Replayed, topic: str) -> str:
    """The same for people."""
    text = f"{done.clicks:,} clicks on {topic} in {done.seconds:.1f} s, {done.clicks_per_second:,.0f} a second"
    if done.skipped_rows:
        text += f"; {done.skipped_rows:,} rows left out"
    if done.interrupted:
        text += "; interrupted before the end of the file"
    if done.unconfirmed:
        text += f"; {done.unconfirmed:,} clicks NOT confirmed: {done.error}"
    return text


def _producer(settings: StreamSettings, topic: str) -> Producer:
    config = producer_config(
        settings.kafka.librdkafka(),
        client_id=f"{settings.app_id}-replay",
        linger_ms=_LINGER_MS,
        timeout_ms=int(settings.worker.delivery_timeout * 1000),
        compression=settings.worker.compression,
    )
    servers = settings.kafka.bootstrap_servers
    try:
        # Errors come with what they concern; librdkafka's own log lines would tear the progress bar.
        producer = Producer({**config, "error_cb": lambda _: None, "log_level": 0})
        # All topics: asking for one by name may create it, with the brokers' settings instead of ours.
        topics = producer.list_topics(timeout=_ANSWER_SECONDS).topics
    except KafkaException as error:
        raise ReplayError(
            f"Kafka at {servers} does not answer: {error.args[0].str()}; is it running, and are the settings in "
            "[kafka] right?"
        ) from error
    if topic not in topics:
        raise ReplayError(not_listed(topic, servers))
    return producer


@contextmanager
def _progress_bar(total: int, err: Console) -> Iterator[Callable[[int], None]]:
    """Shows the confirmed clicks on a terminal, nothing elsewhere."""
    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("replaying", total=total)
        yield lambda confirmed: bar.update(task, completed=confirmed)
