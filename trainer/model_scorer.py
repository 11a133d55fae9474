"""A model bundle under evaluation: what is scored is what would be served."""

from dataclasses import dataclass

import numpy as np

from schemas.bundle import Model
from schemas.model import Floats as Float32s
from trainer.evaluate import Floats, Ints, Lanes, Ties, ranks_in_top
from trainer.sessions import SessionSet


@dataclass(frozen=True)
class _State:
    hidden: Float32s  # [L, n, H]
    known: Ints  # [n] clicks so far on items of the model


class ModelScorer:
    """An opened bundle as a scorer of sessions in any vocabulary.

    As in the worker, a click on an item that the model does not know changes nothing, and before the first known click
    the most popular items are the ranking. A target that it does not know is a miss. So models of different
    vocabularies are compared on the same predictions. Only lists of the best ``model.k`` exist: metrics need k < that.
    """

    def __init__(self, model: Model, sessions: SessionSet) -> None:
        self._model = model
        self._index = model.vocabulary.encode(sessions.item_ids)  # the model's index of each item, -1 unknown

    @property
    def name(self) -> str:
        return self._model.version

    @property
    def depth(self) -> int:
        return self._model.k

    def start(self, lanes: int) -> _State:
        return _State(self._model.initial_hidden(lanes), np.zeros(lanes, np.int64))

    def advance(self, state: object, lanes: Lanes) -> _State:
        assert isinstance(state, _State)
        n = len(lanes.position)
        carried = ~lanes.fresh
        hidden = state.hidden[:, :n] * carried[:, None].astype(np.float32)
        items = self._index[lanes.items]
        known = items >= 0
        if known.all():
            hidden = self._model.advance(items, hidden)
        elif known.any():
            hidden[:, known] = self._model.advance(items[known], np.ascontiguousarray(hidden[:, known]))
        return _State(hidden, state.known[:n] * carried + known)

    def ranks(self, state: object, lanes: Lanes, targets: Ints, ties: Ties) -> Floats:
        assert isinstance(state, _State)
        memory = lanes.recent(self._model.recent_size, self._index)
        index, score = self._model.rank(np.ascontiguousarray(state.hidden[-1]), *memory)
        nothing = state.known == 0
        if nothing.any():
            index, score = index.copy(), score.copy()
            index[nothing], score[nothing] = self._model.popular
        wanted = self._index[targets]
        # -2 is in no list; -1 might be mistaken for padding.
        return ranks_in_top(index, score, np.where(wanted < 0, -2, wanted), ties, self.name)
