"""The items that a step looks at, as columns: those of its sessions and the sampled negatives, each once."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.data.sessions import Ints
from trainer.models.settings import NetworkSettings

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Columns:
    """The items of a step, C of them.

    index       int64[C]     item of each column, all different
    clicks      int64[B, T]  column of each click, -1 behind a session's end
    samples     int64[S]     column of each sample
    offset      f32[C]       what cross-entropy adds to a column's scores, see :class:`ColumnMap`
    own_offset  f32[C]       what it adds instead where the column is the one to predict
    """

    index: Ints
    clicks: Ints
    samples: Ints
    offset: Floats
    own_offset: Floats


class ColumnMap:
    """Makes columns of items, in time that does not depend on the size of the catalogue.

    An item may be met in a step several times: in several sessions, or as several samples. In place of a column for
    each meeting it has one, whose share in a softmax's denominator is the sum of theirs, with the logQ correction of
    :func:`trainer.training.losses.logq_correction`: support^-logq as a click of the batch, support^(-logq alpha) as a
    sample. The logarithm of the sum is the column's offset. Where it is the column to predict, it counts as one click
    of the batch: no item is its own negative.
    """

    def __init__(self, support: Ints, settings: NetworkSettings) -> None:
        self._column = np.empty(len(support), np.int64)  # of an item, where it is in the step at hand
        log_support = np.log(np.maximum(support, 1))
        self._own_offset = (-settings.logq * log_support).astype(np.float32)
        self._of_click = np.exp(-settings.logq * log_support)
        self._of_sample = np.exp(-settings.logq * settings.sample_alpha * log_support)

    def __call__(self, items: Ints, samples: Ints) -> Columns:
        """Items int64[B, T] of the sessions, -1 behind an end, and sampled ones int64[S]."""
        inside = items >= 0
        clicked = items[inside]
        met = np.concatenate([clicked, samples])
        number = np.arange(len(met))
        self._column[met] = number  # of several equal items one stays
        index = met[self._column[met] == number]
        self._column[index] = np.arange(len(index))
        column = self._column[met]
        clicks = np.full(items.shape, -1, np.int64)
        clicks[inside] = column[: len(clicked)]
        of_samples = column[len(clicked) :]
        share = np.bincount(column[: len(clicked)], minlength=len(index)) * self._of_click[index]
        share += np.bincount(of_samples, minlength=len(index)) * self._of_sample[index]
        return Columns(index, clicks, of_samples, np.log(share).astype(np.float32), self._own_offset[index])
