"""Batches of whole sessions, and of pieces of those that are longer than a window.

A batch is drawn from all sessions. Were its sessions about equally long, as padding would have it, each step would
learn from short ones alone or from long ones alone: on RSC15's first 100,000 clicks that costs NARM .026 of Recall@20.
So the padding is saved within a batch, which is worked off in groups of about the same length.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.data.sessions import Ints, SessionSet
from trainer.data.targets import Floats
from trainer.models.window import SHORTEST


@dataclass(frozen=True)
class Pieces:
    """What is trained on, a session or a part of one each, P of them.

    start   int64[P]  index of the first click in ``SessionSet.items``
    length  int64[P]  clicks, 2 to window + 1
    first   int64[P]  place of the first click to predict, from 1; all behind it are to be predicted too
    """

    start: Ints
    length: Ints
    first: Ints

    def __len__(self) -> int:
        return len(self.start)

    @property
    def transitions(self) -> int:
        return int((self.length - self.first).sum())


@dataclass(frozen=True)
class Batch:
    """Sessions of a step, the shorter ones first: items int64[B, T] with -1 behind an end, length int64[B], target
    bool[B, T], and what each click weighs as a target, float32[B, T], where they differ.
    """

    items: Ints
    length: Ints
    target: npt.NDArray[np.bool_]
    weight: Floats | None = None

    def groups(self) -> Iterator[tuple[slice, int]]:
        """The rows of sessions that are about equally long, and the clicks of the longest of them."""
        begin, longest, width = 0, int(self.length[-1]), SHORTEST
        while begin < len(self.length):
            # One click more than is seen of them: the last is only predicted.
            end = int(np.searchsorted(self.length, min(width, longest - 1) + 1, side="right"))
            if end > begin:
                yield slice(begin, end), int(self.length[end - 1])
            begin, width = end, 2 * width


def pieces_of(sessions: SessionSet, window: int) -> Pieces:
    """Sessions of 2 to window + 1 clicks are a piece each, longer ones several that overlap.

    The first piece of a longer session are its first window + 1 clicks, and each further one ends half a window later:
    only the clicks by which it goes further are to be predicted in it. So every click after a session's first is to be
    predicted in one piece, from half a window of clicks before it at least, where there are as many, and a whole one at
    most. Stepping by one would let all see a whole window, at window / 2 times the work.
    """
    stride = max(1, window // 2)
    usable = np.flatnonzero(sessions.lengths > 1)
    last = sessions.lengths[usable] - 1  # place of the last click
    count = 1 + np.maximum(0, -(-(last - window) // stride))
    session = np.repeat(np.arange(len(usable)), count)
    number = np.arange(len(session)) - np.repeat(np.cumsum(count) - count, count)  # of the piece within its session
    end = np.minimum(window + number * stride, last[session])  # place of its last click
    begin = np.maximum(0, end - window)
    first = np.where(number == 0, 1, window + (number - 1) * stride + 1)
    return Pieces(sessions.offsets[usable][session] + begin, end - begin + 1, first - begin)


def steps_of(pieces: Pieces, batch_size: int) -> int:
    """Steps of an epoch."""
    return -(-len(pieces) // batch_size)


def batches(
    items: Ints, pieces: Pieces, batch_size: int, rng: np.random.Generator, weights: Floats | None = None
) -> Iterator[Batch]:
    """An epoch: every piece once, in random order. ``weights`` float32[clicks]: of each click as a target."""
    order = rng.permutation(len(pieces))
    for number in range(steps_of(pieces, batch_size)):
        drawn = order[number * batch_size : (number + 1) * batch_size]
        some = drawn[np.argsort(pieces.length[drawn], kind="stable")]
        length = pieces.length[some]
        place = np.arange(length[-1])  # the last is the longest
        inside = place < length[:, None]  # [B, T]
        at = np.minimum(pieces.start[some, None] + place, len(items) - 1)
        target = inside & (place >= pieces.first[some, None])
        yield Batch(np.where(inside, items[at], -1), length, target, None if weights is None else weights[at])
