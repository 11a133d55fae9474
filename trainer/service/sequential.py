"""A test of whether one model is worse than another that may be looked at at any time. Pure.

Sessions are independent, predictions within one are not: the variance is that of a ratio of sums over sessions (the
linearised, or delta, method). With D the estimated loss and I = 1 / Var(D), the score S = D * I behaves as a Brownian
motion with drift in the information I, whatever the two models' sessions grow by (Jennison and Turnbull, "Group
sequential methods", 2000, chapter 3). Under "no loss" the mixture over a half-normal drift of precision rho,

    E = 2 * sqrt(rho / (I + rho)) * exp(S^2 / (2 (I + rho))) * Phi(S / sqrt(I + rho)),

is a supermartingale that begins at 1 (Robbins, "Statistical methods related to the law of the iterated logarithm",
1970; one-sided as in Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence
sequences", 2021, proposition 6). By Ville's inequality it ever reaches 1 / alpha with probability alpha at most. The
variance is estimated, so that holds asymptotically (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform
central limit theory and asymptotic confidence sequences", 2024): hence a least number of sessions. `make bench
BENCH=guard` shows the error rates.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

from schemas.messages.score import Totals

Measure = Literal["recall", "mrr"]
MEASURES: Final[tuple[Measure, ...]] = ("recall", "mrr")


@dataclass(frozen=True)
class Sample:
    """One model's predictions by one measure, summed over sessions.

    Attributes:
        n, x: predictions, and their hits or reciprocal ranks.
        nn, nx, xx: sums over sessions of the products of both.
    """

    sessions: int
    n: float
    x: float
    nn: float
    nx: float
    xx: float

    @property
    def value(self) -> float:
        """The measure: Recall or MRR."""
        return self.x / self.n if self.n else 0.0

    def variance(self, value: float) -> float:
        """Of the measure, were it `value` on the whole."""
        return max(0.0, self.xx - 2 * value * self.nx + value**2 * self.nn) / self.n**2


def sample(totals: Totals, measure: Measure) -> Sample:
    """What a model's counts say of a measure."""
    of = totals.moments
    if measure == "recall":
        return Sample(totals.sessions, totals.predictions, totals.hits, of.nn, of.nh, of.hh)
    return Sample(totals.sessions, totals.predictions, totals.reciprocal_ranks, of.nn, of.nr, of.rr)


@dataclass(frozen=True)
class Evidence:
    """That a model is worse than another.

    Attributes:
        loss: what is missing to the other's value, as a part of it; below 0 where nothing is.
        interval: a confidence sequence of `loss` at the level that was asked for: it holds at all times together.
        log_e: natural logarithm of E; log(1 / alpha) decides.
    """

    measure: Measure
    value: float
    against: float
    loss: float
    interval: tuple[float, float]
    log_e: float


def evidence(
    model: Sample,
    other: Sample,
    measure: Measure,
    *,
    tolerance: float,
    effect: float,
    alpha: float,
    inflation: float = 1.0,
) -> Evidence:
    """That `model` is worse than `other` by more than `tolerance`, a part of the other's value.

    `effect` is the loss, as such a part, at which the test is most powerful. `inflation` multiplies the variance.
    """
    reference = other.value
    if not (model.n and other.n and reference):
        return Evidence(measure, model.value, reference, 0.0, (-math.inf, math.inf), 0.0)
    pooled = (model.x + other.x) / (model.n + other.n)
    variance = inflation * (model.variance(pooled) + (1 - tolerance) ** 2 * other.variance(pooled))
    loss = reference - model.value
    if variance <= 0:
        return Evidence(measure, model.value, reference, loss / reference, (-math.inf, math.inf), 0.0)
    information, rho = 1 / variance, 1 / (effect * reference) ** 2
    log_e = log_mixture((loss - tolerance * reference) * information, information, rho)
    radius = _radius(information, rho, alpha) / reference
    return Evidence(
        measure, model.value, reference, loss / reference, (loss / reference - radius, loss / reference + radius), log_e
    )


def log_mixture(score: float, information: float, rho: float) -> float:
    """Natural logarithm of E."""
    z = score / math.sqrt(information + rho)
    return math.log(2) + 0.5 * math.log(rho / (information + rho)) + z * z / 2 + _log_phi(z)


def _log_phi(z: float) -> float:
    """log of the normal distribution function; far below 0 by its asymptotic series, where erfc is 0."""
    if z > -30:
        return math.log(0.5 * math.erfc(-z / math.sqrt(2)))
    return -z * z / 2 - math.log(-z * math.sqrt(2 * math.pi))


def _radius(information: float, rho: float, alpha: float) -> float:
    """Half the width of Robbins' two-sided sequence."""
    return math.sqrt((information + rho) * math.log((information + rho) / (rho * alpha**2))) / information
