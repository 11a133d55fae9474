"""How fast does one core train? Ours beside a textbook PyTorch version, and beside what the score products alone allow.

Whole epochs, true transitions (no padding, no samples), every variant in turn in each round on the same core. A rate is
transitions a second of processor time, as the machine's other work comes and goes; figures are medians over the rounds.
`ours` is the compiled engine, `torch` the plain one, `textbook` what PyTorch's documentation leads to, `products` the
three products with the score columns and nothing else, `evaluate` the ranking of the whole catalogue.
The clicks are generated in RSC15's shape; with ../shared/data the real ones of Yoochoose 1/64 are measured too.
Two threads are compared with one by the clock, on all cores, before the rest.

    python -m bench training
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.generated_clicks import generated_sessions
from bench.report import Report, console, spread
from bench.textbook_gru4rec import TextbookTraining
from trainer.data.sessions import SessionSet, group_sessions
from trainer.evaluation.protocol import NetworkScorer, evaluate
from trainer.models.gru4rec import initial_weights
from trainer.models.settings import Gru4RecSettings
from trainer.training.device import Hardware
from trainer.training.fit import fit

ROUNDS = 3
SESSIONS = 12_000
SHAPES = ((50, 0), (100, 0), (50, 2048), (100, 2048))  # batch_size, n_sample
UNITS = 100
REAL = Path("../shared/data/rsc15_64_train.tsv.gz")


@dataclass(frozen=True)
class Case:
    """One variant on one shape. ``run`` does the work once and returns (transitions, seconds of processor time)."""

    data: str
    variant: str
    batch_size: int
    n_sample: int
    run: Callable[[], tuple[int, float]]


def main() -> None:
    """All variants on all shapes. Pins the process to one core, for good."""
    threads = _threads() if len(os.sched_getaffinity(0)) > 1 else []
    Hardware(device="cpu").set_up()  # `torch` is measured on the core that the others have
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cases = [case for name, sessions in _data() for case in _cases(name, sessions)]
    rates: list[list[float]] = [[] for _ in cases]
    for round_number in range(ROUNDS + 1):  # the first one warms up
        for case, found in zip(cases, rates, strict=True):
            with console.status(f"round {round_number} of {ROUNDS}: {case.data}, {case.variant}, {case.batch_size}"):
                transitions, seconds = case.run()
            if round_number:
                found.append(transitions / seconds)
    rows = threads + [_row(case, found) for case, found in zip(cases, rates, strict=True)]
    Report("training", rows, _ratios(rows)).show("Training, one core but where two threads are named")


def _data() -> Iterator[tuple[str, SessionSet]]:
    yield "generated", generated_sessions(SESSIONS)
    if REAL.exists():
        from schemas.click_files.read import read_log

        sessions = group_sessions(read_log([REAL]))
        yield "yoochoose-64", sessions.select(np.arange(len(sessions)) < SESSIONS)


def _cases(data: str, sessions: SessionSet) -> Iterator[Case]:
    for batch_size, n_sample in SHAPES:
        settings = _settings(batch_size, n_sample)
        for variant, make in (("ours", _ours), ("torch", _torch), ("textbook", _textbook), ("products", _products)):
            yield Case(data, variant, batch_size, n_sample, make(sessions, settings))

    yield Case(data, "evaluate", 0, 0, _evaluation(sessions))


def _settings(batch_size: int, n_sample: int) -> Gru4RecSettings:
    return Gru4RecSettings(batch_size=batch_size, n_sample=n_sample, hidden_size=UNITS, epochs=2, engine="compiled")


def _threads() -> list[dict[str, Any]]:
    """The largest shape on one thread and on two, by the clock."""
    sessions, settings = generated_sessions(SESSIONS), _settings(*SHAPES[-1])
    rates: dict[int, list[float]] = {1: [], 2: []}
    for round_number in range(ROUNDS + 1):
        for count, found in rates.items():
            hardware = Hardware(count, "cpu").set_up()
            epoch = fit(sessions, settings, hardware=hardware).epochs[1]
            if round_number:
                found.append(epoch.transitions / epoch.seconds)
    return [
        _row(Case("generated", f"{count} thread{'s' if count > 1 else ''} by the clock", *SHAPES[-1], _nothing), found)
        for count, found in rates.items()
    ]


def _nothing() -> tuple[int, float]:
    return 0, 0.0


def _torch(sessions: SessionSet, settings: Gru4RecSettings) -> Callable[[], tuple[int, float]]:
    return _ours(sessions, settings.model_copy(update={"engine": "torch"}))


def _evaluation(sessions: SessionSet) -> Callable[[], tuple[int, float]]:
    """Predictions among all items, of a model that has learned nothing."""
    some = sessions.select(np.arange(len(sessions)) < SESSIONS // 4)
    weights = initial_weights(len(sessions.item_ids), _settings(*SHAPES[-1]), torch.Generator().manual_seed(1))

    def run() -> tuple[int, float]:
        began = time.thread_time()
        evaluate(NetworkScorer(weights), some)
        return some.transitions, time.thread_time() - began

    return run


def _ours(sessions: SessionSet, settings: Gru4RecSettings) -> Callable[[], tuple[int, float]]:
    def run() -> tuple[int, float]:
        ends: list[float] = []
        fit(sessions, settings, on_epoch=lambda _: ends.append(time.thread_time()))
        return sessions.transitions, ends[1] - ends[0]  # the second epoch, without what comes before the first

    return run


def _textbook(sessions: SessionSet, settings: Gru4RecSettings) -> Callable[[], tuple[int, float]]:
    start = initial_weights(len(sessions.item_ids), settings, torch.Generator().manual_seed(settings.seed))

    def run() -> tuple[int, float]:
        training = TextbookTraining(sessions, settings, start)
        began = time.thread_time()
        training.epoch()
        return sessions.transitions, time.thread_time() - began

    return run


def _products(sessions: SessionSet, settings: Gru4RecSettings) -> Callable[[], tuple[int, float]]:
    """The three products between n states [n, H] and the rows of C columns [C, H], and nothing else."""
    n, columns = settings.batch_size, settings.batch_size + settings.n_sample
    x, w, d = torch.rand(n, UNITS), torch.rand(columns, UNITS), torch.rand(n, columns)
    r, d_x, d_w = torch.empty(n, columns), torch.empty(n, UNITS), torch.empty(columns, UNITS)
    steps = max(100, sessions.transitions // n // 4)

    def run() -> tuple[int, float]:
        began = time.thread_time()
        for _ in range(steps):
            torch.mm(x, w.T, out=r)
            torch.mm(d, w, out=d_x)
            torch.mm(d.T, x, out=d_w)
        return steps * n, time.thread_time() - began

    return run


def _row(case: Case, rates: list[float]) -> dict[str, Any]:
    rate, rates = spread(rates)
    return {
        "data": case.data,
        "variant": case.variant,
        "batch_size": case.batch_size,
        "n_sample": case.n_sample,
        "units": UNITS,
        "transitions_per_second": rate,
        "transitions_per_second_spread": rates,
    }


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Ours over the textbook version, and over what the products alone allow."""
    rate = {(r["data"], r["batch_size"], r["n_sample"], r["variant"]): float(r["transitions_per_second"]) for r in rows}
    return {
        f"{data}_batch_{batch_size}_samples_{n_sample}_over_{other}": found / rate[data, batch_size, n_sample, other]
        for (data, batch_size, n_sample, variant), found in rate.items()
        if variant == "ours"
        for other in ("textbook", "products")
    }
