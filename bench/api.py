"""What does the API cost? Lookups at 5,000 a second on one core, and clicks that wait, beside the bare pipeline.

Lookups: an API with a day's rankings in its RocksDB is kept to one core, the generator to the others. Open loop: a
lookup's latency counts from when it was due. The processor time of a lookup says more than the latency on a machine
that has other work.

Clicks that wait: `POST /v1/clicks?wait=...` at 500 a second, from due to the answer, and the same rate through the bare
pipeline (`bench.latency`: producer, broker, worker, broker, consumer), in turn.

    python -m bench api
"""

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.broker import warm_broker
from bench.bundles import bundle
from bench.clicks import item_ids
from bench.deployment import Deployment, cpu_seconds
from bench.errors import BenchmarkError
from bench.http_load import Answers, get, post, send
from bench.latency import WARM_UP_SECONDS, Case
from bench.latency import run as run_pipeline
from bench.report import Report, console
from bench.scores import rankings
from deploy.kafka.ports import free_port
from schemas.messages.click import Click, encode_click

ROUNDS: Final = 3
LOOKUPS: Final = 5_000
"""A second."""
CLICKS: Final = 500
"""A second."""
ITEMS: Final = 5_000
SECONDS: Final = 10.0
STORED: Final = 50_000
"""Rankings in the store that is looked up in."""


def main() -> None:
    """Three rounds."""
    measure(ROUNDS).show("Lookups, and clicks that wait for their ranking")


def measure(rounds: int) -> Report:
    """Lookups; pipeline and API, each first in every other round."""
    lookups: list[Answers] = []
    costs: list[float] = []
    waits: dict[str, list[NDArray[np.float64]]] = {"pipeline": [], "API": []}
    with warm_broker() as kafka, tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        bootstrap, folder = kafka.bootstrap_servers, Path(name)
        for number in range(rounds):
            with console.status(f"round {number + 1} of {rounds}: {LOOKUPS:,} lookups a second"):
                answers, cost = _look_up(bootstrap, folder)
            lookups.append(answers)
            costs.append(cost)
            for way in list(waits)[:: 1 if number % 2 == 0 else -1]:
                with console.status(f"round {number + 1} of {rounds}: {CLICKS:,} clicks a second, {way}"):
                    waits[way].append((_wait if way == "API" else _pipeline)(bootstrap, folder))
    rows: list[dict[str, object]] = [
        {
            "what": "lookups",
            "rate": LOOKUPS,
            **_percentiles([answers.latency_ms for answers in lookups]),
            "cpu_us_per_request": median(costs),
        },
        {"what": "click to its answer, by the API", "rate": CLICKS, **_percentiles(waits["API"])},
        {"what": "click to its ranking, bare pipeline", "rate": CLICKS, **_percentiles(waits["pipeline"])},
    ]
    ratios = {
        f"p{percentile}_api_to_pipeline": median(
            float(np.percentile(api, percentile) / np.percentile(bare, percentile))
            for api, bare in zip(waits["API"], waits["pipeline"], strict=True)
        )
        for percentile in (50, 99)
    }
    return Report("api", rows, ratios)


def _percentiles(runs: list[NDArray[np.float64]]) -> dict[str, float]:
    return {f"p{one}_ms": median(float(np.percentile(run, one)) for run in runs) for one in (50, 99)}


def _arrivals(rate: int, seconds: float, seed: int) -> NDArray[np.float64]:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds)))


def _look_up(bootstrap: str, folder: Path) -> tuple[Answers, float]:
    """What came of the lookups, and the API's processor microseconds of one."""
    with Deployment(bootstrap, folder) as deployment:
        producer, sessions = deployment.producer(**{"linger.ms": 20}), []
        for key, value in rankings(STORED):
            producer.produce(deployment.topics.rankings, value, key)
            sessions.append(key.decode())
            while len(producer) > 20_000:
                producer.poll(0.05)
        deployment.flush(producer)
        due = _arrivals(LOOKUPS, WARM_UP_SECONDS + SECONDS, seed=1)
        asked = np.random.default_rng(2).integers(0, len(sessions), len(due))
        requests = [get(f"/v1/sessions/{sessions[number]}/ranking") for number in asked.tolist()]
        with running_api(deployment, folder) as (process, port), _apart_from(process.pid):
            first = int((due < WARM_UP_SECONDS).sum())
            send(port, requests[:first], due[:first])
            cpu = cpu_seconds(process.pid)
            answers = _all(send(port, requests[first:], due[first:] - due[first]), 200)
            return answers, 1e6 * (cpu_seconds(process.pid) - cpu) / len(answers.status)


def _wait(bootstrap: str, folder: Path) -> NDArray[np.float64]:
    """Milliseconds from when a click was due to its ranking over HTTP."""
    with Deployment(bootstrap, folder) as deployment:
        deployment.announce(bundle(folder, ITEMS))
        worker = deployment.start_worker()
        deployment.wait_for(lambda: "tables recovered" in worker.log.read_text(), "a worker that serves")
        due = _arrivals(CLICKS, WARM_UP_SECONDS + SECONDS, seed=3)
        rng, ids = np.random.default_rng(4), item_ids(ITEMS)
        sessions, items = rng.integers(0, CLICKS * 10, len(due)), (ITEMS * rng.random(len(due)) ** 2).astype(np.int64)
        now = time.time_ns() // 1_000_000
        requests = [
            post("/v1/clicks?wait=10s", encode_click(Click(f"session-{session}", ids[item], now)))
            for session, item in zip(sessions.tolist(), items.tolist(), strict=True)
        ]
        with running_api(deployment, folder) as (_, port):
            answers = _all(send(port, requests, due), 200)
        return answers.latency_ms[due > WARM_UP_SECONDS]


def _pipeline(bootstrap: str, folder: Path) -> NDArray[np.float64]:
    return run_pipeline(bootstrap, Case(ITEMS, CLICKS, SECONDS), folder).latency_ms


def _all(answers: Answers, status: int) -> Answers:
    if wrong := int((answers.status != status).sum()):
        raise BenchmarkError(f"{wrong} of {len(answers.status)} requests were not answered with {status}")
    return answers


@contextmanager
def running_api(deployment: Deployment, folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """An API that has read all rankings, and its port."""
    port = free_port()
    environment = deployment.environment(api__data_dir=folder / f"{deployment.name}-api", api__port=port)
    with (folder / f"{deployment.name}-api.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "stream_app", "api"], env=environment, stdout=output, stderr=output
        )

    def ready() -> bool:
        if process.poll() is not None:
            raise BenchmarkError(f"the API ended with exit code {process.returncode}:\n{Path(output.name).read_text()}")
        return _is_ready(port)

    try:
        deployment.wait_for(ready, "an API that is ready")
        yield process, port
    finally:
        process.terminate()
        process.wait(60)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def _apart_from(pid: int) -> Iterator[None]:
    """The server on one core, this process on the others, where there are any."""
    cores = sorted(os.sched_getaffinity(0))
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores[:1])
    os.sched_setaffinity(0, cores[1:] or cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
