"""How many workers, cores, partitions and bytes does a rate of clicks take? Computes; measures nothing.

The costs below are what the other benchmarks measured on the machine that docs/performance.md names; put yours in their
place. A worker is a server that takes all that waits, up to `worker.chunk_clicks`, and needs a fixed time for each
batch and a time for each click. How long clicks wait is simulated for one worker's share of the load; workers do not
wait for each other, so a deployment of any size is that many of these.

    make bench BENCH=capacity
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.report import Report

RATES: Final = (10_000, 100_000, 1_000_000)
CATALOGUES: Final = (10_000, 100_000, 1_000_000, 10_000_000)
LIVE_SECONDS: Final = 6 * 3600
"""How long a row outlives its session's last click: worker.session_ttl."""
CLICKS_A_SESSION: Final = 4
TARGET_LOAD: Final = 0.6
"""Share of a worker's time that may be spent; the rest is for bursts, swaps and the loss of a worker."""
CHUNK: Final = 512

Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """What things cost; docs/capacity.md says what of it is measured and what assumed.

    Attributes:
        batch_ms: of clicks computed together in a worker, however many.
        weights_ms: of reading the weights for them, for each thousand items.
        click_us: of a click in a worker but for the catalogue.
        catalogue_us: of ranking, for each thousand items.
        broker_us: of a click in the broker: one record each of clicks, rankings and changelog, in and out.
        transit_ms: of a click and its ranking through broker and clients when nothing waits.
        click_bytes, ranking_bytes, row_bytes: of a record in Kafka, compressed with lz4.
        stored_bytes: of a row in RocksDB.
    """

    batch_ms: float = 1.7
    weights_ms: float = 0.007
    click_us: float = 41.0
    catalogue_us: float = 0.63
    broker_us: float = 20.0
    transit_ms: float = 1.5
    click_bytes: float = 110.0
    ranking_bytes: float = 550.0
    row_bytes: float = 235.0
    stored_bytes: float = 241.0

    def service_us(self, items: int) -> float:
        """Of one click in a worker."""
        return self.click_us + self.catalogue_us * items / 1000


COSTS: Final = Costs()


def main() -> None:
    """The plan for every rate and catalogue, and the waiting that goes with it."""
    rows = [plan(rate, items, COSTS) for rate in RATES for items in CATALOGUES]
    Report("capacity", rows).show("What a rate of clicks takes")


def plan(rate: int, items: int, costs: Costs) -> dict[str, Any]:
    """One deployment."""
    service = 1e-6 * costs.service_us(items)
    workers = max(1, math.ceil(rate * service / TARGET_LOAD))
    partitions = _partitions(workers)
    sessions = rate * LIVE_SECONDS / CLICKS_A_SESSION
    waits = simulate(rate / workers, items, costs, seconds=20.0)
    return {
        "clicks_per_second": rate,
        "items": items,
        "workers": workers,
        "cores_workers": rate * service / TARGET_LOAD,
        "cores_brokers": rate * 1e-6 * costs.broker_us / TARGET_LOAD,
        "partitions": partitions,
        "kafka_in_mb_per_second": 1e-6 * rate * (costs.click_bytes + costs.ranking_bytes + costs.row_bytes),
        "changelog_gb": 1e-9 * sessions * costs.row_bytes * 1.25,
        "rows_millions": 1e-6 * sessions,
        "rocksdb_gb_a_worker": 1e-9 * sessions * costs.stored_bytes / workers,
        "weights_mb_a_worker": 1e-6 * items * 100 * 4 * 2.25,
        "p50_ms": waits[50],
        "p99_ms": waits[99],
    }


def _partitions(workers: int) -> int:
    """Eight a worker: with fewer, clicks wait longer when one dies (`bench/simulation.py`). The next power of two."""
    return int(2 ** math.ceil(math.log2(8 * workers)))


def simulate(rate: float, items: int, costs: Costs, *, seconds: float, seed: int = 0) -> dict[int, float]:
    """Milliseconds from a click to its ranking at one worker, by percentile. Poisson arrivals."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, max(int(rate * seconds), 1)))  # [N] seconds
    service = 1e-6 * costs.service_us(items)
    batch = 1e-3 * (costs.batch_ms + costs.weights_ms * items / 1000)
    done = answered(arrivals, lambda clicks, _at: batch + clicks * service)
    latency = 1000 * (done - arrivals) + costs.transit_ms
    return {percentile: float(np.percentile(latency, percentile)) for percentile in (50, 90, 99)}


def answered(
    comes: Seconds,
    busy: Callable[[int, float], float],
    *,
    pace: float = 0.0,
    stops: Sequence[tuple[float, float]] = (),
) -> Seconds:
    """When a worker has answered each click.

    Args:
        comes: [N] when each can be read, ascending.
        busy: seconds that a batch of so many clicks takes which is begun at a time.
        pace: between two looks for clicks, unless the last one found a full batch.
        stops: begin and end of the times in which no batch is begun, in order.
    """
    done = np.empty_like(comes)
    now, first, next_look = 0.0, 0, 0.0
    while first < len(comes):
        look = max(now, comes[first], next_look)
        for begin, end in stops:
            look = end if begin <= look < end else look
        clicks = int(np.searchsorted(comes[first : first + CHUNK], look, side="right"))
        now = look + busy(clicks, look)
        done[first : first + clicks] = now
        first += clicks
        next_look = look if clicks == CHUNK else look + pace
    return done
