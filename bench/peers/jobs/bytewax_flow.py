"""The job in Bytewax: a stateful map between a Kafka source and a Kafka sink, with recovery on."""

import json
import os
from pathlib import Path

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from gru import Gru

gru = Gru(Path(os.environ["BUNDLE"]))
brokers = [os.environ["BOOTSTRAP"]]


def recommend(state, click):
    return gru.step(click, state)


def as_record(keyed):
    session_id, ranking = keyed
    return KafkaSinkMessage(session_id.encode(), json.dumps(ranking).encode())


flow = Dataflow("recommend")
clicks = kop.input("clicks", flow, brokers=brokers, topics=[os.environ["CLICKS"]], batch_size=1000)
keyed = op.map("keyed", clicks.oks, lambda record: (record.key.decode(), json.loads(record.value)))
ranked = op.stateful_map("recommend", keyed, recommend)
kop.output(
    "rankings",
    op.map("records", ranked, as_record),
    brokers=brokers,
    topic=os.environ["RANKINGS"],
    add_config={"enable.idempotence": "true", "compression.type": "lz4"},
)
