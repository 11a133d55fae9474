"""How long does a click wait for its ranking at a steady rate, and while the model is swapped?

Open loop: arrivals are a Poisson process that is drawn before the run, and a click's latency counts from the time at
which it was *due*, so a stall is felt by every click that should have come during it. The clock stops when a consumer
has the ranking: producer, broker, worker, broker, consumer. Generator and consumer share the two cores with the rest.

    python -m bench latency
"""

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from numpy.typing import NDArray

from bench.broker import warm_broker
from bench.bundles import bundle
from bench.clicks import item_ids
from bench.deployment import Deployment
from bench.errors import BenchmarkError
from bench.report import Report, console
from schemas.messages.click import Click, encode_click
from schemas.messages.split import Split

PERCENTILES = (50, 90, 99, 99.9)
_LINGER_MS = 1
"""Of the producer of clicks; without, each would be a request of its own to the broker, which has the same cores."""
SWITCH_SECONDS = 0.0002
"""The generator and the consumer share an interpreter; neither may keep it from the other for long."""
_SWAP_SECONDS = 3.0
"""After an announcement, the rankings in which a swap would show."""


@dataclass(frozen=True)
class Case:
    """A rate of clicks on a catalogue; `swap` announces another model in the middle, `shadow` has one rank beside."""

    items: int
    rate: int
    seconds: float = 12.0
    swap: bool = False
    shadow: bool = False


CASES = (
    Case(37_000, 1_000),
    Case(5_000, 1_000),
    Case(5_000, 5_000),
    Case(5_000, 10_000),
    Case(37_000, 2_000, swap=True),
    Case(1_000_000, 200),
    Case(1_000_000, 500),
)
ROUNDS = 3
WARM_UP_SECONDS = 5.0


class _Answer(msgspec.Struct):
    """What is needed of a ranking."""

    event_id: str
    model_version: str


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        latency_ms: of every click, in the order in which they were due.
        due: seconds since the start of the run at which each was due.
        longest_gap_ms: longest time without any ranking.
        announced: when the second model was announced, in seconds since the start.
        new_model: when the first ranking by it came.
        rebuilt_rows: rows replayed for it.
        cpu_us_per_click: of the worker.
        worker_ms: mean from the broker's time of a click, the oldest of those computed together, to its ranking being
            confirmed; the rest is spent between the producer and the broker and between the broker and the consumer.
        together: mean number of clicks computed together.
        budget: of a batch, with BUDGET=1 (`bench/budget.py`).
        shadow_clicks, shadow_skipped: clicks that were handed to a shadow, and skipped, by the last answer.
    """

    latency_ms: NDArray[np.float64]
    due: NDArray[np.float64]
    longest_gap_ms: float
    announced: float | None
    new_model: float | None
    rebuilt_rows: int
    cpu_us_per_click: float
    worker_ms: float
    together: float
    budget: dict[str, Any] | None
    shadow_clicks: int = 0
    shadow_skipped: int = 0


def main() -> None:
    """All cases."""
    measure(CASES, ROUNDS).show("Click due to ranking consumed, open loop")


def measure(cases: tuple[Case, ...], rounds: int) -> Report:
    """Every case in each round, in turn."""
    sys.setswitchinterval(SWITCH_SECONDS)
    runs: dict[Case, list[Run]] = {case: [] for case in cases}
    with warm_broker() as kafka, tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        for number in range(rounds):
            for case in cases:
                with console.status(f"round {number + 1} of {rounds}: {case.items:,} items, {case.rate:,} a second"):
                    runs[case].append(run(kafka.bootstrap_servers, case, Path(name)))
    rows: list[dict[str, object]] = []
    for case, done in runs.items():
        row: dict[str, object] = {"items": case.items, "rate": case.rate, "clicks": sum(len(r.due) for r in done)}
        for percentile in PERCENTILES:
            row[f"p{percentile:g}_ms"] = median(float(np.percentile(r.latency_ms, percentile)) for r in done)
        row["longest_gap_ms"] = max(r.longest_gap_ms for r in done)
        for name in ("cpu_us_per_click", "worker_ms", "together"):
            row[name] = median(getattr(r, name) for r in done)
        if case.swap:
            row["swap_p99_ms"] = median(_during_swap(r) for r in done)
            row["swap_ms"] = median(1000 * ((r.new_model or 0.0) - (r.announced or 0.0)) for r in done)
            row["rebuilt_rows"] = sum(r.rebuilt_rows for r in done)
        if (budget := done[-1].budget) is not None:
            row["budget_us_per_batch"] = budget
        rows.append(row)
    return Report("latency", rows)


def _during_swap(run: Run) -> float:
    assert run.new_model is not None  # or `run` had raised
    during = (run.due > run.new_model - _SWAP_SECONDS / 10) & (run.due < run.new_model + _SWAP_SECONDS)
    return float(np.percentile(run.latency_ms[during], 99))


def run(bootstrap: str, case: Case, folder: Path, **settings: object) -> Run:
    """One case on a fresh deployment: warm up, measure, and count that no click went unanswered."""
    first, second = bundle(folder, case.items), bundle(folder, case.items, seed=1) if case.swap else None
    rng = np.random.default_rng(case.rate)
    total, announced = WARM_UP_SECONDS + case.seconds, WARM_UP_SECONDS + case.seconds / 2
    due = np.cumsum(rng.exponential(1 / case.rate, int(case.rate * total)))  # [N] seconds
    items = (case.items * rng.random(len(due)) ** 2).astype(np.int64)  # [N]
    # A session clicks every few seconds: those that are open at once follow from the rate.
    sessions = rng.integers(0, case.rate * 10, len(due))  # [N]
    with Deployment(bootstrap, folder, settings=settings) as deployment:
        deployment.announce(first)
        if case.shadow:
            _shadow(deployment, bundle(folder, case.items, seed=2))
        worker = deployment.start_worker()
        deployment.wait_for(lambda: "tables recovered" in worker.log.read_text(), "a worker that serves")
        if case.shadow:
            deployment.wait_for(lambda: "alias=shadow" in worker.log.read_text(), "the shadow's model")
        with Arrivals(ranking_consumer(deployment), len(due)) as arrivals:
            cpu = worker.cpu_seconds
            began = time.perf_counter() + 0.1
            with _swap(deployment, second, announced + 0.1) as swap:
                generate(deployment, began + due, items, sessions, item_ids(case.items))
                deadline = time.perf_counter() + 60
                while arrivals.seen < len(due) and time.perf_counter() < deadline:
                    for part in (worker, arrivals, swap):
                        part.check()
                    time.sleep(0.05)
            swap.check()
            arrivals.check()
            cpu = worker.cpu_seconds - cpu
            metrics = worker.metrics()
    lost = int(np.isnan(arrivals.at).sum())
    if lost:
        raise BenchmarkError(f"{lost} of {len(due)} clicks got no ranking")
    at = arrivals.at - began
    kept = due > WARM_UP_SECONDS
    new_model = None
    if second is not None:
        by_second = arrivals.by == second.name
        if not by_second.any():
            raise BenchmarkError(
                f"no ranking by the second model, announced {case.seconds / 2:g} s before the last click: give the "
                f"case more seconds"
            )
        new_model = float(at[by_second].min())
    return Run(
        latency_ms=1000 * (at - due)[kept],
        due=due[kept],
        longest_gap_ms=1000 * float(np.diff(np.sort(at[kept])).max()),
        announced=None if second is None else announced,
        new_model=new_model,
        rebuilt_rows=int(metrics["nextclick_rebuilt_rows_total"]),
        cpu_us_per_click=1e6 * cpu / len(due),
        worker_ms=1000 * _mean(metrics, "nextclick_end_to_end_seconds"),
        together=_mean(metrics, "nextclick_chunk_clicks"),
        budget=worker.budget,
        shadow_clicks=int(metrics["nextclick_shadow_clicks_total"]),
        shadow_skipped=int(metrics["nextclick_shadow_skipped_clicks_total"]),
    )


def _shadow(deployment: Deployment, model: Path) -> None:
    """Have workers that start from now on hand their clicks to a shadow."""
    deployment.announce(model, alias="shadow")
    deployment.split(Split(app_id=deployment.name, shadow=("shadow",)))


def _mean(metrics: dict[str, float], histogram: str) -> float:
    return metrics[f"{histogram}_sum"] / max(metrics[f"{histogram}_count"], 1.0)


def generate(
    deployment: Deployment,
    due: NDArray[np.float64],
    items: NDArray[np.int64],
    sessions: NDArray[np.int64],
    ids: list[str],
) -> None:
    """Send click i at `due[i]`, on the clock of `time.perf_counter`; late ones at once."""
    producer = deployment.producer(**{"linger.ms": _LINGER_MS})
    position, times = 0, due.tolist()
    while position < len(times):
        now = time.perf_counter()
        while position < len(times) and times[position] <= now:
            click = Click(
                f"session-{sessions[position]}", ids[items[position]], time.time_ns() // 1_000_000, str(position)
            )
            _produce(producer, deployment.topics.clicks, click)
            position += 1
        producer.poll(0)
        if position < len(times):
            time.sleep(max(0.0, min(times[position] - time.perf_counter(), 0.01)))
    deployment.flush(producer)


def _produce(producer: Producer, topic: str, click: Click) -> None:
    """Hand a click to the producer; wait while its queue is full."""
    while True:
        try:
            producer.produce(topic, encode_click(click), click.session_id.encode())
        except BufferError:
            producer.poll(0.01)
        else:
            return


class Background(threading.Thread):
    """Work beside the main thread, which learns of its failure by `check`. A context manager: it ends with the context.

    `work` is given the event that tells it to stop.
    """

    def __init__(self, work: Callable[[threading.Event], None], what: str) -> None:
        super().__init__(name=what, daemon=True)
        self._work = work
        self._stopping = threading.Event()
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        """Do the work."""
        try:
            self._work(self._stopping)
        except Exception as error:  # noqa: BLE001 - raised by `check`
            self._failure = error

    def check(self) -> None:
        """Raise BenchmarkError if it failed."""
        if self._failure is not None:
            raise BenchmarkError(f"{self.name}: {self._failure!r}") from self._failure


def _swap(deployment: Deployment, second: Path | None, seconds: float) -> Background:
    """Announces the second model, if there is one, in so many seconds."""

    def announce(stopping: threading.Event) -> None:
        if second is not None and not stopping.wait(seconds):
            deployment.announce(second)

    return Background(announce, "announcing the second model")


def ranking_consumer(deployment: Deployment) -> Consumer:
    """Reads all rankings from the first one on."""
    consumer = Consumer(
        {**deployment.connection.librdkafka(), "group.id": f"{deployment.name}-rankings", "fetch.wait.max.ms": 100}
    )
    consumer.assign(
        [TopicPartition(deployment.topics.rankings, partition, 0) for partition in range(deployment.partitions)]
    )
    return consumer


class Arrivals(Background):
    """Notes when each ranking reaches a consumer, which it closes at the end.

    Attributes:
        at: float64[N] `time.perf_counter` at the first ranking of click n, NaN before.
        by: the model version of each.
        seen: how many clicks have one.
    """

    def __init__(self, consumer: Consumer, clicks: int) -> None:
        super().__init__(self._read, "reading rankings")
        self.at = np.full(clicks, np.nan)
        self.by = np.full(clicks, "", dtype="U40")
        self.seen = 0
        self._consumer = consumer

    def _read(self, stopping: threading.Event) -> None:
        decoder = msgspec.json.Decoder(_Answer)
        try:
            while not stopping.is_set():
                message = self._consumer.poll(0.1)
                if message is None:
                    continue
                now = time.perf_counter()
                if (problem := message.error()) is not None:
                    raise KafkaException(problem)
                answer = decoder.decode(message.value() or b"")
                n = int(answer.event_id)
                if np.isnan(self.at[n]):
                    self.at[n], self.by[n] = now, answer.model_version
                    self.seen += 1
        finally:
            self._consumer.close()
