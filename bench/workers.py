"""Does a click cost more where more workers share the load? Backlogs drained by 1, 2, 4 and 8 workers on 32 partitions.

Told is the processor time of the workers alone: broker and generator have the same cores, and their share is not in it.
More workers than cores mean that each gets a part of one, so rates say nothing here and latencies would say less.

Each of several workers computes fewer clicks together, which would cost a lone one as much: so after each case one
worker drains the same backlog in batches of that size (`worker.chunk_clicks`), to tell the two apart.

    make bench BENCH=workers
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.broker import warm_broker
from bench.pipeline import Case, Run, drain
from bench.report import Report, console, spread

PARTITIONS: Final = 32
CASES: Final = tuple(
    Case(items, workers, clicks, PARTITIONS)
    for items, clicks in ((5_000, 200_000), (37_000, 120_000))
    for workers in (1, 2, 4, 8)
)
ROUNDS: Final = 3


@dataclass(frozen=True)
class Measured:
    """A case of one round, and one worker that drained the same in batches of that size."""

    run: Run
    alone: Run


def main() -> None:
    """All cases."""
    measure(CASES, ROUNDS).show("Processor time a click, by the number of workers")


def measure(cases: tuple[Case, ...], rounds: int) -> Report:
    """Every case in each round, in turn."""
    runs: dict[Case, list[Measured]] = {case: [] for case in cases}
    with warm_broker() as kafka, tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        for number in range(rounds):
            for case in cases:
                with console.status(f"round {number + 1} of {rounds}: {case.items:,} items, {case.workers} workers"):
                    runs[case].append(_measured(kafka.bootstrap_servers, case, Path(name)))
    rows: list[dict[str, Any]] = []
    ratios = {}
    for case, done in runs.items():
        cost, costs = spread([one.run.cpu_us_per_click for one in done])
        rows.append(
            {
                "items": case.items,
                "workers": case.workers,
                "cpu_us_per_click": cost,
                "cpu_us_per_click_spread": costs,
                "together": median(one.run.together for one in done),
                "cpu_us_per_click_of_one_in_such_batches": median(one.alone.cpu_us_per_click for one in done),
            }
        )
        first = next(theirs for one, theirs in runs.items() if (one.items, one.workers) == (case.items, 1))
        if case.workers > 1:
            name = f"{case.workers}_workers_to_1_at_{case.items}_items"
            ratios[f"cpu_us_per_click_{name}"] = median(
                many.run.cpu_us_per_click / one.run.cpu_us_per_click for many, one in zip(done, first, strict=True)
            )
            ratios[f"the_same_batches_{name}"] = median(
                one.run.cpu_us_per_click / one.alone.cpu_us_per_click for one in done
            )
    return Report("workers", rows, ratios)


def _measured(bootstrap: str, case: Case, folder: Path) -> Measured:
    run = drain(bootstrap, case, folder)
    if case.workers == 1:
        return Measured(run, run)
    alone = drain(bootstrap, replace(case, workers=1), folder, worker__chunk_clicks=round(run.together))
    return Measured(run, alone)
