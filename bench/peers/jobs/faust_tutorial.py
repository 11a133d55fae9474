"""The job in Faust as its tutorial writes it: a table in RocksDB, read, written and answered event by event."""

import os
from pathlib import Path

import faust
from gru import Gru

app = faust.App(
    os.environ["APP_ID"],
    broker=f"kafka://{os.environ['BOOTSTRAP']}",
    store="rocksdb://",
    datadir=os.environ["STATE"],
    topic_partitions=int(os.environ["PARTITIONS"]),
    consumer_auto_offset_reset="earliest",
    value_serializer="json",
)
gru = Gru(Path(os.environ["BUNDLE"]))
clicks = app.topic(os.environ["CLICKS"], key_type=str)
rankings = app.topic(os.environ["RANKINGS"], key_type=str)
sessions = app.Table("sessions", key_type=str, value_type=bytes, options={"driver": "rocksdict"})


@app.agent(clicks)
async def recommend(stream):
    async for session_id, click in stream.items():
        sessions[session_id], ranking = gru.step(click, sessions.get(session_id))
        await rankings.send(key=session_id, value=ranking)


if __name__ == "__main__":
    app.main()
