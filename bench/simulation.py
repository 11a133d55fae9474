"""What becomes of 100,000 and 1,000,000 clicks a second when a worker dies and when the model is swapped? Simulated.

Its input is measured first, on this machine: the processor time of a batch by the number of clicks in it, of one worker
that drains a backlog in batches of that size. A simulated worker has a core of its own, looks for clicks as the real
one does, takes what waits, a full batch at most, and is busy for as long.

Workers share nothing, so three kinds of them are enough: one that dies, those that take its partitions over, and all
others. A worker that dies is missed after its session timeout. Then all stop until the group has met anew, and the
heirs until they have the rows of what they inherit. The dead worker does not come back.

What is computed is told beside real runs: one worker at two rates, and two workers one of which is killed.

    make bench BENCH=simulation
"""

import math
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench import latency
from bench.broker import warm_broker
from bench.bundles import bundle
from bench.capacity import CHUNK, CLICKS_A_SESSION, LIVE_SECONDS, Seconds, answered
from bench.clicks import item_ids
from bench.deployment import Deployment
from bench.errors import BenchmarkError
from bench.latency import SWITCH_SECONDS, Arrivals, Background, generate, ranking_consumer
from bench.pipeline import Case, drain
from bench.report import Report, console

BATCHES: Final = (1, 16, 64, 256, CHUNK)
"""Sizes for which the service time is measured; between them it is a straight line."""
CATALOGUES: Final = (5_000, 37_000)
RATES: Final = (100_000, 1_000_000)
LOADS: Final = ((0.5, 8), (0.6, 8), (0.6, 4), (0.8, 8))
"""How busy the workers are, of what they could answer in full batches, and how many partitions each has."""
CHANGELOG_RECORDS: Final = 1.25
"""To restore for each row: the changelog is compacted a little later than it grows."""
ALONE: Final = (1_000, 5_000)
"""Clicks a second of the real runs with one worker."""
_WARM_UP_SECONDS: Final = 5.0
_SWAP_SECONDS: Final = 3.0
"""After an announcement, the rankings in which a swap would show."""
_LATE_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Service:
    """How long a worker is busy with a batch.

    Attributes:
        clicks: of batches, ascending.
        seconds: of each of them.
    """

    clicks: tuple[float, ...]
    seconds: tuple[float, ...]

    def of(self, clicks: int) -> float:
        """Seconds."""
        return float(np.interp(clicks, self.clicks, self.seconds))

    @property
    def most(self) -> float:
        """Clicks a second in full batches."""
        return CHUNK / self.of(CHUNK)

    @property
    def pace(self) -> float:
        """Seconds between two looks for clicks, by the rule of `stream_app/kafka/click_reader.py`."""
        return min(max(5 * self.of(1), 0.002), 0.008)


@dataclass(frozen=True)
class Times:
    """What does not depend on the load, in seconds unless said otherwise.

    Attributes:
        session_timeout: worker.session_timeout.
        opening: from the last member's joining until workers read again, without what is restored.
        restored_rows: records of the changelog a second (`BENCH=state`).
        swap: without a ranking when a model comes into service (`BENCH=latency`).
        rebuilding: how much more a click takes the first time that its session meets a model (`BENCH=swap`).
        between_clicks: of a session; after so long most rows are rebuilt.
        transit: of a click and its ranking through broker and clients.
    """

    session_timeout: float = 15.0
    opening: float = 1.0
    restored_rows: float = 334_000.0
    swap: float = 0.05
    rebuilding: float = 0.12
    between_clicks: float = 10.0
    transit: float = 0.0015

    @property
    def heartbeat(self) -> float:
        """As the worker sets it (`stream_app/serve/app.py`)."""
        return min(3.0, self.session_timeout / 5)


@dataclass(frozen=True)
class Plan:
    """A deployment, and what befalls it at which second.

    Attributes:
        rate: clicks a second, of all.
        partitions: as many for each worker.
        records: of a partition, in the changelog.
    """

    rate: float
    workers: int
    partitions: int
    records: float
    swap_at: float = 15.0
    lost_at: float = 25.0
    seconds: float = 50.0


@dataclass(frozen=True)
class Outcome:
    """What comes of it; one value a click.

    Attributes:
        due: seconds from the start.
        latency: seconds from then to its ranking.
        weight: how many clicks it stands for.
    """

    due: Seconds
    latency: Seconds
    weight: Seconds

    def told(self, plan: Plan) -> dict[str, Any]:
        """The figures of a run: before the swap, in the seconds after it, and what comes of the loss.

        `caught_up_seconds` is from the loss to the last click that waits for more than a second; None where clicks
        still do at the end.
        """
        late = self.latency > _LATE_SECONDS
        last = float(self.due[late].max(initial=plan.lost_at))
        return {
            "p50_ms": self._percentile(50, _WARM_UP_SECONDS, plan.swap_at),
            "p99_ms": self._percentile(99, _WARM_UP_SECONDS, plan.swap_at),
            "swap_p99_ms": self._percentile(99, plan.swap_at, plan.swap_at + _SWAP_SECONDS),
            "longest_wait_seconds": float(self.latency.max()),
            "late_clicks": int(self.weight[late].sum()),
            "caught_up_seconds": last - plan.lost_at if last < plan.seconds - _LATE_SECONDS else None,
        }

    def _percentile(self, percent: float, begin: float, end: float) -> float:
        chosen = (self.due >= begin) & (self.due < end)
        latency, weight = self.latency[chosen], self.weight[chosen]
        order = np.argsort(latency)
        reached = np.cumsum(weight[order])
        return float(1000 * latency[order][np.searchsorted(reached, percent / 100 * reached[-1])])


def simulate(plan: Plan, service: Service, times: Times, *, seed: int = 0) -> Outcome:
    """Click by click for one worker of each kind, which stands for all of its kind."""
    rng = np.random.default_rng(seed)
    own = plan.partitions // plan.workers
    heirs = min(own, plan.workers - 1)
    inherited = math.ceil(own / heirs)
    # The last heartbeat was half an interval ago, and the last of the others hears of it by its next one.
    missed = plan.lost_at + times.session_timeout - times.heartbeat / 2
    met = missed + times.heartbeat + times.opening
    restored = met + inherited * plan.records / times.restored_rows
    swap = plan.swap_at, plan.swap_at + times.swap

    def clicks(partitions: int, begin: float, end: float) -> Seconds:
        count = rng.poisson(partitions * plan.rate / plan.partitions * (end - begin))
        return np.sort(rng.uniform(begin, end, count))

    def busy(count: int, at: float) -> float:
        since = at - plan.swap_at
        old = 0.0 if since < 0 else math.exp(-since / times.between_clicks)  # share of rows of the former model
        return service.of(count) * (1 + times.rebuilding * old)

    end, none = plan.seconds, np.empty(0)
    # How many there are, the clicks of their own and of others' partitions, and when they stand still.
    kinds = (
        (1, clicks(own, 0.0, plan.lost_at), none, [swap]),
        (heirs, clicks(own, 0.0, end), clicks(inherited, plan.lost_at, end), [swap, (missed, restored)]),
        (plan.workers - 1 - heirs, clicks(own, 0.0, end), none, [swap, (missed, met)]),
    )
    columns = []
    for count, of_own, of_others, stops in kinds:
        if count == 0:
            continue
        due = np.concatenate([of_own, of_others])
        comes = np.concatenate([of_own, np.maximum(of_others, restored)])
        order = np.argsort(comes, kind="stable")
        done = answered(comes[order], busy, pace=service.pace, stops=stops)
        columns.append((due[order], done + times.transit - due[order], np.full(len(due), float(count))))
    return Outcome(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def main() -> None:
    """Measure the inputs, compare simulations with real runs, and simulate what no machine here can do."""
    sys.setswitchinterval(SWITCH_SECONDS)
    with warm_broker() as kafka, tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        services = {items: _service(kafka.bootstrap_servers, items, Path(name)) for items in CATALOGUES}
        rows: list[dict[str, Any]] = [
            {"what": "a batch", "items": items, "batch": clicks, "cpu_ms": 1000 * seconds}
            for items, service in services.items()
            for clicks, seconds in zip(service.clicks, service.seconds, strict=True)
        ]
        for items, service in services.items():
            for rate in ALONE:
                rows += _alone(kafka.bootstrap_servers, items, rate, service, Path(name))
        rows += _loss(kafka.bootstrap_servers, CATALOGUES[0], services[CATALOGUES[0]], Path(name))
    for rate in RATES:
        for items, service in services.items():
            for load, each in LOADS:
                with console.status(f"{rate:,} clicks a second, {items:,} items, {load:.0%} load"):
                    rows.append(_planned(rate, items, load, each, service))
    Report("simulation", rows).show("Latency, with a swap and the loss of a worker")


def _planned(rate: int, items: int, load: float, each: int, service: Service) -> dict[str, Any]:
    workers = math.ceil(rate / service.most / load)
    partitions = each * workers
    records = CHANGELOG_RECORDS * rate * LIVE_SECONDS / CLICKS_A_SESSION / partitions
    plan = Plan(rate, workers, partitions, records, seconds=400.0)
    return {
        "what": "simulated",
        "rate": rate,
        "items": items,
        "load": load,
        "workers": workers,
        "partitions": partitions,
        **simulate(plan, service, Times()).told(plan),
    }


def _service(bootstrap: str, items: int, folder: Path) -> Service:
    """Of one worker that has more to do than it can."""
    seconds = []
    for most in BATCHES:
        with console.status(f"batches of {most}, {items:,} items"):
            case = Case(items, 1, min(400 * most, 40_000))
            run = drain(bootstrap, case, folder, worker__chunk_clicks=most)
        seconds.append(1e-6 * run.cpu_us_per_click * run.together)
    return Service(tuple(map(float, BATCHES)), tuple(seconds))


def _alone(bootstrap: str, items: int, rate: int, service: Service, folder: Path) -> Iterator[dict[str, Any]]:
    """What one worker did here, and what is simulated for it."""
    case = {"rate": rate, "items": items, "workers": 1}
    with console.status(f"one worker, {items:,} items, {rate:,} a second"):
        run = latency.run(bootstrap, latency.Case(items, rate), folder)
    due = np.cumsum(np.random.default_rng(0).exponential(1 / rate, 20 * rate))
    done = answered(due, lambda clicks, _at: service.of(clicks), pace=service.pace)
    for what, found in (("measured", run.latency_ms), ("simulated for this", 1000 * (done + Times.transit - due))):
        yield {"what": what, **case, "p50_ms": np.percentile(found, 50), "p99_ms": np.percentile(found, 99)}


def _loss(bootstrap: str, items: int, service: Service, folder: Path) -> list[dict[str, Any]]:
    """What two workers did here, and what is simulated for them."""
    rate, times = 1_500, Times(session_timeout=6.0)
    plan = Plan(rate, 2, 8, records=rate * times.between_clicks / 8)
    case = {"rate": rate, "items": items, "workers": plan.workers, "partitions": plan.partitions}
    with console.status("two workers, one of which is killed"):
        measured = _run(bootstrap, plan, items, folder, times)
    return [
        {"what": "measured", **case, **measured.told(plan)},
        {"what": "simulated for this", **case, **simulate(plan, service, times).told(plan)},
    ]


def _run(bootstrap: str, plan: Plan, items: int, folder: Path, times: Times) -> Outcome:
    rng = np.random.default_rng(1)
    due = np.cumsum(rng.exponential(1 / plan.rate, int(plan.rate * plan.seconds)))
    clicked = (items * rng.random(len(due)) ** 2).astype(np.int64)
    sessions = rng.integers(0, int(plan.rate * times.between_clicks), len(due))
    first, second = bundle(folder, items), bundle(folder, items, seed=1)
    settings = {"worker__session_timeout": times.session_timeout}
    with Deployment(bootstrap, folder, partitions=plan.partitions, settings=settings) as deployment:
        deployment.announce(first)
        for _ in range(plan.workers):
            deployment.start_worker()
        deployment.wait_for(
            lambda: all("tables recovered" in worker.log.read_text() for worker in deployment.workers), "two workers"
        )
        began = time.perf_counter() + 0.1

        def befall(stopping: threading.Event) -> None:
            if not stopping.wait(began + plan.swap_at - time.perf_counter()):
                deployment.announce(second)
            if not stopping.wait(began + plan.lost_at - time.perf_counter()):
                lost = deployment.workers.pop()
                lost.process.kill()
                lost.process.wait()
                shutil.rmtree(lost.data_dir)

        with Arrivals(ranking_consumer(deployment), len(due)) as arrivals, Background(befall, "loss and swap") as fate:
            generate(deployment, began + due, clicked, sessions, item_ids(items))
            deployment.wait_for(lambda: arrivals.seen == len(due), "every ranking")
            for part in (arrivals, fate):
                part.check()
        if not (arrivals.by == second.name).any():
            raise BenchmarkError("no ranking by the second model")
    return Outcome(due, arrivals.at - began - due, np.ones(len(due)))
