"""A large catalogue in 8-bit integers, in blocks: the part of :mod:`trainer.export.shortlist` that no session changes.

Items are at places. Item i is at place i, unless there is a tail: then its front comes first, in integers, and the tail
after it, in the tail's order; see :mod:`trainer.export.tail`. Some places behind either are empty.

Shapes: I items, H units, J blocks of C places in integers, T tall blocks of `TALL` blocks, those of the tail last.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # it builds graphs, whose packages take a second to import: too long where only sizes are asked for
    from trainer.export.tail import Tail

LEAST_ITEMS: Final = 20_000
"""Of a catalogue with a shortlist: below, the float32 product is as fast; `make bench BENCH=rank`."""
_LARGE: Final = 100_000
"""Up to so many items all scores of a run of sessions are kept, block = item; beyond, maxima of blocks of 8."""
LEAST_WITH_TAIL: Final = _LARGE + 1
_BLOCK_OF_LARGE: Final = 8
TALL: Final = 16
_GROUPS: Final = 128
_STEPS: Final = 63
_MOST_EVENED: Final = 64
_BIAS_INPUT: Final = 1 / 8
MOST_BIAS_COLUMNS: Final = 28
"""The bias takes so many more components that the states' own there are no larger than this, and do not make the steps
of a state coarser: a GRU's largest is near 1. Products may come in 64s, so 128 components are no slower than 100."""
TINY: Final = float(np.finfo(np.float32).tiny)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Catalogue:
    """`output` f32[I, H] and `bias` f32[I] of the head, in integers but for the items of a tail."""

    output: Floats
    bias: Floats
    tail: "Tail | None" = None

    @property
    def items(self) -> int:
        return len(self.output)

    @property
    def front(self) -> int:
        """How many items are in integers."""
        return self.items if self.tail is None else self.tail.front

    @cached_property
    def front_items(self) -> slice | npt.NDArray[np.int64]:
        """Which they are, in order of their places."""
        return slice(None) if self.tail is None else self.tail.order[: self.front]

    @property
    def block(self) -> int:
        """C."""
        return 1 if self.items <= _LARGE else _BLOCK_OF_LARGE

    @property
    def group(self) -> int:
        """Tall blocks in a group."""
        return max(1, -(-self.front // (self.block * TALL)) // _GROUPS)

    @property
    def tall(self) -> int:
        """Tall blocks in integers, which groups divide without rest."""
        return self.group * -(-self.front // (self.block * TALL * self.group))

    @property
    def talls(self) -> int:
        """T."""
        return self.tall + (0 if self.tail is None else self.tail.talls)

    @property
    def padded(self) -> int:
        """Places in integers, once the last blocks are filled up."""
        return self.block * TALL * self.tall

    @property
    def copies(self) -> npt.NDArray[np.int64]:
        """The places of the items with which they are."""
        return np.linspace(0, self.front - 1, self.padded - self.front).astype(np.int64)

    @cached_property
    def at(self) -> npt.NDArray[np.int32]:
        """The item at each place, -1 where it is empty; behind the last block there is an empty one."""
        at = np.full(self.block * (TALL * self.talls + 1), -1, dtype=np.int32)
        order = np.arange(self.items) if self.tail is None else self.tail.order
        at[: self.front] = order[: self.front]
        at[self.padded : self.padded + self.items - self.front] = order[self.front :]
        return at

    @property
    def _bias_size(self) -> float:
        """The largest bias, in largest weights."""
        output, bias = self.output[self.front_items], self.bias[self.front_items]
        return float(np.abs(bias).max(initial=0)) / max(float(np.abs(output).max()), TINY)

    @property
    def bias_columns(self) -> int:
        """Components that carry the bias, none larger than a weight."""
        return min(MOST_BIAS_COLUMNS, int(np.ceil(self._bias_size / _BIAS_INPUT)))

    @property
    def bias_input(self) -> float:
        """What every state has there."""
        return self._bias_size / self.bias_columns

    @cached_property
    def evening(self) -> Floats:
        """What a component's weights are multiplied by, and that of every state divided by: f32[H].

        One step serves all components of a state, and one all weights. Families that are one model have large weights
        for small states, or the other way round: then both steps would be coarse for one of them. By powers of two,
        which round nothing.
        """
        largest = np.abs(self.output).max(axis=0, initial=TINY)  # [H]
        least = np.maximum(largest, largest.max() / _MOST_EVENED)  # of a component without any weight, say
        evening: Floats = np.exp2(np.floor(np.log2(largest.max() / least)))
        return evening

    def extended(self) -> npt.NDArray[np.float64]:
        """Weights of the front with the bias, [.., H + columns]."""
        columns, even = self.bias_columns, self.output[self.front_items].astype(np.float64)
        even *= self.evening
        if not columns:
            return even
        share = self.bias[self.front_items].astype(np.float64) / (columns * self.bias_input)
        return np.hstack([even, np.repeat(share[:, None], columns, axis=1)])

    @property
    def step(self) -> float:
        """α."""
        return max(float(np.abs(self.extended()).max()) / _STEPS, TINY)

    def rounded(self) -> npt.NDArray[np.int8]:
        """int8[.., H + columns] in steps of α."""
        return np.rint(self.extended() / self.step).astype(np.int8)


def padded_items(items: int) -> int:
    """How many items a shortlist's integers are of, once the last blocks are filled up."""
    catalogue = Catalogue(np.broadcast_to(np.float32(0), (items, 1)), np.zeros(0, np.float32))
    return catalogue.padded
