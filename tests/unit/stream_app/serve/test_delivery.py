"""When a batch of records counts as durable: records sent and confirmations in, an offset or an error out."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from stream_app.errors import DeliveryError
from stream_app.serve import delivery as delivery_module
from stream_app.serve.delivery import ANY_PARTITION, Delivery, Sending, producer_config
from tests.patience import PATIENCE

TIMED_OUT = KafkaError(KafkaError._MSG_TIMED_OUT)


@dataclass
class Record:
    """A confirmed record, as much of it as a batch looks at."""

    at: int

    def offset(self) -> int:
        return self.at


@dataclass
class FakeProducer:
    """librdkafka's producer; confirmations come when the test says so."""

    full: int = 0  # how often the queue is full before it takes a record
    refuses: KafkaException | None = None
    polls: int = 0
    taken: list[tuple[str, bytes, bytes | None, int]] = field(default_factory=list)
    callbacks: list[Callable[..., None]] = field(default_factory=list)

    def produce(self, topic: str, value: bytes, key: bytes | None, partition: int, on_delivery: Any) -> None:
        if self.refuses is not None:
            raise self.refuses
        if self.polls < self.full:
            raise BufferError("Local: Queue full")
        self.taken.append((topic, value, key, partition))
        self.callbacks.append(on_delivery)

    def poll(self, _: float) -> int:
        self.polls += 1
        return 0

    def __len__(self) -> int:
        return len(self.taken)

    def confirm(self, number: int, at: int = -1, error: KafkaError | None = None) -> None:
        """From a thread of its own, as librdkafka's confirmations come."""
        thread = threading.Thread(target=self.callbacks[number], args=(error, Record(at)))
        thread.start()
        thread.join()

    def sending(self) -> Sending:
        return Sending(cast(Producer, self), asyncio.get_running_loop())


def send(batch: Sending, count: int) -> None:
    batch.send("rankings", [(b"s", b"%d" % number) for number in range(count)])
    batch.seal()


async def is_waiting(batch: Sending) -> bool:
    waiter = asyncio.ensure_future(batch.delivered())
    for _ in range(5):
        await asyncio.sleep(0)
    waiting = not waiter.done()
    waiter.cancel()
    return waiting


async def test_an_empty_batch_is_delivered_at_once() -> None:
    batch = FakeProducer().sending()
    batch.seal()
    assert await batch.delivered() == -1


async def test_delivered_when_every_record_is_confirmed_in_whatever_order() -> None:
    producer = FakeProducer()
    batch = producer.sending()
    send(batch, 3)
    producer.confirm(2, at=12)
    producer.confirm(0, at=10)
    assert await is_waiting(batch)
    assert batch.finished_at == 0
    began = time.time()
    producer.confirm(1, at=11)
    assert batch.finished_at >= began
    assert await batch.delivered() == 12
    assert await batch.delivered() == 12  # whoever asks later is told as well


async def test_confirmed_before_the_last_record_was_sent() -> None:
    producer = FakeProducer()
    batch = producer.sending()
    batch.send("rankings", [(b"s", b"0")])
    producer.confirm(0, at=5)
    assert await is_waiting(batch)  # more may come
    batch.send("rankings", [(b"s", b"1")])
    producer.confirm(1, at=6)
    batch.seal()
    assert await batch.delivered() == 6


async def test_one_lost_record_fails_the_batch_once_all_are_decided() -> None:
    producer = FakeProducer()
    batch = producer.sending()
    send(batch, 2)
    producer.confirm(0, error=TIMED_OUT)
    assert await is_waiting(batch)
    producer.confirm(1, at=7)
    with pytest.raises(DeliveryError, match=r"did not confirm a record.*timed out.*worker\.delivery_timeout"):
        await batch.delivered()


async def test_who_stops_waiting_does_not_end_the_wait_of_others() -> None:
    producer = FakeProducer()
    batch = producer.sending()
    send(batch, 1)
    impatient = asyncio.ensure_future(batch.delivered())
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    producer.confirm(0, at=3)
    assert await batch.delivered() == 3


async def test_a_full_queue_is_waited_for() -> None:
    producer = FakeProducer(full=3)
    batch = producer.sending()
    batch.send("changelog", [(b"s", b"row")], partition=2)
    assert producer.polls == 3
    assert producer.taken == [("changelog", b"row", b"s", 2)]


async def test_a_record_that_is_refused_at_once() -> None:
    producer = FakeProducer(refuses=KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)))
    with pytest.raises(DeliveryError, match=r"a record for rankings was refused: .*too large"):
        producer.sending().send("rankings", [(b"s", b"x")])


def test_records_are_durable_ordered_and_lie_where_java_puts_them() -> None:
    config = producer_config({"bootstrap.servers": "b:1"}, client_id="w", linger_ms=2, timeout_ms=60_000)
    assert config["bootstrap.servers"] == "b:1"
    assert (config["enable.idempotence"], config["partitioner"]) == (True, "murmur2_random")
    assert (config["linger.ms"], config["message.timeout.ms"]) == (2, 60_000)
    assert config["compression.type"] == "none"  # every client reads it
    assert ANY_PARTITION == -1


async def test_without_brokers_a_batch_fails_after_its_timeout_and_the_stop_ends() -> None:
    """The real librdkafka, and nobody at the other end."""
    fatal: list[BaseException] = []
    config = producer_config({"bootstrap.servers": "127.0.0.1:1"}, client_id="w", linger_ms=0, timeout_ms=50)
    delivery = Delivery(config, on_fatal=fatal.append)
    delivery.start()
    batch = delivery.sending()
    send(batch, 3)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(DeliveryError, match="did not confirm"):
            await batch.delivered()
    await asyncio.to_thread(delivery.stop, PATIENCE)
    assert not delivery._thread.is_alive()
    assert fatal == []  # the batch's owner decides; a broker that is away is not the producer's end


@pytest.mark.parametrize("left_alone", [3600.0, 0.0])
async def test_who_sends_serves_the_confirmations_and_the_delivery_thread_whatever_is_left(
    monkeypatch: pytest.MonkeyPatch, left_alone: float
) -> None:
    """The real librdkafka, which gives every record up."""
    config = producer_config({"bootstrap.servers": "127.0.0.1:1"}, client_id="w", linger_ms=0, timeout_ms=50)
    delivery = Delivery(config, on_fatal=lambda _: None)
    served_by: list[int] = []
    confirmed = Sending._on_delivery

    def observed(batch: Sending, error: KafkaError | None, message: Message) -> None:
        served_by.append(threading.get_ident())
        confirmed(batch, error, message)

    monkeypatch.setattr(Sending, "_on_delivery", observed)
    monkeypatch.setattr(delivery_module, "_LEFT_ALONE_SECONDS", left_alone)
    batch = delivery.sending()
    send(batch, 20)
    delivery.serve()
    delivery.start()
    async with asyncio.timeout(PATIENCE):
        while len(served_by) < 20:
            if left_alone:
                delivery.serve()
            await asyncio.sleep(0.01)
    assert set(served_by) == {threading.get_ident() if left_alone else delivery._thread.ident}
    await asyncio.to_thread(delivery.stop, PATIENCE)


async def test_many_records_on_their_way_may_leave_no_room_for_the_next() -> None:
    config = producer_config({"bootstrap.servers": "127.0.0.1:1"}, client_id="w", linger_ms=0, timeout_ms=60_000)
    delivery = Delivery(config, on_fatal=lambda _: None)
    send(delivery.sending(), delivery_module._ROOM // 2)  # errors to be told count too
    assert not delivery.may_wait
    send(delivery.sending(), delivery_module._ROOM)
    assert delivery.may_wait
    delivery._producer.purge()


def test_a_confirmation_thread_that_cannot_go_on_ends_the_worker() -> None:
    """Nothing would ever be confirmed again, and nobody told."""

    class Broken(FakeProducer):
        def poll(self, _: float) -> int:
            raise RuntimeError("the client is gone")

    told: list[BaseException] = []
    ended = threading.Event()

    def on_fatal(error: BaseException) -> None:
        told.append(error)
        ended.set()

    delivery = Delivery(producer_config({}, client_id="t", linger_ms=0, timeout_ms=1000), on_fatal=on_fatal)
    delivery._producer = cast(Producer, Broken())
    delivery.start()
    assert ended.wait(PATIENCE)
    assert [str(error) for error in told] == ["the client is gone"]
