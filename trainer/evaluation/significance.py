"""How sure a difference between models is: bootstrap intervals and paired tests, both over whole sessions.

Predictions within a session hang together, so sessions are drawn, not predictions: intervals over predictions would be
too narrow. All models are judged on the same draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from trainer.data.sessions import Ints, SessionSet
from trainer.evaluation.protocol import DEFAULT_KS, Floats, Metrics, of_last_clicks, predictions_by_type

LEVEL: Final = 0.95
RESAMPLES: Final = 2000


@dataclass(frozen=True)
class Interval:
    """Between ``low`` and ``high`` with the probability :data:`LEVEL`."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A model's value minus the reference model's.

    ``error`` is its paired standard error. ``p``: how often a difference as large comes from exchanging the two
    models within sessions at random, two-sided; ``p_adjusted``: the same after Holm's correction for the number of
    models that are compared.
    """

    value: float
    interval: Interval
    error: float
    p: float
    p_adjusted: float


@dataclass(frozen=True)
class Judgement:
    """One model: its metrics, and at one k, by ``recall@k`` and ``mrr@k``, intervals and differences.

    ``against_first`` is empty for the first model, the reference.
    """

    name: str
    metrics: Metrics
    intervals: dict[str, Interval]
    against_first: dict[str, Difference]


def judge(
    ranks: Mapping[str, Floats],
    sessions: SessionSet,
    *,
    ks: Sequence[int] = DEFAULT_KS,
    k: int | None = None,
    last_clicks: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 42,
) -> tuple[Judgement, ...]:
    """Judge models by the ranks of the same predictions (of ``ranks_of``), float64[predictions] each.

    With ``last_clicks`` these are one a session, those of :func:`trainer.evaluation.protocol.of_last_clicks`.

    The reference is the first one; intervals and differences are at ``k``, the greatest of ``ks`` by default. Raises
    ValueError when there are no predictions, or not as many as the sessions have.
    """
    names, k = list(ranks), max(ks) if k is None else k
    of_type = predictions_by_type(sessions)
    if last_clicks:
        last = of_last_clicks(sessions)
        of_type = {name: mask[last] for name, mask in of_type.items() if mask[last].any()}
    metrics = [Metrics.of_ranks(of, ks, of_type) for of in ranks.values()]
    of_session = np.repeat(np.arange(len(sessions)), np.maximum(sessions.lengths - 1, 0))
    if last_clicks:
        of_session = of_session[last]
    if any(len(of) != len(of_session) for of in ranks.values()):
        raise ValueError(f"these sessions have {len(of_session)} predictions; each model needs a rank for each")
    # Of each session s: its predictions, then hits and reciprocal ranks summed, model by model.
    size = np.bincount(of_session, minlength=len(sessions)).astype(np.float64)  # [s]
    sums = np.stack([_by_session(of, of_session, len(sessions), k) for of in ranks.values()])  # [models, 2, s]
    rng = np.random.default_rng(seed)
    drawn = _bootstrap(sums, size, rng, resamples)  # [resamples, models, 2]
    differences = sums[1:] - sums[:1]
    p = _exchange(differences, rng, resamples)  # [models - 1, 2]
    adjusted = np.stack([_holm(p[:, measure]) for measure in range(2)], axis=1)
    measures = (f"recall@{k}", f"mrr@{k}")
    found = []
    for m, name in enumerate(names):
        against = {}
        if m:
            paired = drawn[:, m] - drawn[:, 0]  # [resamples, 2]
            value = differences[m - 1].sum(axis=1) / size.sum()
            for i, measure in enumerate(measures):
                against[measure] = Difference(
                    float(value[i]),
                    _interval(paired[:, i]),
                    float(paired[:, i].std(ddof=1)),
                    float(p[m - 1, i]),
                    float(adjusted[m - 1, i]),
                )
        intervals = {measure: _interval(drawn[:, m, i]) for i, measure in enumerate(measures)}
        found.append(Judgement(name, metrics[m], intervals, against))
    return tuple(found)


def _by_session(ranks: Floats, of_session: Ints, sessions: int, k: int) -> Floats:
    """Hits and reciprocal ranks of each session, summed: float64[2, s]."""
    hit = ranks <= k
    values = (hit.astype(np.float64), np.where(hit, 1.0 / ranks, 0.0))
    return np.stack([np.bincount(of_session, weights=of, minlength=sessions) for of in values])


def _bootstrap(sums: Floats, size: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """Metrics of as many sessions, drawn with replacement: sums [models, 2, s], size [s] -> [resamples, models, 2]."""
    sessions = len(size)
    drawn = np.empty((resamples, *sums.shape[:2]))
    for i in range(resamples):
        times = np.bincount(rng.integers(sessions, size=sessions), minlength=sessions).astype(np.float64)
        # A mean over predictions, as the metrics are: sessions weigh as many as they have.
        drawn[i] = (sums @ times) / (size @ times)
    return drawn


def _exchange(differences: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """Two-sided p of the randomisation test that swaps the models within sessions: [pairs, 2, s] -> [pairs, 2]."""
    observed = np.abs(differences.sum(axis=2))
    as_large = np.ones_like(observed)  # what was observed is one of the possible exchanges
    for _ in range(resamples):
        signs = rng.integers(2, size=differences.shape[2]) * 2.0 - 1.0
        as_large += np.abs(differences @ signs) >= observed - 1e-9  # equal sums differ by rounding
    p: Floats = as_large / (resamples + 1)
    return p


def _holm(p: Floats) -> Floats:
    """Holm's step-down adjustment (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))), 1.0)
    return adjusted


def _interval(drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
