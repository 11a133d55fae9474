"""The same job done by others: same clicks, same model, same broker, each as its own documentation writes it.

The job: for every click keep the session's hidden state, advance it by the clicked item, rank the whole catalogue,
publish the 20 best. Peers have a virtual environment of their own (`requirements/peers.txt`), as their dependencies
exclude ours. All start on the same backlog, in turn, in each round; a rate is that of at most SECONDS after the first
ranking.

    make bench BENCH=peers
"""

import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.broker import warm_broker
from bench.bundles import bundle
from bench.clicks import shop_clicks
from bench.deployment import Deployment, cpu_seconds
from bench.errors import BenchmarkError
from bench.report import Report, console, spread

FOLDER: Final = Path(__file__).parent / "jobs"
"""No package: Bytewax would import those above it, and ours are not installed there."""
PYTHON: Final = FOLDER.parents[2] / ".venv-peers" / "bin" / "python"
CATALOGUES: Final = (5_000, 37_000)
CLICKS: Final = 120_000
SECONDS: Final = 8.0
ROUNDS: Final = 3
_START_SECONDS: Final = 90.0


@dataclass(frozen=True)
class Peer:
    """Someone who does the job.

    Attributes:
        command: after the peers' Python; empty for our own worker.
        on_a_crash: what its documentation and source promise of state and output.
    """

    name: str
    command: tuple[str, ...]
    on_a_crash: str


OURS: Final = Peer(
    "nextclick", (), "state once, every click ranked, repetitions only of clicks in flight and marked by their source"
)
PEERS: Final = (
    OURS,
    Peer(
        "Faust, as its tutorial",
        (str(FOLDER / "faust_tutorial.py"), "worker", "--without-web", "-l", "warn"),
        "at least once: a redelivered click is applied to the state again; an exception acknowledges its click",
    ),
    Peer(
        "Quix Streams",
        (str(FOLDER / "quix.py"),),
        "at least once: flushes before it commits; what came since the last checkpoint (5 s) is applied again",
    ),
    Peer(
        "Bytewax",
        ("-m", "bytewax.run", "bytewax_flow:flow", "-r", "{state}", "-s", "10", "-b", "0"),
        "state and offsets from the last snapshot (10 s); its Kafka sink repeats the rankings since",
    ),
)


def main() -> None:
    """Every peer on every catalogue, in turn."""
    measure(CATALOGUES, ROUNDS, PEERS).show("The same job, one process each")


def measure(catalogues: tuple[int, ...], rounds: int, peers: tuple[Peer, ...], seconds: float = SECONDS) -> Report:
    """Every peer on every catalogue in each round."""
    if not PYTHON.exists():
        raise BenchmarkError(f"{PYTHON} is missing; `make bench BENCH=peers` makes it")
    runs: dict[tuple[int, Peer], list[tuple[float, float]]] = {}
    with warm_broker() as kafka, tempfile.TemporaryDirectory(prefix="nextclick-bench-") as folder:
        for number in range(rounds):
            for items in catalogues:
                for peer in peers:
                    with console.status(f"round {number + 1} of {rounds}: {peer.name}, {items:,} items"):
                        done = _run(kafka.bootstrap_servers, items, peer, Path(folder), seconds)
                    runs.setdefault((items, peer), []).append(done)
    rows: list[dict[str, Any]] = []
    ratios = {}
    for (items, peer), results in runs.items():
        rate, rates = spread([rate for rate, _ in results])
        rows.append(
            {
                "items": items,
                "peer": peer.name,
                "clicks_per_second": rate,
                "clicks_per_second_spread": rates,
                "cpu_us_per_click": median(cpu for _, cpu in results),
                "on_a_crash": peer.on_a_crash,
            }
        )
        if peer is not OURS:
            pairs = zip(runs[items, OURS], results, strict=True)
            ratios[f"nextclick_to_{peer.name.split()[0].strip(',').lower()}_at_{items}_items"] = median(
                ours[0] / theirs[0] for ours, theirs in pairs
            )
    return Report("peers", rows, ratios)


def _run(bootstrap: str, items: int, peer: Peer, folder: Path, seconds: float) -> tuple[float, float]:
    """Rankings a second, and µs of processor time a click."""
    with Deployment(bootstrap, folder) as deployment:
        deployment.send(shop_clicks(CLICKS, items))
        deployment.announce(bundle(folder, items))
        if peer is OURS:
            return _rate(deployment, deployment.start_worker().process, seconds)
        state, log = folder / f"{deployment.name}-state", folder / f"{deployment.name}.log"
        state.mkdir()
        environment = os.environ | {
            "BOOTSTRAP": bootstrap,
            "CLICKS": deployment.topics.clicks,
            "RANKINGS": deployment.topics.rankings,
            "PARTITIONS": str(deployment.partitions),
            "BUNDLE": str(bundle(folder, items)),
            "STATE": str(state),
            "APP_ID": deployment.name,
        }
        if "bytewax.run" in peer.command:
            command = [str(PYTHON), "-m", "bytewax.recovery", str(state), "1"]
            subprocess.run(command, check=True, cwd=FOLDER)
        command = [str(PYTHON), *(part.format(state=state) for part in peer.command)]
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=FOLDER)
        try:
            return _rate(deployment, process, seconds)
        except BenchmarkError as error:
            raise BenchmarkError(f"{peer.name}: {error}\n{log.read_text()[-3000:]}") from error
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _rate(deployment: Deployment, process: "subprocess.Popen[bytes]", seconds: float) -> tuple[float, float]:
    def answered() -> int:
        if process.poll() is not None:
            raise BenchmarkError(f"ended with {process.returncode}")
        return deployment.records(deployment.topics.rankings)

    deployment.wait_for(lambda: answered() > 0, "the first ranking", seconds=_START_SECONDS)
    first, began, cpu = answered(), time.monotonic(), cpu_seconds(process.pid)
    while (count := answered()) < CLICKS and time.monotonic() < began + seconds:
        time.sleep(0.05)
    elapsed = time.monotonic() - began
    cpu = cpu_seconds(process.pid) - cpu
    return (count - first) / elapsed, 1e6 * cpu / max(count - first, 1)
