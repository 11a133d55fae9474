"""Does a shadow hold up those who serve, where there is no room for both?

The same open loop as in `bench latency`, with a shadow of the champion's size and without, in turn. Worker, broker,
generator and consumer share what cores there are (`taskset -c 0 python -m bench shadow` leaves them one). At the second
rate of each catalogue clicks come faster than one core answers them, so their wait tells how fast a backlog is drained.

    python -m bench shadow
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from bench.broker import warm_broker
from bench.latency import SWITCH_SECONDS, Case, Run, run
from bench.report import Report, console

CASES = (Case(5_000, 1_000), Case(5_000, 12_000), Case(37_000, 500), Case(37_000, 4_000))
ROUNDS = 3


def main() -> None:
    """All cases."""
    measure(CASES, ROUNDS).show("Click due to ranking consumed, with a shadow over without")


def measure(cases: tuple[Case, ...], rounds: int) -> Report:
    """Every case without and with a shadow in each round, in turn; who is first changes."""
    sys.setswitchinterval(SWITCH_SECONDS)
    runs: dict[Case, list[Run]] = {}
    with warm_broker() as kafka, tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        for number in range(rounds):
            for case in cases:
                for shadow in (False, True) if number % 2 == 0 else (True, False):
                    one = replace(case, shadow=shadow)
                    with console.status(f"round {number + 1} of {rounds}: {one}"):
                        done = run(kafka.bootstrap_servers, one, Path(name), worker__splits=True)
                    runs.setdefault(one, []).append(done)
    rows: list[dict[str, object]] = []
    for case in cases:
        without, beside = runs[case], runs[replace(case, shadow=True)]
        row: dict[str, object] = {"items": case.items, "rate": case.rate}
        for percentile in (50, 99):
            of = [
                (_percentile(one, percentile), _percentile(two, percentile))
                for one, two in zip(without, beside, strict=True)
            ]
            row[f"p{percentile}_ms"] = median(one for one, _ in of)
            row[f"p{percentile}_ratio"] = median(two / one for one, two in of)
        clicks = len(without[0].due)
        row["handed_to_shadow"] = median(
            done.shadow_clicks / (done.shadow_clicks + done.shadow_skipped or 1) for done in beside
        )
        row["cpu_ratio"] = median(
            two.cpu_us_per_click / one.cpu_us_per_click for one, two in zip(without, beside, strict=True)
        )
        row["clicks"] = clicks
        rows.append(row)
    return Report("shadow", rows)


def _percentile(done: Run, percentile: float) -> float:
    return float(np.percentile(done.latency_ms, percentile))
