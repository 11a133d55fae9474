"""Puts clicks on their topic, and tells where each lies once Kafka has confirmed it."""

import asyncio
import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.messages.headers import Headers
from stream_app.errors import DeliveryError
from stream_app.serve.delivery import producer_config

if TYPE_CHECKING:
    from stream_app.tracing import Tracing

log = structlog.get_logger(__name__)

_POLL_SECONDS: Final = 0.1


class ClickProducer:
    """An idempotent producer with acks=all, and a thread that hears its confirmations."""

    def __init__(
        self, connection: Mapping[str, Any], topic: str, tracing: "Tracing | None" = None, *, timeout_ms: int
    ) -> None:
        self._topic, self._tracing = topic, tracing
        self._loop = asyncio.get_running_loop()
        config = producer_config(connection, client_id="nextclick-api", linger_ms=0, timeout_ms=timeout_ms)
        self._producer = Producer({**config, "error_cb": _tell}, logger=logging.getLogger("librdkafka"))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="clicks", daemon=True)

    def start(self) -> None:
        """Start hearing confirmations."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; whoever waits for a confirmation has stopped waiting."""
        self._stopping.set()
        self._thread.join()

    async def produce(self, session: bytes, value: bytes) -> tuple[int, int]:
        """Partition and offset of the click, once it is durable. Raises DeliveryError when it may not be."""
        if self._tracing is None:
            return await self._produce(session, value, None)
        with self._tracing.sending(self._topic) as headers:
            return await self._produce(session, value, headers)

    async def _produce(self, session: bytes, value: bytes, headers: Headers | None) -> tuple[int, int]:
        done: asyncio.Future[tuple[int, int]] = self._loop.create_future()

        def hear(error: KafkaError | None, message: Message) -> None:
            self._loop.call_soon_threadsafe(_settle, done, error, message)

        try:
            self._producer.produce(self._topic, value, session, on_delivery=hear, headers=headers)
        except BufferError as error:
            raise DeliveryError("Kafka does not confirm clicks as fast as they come; send this one again") from error
        except KafkaException as error:
            raise DeliveryError(f"the click was refused: {error.args[0].str()}") from error
        return await done

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self._producer.poll(_POLL_SECONDS)


def _settle(done: "asyncio.Future[tuple[int, int]]", error: KafkaError | None, message: Message) -> None:
    if done.done():
        return  # nobody waits any more
    if error is None:
        done.set_result((message.partition(), message.offset()))
    else:
        done.set_exception(DeliveryError(f"Kafka did not confirm the click: {error.str()}; it may be there or not"))


def _tell(error: KafkaError) -> None:
    log.warning("kafka producer", error=error.str())
