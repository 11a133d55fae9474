"""How many clicks a second does one worker answer? Drains a backlog through a real Kafka, for several catalogues.

The guarantees are those of production: RocksDB state, changelog, idempotent producers, acknowledgement after delivery.
Every catalogue is measured in each round, in turn, because the machine's other work comes and goes; the figures are
medians over the rounds. Rates include the time that the broker takes from the same cores.

    python -m bench pipeline
"""

import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from rich.console import Console
from rich.table import Table

from bench.random_model import random_bundle
from deploy.demo.ports import free_port
from deploy.kafka import LocalKafka
from schemas.announcement import ModelAnnouncement, encode_announcement
from schemas.bundle import manifest_digest
from schemas.click import Click, encode_click
from schemas.settings import KafkaConnection, TopicSettings
from schemas.topics import topic_table
from schemas.topics_admin import ensure_topics

CATALOGUES = (5_000, 37_000)
CLICKS = 120_000
ROUNDS = 3
UNITS = 100
MEAN_SESSION = 7
_TOPICS = ("clicks", "rankings", "rejected", "models")
_METRIC = "nextclick_step_seconds_sum"
STEPS = ("decode", "read", "model", "encode", "deliver", "write")


@dataclass(frozen=True)
class Run:
    """One drained backlog.

    Attributes:
        clicks_per_second: from the first ranking to the last.
        cpu_us_per_click: the worker's own processor time, start excluded.
        steps_us_per_click: wall time of each step, by name; steps of several chunks overlap.
    """

    clicks_per_second: float
    cpu_us_per_click: float
    steps_us_per_click: dict[str, float]


def main() -> None:
    """Print a table, and as the last line one JSON object."""
    console = Console(stderr=True)
    runs: dict[int, list[Run]] = {items: [] for items in CATALOGUES}
    with LocalKafka() as kafka, tempfile.TemporaryDirectory(prefix="nextclick-bench-") as folder:
        registry = Path(folder) / "registry"
        bundles = {
            items: random_bundle(
                registry, f"items-{items}", [f"item-{n}" for n in range(items)], units=UNITS, seed=items
            )
            for items in CATALOGUES
        }
        for round_number in range(ROUNDS):
            for items in CATALOGUES:
                with console.status(f"round {round_number + 1} of {ROUNDS}: {items:,} items"):
                    runs[items].append(_drain(kafka.bootstrap_servers, bundles[items], items, Path(folder)))
    table = Table("items", "clicks/s", "spread", "CPU µs/click", *STEPS, title="One worker, backlog of clicks")
    rows = []
    for items, done in runs.items():
        rates = [run.clicks_per_second for run in done]
        row: dict[str, Any] = {
            "items": items,
            "units": UNITS,
            "workers": 1,
            "clicks_per_second": statistics.median(rates),
            "clicks_per_second_spread": [min(rates), max(rates)],
            "cpu_us_per_click": statistics.median(run.cpu_us_per_click for run in done),
            "steps_us_per_click": {
                step: statistics.median(run.steps_us_per_click[step] for run in done) for step in STEPS
            },
        }
        rows.append(row)
        table.add_row(
            f"{items:,}",
            f"{row['clicks_per_second']:,.0f}",
            f"{min(rates):,.0f}-{max(rates):,.0f}",
            f"{row['cpu_us_per_click']:.0f}",
            *(f"{row['steps_us_per_click'][step]:.1f}" for step in STEPS),
        )
    console.print(table)
    first, last = rows[0], rows[-1]
    ratio = first["clicks_per_second"] / last["clicks_per_second"]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    result = {
        "bench": "pipeline",
        "machine": machine,
        "rows": rows,
        "ratios": {f"clicks_per_second_{first['items']}_to_{last['items']}_items": ratio},
    }
    print(json.dumps(result))


def _drain(bootstrap: str, bundle: Path, items: int, folder: Path) -> Run:
    prefix = f"bench-{items}-{time.time_ns()}"
    topics = TopicSettings(
        clicks=f"{prefix}-clicks",
        rankings=f"{prefix}-rankings",
        rejected=f"{prefix}-rejected",
        models=f"{prefix}-models",
    )
    connection = KafkaConnection(bootstrap_servers=bootstrap)
    ensure_topics(connection, topic_table(topics, prefix, session_ttl_ms=6 * 3_600_000))
    _publish(connection, topics, bundle, items)
    data_dir, port = folder / prefix, free_port()
    environment = {
        **os.environ,
        "NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
        **{
            f"NEXTCLICK_TOPICS__{name.upper()}": getattr(topics, name)
            for name in ("clicks", "rankings", "rejected", "models")
        },
        "NEXTCLICK_WORKER__APP_ID": prefix,
        "NEXTCLICK_WORKER__DATA_DIR": str(data_dir),
        "NEXTCLICK_WORKER__WEB_PORT": str(port),
    }
    log = folder / f"{prefix}.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "stream_app", "worker"], env=environment, stdout=output, stderr=output
        )
    try:
        return _measure(connection, topics, worker, port)
    except TimeoutError as error:
        raise RuntimeError(f"{error}; the worker's log:\n{log.read_text()[-2000:]}") from error
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
        shutil.rmtree(data_dir, ignore_errors=True)


def _publish(connection: KafkaConnection, topics: TopicSettings, bundle: Path, items: int) -> None:
    producer = Producer({**connection.librdkafka(), "partitioner": "murmur2_random", "linger.ms": 20})
    announcement = ModelAnnouncement("champion", bundle.name, str(bundle), manifest_digest(bundle), 0, "benchmark")
    producer.produce(topics.models, encode_announcement(announcement), b"champion")
    rng = np.random.default_rng(7)
    popular = (items * rng.random(CLICKS) ** 2).astype(np.int64)  # the first items are clicked more
    sessions = rng.integers(0, CLICKS // MEAN_SESSION, CLICKS)
    now = time.time_ns() // 1_000_000
    for n, (session, item) in enumerate(zip(sessions.tolist(), popular.tolist(), strict=True)):
        click = Click(f"session-{session}", f"item-{item}", now, f"event-{n}")
        producer.produce(topics.clicks, encode_click(click), click.session_id.encode())
        while len(producer) > 50_000:
            producer.poll(0.05)
    producer.flush()


def _measure(connection: KafkaConnection, topics: TopicSettings, worker: "subprocess.Popen[bytes]", port: int) -> Run:
    consumer = Consumer({**connection.librdkafka(), "group.id": "bench"})
    consumer.assign([TopicPartition(topics.rankings, p, 0) for p in range(topics.partitions)])
    deadline = time.monotonic() + 300
    count, began, cpu_before = 0, 0.0, 0.0
    while count < CLICKS:
        got = len([message for message in consumer.consume(10_000, timeout=0.2) if message.error() is None])
        if got and not count:
            began, cpu_before, first = time.monotonic(), _cpu_seconds(worker.pid), got
        count += got
        if time.monotonic() > deadline or worker.poll() is not None:
            raise TimeoutError(f"{count} of {CLICKS} clicks were answered")
    elapsed, cpu = time.monotonic() - began, _cpu_seconds(worker.pid) - cpu_before
    consumer.close()
    measured = CLICKS - first
    return Run(measured / elapsed, 1e6 * cpu / measured, _steps(port))


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _steps(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {
        step: 1e6
        * sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f'{_METRIC}{{step="{step}"'))
        / CLICKS
        for step in STEPS
    }
