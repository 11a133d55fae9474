"""A model bundle under evaluation: what is scored is what would be served."""

from dataclasses import dataclass

import numpy as np

from schemas.bundle.files import Model
from schemas.bundle.runtime import Floats as Float32s
from schemas.bundle.runtime import Truths, finite_rows
from trainer.data.lanes import Lanes
from trainer.data.sessions import Ints, SessionSet
from trainer.evaluation.protocol import Floats, Ties, ranks_in_top


@dataclass(frozen=True)
class _State:
    hidden: Float32s  # [L, n, H]
    alive: Truths  # [n] whether any click so far gave a state
    answered: Truths  # [n] whether the last click did; true for one on an unknown item, which asks for none


class ModelScorer:
    """An opened bundle as a scorer of sessions in any vocabulary, which answers as the worker does.

    A click on an item that the model does not know changes nothing, and before the first state the most popular items
    are the ranking; so they are where the model's numbers are not finite, which ``not_finite`` counts. A target that it
    does not know is a miss. So models of different vocabularies are compared on the same predictions. Only lists of
    the best ``model.k`` exist: metrics need k < that.
    """

    def __init__(self, model: Model, sessions: SessionSet) -> None:
        self._model = model
        self._index = model.vocabulary.encode(sessions.item_ids)  # the model's index of each item, -1 unknown
        self.not_finite = 0

    @property
    def name(self) -> str:
        return self._model.version

    @property
    def depth(self) -> int:
        # Behind a list of the model's whole catalogue nothing could tie.
        return self._model.k if self._model.k < len(self._model.vocabulary) else max(self._model.k, len(self._index))

    def start(self, lanes: int) -> _State:
        return _State(self._model.initial_hidden(lanes), np.zeros(lanes, np.bool_), np.ones(lanes, np.bool_))

    def advance(self, state: object, lanes: Lanes) -> _State:
        assert isinstance(state, _State)
        n = len(lanes.position)
        carried = ~lanes.fresh
        hidden = state.hidden[:, :n] * carried[:, None].astype(np.float32)
        alive, answered = state.alive[:n] & carried, np.ones(n, np.bool_)
        items = self._index[lanes.items]
        known = items >= 0
        if known.any():
            hidden[:, known], answered[known] = self._model.step(items[known], np.ascontiguousarray(hidden[:, known]))
            alive |= known & answered
        return _State(hidden, alive, answered)

    def ranks(self, state: object, lanes: Lanes, targets: Ints, ties: Ties) -> Floats:
        assert isinstance(state, _State)
        popular_index, popular_score = self._model.popular
        index = np.tile(popular_index, (len(targets), 1))  # [n, k]
        score = np.tile(popular_score, (len(targets), 1))  # [n, k]
        by_model = np.flatnonzero(state.alive & state.answered)
        if len(by_model):
            recent, counts, clicks = lanes.recent(self._model.recent_size, self._index)
            top_index, top_score = self._model.rank(
                np.ascontiguousarray(state.hidden[-1, by_model]), recent[by_model], counts[by_model], clicks[by_model]
            )
            finite = finite_rows(top_score)
            index[by_model[finite]], score[by_model[finite]] = top_index[finite], top_score[finite]
            self.not_finite += int((~finite).sum())
        self.not_finite += int((~state.answered).sum())
        wanted = self._index[targets]
        # -2 is in no list; -1 might be mistaken for padding.
        return ranks_in_top(index, score, np.where(wanted < 0, -2, wanted), ties, self.name)
