"""What does `prune` give a worker? Drains a backlog by a trained model with a tail and without, in turn.

The model is that of `bench tail`, with its session memory and without, and so are ITEMS and SESSIONS; the backlog is of
sessions that it did not learn.

    ITEMS=1000000 make bench BENCH=pruned
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from bench.broker import warm_broker
from bench.pipeline import Case, Run, Shop, drain
from bench.report import Report, console, spread
from bench.tail import Trained, trained
from schemas.bundle.files import read_manifest
from schemas.messages.click import Click
from trainer.data.sessions import SessionSet
from trainer.export.bundle import save_bundle
from trainer.memory.terms import NO_MEMORY
from trainer.training.device import Hardware

CLICKS = 15_000
ROUNDS = 3


class Kind(NamedTuple):
    """Of a bundle."""

    memory: bool
    prune: bool


KINDS = tuple(Kind(memory, prune) for memory in (False, True) for prune in (False, True))


def main() -> None:
    """Train once, then a backlog of each kind in every round."""
    Hardware(1, "cpu").set_up()
    measure(trained(), ROUNDS).show("A backlog of clicks, by a trained model")


def measure(found: Trained, rounds: int) -> Report:
    """Every kind in each round, in turn."""
    runs: dict[Kind, list[Run]] = {}
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        folder = Path(name)
        bundles = {kind: _saved(found, folder / "registry", kind) for kind in KINDS}
        pruned = {kind: read_manifest(bundle).pruned_items for kind, bundle in bundles.items()}
        with warm_broker() as kafka:
            for number in range(rounds):
                for kind in sorted(KINDS, reverse=number % 2 == 1):
                    with console.status(f"round {number + 1} of {rounds}: {kind}"):
                        case = Case(len(found.clicks), 1, CLICKS)
                        shop = Shop(bundles[kind], lambda count: clicks(found.unseen, count))
                        runs.setdefault(kind, []).append(drain(kafka.bootstrap_servers, case, folder, shop))
    rows, gains = [], {}
    for kind, done in sorted(runs.items()):
        rate, rates = spread([run.clicks_per_second for run in done])
        rows.append(
            {
                "items": len(found.clicks),
                "memory": kind.memory,
                "pruned": pruned[kind],
                "clicks_per_second": rate,
                "clicks_per_second_spread": rates,
                "cpu_us_per_click": median(run.cpu_us_per_click for run in done),
                "rank_us_per_click": median(run.steps_us_per_click["rank"] for run in done),
            }
        )
        if kind.prune:
            pairs = list(zip(runs[Kind(kind.memory, prune=False)], done, strict=True))
            name = "with_memory" if kind.memory else "without_memory"
            gains[f"clicks_per_second_pruned_{name}"] = median(
                b.clicks_per_second / a.clicks_per_second for a, b in pairs
            )
    return Report("pruned", rows, gains)


def clicks(sessions: SessionSet, count: int) -> Iterator[Click]:
    """The first so many clicks of sessions that are open together, each session's in its order, at the present time."""
    rng, now = np.random.default_rng(7), time.time_ns() // 1_000_000
    upcoming = sessions.offsets[:-1].copy()
    for session in rng.permutation(np.repeat(np.arange(len(sessions)), sessions.lengths))[:count].tolist():
        place = int(upcoming[session])
        upcoming[session] += 1
        yield Click(f"session-{session}", sessions.item_ids[sessions.items[place]], now, f"event-{place}")


def _saved(found: Trained, registry: Path, kind: Kind) -> Path:
    settings = found.model.settings.model_copy(update={"prune": kind.prune})
    return save_bundle(
        registry,
        f"memory-{kind.memory}-prune-{kind.prune}",
        replace(found.model, settings=settings, memory=found.model.memory if kind.memory else NO_MEMORY),
        popularity=found.clicks,
        training={"settings": settings.model_dump()},
        metrics={},
        created_at=time.time_ns() // 1_000_000,
    )
