"""Sends clicks: lines of a session and an item on standard input."""

import json
import os
import sys
import time

from confluent_kafka import KafkaException, Producer

producer = Producer(
    {
        "bootstrap.servers": os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092"),
        "partitioner": "murmur2_random",  # as Java's; librdkafka's own default puts keys elsewhere
        "enable.idempotence": True,  # a retry neither repeats a click nor changes the order; implies acks=all
    }
)


def told(error, record):
    if error is not None:
        raise KafkaException(error)
    print(record.key().decode(), record.partition(), record.offset())


for line in sys.stdin:
    session, item = line.split()
    click = {"session_id": session, "item_id": item, "timestamp": time.time_ns() // 1_000_000}
    producer.produce("clicks", json.dumps(click), session, on_delivery=told)
    producer.poll(0)
    while len(producer) >= 50_000:  # its queue would overflow at 100,000, which raises BufferError
        producer.poll(1)
producer.flush()
