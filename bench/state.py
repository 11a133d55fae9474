"""What does a session's state cost: bytes, memory, disk, restoring it, and getting rid of it?

- bytes: a row in the codec, in RocksDB, and in the changelog as the broker has it on disk.
- sessions: RSS and disk of a process that holds so many rows in the worker's own store, 8 partitions, default settings.
- restore: a worker with an empty data folder, few rows on the changelog and many: rows a second between the two.
- removal: compacting rows that are past their time to live, beside compacting live ones.

SESSIONS (environment) lists the sizes; 10 million rows take 4 GB of disk and some minutes.

    python -m bench state
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.broker import warm_broker
from bench.bundles import UNITS, bundle
from bench.clicks import item_ids
from bench.deployment import Deployment
from bench.report import Report, console
from deploy.kafka import LocalKafka
from schemas.config.settings import ClickSettings, KafkaConnection
from stream_app.core.session import SessionState
from stream_app.core.state_codec import encode_state
from stream_app.serve.app import create_app
from stream_app.serve.delivery import Delivery, producer_config
from stream_app.serve.hot_swap import LiveModel
from stream_app.serve.metrics import Metrics
from stream_app.settings import StreamSettings, WorkerSettings
from stream_app.state.store import SessionStore

PARTITIONS = 8
BATCH = 512
SAMPLE = 100_000
RESTORED = 50_000, 650_000
LENGTHS = (4, 30)
"""Recent items of a row: RSC15's mean, and the most that a row keeps."""


def main() -> None:
    """All of it."""
    sizes = [int(size) for size in os.environ.get("SESSIONS", "1000000,3000000").split(",")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        folder = Path(name)
        with console.status("bytes of a row"):
            rows += [_bytes(folder, length) for length in LENGTHS]
        with console.status("removing ended sessions"):
            removal = _removal(folder)
        rows.append(removal)
        for size in sizes:
            with console.status(f"{size:,} sessions"):
                rows.append(_in_process("fill", folder / f"fill-{size}", size))
        with console.status("restoring"), warm_broker() as kafka:
            rows.append(restore(kafka, folder))
    ratios = {"removal_seconds_expired_to_live_rows": removal["expired_s"] / removal["live_s"]}
    filled = [row for row in rows if "rss_mb" in row]
    if len(filled) > 1:
        ratios[f"rss_{filled[-1]['sessions']}_to_{filled[0]['sessions']}_sessions"] = (
            filled[-1]["rss_mb"] / filled[0]["rss_mb"]
        )
    Report("state", rows, ratios).show("Session state")


def states(count: int, length: int, *, first: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Key and row of `count` sessions with `length` recent items each, hidden states as a GRU's."""
    rng = np.random.default_rng(first)
    ids = item_ids(50_000)
    now = time.time_ns() // 1_000_000
    hidden = np.tanh(rng.standard_normal((1024, 1, UNITS)) * 0.5).astype(np.float32)
    for n in range(first, first + count):
        recent = tuple(ids[i] for i in (50_000 * rng.random(length) ** 2).astype(int).tolist())
        state = SessionState("model-20260101T000000", n, now, length, recent, hidden[n % 1024])
        # Each row's hidden state its own: a store that met one again would compress better than it may.
        row = bytearray(encode_state(state))
        row[-2 * UNITS :] = rng.bytes(2 * UNITS)
        yield f"session-{n}".encode(), bytes(row)


def restore(kafka: LocalKafka, folder: Path, counts: tuple[int, int] = RESTORED) -> dict[str, Any]:
    """Rows on the changelog, a worker without any: how fast are they in its store? Its start counts for nothing."""
    few, many = (_restored(kafka, folder, count) for count in counts)
    rows = counts[1] - counts[0]
    return {
        "case": "restore",
        "sessions": counts[1],
        "rows_per_second": rows / (many["seconds"] - few["seconds"]),
        "cpu_us_per_row": 1e6 * (many["cpu_seconds"] - few["cpu_seconds"]) / rows,
        "start_to_restored_s": many["seconds"],
        "changelog_bytes_a_row": many["changelog_bytes"] / counts[1],
    }


def _restored(kafka: LocalKafka, folder: Path, count: int) -> dict[str, float]:
    with Deployment(kafka.bootstrap_servers, folder) as deployment:
        deployment.announce(bundle(folder, 5_000))
        config = producer_config({}, client_id="bench", linger_ms=20, timeout_ms=60_000)
        producer = deployment.producer(**config)
        for n, (key, row) in enumerate(states(count, LENGTHS[0])):
            producer.produce(deployment.changelog, row, key, partition=n % PARTITIONS)
            while len(producer) > 50_000:
                producer.poll(0.05)
        deployment.flush(producer)
        segments = list(kafka.data_dir.rglob(f"{deployment.changelog}-*/*.log"))
        began = time.monotonic()
        worker = deployment.start_worker()
        deployment.wait_for(lambda: worker.is_up, "a worker")
        deployment.wait_for(
            lambda: worker.metrics().get("nextclick_restored_rows", 0.0) >= count, "all rows", every=0.02
        )
        return {
            "seconds": time.monotonic() - began,
            "cpu_seconds": worker.cpu_seconds,
            "changelog_bytes": float(sum(path.stat().st_size for path in segments)),
        }


def _bytes(folder: Path, length: int) -> dict[str, Any]:
    store = _open_store(folder / f"bytes-{length}")
    encoded = _write(store, states(SAMPLE, length))
    _compact(store)
    disk = _disk(folder / f"bytes-{length}")
    return {
        "case": f"a row with {length} items, {UNITS} units",
        "encoded_bytes": encoded / SAMPLE,
        "rocksdb_bytes": disk / SAMPLE,
    }


def _removal(folder: Path) -> dict[str, Any]:
    """Compact rows that live, and the same rows when their time is over."""
    ttl = 20
    live, expired = _open_store(folder / "live"), _open_store(folder / "expired", session_ttl=ttl)
    for store in (live, expired):
        _write(store, states(SAMPLE, LENGTHS[0]))
        for db in store._dbs.values():
            db.flush()
    before = _disk(folder / "expired")
    time.sleep(ttl + 2)
    began = time.perf_counter()
    _compact(live)
    live_s = time.perf_counter() - began
    began = time.perf_counter()
    _compact(expired)
    return {
        "case": "removal",
        "sessions": SAMPLE,
        "live_s": live_s,
        "expired_s": time.perf_counter() - began,
        "disk_mb": before / 2**20,
        "disk_mb_after": _disk(folder / "expired") / 2**20,
    }


def _fill(folder: Path, count: int) -> dict[str, Any]:
    """Run in a process of its own: memory of a store with `count` rows, read at random afterwards."""
    store = _open_store(folder)
    before = _rss_mb()
    began = time.perf_counter()
    done = 0
    while done < count:
        step = min(100_000, count - done)
        _write(store, states(step, LENGTHS[0], first=done))
        done += step
    wrote = time.perf_counter() - began
    rng = np.random.default_rng(1)
    began = time.perf_counter()
    reads = 200
    for turn in range(reads):
        partition = turn % PARTITIONS
        drawn = rng.integers(0, count // PARTITIONS, BATCH) * PARTITIONS + partition
        found = store.rows(partition, [f"session-{n}".encode() for n in drawn.tolist()])
        assert None not in found
    read = time.perf_counter() - began
    return {
        "case": "sessions",
        "sessions": count,
        "rss_mb": _rss_mb(),
        "rss_before_mb": before,
        "disk_mb": _disk(folder) / 2**20,
        "disk_bytes_a_row": _disk(folder) / count,
        "write_s": wrote,
        "read_us_a_row": 1e6 * read / (reads * BATCH),
    }


def _write(store: SessionStore, rows: Iterator[tuple[bytes, bytes]]) -> int:
    """Write rows in chunks as the worker does, each partition in turn; returns their bytes without keys."""
    chunks: list[dict[bytes, bytes]] = [{} for _ in range(PARTITIONS)]
    encoded = 0
    for n, (key, row) in enumerate(rows):
        chunk = chunks[n % PARTITIONS]
        chunk[key] = row
        encoded += len(row)
        if len(chunk) == BATCH:
            store.write_rows(n % PARTITIONS, chunk, n)
            chunk.clear()
    for partition, chunk in enumerate(chunks):
        store.write_rows(partition, chunk, 0)
    return encoded


def _compact(store: SessionStore) -> None:
    for db in store._dbs.values():
        db.flush()
        db.compact_range(None, None)


def _open_store(data_dir: Path, **worker: Any) -> SessionStore:
    """A worker's store without the worker; its settings speak of a broker that is never asked."""
    kafka = KafkaConnection(bootstrap_servers="127.0.0.1:1")
    clicks = ClickSettings(idle_gap=1)  # below every time to live
    settings = StreamSettings(kafka=kafka, clicks=clicks, worker=WorkerSettings(data_dir=data_dir, **worker))
    config = producer_config(kafka.librdkafka(), client_id="bench", linger_ms=2, timeout_ms=1000)
    delivery = Delivery(config | {"log_level": 0}, on_fatal=_raise)
    app = create_app(settings, live=LiveModel(), delivery=delivery, metrics=Metrics(), on_fatal=_raise)
    return app.sessions.data


def _raise(error: BaseException) -> None:
    raise error


def _disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.sst")) + sum(
        path.stat().st_size for path in folder.rglob("*.log")
    )


def _rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _in_process(task: str, folder: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.state", task, str(folder), str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    print(json.dumps(_fill(Path(sys.argv[2]), int(sys.argv[3]))))
