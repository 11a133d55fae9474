"""How many clicks a second do one and two workers answer? Drains a backlog through a real Kafka, by catalogue.

The clock starts when all clicks are there and every worker serves: the last one may join the group seconds after the
first. So they answer a few clicks, and stand still (SIGSTOP) while the backlog is sent. The guarantees are those of
production: RocksDB state, changelog, idempotent producers, acknowledgement after delivery. Every case is measured in
each round, in turn, because the machine's other work comes and goes; the figures are medians over the rounds. Rates
include the time that the broker takes from the same cores.

    python -m bench pipeline
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Self

from bench.broker import warm_broker
from bench.bundles import UNITS, bundle
from bench.clicks import shop_clicks
from bench.deployment import Deployment, Worker
from bench.report import Report, console, spread
from schemas.messages.click import Click


@dataclass(frozen=True)
class Case:
    """One cell of the table: a catalogue, a number of workers, and how many clicks to drain."""

    items: int
    workers: int
    clicks: int
    partitions: int = 8


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
class Shop:
    """What is asked, and by whom.

    Attributes:
        bundle: the model.
        clicks: so many clicks on its items.
    """

    bundle: Path
    clicks: Callable[[int], Iterator[Click]]


@dataclass(frozen=True)
class Run:
    """One drained backlog.

    Attributes:
        clicks_per_second: from when the workers go on to the last ranking.
        cpu_us_per_click: processor time of all workers in that time.
        steps_us_per_click: wall time of each step in it, by name; steps of several chunks overlap.
        shares: of the clicks, one a worker, the smallest first.
        together: mean number of clicks computed together.
    """

    clicks_per_second: float
    cpu_us_per_click: float
    steps_us_per_click: dict[str, float]
    shares: list[float]
    together: float


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
                "shares": [median(shares) for shares in zip(*(run.shares for run in done), strict=True)],
            }
        )
    return Report("pipeline", rows, _ratios(runs))


def drain(bootstrap: str, case: Case, folder: Path, shop: Shop | None = None, **settings: object) -> Run:
    """Answer a backlog, with fresh topics and fresh workers; without a `shop` a model with random weights does."""
    if shop is None:
        shop = Shop(bundle(folder, case.items), lambda count: shop_clicks(count, case.items))
    with Deployment(bootstrap, folder, partitions=case.partitions) as deployment:
        for _ in range(case.workers):
            deployment.start_worker(**settings)
        deployment.wait_for(lambda: all(worker.is_up for worker in deployment.workers), "the workers' start")
        deployment.announce(shop.bundle)
        sent = 0

        def all_answered() -> bool:
            return deployment.records(deployment.topics.rankings) >= sent

        def every_worker_answered() -> bool:
            nonlocal sent
            sent += deployment.send(shop.clicks(8 * deployment.partitions))
            return all(worker.answered for worker in deployment.workers)

        deployment.wait_for(every_worker_answered, "a ranking by every worker", every=0.2)
        deployment.wait_for(all_answered, "the first rankings")
        before = [_Spent.of(worker) for worker in deployment.workers]
        with deployment.paused():
            sent += deployment.send(shop.clicks(case.clicks))
            began = time.monotonic()
        deployment.wait_for(all_answered, f"{case.clicks} rankings")
        elapsed = time.monotonic() - began
        after = [_Spent.of(worker) for worker in deployment.workers]
    spent = [now.since(earlier) for now, earlier in zip(after, before, strict=True)]
    answered = sum(one.answered for one in spent)
    return Run(
        clicks_per_second=case.clicks / elapsed,
        cpu_us_per_click=1e6 * sum(one.cpu_seconds for one in spent) / case.clicks,
        steps_us_per_click={
            step: 1e6 * sum(one.steps.get(step, 0.0) for one in spent) / case.clicks
            for step in sorted(set().union(*(one.steps for one in spent)))
        },
        shares=sorted(one.answered / answered for one in spent),
        together=answered / sum(one.batches for one in spent),
    )


@dataclass(frozen=True)
class _Spent:
    """What a worker has done so far, and what it took."""

    cpu_seconds: float
    answered: float
    batches: float
    steps: dict[str, float]

    @classmethod
    def of(cls, worker: Worker) -> Self:
        return cls(worker.cpu_seconds, worker.answered, worker.batches, worker.steps())

    def since(self, earlier: Self) -> Self:
        steps = {step: seconds - earlier.steps.get(step, 0.0) for step, seconds in self.steps.items()}
        return type(self)(
            self.cpu_seconds - earlier.cpu_seconds,
            self.answered - earlier.answered,
            self.batches - earlier.batches,
            steps,
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
