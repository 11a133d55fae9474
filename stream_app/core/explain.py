"""Why a ranking is as it is: what a model adds up for an item, told by leaving parts out.

A part is a term of the session memory, or one of the session's items. Each is left out in turn and the session ranked
again, by the graphs that rank online: what a part adds is the difference that it makes to the score.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.bundle.runtime import Model
from stream_app.core.ranked import session_inputs
from stream_app.core.session import SessionState


class Part(msgspec.Struct, frozen=True):
    """What a part adds to an item's score, and the item's place without it; None where either lies below the list."""

    adds: float | None
    place_without: int | None


class Explained(msgspec.Struct, frozen=True):
    """An item in a session's ranking.

    Attributes:
        place: from 1; None below the list.
        score: as ranked.
        network: its score without any term of the memory.
        terms: of the memory, by name.
        recent: of the session's items, by id, the most recent first: all that its clicks do, to the network as well.
        clicks: the item's clicks in the training window.
        popularity_place: its place by these.
    """

    item_id: str
    place: int | None
    score: float | None
    network: float | None
    terms: dict[str, Part]
    recent: dict[str, Part]
    clicks: int
    popularity_place: int


class Ranked(msgspec.Struct, frozen=True):
    """A session's ranking: item -> place from 0, and item -> score, of all items listed."""

    place: dict[int, int]
    score: dict[int, float]


def explain(
    row: SessionState,
    whole: Model,
    network: Model,
    without: Mapping[str, Model],
    *,
    items: Sequence[int] | None,
    listed: int,
) -> list[Explained]:
    """Explain the ranking that a row leads to: of these items of the catalogue, or of the best ``listed`` ones.

    ``network`` is the model without any term, ``without`` has it without each of them. A session that the model knows
    nothing of has no such ranking: the answer is empty.
    """
    base = ranked(row, whole)
    if base is None:
        return []
    bare = ranked(row, network)
    fewer = {term: ranked(row, model) for term, model in without.items()}
    left_out: dict[str, Ranked | None] = {}
    for item_id in dict.fromkeys(reversed(row.recent)):
        left_out[item_id] = ranked(_without(row, item_id), whole)
    replayed = ranked(_without(row, None), whole)
    order = np.argsort(-whole.popularity, kind="stable")
    popularity_place = np.empty(len(order), np.int64)
    popularity_place[order] = np.arange(1, len(order) + 1)
    chosen = list(base.place)[:listed] if items is None else items
    return [
        Explained(
            item_id=whole.vocabulary.items[item],
            place=None if item not in base.place else base.place[item] + 1,
            score=base.score.get(item),
            network=None if bare is None else bare.score.get(item),
            terms={term: _part(item, base, other) for term, other in fewer.items()},
            recent={item_id: _part(item, replayed, other) for item_id, other in left_out.items()},
            clicks=int(whole.popularity[item]),
            popularity_place=int(popularity_place[item]),
        )
        for item in chosen
    ]


def ranked(row: SessionState, model: Model) -> Ranked | None:
    """The ranking that a row leads to, one session alone; None where the model knows nothing of the session."""
    index_of = model.vocabulary.index
    known = [item for item_id in row.recent if (item := index_of(item_id)) is not None]
    query: NDArray[np.float32] | None = None
    if model.encoder == "recurrent":
        query = _recurrent(row, known, model)
    elif model.encoder == "window":
        last = [item for item_id in row.recent[-model.window :] if (item := index_of(item_id)) is not None]
        query = model.encode(np.array([last]), np.array([len(last)])) if last else None
    looked_at = [item for item_id in row.recent[-model.recent_size :] if (item := index_of(item_id)) is not None]
    if query is None and (model.encoder != "none" or not looked_at):
        return None
    [index], [score] = model.rank(query, *session_inputs([(looked_at, row.clicks)], model.recent_size))
    places = {item: place for place, item in enumerate(index.tolist())}
    return Ranked(places, dict(zip(index.tolist(), score.tolist(), strict=True)))


def _recurrent(row: SessionState, known: Sequence[int], model: Model) -> NDArray[np.float32] | None:
    """The query [1, D] of the row's own state, or by replay where it has none of this model's, as a worker does."""
    if row.hidden is not None and row.model_version == model.states_of and not model.own_query:
        return row.hidden[-1:].astype(np.float32)
    if not known:
        return None
    hidden = model.initial_hidden(1)
    query = np.zeros((1, model.query_size), np.float32)
    for item in known:
        hidden, query, _ = model.step(np.array([item]), hidden)
    return query


def _without(row: SessionState, item_id: str | None) -> SessionState:
    """The session as if it had never clicked an item; it has no state, so it is replayed."""
    recent = tuple(one for one in row.recent if one != item_id)
    clicks = row.clicks - (len(row.recent) - len(recent))
    return SessionState("", row.offset, row.last_click, clicks, recent, None)


def _part(item: int, base: Ranked | None, other: Ranked | None) -> Part:
    if base is None or other is None:
        return Part(None, None)
    before, after = base.score.get(item), other.score.get(item)
    place = other.place.get(item)
    return Part(None if before is None or after is None else before - after, None if place is None else place + 1)
