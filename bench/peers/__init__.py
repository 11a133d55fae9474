"""The same job done by others: same clicks, same model, same broker, each as its own documentation writes it.

The job: for every click keep the session's hidden state, advance it by the clicked item, rank the whole catalogue,
publish the 20 best. Peers have a virtual environment of their own (`requirements/peers.txt`), as their dependencies
exclude ours. All start on the same backlog, in turn, in each round; a rate is that of at most SECONDS after the first
ranking.

Kafka Streams is a Java program, compiled when it starts: it needs a JDK, and its jars are those of `jars.lock`. It is
measured once Java has compiled it for speed: behind its first WARM_UP rankings, which are more than the others get. Its
marks of transactions are records too, at most 80 a second, and are counted with the rankings.

ONLY names some of the peers, by the first word of each; we are always measured beside them.

    ONLY="kafka-streams quix" make bench BENCH=peers
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
from deploy.kafka.jars import resolve_jars
from deploy.kafka.java import find_java

FOLDER: Final = Path(__file__).parent / "jobs"
"""No package: Bytewax would import those above it, and ours are not installed there."""
PYTHON: Final = FOLDER.parents[2] / ".venv-peers" / "bin" / "python"
CATALOGUES: Final = (5_000, 37_000)
CLICKS: Final = 120_000
SECONDS: Final = 8.0
ROUNDS: Final = 3
WARM_UP: Final = 60_000
_START_SECONDS: Final = 90.0


@dataclass(frozen=True)
class Peer:
    """Someone who does the job.

    Attributes:
        key: its name in ONLY and among the ratios.
        command: with `{python}`, the peers' Python, `{java}`, `{jars}` and `{state}`, a folder; empty for us.
        on_a_crash: what its documentation and source promise of state and output.
        warms_up: whether it is slow at first.
    """

    key: str
    name: str
    command: tuple[str, ...]
    on_a_crash: str
    warms_up: bool = False


LOCK: Final = Path(__file__).with_name("jars.lock")

OURS: Final = Peer(
    "nextclick",
    "nextclick",
    (),
    "state once, every click ranked, repetitions only of clicks in flight and marked by their source",
)
_KAFKA_STREAMS: Final = ("{java}", "-cp", "{jars}/*", str(FOLDER / "KafkaStreamsPeer.java"))
PEERS: Final = (
    OURS,
    Peer(
        "faust",
        "Faust, as its tutorial",
        ("{python}", str(FOLDER / "faust_tutorial.py"), "worker", "--without-web", "-l", "warn"),
        "at least once: a redelivered click is applied to the state again; an exception acknowledges its click",
    ),
    Peer(
        "quix",
        "Quix Streams",
        (
            "{python}",
            str(FOLDER / "quix.py"),
        ),
        "at least once: flushes before it commits; what came since the last checkpoint (5 s) is applied again",
    ),
    Peer(
        "bytewax",
        "Bytewax",
        ("{python}", "-m", "bytewax.run", "bytewax_flow:flow", "-r", "{state}", "-s", "10", "-b", "0"),
        "state and offsets from the last snapshot (10 s); its Kafka sink repeats the rankings since",
    ),
    Peer(
        "kafka-streams",
        "Kafka Streams",
        (*_KAFKA_STREAMS, "at_least_once"),
        "at least once: flushes before it commits, every 30 s; what came since is applied to the state again",
        warms_up=True,
    ),
    Peer(
        "kafka-streams-exactly-once",
        "Kafka Streams, exactly once",
        (*_KAFKA_STREAMS, "exactly_once_v2"),
        "state and rankings once, for readers with isolation.level=read_committed, who wait for the commit (100 ms); "
        "after a crash the rows on disk are thrown away and restored from the whole changelog",
        warms_up=True,
    ),
)


def main() -> None:
    """Every peer on every catalogue, in turn."""
    wanted = os.environ.get("ONLY", "").split()
    if unknown := sorted(set(wanted) - {peer.key for peer in PEERS}):
        raise BenchmarkError(f"ONLY: no peer {', '.join(unknown)}; there are {', '.join(peer.key for peer in PEERS)}")
    peers = tuple(peer for peer in PEERS if not wanted or peer is OURS or peer.key in wanted)
    measure(CATALOGUES, ROUNDS, peers).show("The same job, one process each")


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
            ratios[f"nextclick_to_{peer.key.replace('-', '_')}_at_{items}_items"] = median(
                ours[0] / theirs[0] for ours, theirs in pairs
            )
    return Report("peers", rows, ratios)


def _run(bootstrap: str, items: int, peer: Peer, folder: Path, seconds: float) -> tuple[float, float]:
    """Rankings a second, and µs of processor time a click."""
    with Deployment(bootstrap, folder) as deployment:
        warm_up = WARM_UP if peer.warms_up else 1
        clicks = CLICKS + warm_up
        deployment.send(shop_clicks(clicks, items))
        deployment.announce(bundle(folder, items))
        if peer is OURS:
            return _rate(deployment, deployment.start_worker().process, warm_up, seconds)
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
        programs = {"python": PYTHON}
        if "{java}" in peer.command:
            programs |= {"java": find_java(), "jars": resolve_jars(LOCK)}
        command = [part.format(state=state, **programs) for part in peer.command]
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=FOLDER)
        try:
            return _rate(deployment, process, warm_up, seconds)
        except BenchmarkError as error:
            raise BenchmarkError(f"{peer.name}: {error}\n{log.read_text()[-3000:]}") from error
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _rate(
    deployment: Deployment, process: "subprocess.Popen[bytes]", warm_up: int, seconds: float
) -> tuple[float, float]:
    """From so many rankings on."""

    def answered() -> int:
        if process.poll() is not None:
            raise BenchmarkError(f"ended with {process.returncode}")
        return deployment.records(deployment.topics.rankings)

    deployment.wait_for(lambda: answered() > 0, "the first ranking", seconds=_START_SECONDS)
    deployment.wait_for(lambda: answered() >= warm_up, f"{warm_up:,} rankings")
    first, began, cpu = answered(), time.monotonic(), cpu_seconds(process.pid)
    while (count := answered()) < CLICKS + warm_up and time.monotonic() < began + seconds:
        time.sleep(0.05)
    elapsed = time.monotonic() - began
    cpu = cpu_seconds(process.pid) - cpu
    return (count - first) / elapsed, 1e6 * cpu / max(count - first, 1)
