"""The broker to measure with: as fast as one that has been up for a while."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from bench.errors import BenchmarkError
from bench.report import console
from deploy.kafka import LocalKafka

_TOPIC: Final = "warm-up"
_PARTITIONS: Final = 8
_REQUESTS: Final = 40_000
_LONGEST_SECONDS: Final = 120.0


@contextmanager
def warm_broker() -> Iterator[LocalKafka]:
    """A real Kafka whose code Java has compiled for speed.

    A fresh one shares the two cores with its own compiler: clicks that came at 1,000 a second waited 4 s for the first
    half minute.
    """
    with LocalKafka(optimise=True) as kafka:
        with console.status("warming up the broker"):
            _warm_up(kafka.bootstrap_servers)
        yield kafka


def _warm_up(bootstrap: str) -> None:
    """Small requests of the kinds that a measurement makes, as many as it takes. Raises BenchmarkError."""
    servers = {"bootstrap.servers": bootstrap}
    admin = AdminClient(servers)
    admin.create_topics([NewTopic(_TOPIC, _PARTITIONS, 1)])[_TOPIC].result()
    producer = Producer({**servers, "enable.idempotence": True, "linger.ms": 0})
    consumer = Consumer({**servers, "group.id": _TOPIC})
    consumer.assign([TopicPartition(_TOPIC, partition, 0) for partition in range(_PARTITIONS)])
    deadline = time.monotonic() + _LONGEST_SECONDS
    for _ in range(_REQUESTS // _PARTITIONS):
        for partition in range(_PARTITIONS):
            producer.produce(_TOPIC, bytes(500), partition=partition)
        if producer.flush(max(0.0, deadline - time.monotonic())):
            raise BenchmarkError(
                f"the broker did not take {_REQUESTS:,} requests within {_LONGEST_SECONDS:g} s: is something else "
                f"running on this machine?"
            )
        consumer.consume(_PARTITIONS, 0)
    consumer.close()
