"""Does a figure grow with time? Mann and Kendall's test, on the means of blocks, and Theil and Sen's slope."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

WARM_UP: Final = 1 / 3
"""The first third is left out: caches fill, and rows do not expire yet."""
BLOCKS: Final = 20
"""Values next to each other are alike, which the test does not know; means of long blocks are less so."""
FEWEST: Final = 8
P: Final = 0.01
GROWTH: Final = 0.05
"""By so much of its median a figure has to grow over what was looked at: a test sees the smallest steady slope."""


@dataclass(frozen=True)
class Trend:
    """What was found.

    Attributes:
        median: of the values that were looked at.
        per_hour: Theil and Sen's slope.
        p: chance of as much order as this, or more, where there is none; 1 with too few values.
        grows: whether that is below `P`, and the growth above `GROWTH`; None with too few values.
    """

    median: float
    per_hour: float
    p: float
    grows: bool | None


def trend(seconds: ArrayLike, values: ArrayLike) -> Trend:
    """The trend of values at these times, in ascending order."""
    at, value = np.array(seconds, dtype=float), np.array(values, dtype=float)
    late = at >= at[0] + WARM_UP * (at[-1] - at[0])
    at, value = at[late], value[late]
    if len(at) < FEWEST:
        return Trend(float(np.median(value)), 0.0, 1.0, None)
    blocks = min(BLOCKS, len(at))
    at = np.array([block.mean() for block in np.array_split(at, blocks)])
    value = np.array([block.mean() for block in np.array_split(value, blocks)])
    median = float(np.median(value))
    if np.all(value == value[0]):
        return Trend(median, 0.0, 1.0, False)
    p = float(stats.kendalltau(at, value).pvalue)
    slope = float(stats.theilslopes(value, at).slope)
    grown = slope * (at[-1] - at[0])
    return Trend(median, slope * 3600, p, bool(p < P and grown > GROWTH * abs(median)))
