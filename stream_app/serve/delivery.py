"""The librdkafka producer: rankings, changelog and rejected clicks; tells when the records of a batch are durable.

Faust's own producer keeps one task and one pending message a record (about 350 µs); librdkafka batches in C.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, Final

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.messages.headers import Headers
from stream_app.errors import DeliveryError

log = structlog.get_logger(__name__)

Record = tuple[bytes | None, bytes | None]
"""Key and value."""

ANY_PARTITION: Final = -1
_POLL_SECONDS: Final = 0.1
# Who sends serves confirmations too, and is left alone with them for so long.
_LEFT_ALONE_SECONDS: Final = 0.02
# Records on their way beyond which the next ones may find the queue full: the largest take 175 KB of its 256 MiB.
_ROOM: Final = 1024


def producer_config(
    connection: Mapping[str, Any], *, client_id: str, linger_ms: float, timeout_ms: int, compression: str = "none"
) -> dict[str, Any]:
    """librdkafka's settings for durable, ordered delivery.

    Args:
        connection: bootstrap servers and security.
        client_id: how the broker names this producer in its logs.
        linger_ms: how long a record may wait for others to share its request.
        timeout_ms: how long a record may stay unconfirmed before the worker stops.
        compression: `none`, `gzip`, `snappy`, `lz4` or `zstd`; whoever reads must know it.
    """
    return {
        **connection,
        "client.id": client_id,
        "enable.idempotence": True,  # implies acks=all, and order through retries
        "partitioner": "murmur2_random",  # as Java's producers and consumers expect it
        "linger.ms": linger_ms,
        "message.timeout.ms": timeout_ms,
        "compression.type": compression,
        "queue.buffering.max.messages": 1_000_000,
        "queue.buffering.max.kbytes": 262_144,
        "statistics.interval.ms": 0,
    }


class Sending:
    """Records handed to librdkafka together; `delivered` waits until the broker has confirmed them all.

    `send` and `seal` belong to one thread; confirmations arrive on any.

    Attributes:
        finished_at: when the last of them came, seconds since the epoch; 0 before.
    """

    finished_at: float = 0.0

    def __init__(self, producer: Producer, loop: asyncio.AbstractEventLoop) -> None:
        self._producer = producer
        self._loop = loop
        self._done: asyncio.Future[int] = loop.create_future()
        self._lock = threading.Lock()
        self._sent = 0
        self._confirmed = 0
        self._sealed = False
        self._error: KafkaError | None = None
        self._last_offset = -1

    def send(
        self,
        topic: str,
        records: Sequence[Record],
        *,
        partition: int = ANY_PARTITION,
        headers: Iterable[Headers | None] = repeat(None),
    ) -> None:
        """Queue records, `headers` being those of each; waits while librdkafka's queue is full.

        All at once: librdkafka does not wait for more (which took 1.2 ms off the median wait at 1,000 clicks a second),
        and the faster they come the more share a request.

        Raises:
            DeliveryError: librdkafka does not take a record at all, being too large for example.
        """
        produce, on_delivery = self._producer.produce, self._on_delivery
        for (key, value), own in zip(records, headers, strict=False):  # the default has no end
            self._sent += 1
            while True:
                try:
                    if own is None:
                        produce(topic, value, key, partition, on_delivery)
                    else:
                        produce(topic, value, key, partition, on_delivery, headers=own)
                except BufferError:
                    self._producer.poll(_POLL_SECONDS)
                except KafkaException as error:
                    raise DeliveryError(f"a record for {topic} was refused: {error.args[0].str()}") from error
                else:
                    break

    def seal(self) -> None:
        """No more records will be sent; without any, the batch is delivered at once."""
        with self._lock:
            self._sealed = True
            complete = self._confirmed == self._sent
        if complete:
            self._finished()

    async def delivered(self) -> int:
        """Wait until every record is durable; returns the highest offset that one of them was given, -1 without any.

        Raises:
            DeliveryError: at least one record is not durable.
        """
        return self._done.result() if self._done.done() else await asyncio.shield(self._done)

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        with self._lock:
            self._confirmed += 1
            if error is not None:
                self._error = error
            else:
                self._last_offset = max(self._last_offset, message.offset())
            complete = self._sealed and self._confirmed == self._sent
        if complete:
            self._finished()

    def _finished(self) -> None:
        self.finished_at = time.time()  # not on the loop, which may be busy
        self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if self._done.done():
            return
        if self._error is None:
            self._done.set_result(self._last_offset)
        else:
            self._done.set_exception(
                DeliveryError(
                    f"Kafka did not confirm a record: {self._error.str()}. The worker stops and will start again from "
                    f"the last acknowledged click; check the brokers, and worker.delivery_timeout"
                )
            )
            self._done.exception()  # the worker reports it once, through whoever waits


class Delivery:
    """Owns the producer, and a thread that serves its confirmations where nobody else does.

    Each confirmation takes the interpreter once. On a thread of its own that is a fight with whoever computes, twice a
    click, so under load `serve` does it on the thread that sends.
    """

    def __init__(self, config: Mapping[str, Any], *, on_fatal: Callable[[BaseException], None]) -> None:
        self._on_fatal = on_fatal
        self._producer = Producer({**config, "error_cb": self._on_error}, logger=logging.getLogger("librdkafka"))
        self._stopping = threading.Event()
        self._left_alone_until = 0.0
        self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)

    def start(self) -> None:
        """Start serving confirmations."""
        self._thread.start()

    @property
    def unconfirmed(self) -> int:
        """Records whose fate is not known yet; each one's is after the producer's timeout."""
        return len(self._producer)

    @property
    def may_wait(self) -> bool:
        """Whether `Sending.send` may have to wait for room."""
        return len(self._producer) > _ROOM

    def sending(self) -> Sending:
        """An empty batch of the running event loop's."""
        return Sending(self._producer, asyncio.get_running_loop())

    def stop(self, timeout: float) -> None:
        """Send what is queued, for at most `timeout` seconds, and stop the thread."""
        left = self._producer.flush(timeout)
        if left:
            log.error("records were not delivered before the stop; their clicks will be redelivered", records=left)
        self._stopping.set()
        self._thread.join(timeout=2 * _POLL_SECONDS + timeout)

    def serve(self) -> None:
        """Serve the confirmations that have come, on the calling thread, which sends records every few ms."""
        self._left_alone_until = time.monotonic() + _LEFT_ALONE_SECONDS
        self._producer.poll(0)

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - the thread's edge: no confirmation would be told from here on
            self._on_fatal(error)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            if (seconds := self._left_alone_until - time.monotonic()) > 0:
                self._stopping.wait(seconds)
            else:
                self._producer.poll(_POLL_SECONDS)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._on_fatal(DeliveryError(f"the producer cannot go on: {error.str()}"))
        else:
            log.warning("kafka producer", error=error.str())
