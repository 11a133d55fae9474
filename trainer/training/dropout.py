"""Dropout masks as a function of seed, step and place: nothing to carry from step to step, nor to a checkpoint.

A component's fate is a scrambled number of its place in the mask and the mask's key, compared with the rate. So masks
are the same whoever computes them, in whatever order and on whatever device: the compiled step computes them where it
uses them.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint32]
_WORD = 2**32 - 1


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


def scrambled(place: Tensor, key: int) -> Tensor:
    """A number below 2^32 of each place that looks random, and has nothing to do with those of another key.

    int64 -> int64, as torch has no arithmetic of 32 bits without a sign: a product may overflow, its low half is right.
    """
    h = (place * 0x9E3779B9).bitwise_and_(_WORD).bitwise_xor_(key)
    h.bitwise_xor_(h >> 16).mul_(0x7FEB352D).bitwise_and_(_WORD)
    h.bitwise_xor_(h >> 15).mul_(0x846CA68B).bitwise_and_(_WORD)
    return h.bitwise_xor_(h >> 16)


def mask(shape: tuple[int, int], rate: float, key: np.uint32, device: torch.device | None = None) -> Tensor:
    """0 for the share ``rate`` of the components, 1 / (1 - rate) for the rest; by default on the host."""
    place = torch.arange(shape[0] * shape[1], device=device)
    kept = scrambled(place, int(key)) >= int(threshold(rate))
    return kept.float().view(shape).mul_(1.0 / (1.0 - rate))
