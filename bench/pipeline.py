"""How many clicks a second do one and two workers answer? Drains a backlog through a real Kafka, by catalogue.

The guarantees are those of production: RocksDB state, changelog, idempotent producers, acknowledgement after delivery.
Every case is measured in each round, in turn, because the machine's other work comes and goes; the figures are medians
over the rounds. Rates include the time that the broker takes from the same cores.

    python -m bench pipeline
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.broker import warm_broker
from bench.bundles import UNITS, bundle
from bench.clicks import shop_clicks
from bench.deployment import Deployment
from bench.report import Report, console, spread


@dataclass(frozen=True)
class Case:
    """One cell of the table: a catalogue, a number of workers, and how many clicks to drain."""

    items: int
    workers: int
    clicks: int


CASES = (
    Case(5_000, 1, 150_000),
    Case(5_000, 2, 150_000),
    Case(37_000, 1, 100_000),
    Case(37_000, 2, 100_000),
    Case(330_000, 1, 20_000),
    Case(1_000_000, 1, 8_000),
)
ROUNDS = 3


@dataclass(frozen=True)
class Run:
    """One drained backlog.

    Attributes:
        clicks_per_second: from the first ranking to the last.
        cpu_us_per_click: processor time of all workers, their start excluded.
        steps_us_per_click: wall time of each step, by name; steps of several chunks overlap.
    """

    clicks_per_second: float
    cpu_us_per_click: float
    steps_us_per_click: dict[str, float]


def main() -> None:
    """All cases."""
    measure(CASES, ROUNDS).show("Backlog of clicks, drained through a real Kafka")


def measure(cases: tuple[Case, ...], rounds: int) -> Report:
    """Every case in each round, in turn."""
    runs: dict[Case, list[Run]] = {case: [] for case in cases}
    with warm_broker() as kafka, tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        folder = Path(name)
        for number in range(rounds):
            for case in cases:
                with console.status(f"round {number + 1} of {rounds}: {case.items:,} items, {case.workers} workers"):
                    runs[case].append(drain(kafka.bootstrap_servers, case, folder))
    rows = []
    for case, done in runs.items():
        rate, rates = spread([run.clicks_per_second for run in done])
        rows.append(
            {
                "items": case.items,
                "units": UNITS,
                "workers": case.workers,
                "clicks_per_second": rate,
                "clicks_per_second_spread": rates,
                "cpu_us_per_click": median(run.cpu_us_per_click for run in done),
                "steps_us_per_click": {
                    step: median(run.steps_us_per_click[step] for run in done) for step in done[0].steps_us_per_click
                },
            }
        )
    return Report("pipeline", rows, _ratios(runs))


def drain(bootstrap: str, case: Case, folder: Path, **settings: object) -> Run:
    """Answer a backlog, with fresh topics and fresh workers."""
    with Deployment(bootstrap, folder) as deployment:
        deployment.send(shop_clicks(case.clicks, case.items))
        for _ in range(case.workers):
            deployment.start_worker(**settings)
        deployment.wait_for(lambda: all(worker.is_up for worker in deployment.workers), "the workers' start")
        deployment.announce(bundle(folder, case.items))  # what they wait for: so they begin together

        def answered() -> int:
            return deployment.records(deployment.topics.rankings)

        deployment.wait_for(lambda: answered() > 0, "the first ranking")
        began, first = time.monotonic(), answered()
        cpu = sum(worker.cpu_seconds for worker in deployment.workers)
        deployment.wait_for(lambda: answered() >= case.clicks, f"{case.clicks} rankings")
        elapsed = time.monotonic() - began
        cpu = sum(worker.cpu_seconds for worker in deployment.workers) - cpu
        steps = [worker.steps() for worker in deployment.workers]
    measured = case.clicks - first
    return Run(
        clicks_per_second=measured / elapsed,
        cpu_us_per_click=1e6 * cpu / measured,
        # A worker that joined when the others had answered all has made no step.
        steps_us_per_click={
            step: 1e6 * sum(one.get(step, 0.0) for one in steps) / case.clicks for step in sorted(set().union(*steps))
        },
    )


def _ratios(runs: dict[Case, list[Run]]) -> dict[str, float]:
    """What two workers do beside one, from runs of the same round."""
    ratios = {}
    for case, done in runs.items():
        alone = next((runs[one] for one in runs if (one.items, one.workers) == (case.items, 1)), None)
        if case.workers > 1 and alone is not None:
            pairs = list(zip(done, alone, strict=True))
            name = f"{case.workers}_workers_to_1_at_{case.items}_items"
            ratios[f"clicks_per_second_{name}"] = median(b.clicks_per_second / a.clicks_per_second for b, a in pairs)
            ratios[f"cpu_us_per_click_{name}"] = median(b.cpu_us_per_click / a.cpu_us_per_click for b, a in pairs)
    return ratios
