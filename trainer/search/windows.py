"""Judged window after window, each by a model that has seen the windows before it alone.

The protocol of Transformers4Rec (de Souza Pereira Moreira et al. 2021, section 4.1). Sessions are cut into windows of
time, a day in a shop. The model that has learned from the windows T_1 .. T_i is judged on T_(i+1), by one prediction a
session: that of its last click. A figure is the mean of the windows' own, so each of them weighs the same. Repeats in a
row and sessions of one click are left out, and of a session its first 20 clicks are kept.

How a model comes from one window to the next:

- A network goes on from its weights and is trained on the newest window alone. Items that appear get new rows. Its
  session memory counts in all windows so far; the memory's weights are fitted on the newest window, with the network
  from before it, which has not seen it.
- A family that counts counts in all windows so far, as the paper's neighbours do.
- Or the model is made anew each time, of all windows so far or the last ones, as are those of the paper's baselines
  that cannot go on.

A click on an item that no window so far has is no click for the model, and as a last click it is a miss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from schemas.click_files.read import FileRead
from schemas.errors import ClickFileError
from trainer.data.datasets import read_sessions
from trainer.data.options import DataOptions
from trainer.data.sessions import SessionSet, encode, joined, vocabulary_of
from trainer.data.targets import weighing
from trainer.errors import TooFewSessionsError
from trainer.evaluation.baselines import BaselineSpec
from trainer.evaluation.protocol import (
    DEFAULT_KS,
    Metrics,
    NetworkScorer,
    Scorer,
    Ties,
    of_last_clicks,
    ranks_of,
)
from trainer.memory.terms import SessionMemory
from trainer.models.settings import LearnedSettings, TrainingSettings
from trainer.training.device import Hardware
from trainer.training.fit import DEFAULT_HARDWARE, FitResult, fit
from trainer.training.train import LEAST_PREDICTIONS, memory_beside, tables_of, train
from trainer.training.warm_start import warm_start

LONGEST: Final = 20
"""Clicks of a session that count, its first: the paper's loader cuts off what comes after them."""
_HOUR_MS: Final = 3_600_000

Learned = tuple[Scorer, Sequence[str]]
"""A model, and its vocabulary."""
Learner = Callable[[Sequence[SessionSet]], Learned]
"""Makes a model of the windows so far, oldest first, all in the vocabulary of the log."""


@dataclass(frozen=True)
class OverTime:
    """Metrics of each window but the first, in order."""

    windows: tuple[Metrics, ...]

    @property
    def mean(self) -> Metrics:
        """The average over time: of the windows, whatever their size. ``predictions`` are those of all windows."""

        def over(by_window: Sequence[dict[int, float]]) -> dict[int, float]:
            return {k: float(np.mean([of[k] for of in by_window])) for k in by_window[0]}

        return Metrics(
            recall=over([one.recall for one in self.windows]),
            mrr=over([one.mrr for one in self.windows]),
            ndcg=over([one.ndcg for one in self.windows]),
            predictions=sum(one.predictions for one in self.windows),
        )


def windows_of(sessions: SessionSet, hours: float) -> list[SessionSet]:
    """The sessions cut by the time of their last click, counted from the oldest one; windows without any are left out.

    By the last click, because a session that is trained on must be over when the next window begins. Raises ValueError
    for sessions without times, and :class:`TooFewSessionsError` where all are of one window.
    """
    if not sessions.timed:
        raise ValueError("windows need timestamps, and these sessions have none")
    number = (sessions.ends - sessions.ends[:1]) // round(hours * _HOUR_MS)
    found = [sessions.select(number == one) for one in np.unique(number)]
    if len(found) < 2:
        raise TooFewSessionsError(
            f"all sessions end within {hours:g} hours: there is no second window to judge on; take shorter windows"
        )
    return found


def read_windows(options: DataOptions, hours: float) -> tuple[list[SessionSet], tuple[FileRead, ...]]:
    """The windows of a whole log, prepared as the protocol has it, and what was found in its files.

    Raises :class:`ClickFileError` and :class:`TooFewSessionsError`.
    """
    sessions, files = read_sessions(options.train, replace(options, collapse_repeats=True))
    if not sessions.timed:
        raise ClickFileError(f"{options.train[0]}: has no timestamps to cut windows by: take another protocol")
    return windows_of(sessions.oldest(LONGEST), hours), files


def over_time(
    windows: Sequence[SessionSet],
    learn: Learner,
    *,
    ks: Sequence[int] = DEFAULT_KS,
    ties: Ties = "conservative",
    tell: Callable[[Metrics], None] = lambda _: None,
) -> OverTime:
    """Judge what a learner makes of the windows before each. ``tell`` hears of every window.

    Raises what the learner does, and :class:`NonFiniteScoresError`.
    """
    found = []
    for i in range(1, len(windows)):
        scorer, item_ids = learn(windows[:i])
        found.append(judged(scorer, item_ids, windows[i], ks=ks, ties=ties))
        tell(found[-1])
    return OverTime(tuple(found))


def judged(scorer: Scorer, item_ids: Sequence[str], window: SessionSet, *, ks: Sequence[int], ties: Ties) -> Metrics:
    """Metrics of one prediction a session, of its last click."""
    known = set(item_ids)
    item_known = np.array([item in known for item in window.item_ids], dtype=np.bool_)
    answerable = item_known[window.items[window.offsets[1:] - 1]]
    sessions = encode(window.select(answerable), item_ids)
    ranks = np.full(len(window), np.inf)  # a target that is not in the vocabulary, or nothing known before it: a miss
    if len(sessions):
        ranks[: len(sessions)] = ranks_of(scorer, sessions, ties=ties)[of_last_clicks(sessions)]
    return Metrics.of_ranks(ranks, ks)


class FamilyLearner:
    """A family's model, from window to window. ``result`` is the newest one.

    With ``retrain`` it is made anew each time, of so many of the newest windows; 0: of all. Without, a network goes on
    from its weights; what counts is always made anew, of all windows.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        retrain: int | None = None,
        *,
        progress: Callable[[int], None] | None = None,
        hardware: Hardware = DEFAULT_HARDWARE,
    ) -> None:
        self._settings, self._retrain, self._progress, self._hardware = settings, retrain, progress, hardware
        self.result: FitResult | None = None

    def __call__(self, past: Sequence[SessionSet]) -> Learned:
        """A :data:`Learner`; each call is to have one window more than the one before."""
        settings = self._settings
        if self._retrain is None and self.result is not None and isinstance(settings, LearnedSettings):
            self.result = self._gone_on(self.result, past, settings)
        else:
            everything = joined(past[-self._retrain :] if self._retrain else past)
            sessions = encode(everything, vocabulary_of(everything))
            self.result = train(sessions, settings, progress=self._progress, hardware=self._hardware)
        return NetworkScorer(self.result.weights, self.result.memory, settings.family), self.result.item_ids

    def _gone_on(self, before: FitResult, past: Sequence[SessionSet], settings: LearnedSettings) -> FitResult:
        everything = joined(past)
        item_ids = vocabulary_of(everything)
        result = fit(
            encode(past[-1], item_ids),
            settings,
            warm_start=warm_start(before.network, before.item_ids, item_ids, settings),
            progress=self._progress,
            hardware=self._hardware,
        )
        if not settings.memory:
            return result
        tables = tables_of(encode(everything, item_ids), settings)
        return replace(result, memory=self._memory(before, past).with_tables(tables))

    def _memory(self, before: FitResult, past: Sequence[SessionSet]) -> SessionMemory:
        """Its weights, from the newest window and the network that has not learned from it."""
        newest = encode(past[-1], before.item_ids)
        if weighing(newest, self._settings.weight_of_type) < LEAST_PREDICTIONS:
            return before.memory
        older = encode(joined(past[:-1]), before.item_ids)
        return memory_beside(before.weights, newest, older, self._settings, progress=self._progress)


@dataclass(frozen=True)
class BaselineLearner:
    """A baseline, made anew for each window of all that are before it."""

    spec: BaselineSpec

    def __call__(self, past: Sequence[SessionSet]) -> Learned:
        """A :data:`Learner`."""
        everything = joined(past)
        sessions = encode(everything, vocabulary_of(everything))
        return self.spec.build(sessions), sessions.item_ids
