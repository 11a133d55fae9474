"""The job in Quix Streams: a stateful `apply` between two topics."""

import os
from pathlib import Path
from typing import Any

from gru import Gru
from quixstreams import Application, State

gru = Gru(Path(os.environ["BUNDLE"]))
app = Application(
    broker_address=os.environ["BOOTSTRAP"],
    consumer_group=os.environ["APP_ID"],
    auto_offset_reset="earliest",
    state_dir=os.environ["STATE"],
    producer_extra_config={"enable.idempotence": True, "compression.type": "lz4"},
    loglevel="WARNING",
)
clicks = app.topic(os.environ["CLICKS"], value_deserializer="json")
rankings = app.topic(os.environ["RANKINGS"], value_serializer="json")


def recommend(click: dict[str, Any], state: State) -> dict[str, Any]:
    hidden, ranking = gru.step(click, state.get_bytes("hidden"))
    state.set_bytes("hidden", hidden)
    return ranking


app.dataframe(clicks).apply(recommend, stateful=True).to_topic(rankings)

if __name__ == "__main__":
    app.run()
