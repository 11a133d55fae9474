"""The catalogue of the simulated shop: what is on sale in a season, and what people look at after what.

A department is a cycle of categories that shoppers walk along (camera, memory card, camera bag, ...). The categories
of a cycle are by turns *branded* and *universal*. A branded category has one line of items for each brand, and a
shopper stays with the line that fits the brand of the session; in a universal category every line suits everyone. So a
click on a memory card says what kind of thing comes next, but only the clicks before it say of which line: this is what
a session model can know and a first-order Markov chain cannot.

Seasons are the drift. From one to the next, items retire, new ones enter near the top, some departments change their
cycle, and in some categories other lines fit the brands.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# One department a line, its cycle of categories: branded, universal, branded, universal, ...
DEPARTMENTS: tuple[tuple[str, ...], ...] = (
    ("camera", "memory-card", "camera-bag", "cleaning-kit", "lens", "tripod"),
    ("laptop", "usb-hub", "docking-station", "mouse-pad", "laptop-sleeve", "hdmi-cable"),
    ("espresso-machine", "coffee-beans", "grinder", "descaler", "portafilter", "milk-jug"),
    ("phone", "screen-protector", "phone-case", "power-bank", "charger", "car-mount"),
    ("bicycle", "bike-lock", "bike-rack", "inner-tube", "saddle", "bike-light"),
    ("tent", "sleeping-mat", "tent-footprint", "camping-stove", "awning", "head-torch"),
    ("games-console", "gift-card", "controller", "headset-stand", "carrying-case", "batteries"),
    ("drill", "drill-bits", "drill-battery", "safety-glasses", "tool-case", "wall-plugs"),
)


@dataclass(frozen=True)
class Catalogue:
    """One season. C categories, B brands (and as many lines a category), P items a line, I items that ever existed.

    Arrays are never written to after construction.
    """

    season: int
    names: tuple[str, ...]  # [I] item ids; items keep their index from season to season
    lines: Ints  # [C, B, P] items on sale, each line's most popular first
    next_category: Ints  # [C] the flows: each department is one cycle
    fits: Ints  # [C, B] the line of a branded category that fits a brand
    universal: NDArray[np.bool_]  # [C]
    category_of: Ints  # [I]
    line_of: Ints  # [I]
    rank_of: Ints  # [I] place in its line, 0 the most popular; -1 when the item is not on sale

    @property
    def on_sale(self) -> frozenset[str]:
        return frozenset(self.names[item] for item in self.lines.ravel().tolist())


def first_catalogue(departments: int, brands: int, items_per_line: int, rng: np.random.Generator) -> Catalogue:
    """Season 0: every category with `brands` lines of `items_per_line` items, the flows as `DEPARTMENTS` has them."""
    categories = _category_names(departments)
    C, B, P = len(categories), brands, items_per_line
    cycles = np.arange(C).reshape(departments, -1)  # [departments, categories of one]
    # Numbers say nothing of line or rank: a category's items are dealt out at random.
    numbers = rng.permuted(np.tile(np.arange(B * P), (C, 1)), axis=1)  # [C, B * P]
    lines = numbers.reshape(C, B, P) + np.arange(C)[:, None, None] * B * P
    return _catalogue(
        season=0,
        names=tuple(f"{category}-{number:04d}" for category in categories for number in range(B * P)),
        lines=lines,
        next_category=_successors(cycles),
        fits=rng.permuted(np.tile(np.arange(B), (C, 1)), axis=1),
        category_of=np.repeat(np.arange(C), B * P),
    )


def next_season(old: Catalogue, retired: float, shifted: float, rng: np.random.Generator) -> Catalogue:
    """The season after `old`.

    Args:
        retired: share of each line that leaves; as many new items enter, most of them into the better half of the line.
        shifted: share of the departments whose flow changes, and of the categories in which other lines fit the brands.
    """
    C, B, P = old.lines.shape
    leaving = round(retired * P)
    ranks = rng.permuted(np.broadcast_to(np.arange(P), (C, B, P)), axis=2)[:, :, :leaving]  # [C, B, leaving]
    entering = len(old.names) + np.arange(C * B * leaving).reshape(C, B, leaving)
    lines = old.lines.copy()
    np.put_along_axis(lines, ranks, entering, axis=2)
    # What stays keeps about its popularity; what enters does so around the first quarter of the line.
    appeal = np.arange(P) + rng.normal(0.0, 1.0, (C, B, P))
    np.put_along_axis(appeal, ranks, rng.uniform(-1.0, P / 2, ranks.shape), axis=2)
    lines = np.take_along_axis(lines, np.argsort(appeal, axis=2), axis=2)
    departments = C // len(DEPARTMENTS[0])
    categories = _category_names(departments)
    first_number = len(old.names) // C  # every category has had as many items as every other
    return _catalogue(
        season=old.season + 1,
        names=old.names + tuple(f"{c}-{first_number + k:04d}" for c in categories for k in range(B * leaving)),
        lines=lines,
        next_category=_shift_flows(old.next_category, departments, shifted, rng),
        fits=_shift_fits(old.fits, shifted, rng),
        category_of=np.concatenate([old.category_of, np.repeat(np.arange(C), B * leaving)]),
    )


def _catalogue(
    *, season: int, names: tuple[str, ...], lines: Ints, next_category: Ints, fits: Ints, category_of: Ints
) -> Catalogue:
    C, B, P = lines.shape
    line_of = np.full(len(names), -1)
    rank_of = np.full(len(names), -1)
    line_of[lines] = np.arange(B)[None, :, None]
    rank_of[lines] = np.arange(P)[None, None, :]
    universal = np.arange(C) % 2 == 1
    return Catalogue(
        season=season,
        names=names,
        lines=lines,
        next_category=next_category,
        fits=fits,
        universal=universal,
        category_of=category_of,
        line_of=line_of,
        rank_of=rank_of,
    )


def _category_names(departments: int) -> Sequence[str]:
    return [category for department in DEPARTMENTS[:departments] for category in department]


def _successors(cycles: Ints) -> Ints:
    """`[D, S]` categories in the order of their walk -> `[D * S]` the category after each one."""
    after = np.empty(cycles.size, dtype=np.int64)
    after[cycles] = np.roll(cycles, -1, axis=1)
    return after


def _shift_flows(next_category: Ints, departments: int, share: float, rng: np.random.Generator) -> Ints:
    """A new order for some departments. Branded and universal categories go on taking turns."""
    size = len(next_category) // departments
    after = next_category.copy()
    for department in rng.permutation(departments)[: round(share * departments)]:
        categories = department * size + np.arange(size)
        cycle = np.empty(size, dtype=np.int64)
        cycle[0::2] = rng.permutation(categories[0::2])
        cycle[1::2] = rng.permutation(categories[1::2])
        after[cycle] = np.roll(cycle, -1)
    return after


def _shift_fits(fits: Ints, share: float, rng: np.random.Generator) -> Ints:
    C, _ = fits.shape
    shifted = fits.copy()
    chosen = rng.permutation(C)[: round(share * C)]
    shifted[chosen] = rng.permuted(shifted[chosen], axis=1)
    return shifted
