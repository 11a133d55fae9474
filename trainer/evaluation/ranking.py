"""Where a score stands among a row of them, in one pass over the row."""

from collections.abc import Callable
from typing import Any

import numpy as np

from trainer.compilation import kept, sources

ZERO, ONE = np.float32(0.0), np.float32(1.0)


def _entry(of_sources: int) -> Callable[..., bool]:
    def count_around(scores: Any, targets: Any, below: Any, above: Any) -> bool:
        """Of each row of scores [n, I] the numbers below and above ``targets`` [n]; whether all are finite.

        Counted in float32, which is exact up to 2^24 and takes as many numbers at once as there are in a vector.
        """
        if of_sources == 0:  # never; but what is not used is no part of the key
            return False
        for i in range(len(scores)):
            row, target = scores[i], targets[i]
            less, more, nothing = ZERO, ZERO, ZERO
            for j in range(len(row)):
                less += ONE if row[j] < target else ZERO
                more += ONE if row[j] > target else ZERO
                nothing += row[j] * ZERO  # 0 of a finite number alone
            if not nothing == ZERO:  # noqa: SIM201  # NaN is neither
                return False
            below[i], above[i] = less, more
        return True

    return kept(count_around)


_count_around = _entry(sources(__file__))

Floats = np.ndarray[Any, np.dtype[np.float32]]


def count_around(scores: Floats, targets: Floats) -> tuple[Floats, Floats] | None:
    """(numbers below, numbers above) of each row's target, f32[n]; None where a score is not finite."""
    below, above = np.empty_like(targets), np.empty_like(targets)
    return (below, above) if _count_around(scores, targets, below, above) else None
