"""What went through the topics in the last minutes, for the page: clicks answered, how fast, by what; rejections.

All of it follows from rankings and rejected records that the API reads anyway, by the broker's clock. Of the rankings
of a step all are counted and an even sample is looked into, so that a busy shop costs no more than a quiet one.
"""

import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from schemas.messages.click import Moment
from stream_app.api.latest import Latest

STEP_MS: Final = 2_000
SPAN_MS: Final = 600_000
RECENT_MS: Final = 10_000
_MOST_SAMPLES: Final = 200
"""Rankings of a step that are looked into: enough for a 99th percentile that does not jump."""


class _Ranking(msgspec.Struct, gc=False):
    item_id: str
    model_version: str
    click_timestamp: Moment
    reason: str
    variant: str | None = None


class _Rejected(msgspec.Struct, gc=False):
    reason: str


class Recent(msgspec.Struct):
    """The last ten seconds. Latencies are None where nothing was answered."""

    clicks_per_second: float
    latency_p50_ms: float | None
    latency_p99_ms: float | None


class Series(msgspec.Struct):
    """One value per step of `step_ms`, the first one beginning at `since` (ms since the epoch)."""

    since: int
    step_ms: int
    clicks_per_second: list[float]
    latency_p50_ms: list[float | None]
    latency_p99_ms: list[float | None]


@dataclass
class _Step:
    """What happened in one step: `samples` are latencies of an even sample of its rankings."""

    rankings: int = 0
    samples: list[int] = field(default_factory=list)
    items: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    variants: Counter[str | None] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)


class Traffic:
    """Steps of the last ten minutes. Filled by the thread that reads, asked by others."""

    def __init__(self) -> None:
        self._steps: dict[int, _Step] = {}
        self._newest = 0
        self._lock = threading.Lock()
        self._random = random.Random(0)
        self._ranking = msgspec.json.Decoder(_Ranking).decode
        self._rejected = msgspec.json.Decoder(_Rejected).decode

    def take(self, told: Sequence[tuple[bytes, Latest]], now_ms: int) -> None:
        """Rankings as they were read; old ones, of which a start reads hours, cost a look each."""
        since = now_ms - SPAN_MS
        with self._lock:
            for _, latest in told:
                # A record may say that it is of the future, beside which all others would be old.
                step = None if latest.is_forgotten or latest.at_ms < since else self._step(min(latest.at_ms, now_ms))
                if step is not None:
                    self._count(step, latest)

    def reject(self, at_ms: int, value: bytes | None, now_ms: int) -> None:
        """A record of the rejected topic."""
        try:
            reason = self._rejected(value or b"").reason
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return  # not of ours
        with self._lock:
            step = self._step(min(at_ms, now_ms))
            if step is not None:
                step.rejected[reason] += 1

    def _step(self, at_ms: int) -> _Step | None:
        number = at_ms // STEP_MS
        if number > self._newest:
            self._newest, oldest = number, number - SPAN_MS // STEP_MS
            self._steps = {kept: step for kept, step in self._steps.items() if kept >= oldest}
        elif number < self._newest - SPAN_MS // STEP_MS:
            return None
        step = self._steps.get(number)
        if step is None:
            step = self._steps[number] = _Step()
        return step

    def _count(self, step: _Step, latest: Latest) -> None:
        step.rankings += 1
        # Reservoir sampling: each ranking of the step is among the samples with the same chance.
        place = len(step.samples)
        if place == _MOST_SAMPLES and (place := int(self._random.random() * step.rankings)) >= _MOST_SAMPLES:
            return
        try:
            found = self._ranking(latest.value)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return
        step.samples[place : place + 1] = [max(0, latest.at_ms - found.click_timestamp)]
        step.items[found.item_id] += 1
        step.models[found.model_version] += 1
        step.reasons[found.reason] += 1
        step.variants[found.variant] += 1

    # -- asked --------------------------------------------------------------------------------------------------------

    def series(self, now_ms: int) -> Series:
        """Up to the last whole step."""
        end = now_ms // STEP_MS
        steps = range(end - SPAN_MS // STEP_MS, end)
        found = self._whole(steps)
        latencies = [sorted(samples) for _, samples in found]
        return Series(
            since=steps.start * STEP_MS,
            step_ms=STEP_MS,
            clicks_per_second=[rankings * 1000 / STEP_MS for rankings, _ in found],
            latency_p50_ms=[_percentile(samples, 50) for samples in latencies],
            latency_p99_ms=[_percentile(samples, 99) for samples in latencies],
        )

    def recent(self, now_ms: int) -> Recent:
        """Of the last whole steps."""
        end = now_ms // STEP_MS
        found = self._whole(range(end - RECENT_MS // STEP_MS, end))
        latencies = sorted(sample for _, samples in found for sample in samples)
        return Recent(
            clicks_per_second=sum(rankings for rankings, _ in found) * 1000 / RECENT_MS,
            latency_p50_ms=_percentile(latencies, 50),
            latency_p99_ms=_percentile(latencies, 99),
        )

    def rankings(self, now_ms: int, last_ms: int) -> int:
        """How many there were."""
        with self._lock:
            return sum(step.rankings for step in self._since(now_ms, last_ms))

    def shares(self, now_ms: int, last_ms: int, of: str) -> dict[str, float]:
        """Shares of `models`, `reasons` or `items` among the rankings that were looked into, the largest first."""
        with self._lock:
            total: Counter[str] = Counter()
            for step in self._since(now_ms, last_ms):
                total.update(getattr(step, of))
        looked_into = total.total()
        return {name: count / looked_into for name, count in total.most_common()}

    def variants(self, now_ms: int, last_ms: int) -> set[str | None]:
        """Those that ranked; None stands for rankings without an experiment."""
        with self._lock:
            return {variant for step in self._since(now_ms, last_ms) for variant in step.variants}

    def rejected(self, now_ms: int) -> dict[str, int]:
        """Rejected records by reason, the most frequent first."""
        with self._lock:
            total: Counter[str] = Counter()
            for step in self._since(now_ms, SPAN_MS):
                total.update(step.rejected)
        return dict(total.most_common())

    def _since(self, now_ms: int, last_ms: int) -> list[_Step]:
        oldest = (now_ms - last_ms) // STEP_MS
        return [step for number, step in self._steps.items() if number >= oldest]

    def _whole(self, steps: range) -> list[tuple[int, list[int]]]:
        """Rankings and latencies of each step; copied, so that the reader does not wait for what is made of them."""
        with self._lock:
            found = [self._steps.get(number) for number in steps]
            return [(0, []) if step is None else (step.rankings, list(step.samples)) for step in found]


def _percentile(ordered: Sequence[int], percent: int) -> float | None:
    """The nearest rank, as it was measured."""
    return float(ordered[max(0, -(-len(ordered) * percent // 100) - 1)]) if ordered else None
