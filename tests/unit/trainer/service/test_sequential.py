"""The guard's test: its value at known points, and that repeated looks do not break its level."""

import math

import numpy as np
import pytest

from schemas.messages.score import Moments, Totals
from trainer.service.sequential import Sample, evidence, log_mixture, sample


@pytest.mark.parametrize(("score", "information"), [(0.0, 1.0), (30.0, 400.0), (-50.0, 400.0), (300.0, 5000.0)])
def test_the_mixture_is_the_integral_that_it_stands_for(score: float, information: float) -> None:
    from scipy.stats import norm  # here: a second's import, which every process that collects the tests would pay

    rho = 2.5
    drifts = np.linspace(0, 20 / math.sqrt(rho), 400_001)
    density = 2 * norm.pdf(drifts, scale=1 / math.sqrt(rho))
    value = np.trapezoid(np.exp(drifts * score - drifts**2 * information / 2) * density, drifts)
    assert log_mixture(score, information, rho) == pytest.approx(math.log(value), rel=1e-6)


def test_far_below_zero_it_is_a_number() -> None:
    assert log_mixture(-1e6, 1e4, 1.0) < -5
    assert math.isfinite(log_mixture(-1e9, 1e4, 1.0))


def totals(sessions: list[tuple[int, int]]) -> Totals:
    """Of sessions with so many predictions and hits, each hit at the first place."""
    n, h = np.array(sessions).T
    moments = Moments(int(n @ n), int(n @ h), int(h @ h), float(n @ h), float(h @ h))
    return Totals(int(n.sum()), int(h.sum()), float(h.sum()), 0, len(sessions), moments)


def test_the_variance_is_that_of_sessions() -> None:
    """Ten hits of a session are one observation, not ten."""
    rng = np.random.default_rng(0)
    drawn = [[(10, 10 * int(rng.random() < 0.4)) for _ in range(500)] for _ in range(400)]
    samples = [sample(totals(one), "recall") for one in drawn]
    told = np.mean([one.variance(one.value) for one in samples])
    assert told == pytest.approx(np.var([one.value for one in samples]), rel=0.2)
    assert told > 8 * 0.4 * 0.6 / 5000


def test_a_model_that_is_worse_is_found_and_its_loss_is_in_the_interval() -> None:
    old, new = totals([(4, 2)] * 5000 + [(4, 1)] * 5000), totals([(4, 2)] * 2000 + [(4, 0)] * 4000)
    found = evidence(sample(new, "recall"), sample(old, "recall"), "recall", tolerance=0.02, effect=0.05, alpha=0.01)
    assert found.loss == pytest.approx(1 - (1 / 6) / 0.375)
    assert found.interval[0] < found.loss < found.interval[1]
    assert found.log_e > math.log(100)
    turned = evidence(sample(old, "recall"), sample(new, "recall"), "recall", tolerance=0.02, effect=0.05, alpha=0.01)
    assert turned.loss < 0
    assert turned.log_e < 0


@pytest.mark.parametrize("empty", ["model", "other", "both"])
def test_nothing_is_said_of_nothing(empty: str) -> None:
    some, none = Sample(10, 40, 20, 160, 80, 45), Sample(0, 0, 0, 0, 0, 0)
    pair = {"model": (none, some), "other": (some, none), "both": (none, none)}[empty]
    assert evidence(*pair, "recall", tolerance=0, effect=0.05, alpha=0.01).log_e == 0.0


def test_a_model_without_a_hit_is_worse() -> None:
    none = totals([(4, 0)] * 600)
    found = evidence(
        sample(none, "recall"), sample(totals([(4, 2), (4, 1)] * 500), "recall"), "recall",
        tolerance=0.02, effect=0.05, alpha=0.01,
    )  # fmt: skip
    assert found.log_e > math.log(100)
