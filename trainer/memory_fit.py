"""The weights of the session memory, by maximum likelihood on sessions that network and tables have not seen.

With z the network's scores, φ_i what the terms look at of an item (one number a weight) and θ the weights,

    p(i) = exp(α z_i + θ·φ_i) / Σ_j exp(α z_j + θ·φ_j)      maximise the mean of ln p(target) - λ |θ|²

over α and θ; the model then adds θ·φ / α to z. α is there because on new sessions a network is surer of itself than it
should be, and because the scores of other losses than cross-entropy are no log-probabilities at all.

This is convex, and φ is 0 but for the few hundred items of a session that a term touches. All others enter by
ln Σ exp(α z_j) alone, a smooth function of α, computed once at a few α and interpolated between them. So the catalogue
is scored once, however many iterations follow.

Shapes: P predictions, N touched pairs of a prediction and an item, F weights; others as in trainer.session_memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from numpy.polynomial import chebyshev
from scipy import sparse
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from trainer import gru4rec
from trainer.evaluate import GruScorer, follow
from trainer.gru4rec import Weights
from trainer.memory_tables import ItemTable
from trainer.session_memory import PLACES, SCALES, RepeatTerm, SessionMemory, TableTerm, place_of, table_rows
from trainer.sessions import SessionSet

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PREDICTIONS: Final = 16_384
"""Newest predictions that the weights are fitted to: two dozen numbers need no more."""
RIDGE: Final = 1.0
"""λ times the predictions, for weights in units in which each φ has a mean square of 1 over the touched items."""
_GROUPS: Final[Mapping[str, tuple[int, ...]]] = {"cooccurrence": (0, 1, 2, 2, 3, 3, 3, 3), "transitions": (0,)}
"""Places of a table's term that share their weights while these are fitted."""
_CHUNK, _SCORES = 512, 2**24  # predictions and scores of theirs that are held at once, at most
_NOTHING = -1e4  # ln of a sum over no items, as good as minus infinity and no trouble to interpolate
_NODES = 7  # values of α at which the untouched items' sum is computed
_SPAN = (0.35, 1.5)  # of the network's own best α, between which α is sought


@dataclass(frozen=True)
class Predictions:
    """The clicks to predict, and what is known before them."""

    hidden: Tensor  # [P, H] of the last layer
    recent: Tensor  # int64[P, R]
    counts: Tensor  # [P, R]
    clicks: Tensor  # [P]
    targets: Tensor  # int64[P]

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def of(cls, weights: Weights, sessions: SessionSet, recent_size: int, *, most: int = PREDICTIONS) -> "Predictions":
        """Of the newest sessions that make ``most`` predictions together, in the network's vocabulary."""
        from_newest = np.cumsum((sessions.lengths - 1)[::-1])[::-1]
        sessions = sessions.select(from_newest <= max(most, int(from_newest[-1])))
        scorer = GruScorer(weights)
        state: object = None
        parts = []
        for lanes in follow(sessions):
            state = scorer.advance(scorer.start(len(lanes.position)) if state is None else state, lanes)
            assert isinstance(state, Tensor)
            view = map(torch.from_numpy, lanes.recent(recent_size))
            parts.append((state[-1], *view, torch.from_numpy(sessions.items[lanes.position + 1])))
        return cls(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def chunk(self, first: int, size: int) -> "Predictions":
        part = slice(first, first + size)
        return Predictions(
            self.hidden[part], self.recent[part], self.counts[part], self.clicks[part], self.targets[part]
        )


@dataclass(frozen=True)
class Touched:
    """φ and z of the items that the terms touch, and the sum over all others.

    features  f32[N, F] sparse  pairs in the order of their predictions
    of        int64[N]          the prediction of each pair
    z         float64[N]
    target_z  float64[P]
    target    int64[P]          the target's pair, -1 where no term touches it
    rest      float64[7, P]     Chebyshev coefficients in α of ln Σ exp(α z) over the items not touched
    span      (least, greatest) α
    """

    features: "sparse.csr_array"
    of: Ints
    z: Floats
    target_z: Floats
    target: Ints
    rest: Floats
    span: tuple[float, float]


def fit_memory(
    weights: Weights, sessions: SessionSet, tables: Mapping[str, ItemTable], *, repeat: bool, recent_size: int
) -> SessionMemory:
    """Terms for a network, learned from sessions in its vocabulary that neither it nor the tables have seen.

    ``tables`` by the name of their term. They may be replaced afterwards, by :func:`with_tables`.
    """
    predictions = Predictions.of(weights, sessions, recent_size)
    with torch.inference_mode():
        touched = touch(weights, predictions, tables, repeat=repeat)
    alpha, theta = maximise(touched)
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
        groups = torch.tensor(_GROUPS[name])
        size = (int(groups.max()) + 1) * len(SCALES)
        terms[name] = TableTerm(table, rest[:size].reshape(-1, len(SCALES))[groups])  # [D, S]
        rest = rest[size:]
    return SessionMemory(term, terms.get("cooccurrence"), terms.get("transitions"))


def touch(weights: Weights, predictions: Predictions, tables: Mapping[str, ItemTable], *, repeat: bool) -> Touched:
    """Score the catalogue for every prediction, and keep what the fit needs of it."""
    span = _span(weights, predictions)
    nodes = _to_alpha(chebyshev.chebpts1(_NODES), span)
    features, of, z, target_z, target, rest = [], [], [], [], [], []
    pairs = 0
    size = chunk_size(weights.items)
    for first in range(0, len(predictions), size):
        part = predictions.chunk(first, size)
        scores = gru4rec.scores(weights, part.hidden)  # [C, I]
        row, item, phi = _features(part, scores, tables, repeat=repeat)
        features.append(phi)
        of.append(row + first)
        z.append(scores[row, item])
        target_z.append(scores.gather(1, part.targets[:, None]).squeeze(1))
        key, wanted = row * weights.items + item, np.arange(len(part)) * weights.items + part.targets.numpy()
        at = np.searchsorted(key, wanted)
        found = (at < len(key)) & (key[np.minimum(at, len(key) - 1)] == wanted) if len(key) else at < 0
        target.append(np.where(found, at + pairs, -1))
        pairs += len(row)
        scores[row, item] = -torch.inf
        of_rest = torch.stack([torch.logsumexp(alpha * scores, dim=1) for alpha in nodes.tolist()])  # [7, C]
        rest.append(of_rest.clamp(min=_NOTHING))
    return Touched(
        features=sparse.csr_array(sparse.vstack(features)),
        of=np.concatenate(of),
        z=torch.cat(z).double().numpy(),
        target_z=torch.cat(target_z).double().numpy(),
        target=np.concatenate(target),
        rest=chebyshev.chebfit(chebyshev.chebpts1(_NODES), torch.cat(rest, dim=1).double().numpy(), _NODES - 1),
        span=span,
    )


def chunk_size(items: int) -> int:
    """Predictions to score at once."""
    return max(1, min(_CHUNK, _SCORES // items))


def maximise(touched: Touched) -> tuple[float, Floats]:
    """α and θ float64[F]. Convex, so where it starts does not matter."""
    objective = objective_of(touched)
    start = np.concatenate([[sum(touched.span) / 2], np.zeros(touched.features.shape[1])])
    bounds = [touched.span, *[(None, None)] * (len(start) - 1)]
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    scale = scale_of(touched.features)
    return float(found.x[0]), found.x[1:] / scale


def objective_of(touched: Touched) -> Callable[[Floats], tuple[float, Floats]]:
    """Loss and gradient at (α, θ scaled as RIDGE wants them): float64[1 + F] -> (number, float64[1 + F])."""
    count = len(touched.target_z)
    ridge = RIDGE / count
    phi = sparse.csr_array(touched.features @ sparse.diags_array(1 / scale_of(touched.features)))  # [N, F]
    hit = touched.target >= 0  # [P]
    phi_of_targets = np.asarray(phi[touched.target[hit]].sum(axis=0)).ravel()  # [F]
    by_feature = sparse.csr_array(phi.T)
    slope_of_rest = chebyshev.chebder(touched.rest)

    def objective(x: Floats) -> tuple[float, Floats]:
        alpha, theta = float(x[0]), x[1:]
        at = _from_alpha(alpha, touched.span)
        rest = chebyshev.chebval(at, touched.rest)  # [P]
        d_rest = chebyshev.chebval(at, slope_of_rest) * 2 / (touched.span[1] - touched.span[0])  # [P]
        score = alpha * touched.z + phi @ theta  # [N]
        top: Floats = np.array(rest)
        np.maximum.at(top, touched.of, score)
        of_rest, of_touched = np.exp(rest - top), np.exp(score - top[touched.of])
        total = of_rest + np.bincount(touched.of, of_touched, minlength=count)  # [P]
        p = of_touched / total[touched.of]  # [N]
        of_target = alpha * touched.target_z  # [P]
        of_target[hit] = score[touched.target[hit]]
        loss = (np.log(total) + top - of_target).mean() + ridge * (theta @ theta)
        d_alpha = of_rest / total * d_rest + np.bincount(touched.of, p * touched.z, minlength=count) - touched.target_z
        d_theta = (by_feature @ p - phi_of_targets) / count + 2 * ridge * theta
        return float(loss), np.concatenate([[d_alpha.mean()], d_theta])

    return objective


def _features(
    part: Predictions, z: Tensor, tables: Mapping[str, ItemTable], *, repeat: bool
) -> tuple[Ints, Ints, "sparse.csr_array"]:
    """The touched pairs in order, and what the terms look at: row int64[N], item int64[N], f32[N, F].

    The same quantities as trainer.session_memory weighs, here one by one; a test holds the two together.
    """
    rows, items, columns, values = [], [], [], []
    width = 0

    def add(row: Tensor, item: Tensor, column: Tensor | int, value: Tensor) -> None:
        rows.append(row)
        items.append(item)
        columns.append(torch.as_tensor(column).expand_as(row))
        values.append(value)

    if repeat:
        row, place = torch.nonzero(part.recent >= 0, as_tuple=True)
        item = part.recent[row, place]
        add(row, item, place_of(part.recent.shape[1])[place], torch.ones(len(row)))
        add(row, item, PLACES, part.counts[row, place].log())
        add(row, item, PLACES + 1, z[row, item] - z.max(dim=1).values[row])
        add(row, item, PLACES + 2, part.clicks[row].log())
        width = PLACES + 3
    for name, table in tables.items():
        groups = torch.tensor(_GROUPS[name])
        index, count = table_rows(table, part.recent[:, : len(groups)])  # [C, D, M]
        row, place, entry = torch.nonzero(index >= 0, as_tuple=True)
        item, seen = index[row, place, entry], count[row, place, entry]
        for s, scale in enumerate(SCALES):
            add(row, item, width + groups[place] * len(SCALES) + s, torch.log1p(seen / scale))
        width += (int(groups.max()) + 1) * len(SCALES)
    pairs, pair = np.unique((torch.cat(rows) * z.shape[1] + torch.cat(items)).numpy(), return_inverse=True)
    at = sparse.coo_array((torch.cat(values).numpy(), (pair, torch.cat(columns).numpy())), shape=(len(pairs), width))
    phi = sparse.csr_array(at)
    return pairs // z.shape[1], pairs % z.shape[1], phi


def scale_of(features: "sparse.csr_array") -> Floats:
    """The root mean square of each φ over the touched pairs, 1 where it is 0 throughout: float64[F]."""
    square = np.asarray(features.multiply(features).mean(axis=0)).ravel().astype(np.float64)
    return np.sqrt(np.where(square > 0, square, 1.0))


def _span(weights: Weights, predictions: Predictions) -> tuple[float, float]:
    """The least and the greatest α to consider: around the best one for the network alone."""
    some = predictions.chunk(0, chunk_size(weights.items))
    z = gru4rec.scores(weights, some.hidden)
    target = z.gather(1, some.targets[:, None]).squeeze(1)  # [C]

    def loss(log_alpha: float) -> float:
        alpha = float(np.exp(log_alpha))
        return float((torch.logsumexp(alpha * z, dim=1) - alpha * target).mean())

    best = float(np.exp(minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded", options={"xatol": 0.01}).x))
    return _SPAN[0] * best, _SPAN[1] * best


def _to_alpha(at: Floats, span: tuple[float, float]) -> Floats:
    """From [-1, 1], where Chebyshev's polynomials live."""
    alpha: Floats = span[0] + (at + 1) / 2 * (span[1] - span[0])
    return alpha


def _from_alpha(alpha: float, span: tuple[float, float]) -> float:
    return (alpha - span[0]) / (span[1] - span[0]) * 2 - 1
