"""A plain Faust application with a table, as Faust's own guide writes it: what the findings about Faust are shown on.

Run as a process, it prints one JSON object a quarter of a second: what an operator could know about it.
"""

import asyncio
import json
import os
from typing import Any

import faust
from faust.worker import Worker
from rocksdict import Rdict


def status(app: "ReportingApp") -> dict[str, Any]:
    """What the process prints: its generation, its partitions, and how far recovery has come."""
    recovery = app.tables.recovery
    highwaters = recovery.active_highwaters
    running = any("_restart_recovery" in repr(getattr(task, "__wrapped__", "")) for task in recovery._futures)
    return {
        "generation": app.consumer_generation_id,
        "changelog_partitions": sorted(tp.partition for tp in recovery.active_tps),
        "recovery_task_runs": running,
        "ready": app.tables.actives_ready,
        "recovery_started": bool(highwaters),
        "remaining": sum(recovery.active_remaining().values()) if highwaters else None,
        "rows": sum(_rows(db) for db in app.counts.data._dbs.values()),
        "counted": app.counted,
    }


def _rows(db: Rdict) -> int:
    return sum(1 for key in db.keys() if not key.startswith(b"__faust"))  # noqa: SIM118  (a RocksDB, not a dict)


class ReportingApp(faust.App):
    """Reports from the first moment: Faust starts an app's own tasks only after a first recovery."""

    counts: faust.Table
    counted = 0

    async def on_start(self) -> None:
        self.add_future(self._report())
        await super().on_start()

    async def _report(self) -> None:
        while True:
            print(json.dumps(status(self)), flush=True)
            await asyncio.sleep(0.25)


def create_app(environment: dict[str, str]) -> ReportingApp:
    """Counts the records of each key of `<id>-clicks`; the changelog is `<id>-counts-changelog`, as Faust names it."""
    name = environment["APP_ID"]
    session = float(environment.get("SESSION_TIMEOUT", "20"))
    app = ReportingApp(
        name,
        broker=[f"kafka://{server}" for server in environment["BOOTSTRAP"].split(",")],
        store="rocksdb://",
        datadir=environment["DATA_DIR"],
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        broker_session_timeout=session,
        broker_heartbeat_interval=session / 5,
        broker_rebalance_timeout=2 * session,
        broker_request_timeout=float(environment.get("REQUEST_TIMEOUT", "40")),
        broker_commit_interval=0.5,
        consumer_auto_offset_reset=environment.get("AUTO_OFFSET_RESET", "earliest"),
    )
    raw = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    clicks = app.topic(f"{name}-clicks", **raw)
    options = {"driver": "rocksdict", "block_cache_size": 8 * 2**20}
    counts = app.Table("counts", key_type=bytes, value_type=bytes, partitions=2, options=options)
    app.counts = counts

    async def count(stream: Any) -> None:
        async for event in stream.events():
            counts[event.key] = b"%d" % (int(counts.get(event.key) or b"0") + 1)
            app.counted += 1

    app.agent(clicks, name="count")(count)

    if gate := environment.get("GATE"):

        async def wait_for_gate() -> None:
            print(json.dumps({"recovered": True}), flush=True)
            while not os.path.exists(gate):  # noqa: ASYNC240, PTH110
                await asyncio.sleep(0.05)

        counts.on_recover(wait_for_gate)

    return app


if __name__ == "__main__":
    Worker(create_app(dict(os.environ)), loglevel="INFO", redirect_stdouts=False).execute_from_commandline()
