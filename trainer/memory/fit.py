"""The weights of the session memory, by their likelihood on sessions that network and tables have not seen.

With z the network's scores, φ_i what the terms look at of an item (one number a weight) and θ the weights,

    p(i) = exp(α z_i + θ·φ_i) / Σ_j exp(α z_j + θ·φ_j)

over α and θ; the model then adds θ·φ / α to z. α is there because on new sessions a network is surer of itself than it
should be, and because the scores of other losses than cross-entropy are no log-probabilities at all.

First the mean of ln p(target) - λ |θ|² is maximised, which is convex, and from there that of (p(target)^q - 1) / q with
q = 1/4, of which ln p is the limit for q = 0 (maximum Lq-likelihood; Ferrari and Yang 2010). In its gradient a
prediction counts p^q times: less where no weights could bring the target to the top, which is what the logarithm is
most concerned with and what no ranking's reader ever sees.

φ is 0 but for the few hundred items of a session that a term touches. All others enter by ln Σ exp(α z_j) alone, a
smooth function of α, computed once at a few α and interpolated between them. So the catalogue is scored once, however
many iterations follow.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from numpy.polynomial import chebyshev
from scipy import sparse

from trainer.data.sessions import SessionSet
from trainer.memory.features import GROUPS, Floats, Predictions, Touched, from_alpha, touch
from trainer.memory.tables import ItemTable
from trainer.memory.terms import PLACES, SCALES, RepeatTerm, SessionMemory, TableTerm
from trainer.models.base import SessionModel

Objective = Callable[[Floats], tuple[float, Floats]]
"""Loss and gradient."""

POWER: Final = 0.25
"""q. On three validation parts, 1/4 had the MRR of 0 plus .001 to .006, Recall -.0015 to +.001; 1/2 cost more."""
_ROUGH, _FINE = 1e-5, 1e-8  # relative changes of the loss at which it is good enough: as a start, and to stay
RIDGE: Final = 1.0
"""λ times the predictions, for weights in units in which each φ has a mean square of 1 over the touched items."""


def fit_memory(
    network: SessionModel,
    sessions: SessionSet,
    tables: Mapping[str, ItemTable],
    *,
    repeat: bool,
    recent_size: int,
    weight_of_type: Mapping[str, float] = MappingProxyType({}),
    tick: Callable[[], None] = lambda: None,
) -> SessionMemory:
    """Terms for a network, learned from sessions in its vocabulary that neither it nor the tables have seen.

    ``weight_of_type``: what a prediction counts by the type of its click, 1 where it is not named. ``tables`` by the
    name of their term. They may be replaced afterwards, by :func:`with_tables`. ``tick`` is called
    all the while, about once a second; what it raises ends the fit.
    """
    predictions = Predictions.of(network, sessions, recent_size, weight_of_type=weight_of_type)
    with torch.inference_mode():
        touched = touch(network, predictions, tables, repeat=repeat, tick=tick)
    alpha, theta = maximise(touched, tick)
    return memory_of(theta / alpha, tables, repeat=repeat)


def memory_of(theta: Floats, tables: Mapping[str, ItemTable], *, repeat: bool) -> SessionMemory:
    """The F weights, in the order of the features, as terms."""
    rest = torch.from_numpy(theta.astype(np.float32))
    term = None
    if repeat:
        own, rest = rest[: PLACES + 3], rest[PLACES + 3 :]
        term = RepeatTerm(place=own[:PLACES], count=own[PLACES], score=own[PLACES + 1], length=own[PLACES + 2])
    terms = {}
    for name, table in tables.items():
        groups = torch.tensor(GROUPS[name])
        size = (int(groups.max()) + 1) * len(SCALES)
        terms[name] = TableTerm(table, rest[:size].reshape(-1, len(SCALES))[groups])  # [D, S]
        rest = rest[size:]
    return SessionMemory(term, terms.get("cooccurrence"), terms.get("transitions"))


def maximise(touched: Touched, tick: Callable[[], None] = lambda: None) -> tuple[float, Floats]:
    """α and θ float64[F]. ``tick`` is called for each look at the loss."""
    from scipy.optimize import minimize  # here: it takes a tenth of the time that a command needs to start

    x = np.concatenate([[sum(touched.span) / 2], np.zeros(touched.features.shape[1])])
    bounds = [touched.span, *[(None, None)] * (len(x) - 1)]
    for power, tolerance in ((0.0, _ROUGH), (POWER, _FINE)):
        objective = objective_of(touched, power)

        def watched(at: Floats, objective: Objective = objective) -> tuple[float, Floats]:
            tick()
            return objective(at)

        x = minimize(watched, x, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": tolerance}).x
    return float(x[0]), x[1:] / scale_of(touched.features)


def objective_of(touched: Touched, power: float) -> Objective:
    """Loss and gradient at (α, θ scaled as RIDGE wants them): float64[1 + F] -> (number, float64[1 + F]).

    The loss is the mean of (1 - p(target)^power) / power, with power 0 that of -ln p(target), of each prediction times
    its weight, and the ridge.
    """
    count = len(touched.target_z)
    ridge = RIDGE / count
    phi = sparse.csr_array(touched.features.astype(np.float64) @ sparse.diags_array(1 / scale_of(touched.features)))
    hit = touched.target >= 0  # [P]
    of_hit = sparse.csr_array(phi[touched.target[hit]].T)  # [F, hits]
    by_feature = sparse.csr_array(phi.T)
    slope_of_rest = chebyshev.chebder(touched.rest)
    first = np.flatnonzero(np.diff(touched.of, prepend=-1))  # the first pair of each prediction that has any

    def objective(x: Floats) -> tuple[float, Floats]:
        alpha, theta = float(x[0]), x[1:]
        at = from_alpha(alpha, touched.span)
        rest = chebyshev.chebval(at, touched.rest)  # [P]
        d_rest = chebyshev.chebval(at, slope_of_rest) * 2 / (touched.span[1] - touched.span[0])  # [P]
        score = alpha * touched.z + phi @ theta  # [N]
        top: Floats = np.array(rest)
        if len(first):
            some = touched.of[first]
            top[some] = np.maximum(top[some], np.maximum.reduceat(score, first))
        of_rest, of_touched = np.exp(rest - top), np.exp(score - top[touched.of])
        total = of_rest + np.bincount(touched.of, of_touched, minlength=count)  # [P]
        p = of_touched / total[touched.of]  # [N]
        of_target = alpha * touched.target_z  # [P]
        of_target[hit] = score[touched.target[hit]]
        log_p = of_target - np.log(total) - top  # [P], of the targets
        gain = np.exp(power * log_p)  # [P]
        loss = (touched.weight * ((1 - gain) / power if power else -log_p)).mean() + ridge * (theta @ theta)
        weight = touched.weight * gain  # [P]
        d_alpha = of_rest / total * d_rest + np.bincount(touched.of, p * touched.z, minlength=count) - touched.target_z
        d_theta = by_feature @ (p * weight[touched.of]) - of_hit @ weight[hit]
        return float(loss), np.concatenate([[(weight * d_alpha).mean()], d_theta / count + 2 * ridge * theta])

    return objective


def scale_of(features: "sparse.csr_array") -> Floats:
    """The root mean square of each φ over the touched pairs, 1 where it is 0 throughout: float64[F]."""
    square = np.asarray(features.multiply(features).mean(axis=0)).ravel().astype(np.float64)
    return np.sqrt(np.where(square > 0, square, 1.0))
