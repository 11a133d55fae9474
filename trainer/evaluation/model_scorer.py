"""A model bundle under evaluation: what is scored is what would be served."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from schemas.bundle.files import Model
from schemas.bundle.runtime import Floats as Float32s
from schemas.bundle.runtime import Truths, finite_rows
from schemas.errors import NoAnswerError
from trainer.data.lanes import Lanes
from trainer.data.sessions import Ints, SessionSet
from trainer.evaluation.protocol import Floats, Ties, ranks_in_top

_MOST_FAILURES: Final = 32
"""Calls in vain a step, beyond which a worker does not look for single sessions either (`stream_app/core/apart.py`)."""


@dataclass(frozen=True)
class _State:
    """Of a recurrent model; others look at the clicks of the lanes alone."""

    hidden: Float32s  # [L, n, H]
    query: Float32s  # [n, D]
    alive: Truths  # [n] whether any click so far gave a state
    answered: Truths  # [n] whether the last click did; true for one on an unknown item, which asks for none


@dataclass(frozen=True)
class _Asked:
    """What the lanes are ranked from, as in a worker."""

    query: Float32s | None  # [n, D]; None without an encoder
    known: Truths  # [n] whether the model knows anything of the session
    finite: Truths  # [n] whether the last click led to numbers


class ModelScorer:
    """An opened bundle as a scorer of sessions in any vocabulary, which answers as the worker does.

    A click on an item that the model does not know changes nothing, but takes a place among the last clicks. The most
    popular items are the ranking where the model knows nothing of a session: a recurrent one before its first state,
    others while no item that they look at is known. So they are where the model's numbers are not finite, or it has no
    answer to the session, which ``not_finite`` counts. A target that it does not know is a miss. So models
    of different vocabularies are compared on the same predictions. Only lists of the best ``model.k`` exist: metrics
    need k < that.
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
        hidden, query = self._model.initial_hidden(lanes), np.zeros((lanes, self._model.query_size), np.float32)
        return _State(hidden, query, np.zeros(lanes, np.bool_), np.ones(lanes, np.bool_))

    def advance(self, state: object, lanes: Lanes) -> _State:
        assert isinstance(state, _State)
        n = len(lanes.position)
        carried = ~lanes.fresh
        hidden = state.hidden[:, :n] * carried[:, None].astype(np.float32)
        query = state.query[:n].copy()
        alive, answered = state.alive[:n] & carried, np.ones(n, np.bool_)
        items = self._index[lanes.items]
        known = items >= 0
        if self._model.encoder == "recurrent" and known.any():

            def step(rows: Ints) -> None:
                before = np.ascontiguousarray(hidden[:, rows])
                hidden[:, rows], of_step, answered[rows] = self._model.step(items[rows], before)
                query[rows] = np.where(answered[rows][:, None], of_step, query[rows])

            answered[_unanswered(step, np.flatnonzero(known))] = False
            alive |= known & answered
        return _State(hidden, query, alive, answered)

    def ranks(self, state: object, lanes: Lanes, targets: Ints, ties: Ties) -> Floats:
        assert isinstance(state, _State)
        popular_index, popular_score = self._model.popular
        index = np.tile(popular_index, (len(targets), 1))  # [n, k]
        score = np.tile(popular_score, (len(targets), 1))  # [n, k]

        def rank(rows: Ints) -> None:
            self.not_finite += self._rank(state, lanes, rows, index, score)

        without = _unanswered(rank, np.arange(len(targets)))
        self.not_finite += len(without)
        wanted = self._index[targets]
        # -2 is in no list; -1 might be mistaken for padding.
        return ranks_in_top(index, score, np.where(wanted < 0, -2, wanted), ties, self.name)

    def _rank(self, state: _State, lanes: Lanes, rows: Ints, index: Ints, score: Float32s) -> int:
        """Put the model's lists of these rows in place of those that are there; returns how many are not finite.

        Raises NoAnswerError, and has changed nothing.
        """
        some = lanes.only(rows)
        recent, counts, clicks = some.recent(self._model.recent_size, self._index)
        asked = self._asked(state, some, rows, recent)
        by_model, not_finite = np.flatnonzero(asked.known & asked.finite), int((~asked.finite).sum())
        if len(by_model):
            query = None if asked.query is None else asked.query[by_model]
            top_index, top_score = self._model.rank(query, recent[by_model], counts[by_model], clicks[by_model])
            finite = finite_rows(top_score)
            ranked = rows[by_model[finite]]
            index[ranked], score[ranked] = top_index[finite], top_score[finite]
            not_finite += int((~finite).sum())
        return not_finite

    def _asked(self, state: _State, lanes: Lanes, rows: Ints, recent: Ints) -> _Asked:
        match self._model.encoder:
            case "none":
                return _Asked(None, np.asarray((recent >= 0).any(axis=1)), np.ones(len(recent), np.bool_))
            case "recurrent":
                query, alive, finite = state.query[rows], state.alive[rows], state.answered[rows]
                if self._model.own_query:
                    finite = finite & (finite_rows(query) | ~alive)
                return _Asked(query, alive, finite)
            case "window":
                history = lanes.history(self._model.window)  # newest first
                items = np.where(history >= 0, self._index[history], -1)[:, ::-1]
                # Oldest first, unknown items left out, padding behind.
                order = np.argsort(items < 0, axis=1, kind="stable")
                length = (items >= 0).sum(axis=1)
                query = self._model.encode_all(np.take_along_axis(items, order, axis=1), length)
                return _Asked(query, length > 0, finite_rows(query))


def _unanswered(ask: Callable[[Ints], None], rows: Ints) -> Ints:
    """Ask for rows together, and by halves where that raises NoAnswerError; returns those without an answer."""
    left = _MOST_FAILURES

    def missing(some: Ints) -> list[Ints]:
        nonlocal left
        try:
            ask(some)
        except NoAnswerError:
            left -= 1
        else:
            return []
        if len(some) == 1 or left <= 0:
            return [some]
        return missing(some[: len(some) // 2]) + missing(some[len(some) // 2 :])

    return np.concatenate([rows[:0], *missing(rows)])
