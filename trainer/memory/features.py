"""What the session memory's terms look at, for the fit of their weights (:mod:`trainer.memory.fit`).

Shapes: P predictions, N touched pairs of a prediction and an item, F weights; others as in trainer.memory.terms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from numpy.polynomial import chebyshev
from scipy import sparse
from torch import Tensor

from trainer.data.lanes import follow
from trainer.data.sessions import SessionSet
from trainer.data.targets import target_weights, targets
from trainer.memory.tables import ItemTable
from trainer.memory.terms import PLACES, SCALES, place_of, table_rows
from trainer.models.base import SessionModel

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PREDICTIONS: Final = 8_192
"""Newest predictions that the weights are fitted to: two dozen numbers need no more."""
GROUPS: Final[Mapping[str, tuple[int, ...]]] = {"cooccurrence": (0, 1, 2, 2, 3, 3, 3, 3), "transitions": (0,)}
"""Places of a table's term that share their weights while these are fitted."""
_CHUNK, _SCORES = 512, 2**24  # predictions and scores of theirs that are held at once, at most
_NOTHING = -1e4  # ln of a sum over no items, as good as minus infinity and no trouble to interpolate
_NODES = 9  # values of α at which the untouched items' sum is computed
_SPAN = (0.3, 2.0)  # of the network's own best α, between which α is sought


@dataclass(frozen=True)
class Predictions:
    """The clicks to predict, and what is known before them."""

    query: Tensor  # [P, D]
    recent: Tensor  # int64[P, R]
    counts: Tensor  # [P, R]
    clicks: Tensor  # [P]
    targets: Tensor  # int64[P]
    weights: Tensor | None = None  # [P], what each counts; None for all alike

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def of(
        cls,
        network: SessionModel,
        sessions: SessionSet,
        recent_size: int,
        *,
        most: int = PREDICTIONS,
        weight_of_type: Mapping[str, float] = MappingProxyType({}),
    ) -> "Predictions":
        """Of the newest sessions that make ``most`` predictions together, in the network's vocabulary.

        A click that weighs nothing as a target is no prediction: the newest may all be such.
        """
        weights = target_weights(sessions, weight_of_type)
        counts = targets(sessions) if weights is None else targets(sessions) & (weights > 0)  # bool[clicks]
        of_session = np.add.reduceat(counts.astype(np.int64), sessions.offsets[:-1])
        from_newest = np.cumsum(of_session[::-1])[::-1]
        newest = int(from_newest[of_session > 0].min())  # it may be longer than that
        chosen = (of_session > 0) & (from_newest <= max(most, newest))
        counts, sessions = counts[np.repeat(chosen, sessions.lengths)], sessions.select(chosen)
        weights = target_weights(sessions, weight_of_type)
        state: object = None
        parts: list[tuple[Tensor, ...]] = []
        for lanes in follow(sessions):
            state = network.advance(state if parts else network.start(len(lanes.position)), lanes)
            target = lanes.position + 1
            view = map(torch.from_numpy, lanes.recent(recent_size))
            columns = [network.queries(state, lanes), *view, torch.from_numpy(sessions.items[target])]
            if weights is not None:
                columns.append(torch.from_numpy(weights[target]))
            kept = torch.from_numpy(counts[target])
            parts.append(tuple(column[kept] for column in columns))
        found = cls(*(torch.cat(part) for part in zip(*parts, strict=True)))
        if found.weights is None or len(found) == sessions.transitions:
            return found
        return replace(found, weights=found.weights / found.weights.mean())  # of those that are left, 1 on average

    def chunk(self, first: int, size: int) -> "Predictions":
        part = slice(first, first + size)
        return Predictions(
            self.query[part], self.recent[part], self.counts[part], self.clicks[part], self.targets[part]
        )


@dataclass(frozen=True)
class Touched:
    """φ and z of the items that the terms touch, and the sum over all others.

    features  f32[N, F] sparse  pairs in the order of their predictions
    of        int64[N]          the prediction of each pair
    z         float64[N]
    target_z  float64[P]
    target    int64[P]          the target's pair, -1 where no term touches it
    rest      float64[9, P]     Chebyshev coefficients in α of ln Σ exp(α z) over the items not touched
    span      (least, greatest) α
    weight    float64[P]        what each prediction counts, 1 on average; 1 for all alike
    """

    features: "sparse.csr_array"
    of: Ints
    z: Floats
    target_z: Floats
    target: Ints
    rest: Floats
    span: tuple[float, float]
    weight: Floats | float = 1.0


def touch(
    network: SessionModel,
    predictions: Predictions,
    tables: Mapping[str, ItemTable],
    *,
    repeat: bool,
    tick: Callable[[], None] = lambda: None,
) -> Touched:
    """Score the catalogue for every prediction, and keep what the fit needs of it. ``tick`` is called now and then."""
    span = _span(network, predictions)
    nodes = to_alpha(chebyshev.chebpts1(_NODES), span)
    features, of, z, target_z, target, rest = [], [], [], [], [], []
    pairs = 0
    size = chunk_size(network.items)
    for first in range(0, len(predictions), size):
        tick()
        part = predictions.chunk(first, size)
        z_all = network.scores(part.query)  # [C, I]
        row, item, phi = _features(part, z_all, tables, repeat=repeat)
        features.append(phi)
        of.append(row + first)
        z.append(z_all[row, item])
        target_z.append(z_all.gather(1, part.targets[:, None]).squeeze(1))
        key, wanted = row * z_all.shape[1] + item, np.arange(len(part)) * z_all.shape[1] + part.targets.numpy()
        at = np.searchsorted(key, wanted)
        found = (at < len(key)) & (key[np.minimum(at, len(key) - 1)] == wanted) if len(key) else at < 0
        target.append(np.where(found, at + pairs, -1))
        pairs += len(row)
        z_all[row, item] = -torch.inf
        of_rest = torch.stack([torch.logsumexp(alpha * z_all, dim=1) for alpha in nodes.tolist()])  # [9, C]
        rest.append(of_rest.clamp(min=_NOTHING))
    return Touched(
        features=sparse.csr_array(sparse.vstack(features)),
        of=np.concatenate(of),
        z=torch.cat(z).double().numpy(),
        target_z=torch.cat(target_z).double().numpy(),
        target=np.concatenate(target),
        rest=chebyshev.chebfit(chebyshev.chebpts1(_NODES), torch.cat(rest, dim=1).double().numpy(), _NODES - 1),
        span=span,
        weight=1.0 if predictions.weights is None else predictions.weights.double().numpy(),
    )


def chunk_size(items: int) -> int:
    """Predictions to score at once."""
    return max(1, min(_CHUNK, _SCORES // items))


def _features(
    part: Predictions, z: Tensor, tables: Mapping[str, ItemTable], *, repeat: bool
) -> tuple[Ints, Ints, "sparse.csr_array"]:
    """The touched pairs in order, and what the terms look at: row int64[N], item int64[N], f32[N, F].

    The same quantities as trainer.memory.terms weighs, here one by one; a test holds the two together.
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
        groups = torch.tensor(GROUPS[name])
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


def _span(network: SessionModel, predictions: Predictions) -> tuple[float, float]:
    """The least and the greatest α to consider: around the best one for the network alone."""
    from scipy.optimize import minimize_scalar

    some = predictions.chunk(0, chunk_size(network.items))
    z = network.scores(some.query)
    target = z.gather(1, some.targets[:, None]).squeeze(1)  # [C]

    def loss(log_alpha: float) -> float:
        alpha = float(np.exp(log_alpha))
        return float((torch.logsumexp(alpha * z, dim=1) - alpha * target).mean())

    best = float(np.exp(minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded", options={"xatol": 0.01}).x))
    return _SPAN[0] * best, _SPAN[1] * best


def to_alpha(at: Floats, span: tuple[float, float]) -> Floats:
    """From [-1, 1], where Chebyshev's polynomials live."""
    alpha: Floats = span[0] + (at + 1) / 2 * (span[1] - span[0])
    return alpha


def from_alpha(alpha: float, span: tuple[float, float]) -> float:
    return (alpha - span[0]) / (span[1] - span[0]) * 2 - 1
