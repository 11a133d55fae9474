"""Session-parallel mini-batches as a schedule that is computed ahead (Hidasi et al. 2016, section 3.1)."""

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.sessions import SessionSet

_AT_ONCE = 1 << 16  # sessions whose clicks are placed together: what that takes is not to grow with their number


@dataclass(frozen=True)
class Schedule:
    """Which click every lane sees in every step. Training and evaluation share it.

    position  int32[T, B]  index into ``SessionSet.items`` of the input click; the target is the click after it
                           (int64 for more than two billion clicks)
    fresh     bool[T, B]   the lane starts a session in this step: its hidden state is zeroed, this once
    alive     int64[T]     lanes in use in the step: always the first ones, so that a step is a slice

    Beyond ``alive`` the arrays hold 0 / False. Every transition of every session appears exactly once.
    """

    position: npt.NDArray[Any]
    fresh: npt.NDArray[np.bool_]
    alive: npt.NDArray[np.int64]

    @property
    def steps(self) -> int:
        return len(self.alive)

    @property
    def transitions(self) -> int:
        return int(self.alive.sum())


def schedule(sessions: SessionSet, lanes: int) -> Schedule:
    """Hand the sessions to the lanes in order: whichever lane is free first (then the lowest) takes the next session.

    Towards the end, when no session is left to take, lanes fall away one by one; the epoch ends with the last lane.
    """
    steps = np.maximum(sessions.lengths - 1, 0)  # transitions of each session
    trained = np.flatnonzero(steps)
    lanes = min(lanes, len(trained))
    lane_of, start_of = np.zeros(len(trained), np.int64), np.zeros(len(trained), np.int64)
    free = [(0, lane) for lane in range(lanes)]
    for i, length in enumerate(steps[trained].tolist()):
        at, lane = heapq.heappop(free)
        lane_of[i], start_of[i] = lane, at
        heapq.heappush(free, (at + length, lane))
    # Which lane a session sits in has no meaning: with the longest-lasting lanes first, the alive ones are a prefix.
    end = np.zeros(lanes, np.int64)
    for at, lane in free:
        end[lane] = at
    rank = np.empty(lanes, np.int64)
    rank[np.argsort(-end, kind="stable")] = np.arange(lanes)
    total = int(end.max(initial=0))
    position: npt.NDArray[Any] = np.zeros((total, lanes), np.int32 if sessions.clicks < 2**31 else np.int64)
    fresh = np.zeros((total, lanes), np.bool_)
    column = rank[lane_of]
    for begin in range(0, len(trained), _AT_ONCE):
        some = slice(begin, begin + _AT_ONCE)
        length = steps[trained[some]]
        within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
        row = np.repeat(start_of[some], length) + within
        position[row, np.repeat(column[some], length)] = np.repeat(sessions.offsets[trained[some]], length) + within
    fresh[start_of, column] = True
    alive = (np.arange(total)[:, None] < end[None, :]).sum(axis=1).astype(np.int64)
    return Schedule(position, fresh, alive)
