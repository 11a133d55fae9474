"""How long from an announcement to the first ranking by the new model, and how fast are old rows rebuilt?

Every session has a row of the first model. The second is announced, a click of each session comes, and each row is
replayed once. Beside it clicks of sessions whose rows are the second model's already: the difference is the rebuilding.
An old row is there only once, so the sessions come in two halves: one is rebuilt and then clicks again, and clicks
another time before the other half is rebuilt. Neither kind is always the later one.

The worker stands still (SIGSTOP) while the clicks are sent, and the clock starts when it goes on: sending is in no
figure.

    python -m bench swap
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

from bench.broker import warm_broker
from bench.bundles import bundle
from bench.clicks import MEAN_SESSION, item_ids
from bench.deployment import Deployment
from bench.errors import BenchmarkError
from bench.report import Report, console, spread
from schemas.messages.click import Click

CATALOGUES = (5_000, 37_000, 330_000)
SESSIONS = 20_000
ROUNDS = 3
_REST_SECONDS: Final = 3.0
"""Before the announcement, so that nothing of the backlog before it is in the time to the first ranking."""
_REBUILT: Final = "nextclick_rebuilt_rows_total"


@dataclass(frozen=True)
class Drained:
    """What it took to answer a number of clicks that had been waiting."""

    clicks: int
    seconds: float
    cpu_seconds: float

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.clicks + other.clicks, self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds
        )

    @property
    def clicks_per_second(self) -> float:
        """Rate by the clock."""
        return self.clicks / self.seconds

    @property
    def cpu_us_per_click(self) -> float:
        """Of the worker."""
        return 1e6 * self.cpu_seconds / self.clicks


@dataclass(frozen=True)
class Run:
    """One swap.

    Attributes:
        first_ranking_ms: from the announcement to the first ranking by the new model.
        rebuilding: clicks that each found a row of the first model's.
        plain: clicks that each found one of the second's.
    """

    first_ranking_ms: float
    rebuilding: Drained
    plain: Drained


def main() -> None:
    """All catalogues."""
    measure(CATALOGUES, ROUNDS, SESSIONS).show("Swap: first ranking by the new model, and rows rebuilt")


def measure(catalogues: tuple[int, ...], rounds: int, sessions: int) -> Report:
    """Every catalogue in each round, in turn."""
    runs: dict[int, list[Run]] = {items: [] for items in catalogues}
    with warm_broker() as kafka, tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        for number in range(rounds):
            for items in catalogues:
                with console.status(f"round {number + 1} of {rounds}: {items:,} items"):
                    runs[items].append(run(kafka.bootstrap_servers, items, sessions, Path(name)))
    rows: list[dict[str, Any]] = []
    ratios = {}
    for items, done in runs.items():
        rate, rates = spread([run.rebuilding.clicks_per_second for run in done])
        rows.append(
            {
                "items": items,
                "sessions": sessions,
                "clicks_a_session": MEAN_SESSION,
                "announced_to_first_ranking_ms": median(run.first_ranking_ms for run in done),
                "rebuilt_rows_per_second": rate,
                "rebuilt_rows_per_second_spread": rates,
                "clicks_per_second_without_rebuilding": median(run.plain.clicks_per_second for run in done),
                "cpu_us_per_rebuilt_row": median(run.rebuilding.cpu_us_per_click for run in done),
                "cpu_us_per_click_without_rebuilding": median(run.plain.cpu_us_per_click for run in done),
            }
        )
        ratios[f"rebuilding_to_plain_clicks_per_second_at_{items}_items"] = median(
            run.rebuilding.clicks_per_second / run.plain.clicks_per_second for run in done
        )
        ratios[f"rebuilding_to_plain_cpu_us_per_click_at_{items}_items"] = median(
            run.rebuilding.cpu_us_per_click / run.plain.cpu_us_per_click for run in done
        )
    return Report("swap", rows, ratios)


def run(bootstrap: str, items: int, sessions: int, folder: Path) -> Run:
    """One swap on a fresh deployment. Raises BenchmarkError when the rows rebuilt are not those that should be."""
    first_half, second_half = range(sessions // 2), range(sessions // 2, sessions)
    with Deployment(bootstrap, folder) as deployment:
        first, second = bundle(folder, items), bundle(folder, items, seed=1)
        deployment.announce(first)
        worker = deployment.start_worker()
        sent = deployment.send(_clicks(items, range(sessions), MEAN_SESSION))

        def answered() -> bool:
            return deployment.records(deployment.topics.rankings) >= sent

        def drain(half: range, rebuilt: int) -> Drained:
            nonlocal sent
            before = worker.metrics()[_REBUILT]
            with deployment.paused():
                sent += deployment.send(_clicks(items, half))
                cpu = worker.cpu_seconds
                began = time.perf_counter()
            deployment.wait_for(answered, "rankings", every=0.005)
            drained = Drained(len(half), time.perf_counter() - began, worker.cpu_seconds - cpu)
            if (found := worker.metrics()[_REBUILT] - before) != rebuilt:
                raise BenchmarkError(
                    f"{found:g} rows were rebuilt where {rebuilt} should have been: did the machine stand still, and "
                    "clicks come twice?"
                )
            return drained

        deployment.wait_for(answered, "a row of every session")
        time.sleep(_REST_SECONDS)
        began = time.perf_counter()
        deployment.announce(second)
        info = f'nextclick_model_info{{version="{second.name}"}}'
        deployment.wait_for(lambda: info in worker.metrics(), "the new model in service", every=0.005)
        sent += deployment.send([Click("a new session", item_ids(1)[0], time.time_ns() // 1_000_000)])
        deployment.wait_for(answered, "a ranking by it", every=0.005)
        first_ranking = time.perf_counter() - began
        rebuilding = drain(first_half, len(first_half))
        plain = drain(first_half, 0) + drain(first_half, 0)
        rebuilding += drain(second_half, len(second_half))
    return Run(1000 * first_ranking, rebuilding, plain)


def _clicks(items: int, sessions: range, times: int = 1) -> Iterator[Click]:
    """`times` clicks of every session."""
    ids, now = item_ids(items), time.time_ns() // 1_000_000
    for turn in range(times):
        for n in sessions:
            yield Click(f"session-{n}", ids[(n * 31 + turn) % items], now)
