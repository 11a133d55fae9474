"""Shows each ranking once."""

import json
import os
from collections import OrderedDict

from confluent_kafka import Consumer, KafkaException

REMEMBERED = 100_000

consumer = Consumer(
    {
        "bootstrap.servers": os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092"),
        "group.id": "shop-rankings",
        "auto.offset.reset": "earliest",
        "enable.auto.offset.store": False,  # only what was used is committed: a crash repeats rankings and loses none
    }
)
consumer.subscribe(["rankings"])
seen = OrderedDict()
while True:
    record = consumer.poll(1.0)
    if record is None:
        continue
    if record.error() is not None:
        raise KafkaException(record.error())
    if record.value() is not None:  # without a value: the session was forgotten
        ranking = json.loads(record.value())
        source = tuple(ranking["source"][part] for part in ("topic", "partition", "offset"))
        if source not in seen:
            seen[source] = None
            if len(seen) > REMEMBERED:
                seen.popitem(last=False)
            best = [item["item_id"] for item in ranking["items"][:3]]
            print(ranking["session_id"], ranking["item_id"], "->", *best, flush=True)
    consumer.store_offsets(record)
