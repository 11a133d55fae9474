"""How often does the guard roll back a champion that is as good as what it replaced, and how soon one that is worse?

Simulated sessions: their lengths are geometric, and the chance that a click is among the ranked items is a session's
own (a beta distribution), so that predictions within one are correlated. The guard looks after every 100 sessions, by
the test of `trainer.service.sequential`. Beside it, on the same sessions, what it must not be: a z-test of single
predictions at the same level, looked at as often.

    python -m bench guard
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from bench.errors import BenchmarkError
from bench.report import Report, console
from trainer.service.sequential import MEASURES, Measure, Sample, evidence

RUNS: Final = 10_000
POWER_RUNS: Final = 500
BLOCK: Final = 100
"""Sessions between two looks."""
POOL: Final = 20_000
"""Blocks that are drawn once; each run takes its own from them at random."""
MEAN_LENGTH: Final = 4.0
RECALL: Final = 0.4
WITHIN: Final = 1 / 3
"""Correlation of two predictions of one session."""
FEWEST: Final = 500
ALPHA: Final = 0.01
EFFECT: Final = 0.05
_N, _NN = 0, 3
_COLUMNS: Final[dict[Measure, tuple[int, int, int]]] = {"recall": (1, 4, 5), "mrr": (2, 6, 7)}
"""Of the sums: x, nx and xx."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """Sessions of the predecessor and, at most, of the champion, whose loss is a part of the predecessor's Recall."""

    loss: float
    tolerance: float
    reference: int
    most: int
    runs: int


CASES = (
    Case(0.0, 0.0, 2_000, 20_000, RUNS),
    Case(0.0, 0.0, 20_000, 20_000, RUNS),
    Case(0.0, 0.02, 20_000, 20_000, RUNS),
    Case(0.05, 0.0, 20_000, 100_000, POWER_RUNS),
    Case(0.05, 0.02, 20_000, 100_000, POWER_RUNS),
    Case(0.05, 0.02, 100_000, 100_000, POWER_RUNS),
    Case(0.1, 0.02, 20_000, 100_000, POWER_RUNS),
    Case(0.3, 0.02, 2_000, 100_000, POWER_RUNS),
)


def main() -> None:
    """Error rates first, then power."""
    measure(CASES).show(f"The guard on simulated sessions, alpha {ALPHA}")


def measure(cases: Sequence[Case]) -> Report:
    """Every case; the champion's pool is its own."""
    rows: list[dict[str, Any]] = []
    rng = np.random.default_rng(1)
    predecessor = _pool(rng, 0.0)
    for case in cases:
        with console.status(f"loss {case.loss}, tolerance {case.tolerance}"):
            rows.append(_simulate(case, predecessor, _pool(rng, case.loss), rng))
    return Report("guard", rows)


def _pool(rng: np.random.Generator, loss: float) -> Floats:
    """[POOL, 8]: n, h, r, nn, nh, hh, nr, rr of blocks of sessions."""
    sums = np.empty((POOL, 8))
    a = RECALL * (1 / WITHIN - 1)
    b = (1 - RECALL) * (1 / WITHIN - 1)
    for at in range(0, POOL, 1_000):
        shape = (1_000, BLOCK)
        n = rng.geometric(1 / MEAN_LENGTH, shape)
        h = rng.binomial(n, rng.beta(a, b, shape) * (1 - loss))
        # Places 1 to 20 of the hits: their reciprocals by mean and spread, a normal for a sum of several.
        places = 1 / np.arange(1, 21)
        weights = places / places.sum()
        mean = float(weights @ places)
        deviation = math.sqrt(float(weights @ places**2) - mean**2)
        r = np.clip(h * mean + np.sqrt(h) * deviation * rng.standard_normal(shape), 0.05 * h, h)
        products = [n, h, r, n * n, n * h, h * h, n * r, r * r]
        sums[at : at + 1_000] = np.stack([one.sum(axis=1) for one in products], axis=1)
    return sums


def _simulate(case: Case, predecessor: Floats, champion: Floats, rng: np.random.Generator) -> dict[str, Any]:
    found: list[int] = []
    naive = 0
    enough = math.log(len(MEASURES) / ALPHA)
    for _ in range(case.runs):
        reference = predecessor[rng.integers(0, POOL, case.reference // BLOCK)].sum(axis=0)
        looks = champion[rng.integers(0, POOL, case.most // BLOCK)].cumsum(axis=0)[FEWEST // BLOCK - 1 :]
        log_e = np.maximum(*(_log_e(case, reference, looks, measure) for measure in MEASURES))
        _check(case, reference, looks[-1], float(log_e[-1]))
        naive += _naive(case, reference, looks)
        if (log_e >= enough).any():
            found.append(FEWEST + BLOCK * int(np.argmax(log_e >= enough)))
    return {
        "loss": case.loss,
        "tolerance": case.tolerance,
        "sessions_before": case.reference,
        "sessions_at_most": case.most,
        "runs": case.runs,
        "rolled_back": len(found) / case.runs,
        "median_sessions_until": median(found) if case.loss and found else None,
        "naive_z_test": naive / case.runs,
    }


def _log_e(case: Case, reference: Floats, looks: Floats, measure: Measure) -> Floats:
    """What `evidence` says at each look, all at once: one by one they take a hundred times as long."""
    x, nx, xx = _COLUMNS[measure]

    def variance(of: Floats, value: Floats) -> Floats:
        return np.asarray((of[..., xx] - 2 * value * of[..., nx] + value**2 * of[..., _NN]) / of[..., _N] ** 2)

    old, new = reference[x] / reference[_N], looks[:, x] / looks[:, _N]
    pooled = (looks[:, x] + reference[x]) / (looks[:, _N] + reference[_N])
    total = variance(looks, pooled) + (1 - case.tolerance) ** 2 * variance(reference, pooled)
    information, rho = 1 / total, 1 / (EFFECT * old) ** 2
    z = ((1 - case.tolerance) * old - new) * information / np.sqrt(information + rho)
    return np.asarray(math.log(2) + 0.5 * np.log(rho / (information + rho)) + z * z / 2 + log_ndtr(z))


def _check(case: Case, reference: Floats, last: Floats, log_e: float) -> None:
    """Raises BenchmarkError when the guard's own test says something else."""
    own = max(
        evidence(
            _sample(last, case.most, measure),
            _sample(reference, case.reference, measure),
            measure,
            tolerance=case.tolerance,
            effect=EFFECT,
            alpha=ALPHA / len(MEASURES),
        ).log_e
        for measure in MEASURES
    )
    if not math.isclose(own, log_e, rel_tol=1e-6, abs_tol=1e-9):
        raise BenchmarkError(f"the guard says {own}, the simulation {log_e}")


def _sample(sums: Floats, sessions: int, measure: Measure) -> Sample:
    x, nx, xx = (float(sums[column]) for column in _COLUMNS[measure])
    return Sample(sessions, float(sums[_N]), x, float(sums[_NN]), nx, xx)


def _naive(case: Case, reference: Floats, looks: Floats) -> bool:
    """Whether a one-sided z-test that takes predictions for independent is ever below alpha."""
    n, h = looks[:, 0], looks[:, 1]
    old = reference[1] / reference[0]
    pooled = (h + reference[1]) / (n + reference[0])
    z = ((1 - case.tolerance) * old - h / n) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / reference[0]))
    return bool((z > 2.3263).any())  # the normal quantile of 1 - ALPHA
