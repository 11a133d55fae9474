"""Dropout masks as a function of seed, step and place: nothing to carry from step to step, nor to a checkpoint.

A component's fate is a scrambled number of its place in the mask and the mask's key, compared with the rate. So masks
are the same whoever computes them, in whatever order: the compiled step computes them where it uses them.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint32]


def threshold(rate: float) -> np.uint32:
    """Components with a smaller number are dropped."""
    return np.uint32(min(round(rate * 2.0**32), 2**32 - 1))


def keys(seed: int, first_step: int, steps: int, masks: int) -> Words:
    """A key for each mask of some steps, uint32[steps, masks]: of the input, then of each layer's state."""
    numbers = np.arange(first_step * masks + 1, (first_step + steps) * masks + 1, dtype=np.uint64)
    begin = np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
    # SplitMix64 (Steele, Lea and Flood 2014): an odd stride, then three rounds of shift and multiply.
    x = begin + numbers * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x >> np.uint64(32)).astype(np.uint32).reshape(steps, masks)


def scrambled(place: Words, key: np.uint32) -> Words:
    """A number of each place that looks random, and has nothing to do with those of another key."""
    h = (place * np.uint32(0x9E3779B9)) ^ key
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h


def mask(shape: tuple[int, int], rate: float, key: np.uint32) -> Tensor:
    """0 for the share ``rate`` of the components, 1 / (1 - rate) for the rest."""
    place = np.arange(shape[0] * shape[1], dtype=np.uint32)
    kept = scrambled(place, key) >= threshold(rate)
    return torch.from_numpy(kept.astype(np.float32).reshape(shape)).mul_(1.0 / (1.0 - rate))
