"""From plans to the queries with which the model ranks, the way its encoder says."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.bundle.runtime import Model, finite_rows
from stream_app.core.plan import Plan


@dataclass(frozen=True, slots=True)
class Queries:
    """What each of the N clicks of all plans is ranked from, and the hidden states after all of them.

    Attributes:
        query: float32[N, D]; None for a model without an encoder.
        has_state: bool[N] whether the session has had any click that the model knows.
        finite: bool[N] whether that click led to numbers.
        hidden: float16[L, C, H] at the end of each of C chains, those of the first plan first; C is 0 unless recurrent.
        kept: bool[C] whether there is any state at the end of each chain.
        waves: how many ``advance`` calls it took.
    """

    query: NDArray[np.float32] | None
    has_state: NDArray[np.bool_]
    finite: NDArray[np.bool_]
    hidden: NDArray[np.float16]
    kept: NDArray[np.bool_]
    waves: int = 0


def queries(plans: Sequence[Plan], model: Model) -> Queries:
    """Run the model's encoder over all sessions."""
    match model.encoder:
        case "recurrent":
            return _advance(plans, model)
        case "window":
            windows = [window for one in plans for window in one.windows]
            query = _encode(windows, model)
            return _without_rows(query, [bool(window) for window in windows], finite_rows(query))
        case "none":
            has_state = [bool(known) for one in plans for known, _ in one.recents]
            return _without_rows(None, has_state, np.ones(len(has_state), dtype=np.bool_))


def no_queries(plans: Sequence[Plan], model: Model) -> Queries:
    """Those of a model that failed: no click has led to numbers, and no state is kept, so rows are replayed later."""
    clicks, chains = (sum(map(len, each)) for each in zip(*((one.clicks, one.chains) for one in plans), strict=True))
    query = None if model.encoder == "none" else np.zeros((clicks, model.query_size), dtype=np.float32)
    hidden = np.zeros((model.layers, chains, model.hidden_size), dtype=np.float16)
    none = np.zeros(clicks, dtype=np.bool_)
    return Queries(query, none, none, hidden, np.zeros(chains, dtype=np.bool_))


def _without_rows(query: NDArray[np.float32] | None, has_state: Sequence[bool], finite: NDArray[np.bool_]) -> Queries:
    """Of a model that keeps no hidden state."""
    none = np.zeros((0, 0, 0), dtype=np.float16), np.zeros(0, dtype=np.bool_)
    return Queries(query, np.array(has_state, dtype=np.bool_), finite, *none)


def _encode(windows: Sequence[Sequence[int]], model: Model) -> NDArray[np.float32]:
    """float32[N, D] of N sessions' last items; zeros for those of none."""
    length = np.array([len(window) for window in windows], dtype=np.int64)  # [N]
    items = np.full((len(windows), length.max(initial=0)), -1, dtype=np.int64)  # [N, T]
    # A mask takes values in the order of rows.
    items[np.arange(items.shape[1]) < length[:, None]] = [index for window in windows for index in window]
    return model.encode_all(items, length)


def _advance(plans: Sequence[Plan], model: Model) -> Queries:
    """Wave by wave: each wave is one click of every session that still has one."""
    chains = [chain for one in plans for chain in one.chains]
    n_ranked, unmoved, first_click = 0, [], []  # of each chain: the place of its plan's first click
    for one in plans:
        first_click += [n_ranked] * len(one.chains)
        unmoved += [n_ranked + place for place in one.unmoved]
        n_ranked += len(one.clicks)
    # Longest chains first: the chains that are still going are then always a prefix.
    order = sorted(range(len(chains)), key=lambda i: -len(chains[i].steps))
    lengths = np.array([len(chains[i].steps) for i in order], dtype=np.int64)  # [C]
    waves = int(lengths[0]) if order else 0
    steps = np.zeros((waves, len(order)), dtype=np.int64)  # [W, C]
    hidden = model.initial_hidden(len(order))  # [L, C, H]
    # [C, D]; a view of the last layer, unless the graph has a query of its own
    query = np.zeros((len(order), model.query_size), dtype=np.float32) if model.own_query else hidden[-1]
    alive = np.array([chains[i].start is not None for i in order], dtype=np.bool_)  # [C]
    finite = np.ones(len(order), dtype=np.bool_)  # [C] the last step of each
    ranked_query = np.zeros((n_ranked, model.query_size), dtype=np.float32)  # [N, D]
    ranked_alive, ranked_finite = np.ones((2, n_ranked), dtype=np.bool_)  # [N]
    captures: list[tuple[list[int], list[int]]] = [([], []) for _ in range(waves + 1)]
    for position, i in enumerate(order):
        chain = chains[i]
        if chain.start is not None:
            hidden[:, position] = chain.start
        steps[: len(chain.steps), position] = chain.steps
        for done, ranked in chain.ranked_after:
            captures[done][0].append(position)
            captures[done][1].append(first_click[i] + ranked)

    for wave in range(waves + 1):
        positions, ranked_positions = captures[wave]
        if positions:  # before the first wave there are seldom any
            ranked_query[ranked_positions] = query[positions]  # [n, D]
            ranked_alive[ranked_positions] = alive[positions]
            ranked_finite[ranked_positions] = finite[positions]
        if wave < waves:
            active = int(np.searchsorted(-lengths, -wave, side="left"))  # chains longer than `wave`
            hidden[:, :active], of_step, finite[:active] = model.step(steps[wave, :active], hidden[:, :active])
            if model.own_query:
                query[:active] = np.where(finite[:active, None], of_step, query[:active])
            alive[:active] |= finite[:active]

    in_order, kept = np.empty(hidden.shape, dtype=np.float16), np.empty(len(order), dtype=np.bool_)
    in_order[:, order], kept[order] = hidden, alive
    # An unknown item has no step of its own, nor has a click that does not move its session on.
    ranked_finite |= np.fromiter((unknown for one in plans for unknown in one.unknown), dtype=np.bool_)
    if unmoved:
        ranked_finite[unmoved] = True
    if model.own_query:
        ranked_finite &= finite_rows(ranked_query)
    return Queries(ranked_query, ranked_alive, ranked_finite, in_order, kept, waves)
