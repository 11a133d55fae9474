"""How long from an announcement to the first ranking by the new model, and how fast are old rows rebuilt?

Every session has a row of the first model. The second is announced, a click of each session comes, and each row is
replayed once. Beside it the same clicks again, whose rows are the second model's: the difference is the rebuilding.

    python -m bench swap
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from bench.broker import warm_broker
from bench.bundles import bundle
from bench.clicks import MEAN_SESSION, item_ids
from bench.deployment import Deployment
from bench.report import Report, console, spread
from schemas.click import Click

CATALOGUES = (5_000, 37_000, 330_000)
SESSIONS = 10_000
ROUNDS = 3


def main() -> None:
    """All catalogues, each round in turn."""
    runs: dict[int, list[dict[str, float]]] = {items: [] for items in CATALOGUES}
    with warm_broker() as kafka, tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        for number in range(ROUNDS):
            for items in CATALOGUES:
                with console.status(f"round {number + 1} of {ROUNDS}: {items:,} items"):
                    runs[items].append(_run(kafka.bootstrap_servers, items, Path(name)))
    rows: list[dict[str, Any]] = []
    ratios = {}
    for items, done in runs.items():
        rate, rates = spread([run["rebuilt_rows_per_second"] for run in done])
        rows.append(
            {
                "items": items,
                "sessions": SESSIONS,
                "clicks_a_session": MEAN_SESSION,
                "announced_to_first_ranking_ms": median(run["first_ranking_ms"] for run in done),
                "rebuilt_rows_per_second": rate,
                "rebuilt_rows_per_second_spread": rates,
                "clicks_per_second_without_rebuilding": median(run["clicks_per_second"] for run in done),
            }
        )
        ratios[f"rebuilding_to_plain_clicks_at_{items}_items"] = median(
            run["rebuilt_rows_per_second"] / run["clicks_per_second"] for run in done
        )
    Report("swap", rows, ratios).show("Swap: first ranking by the new model, and rows rebuilt")


def _run(bootstrap: str, items: int, folder: Path) -> dict[str, float]:
    with Deployment(bootstrap, folder) as deployment:
        first, second = bundle(folder, items), bundle(folder, items, seed=1)
        deployment.announce(first)
        worker = deployment.start_worker()
        sent = 0

        def drain(clicks: Iterator[Click]) -> float:
            """Seconds from the last click's confirmation... to the last ranking, the sending included."""
            nonlocal sent
            began = time.perf_counter()
            sent += deployment.send(clicks)
            deployment.wait_for(lambda: deployment.records(deployment.topics.rankings) >= sent, "rankings", every=0.01)
            return time.perf_counter() - began

        drain(_round(items, MEAN_SESSION))
        began = time.perf_counter()
        deployment.announce(second)
        info = f'nextclick_model_info{{version="{second.name}"}}'
        deployment.wait_for(lambda: info in worker.metrics(), "the new model in service", every=0.005)
        drain(iter([Click("session-0", item_ids(1)[0], time.time_ns() // 1_000_000)]))
        first_ranking = time.perf_counter() - began
        rebuilding = drain(_round(items, 1))
        plain = drain(_round(items, 1))
    return {
        "first_ranking_ms": 1000 * first_ranking,
        "rebuilt_rows_per_second": SESSIONS / rebuilding,
        "clicks_per_second": SESSIONS / plain,
    }


def _round(items: int, times: int) -> Iterator[Click]:
    """`times` clicks of every session."""
    ids, now = item_ids(items), time.time_ns() // 1_000_000
    for turn in range(times):
        for n in range(SESSIONS):
            yield Click(f"session-{n}", ids[(n * 31 + turn) % items], now)
