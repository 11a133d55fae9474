"""What the shop says of its items and wants of its rankings, as rankings need it: columns and a few rules.

A million items are to fit beside a model, so an item is a place in a few arrays. Markets, categories and attributes are
kept as numbers of the combinations that there are. Shapes: S places.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Final
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from schemas.messages.item import Item
from schemas.messages.refused import RecordRefusedError, RefuseReason
from schemas.messages.rule import Rule

Indices = NDArray[np.int64]
Truths = NDArray[np.bool_]

NEVER: Final = 2**63 - 1
"""A time that does not come."""
NOWHERE: Final = -1
"""The place of an item of which the shop says nothing."""
_GROWTH: Final = 1.5
_LEAST_PLACES: Final = 1024
_MOST_CHANGES: Final = 100_000
_MOST_UNUSED: Final = 1024


class Interned:
    """Values as numbers from 0 on, in the order in which they first came."""

    def __init__(self, *first: Hashable) -> None:
        self.values: list[Hashable] = []
        self._codes: dict[Hashable, int] = {}
        for value in first:
            self.code(value)

    def code(self, value: Hashable) -> int:
        """The value's number, a new one if need be."""
        code = self._codes.get(value)
        if code is None:
            code = self._codes[value] = len(self.values)
            self.values.append(value)
        return code

    def __len__(self) -> int:
        return len(self.values)

    def only(self, codes: NDArray[np.int32], at: Indices) -> tuple["Interned", NDArray[np.int32]]:
        """The first value and those that the places ``at`` of the numbers int32[S] mean, and these numbers anew.

        All other places mean the first value.
        """
        used, which = np.unique(np.append(np.int32(0), codes[at]), return_inverse=True)
        anew = np.zeros_like(codes)
        anew[at] = which[1:]
        return Interned(*(self.values[code] for code in used.tolist())), anew


class Changes:
    """The items that have changed since somebody last looked.

    Nobody looks while no click comes, for days where a worker has no partition: beyond so many, all have changed.
    """

    def __init__(self) -> None:
        self._item_ids: list[str] = []
        self._all = False

    def __bool__(self) -> bool:
        return self._all or bool(self._item_ids)

    def add(self, item_ids: Sequence[str]) -> None:
        """These have."""
        if self._all or len(self._item_ids) + len(item_ids) > _MOST_CHANGES:
            self.add_all()
        else:
            self._item_ids += item_ids

    def add_all(self) -> None:
        """All have."""
        self._item_ids, self._all = [], True

    def take(self) -> list[str] | None:
        """Their ids, None for all there are; from now on none has."""
        found = None if self._all else self._item_ids
        self._item_ids, self._all = [], False
        return found


class Catalogue:
    """Items by their places, and rules by their ids. Not safe to change while another thread reads it.

    Attributes:
        place: of each item; a place that has become free is taken by another item.
        begin: int64[S] when an item may be shown, from the first ms on; NEVER where it may not be shown at all.
        end: int64[S] from when on it may not.
        markets, categories: int32[S], numbers of combinations; no combination of markets (0) is all of them.
        attributes: int32[S] for each attribute that rules may match, numbers of values; 0 where an item has none.
        rules: those that have not been ended.
        rules_version: is raised with each change of a rule, and when combinations and values get other numbers.
        applied: offsets of the newest records of the two topics that are in here, -1 before the first.
    """

    def __init__(self, *, attributes: Iterable[str] = (), keeps_items: bool = True) -> None:
        self.keeps_items = keeps_items
        self.place: dict[str, int] = {}
        self.begin = np.full(0, NEVER, dtype=np.int64)
        self.end = np.full(0, NEVER, dtype=np.int64)
        self.markets = np.zeros(0, dtype=np.int32)
        self.categories = np.zeros(0, dtype=np.int32)
        self.attributes = {name: np.zeros(0, dtype=np.int32) for name in attributes}
        self.market_sets = Interned(None)
        self.category_sets = Interned(())
        self.attribute_values = {name: Interned(None) for name in self.attributes}
        self.rules: dict[str, Rule] = {}
        self.rules_version = 0
        self.applied = (-1, -1)
        self._free: list[int] = []
        self._used = 0
        self._watched: WeakSet[Changes] = WeakSet()

    def watch(self) -> Changes:
        """Changes from now on, for as long as somebody keeps them."""
        changes = Changes()
        self._watched.add(changes)
        return changes

    def put_items(self, changed: Sequence[tuple[str, Item | None]]) -> None:
        """Each item as it is now, in order; None for one that is gone."""
        places, begin, end, markets, categories = [], [], [], [], []
        attributes: dict[str, list[int]] = {name: [] for name in self.attributes}
        for item_id, item in changed:
            place = self.place.get(item_id)
            if item is None:
                if place is not None:
                    del self.place[item_id]
                    self._free.append(place)
                continue
            if place is None:
                place = self.place[item_id] = self._free.pop() if self._free else self._used
                self._used = max(self._used, place + 1)
            places.append(place)
            begin.append((item.available_from or 0) if item.available else NEVER)
            end.append(NEVER if item.available_until is None else item.available_until)
            markets.append(self.market_sets.code(None if item.markets is None else tuple(sorted(set(item.markets)))))
            categories.append(self.category_sets.code(tuple(sorted(set(item.categories)))))
            for name, codes in attributes.items():
                codes.append(self.attribute_values[name].code(scalar(item.attributes.get(name))))
        self._grow(self._used)
        # Of several values for one place the last one stays.
        at = np.array(places, dtype=np.int64)
        self.begin[at], self.end[at] = begin, end
        self.markets[at], self.categories[at] = markets, categories
        for name, codes in attributes.items():
            self.attributes[name][at] = codes
        item_ids = [item_id for item_id, _ in changed]
        for changes in self._watched:
            changes.add(item_ids)
        self._forget_unused()

    def put_rule(self, rule_id: str, rule: Rule | None) -> None:
        """The rule as it is now; None for one that has ended. Raises RecordRefusedError if it cannot be kept."""
        if rule is None:
            self.rules.pop(rule_id, None)
        else:
            self._check(rule)
            self.rules[rule_id] = rule
        self.rules_version += 1

    def _check(self, rule: Rule) -> None:
        if not self.keeps_items and (rule.match.categories or rule.match.attributes):
            problem = "matches categories or attributes, of which a worker without worker.items knows nothing"
            raise RecordRefusedError(RefuseReason.BAD_RULE, problem)
        for name in rule.match.attributes:
            if name not in self.attributes:
                problem = f"matches the attribute {name!r}, which is not in worker.rule_attributes"
                raise RecordRefusedError(RefuseReason.BAD_RULE, problem)

    def _forget_unused(self) -> None:
        """Combinations and values that no item has any more, once they are most: a price may ever be another one."""
        most = 2 * len(self.place) + _MOST_UNUSED
        if max(map(len, (self.market_sets, self.category_sets, *self.attribute_values.values()))) <= most:
            return
        at = np.fromiter(self.place.values(), dtype=np.int64, count=len(self.place))
        self.market_sets, self.markets = self.market_sets.only(self.markets, at)
        self.category_sets, self.categories = self.category_sets.only(self.categories, at)
        for name, values in self.attribute_values.items():
            self.attribute_values[name], self.attributes[name] = values.only(self.attributes[name], at)
        # Whoever keeps numbers looks all of them up again, and matches rules anew.
        self.rules_version += 1
        for changes in self._watched:
            changes.add_all()

    def _grow(self, used: int) -> None:
        have = len(self.begin)
        if used <= have:
            return
        more = max(int(used * _GROWTH), _LEAST_PLACES) - have
        self.begin = np.append(self.begin, np.full(more, NEVER, dtype=np.int64))
        self.end = np.append(self.end, np.full(more, NEVER, dtype=np.int64))
        none = np.zeros(more, dtype=np.int32)
        self.markets, self.categories = np.append(self.markets, none), np.append(self.categories, none)
        self.attributes = {name: np.append(codes, none) for name, codes in self.attributes.items()}


def scalar(value: object) -> Hashable:
    """An attribute's value as something to compare: true is not 1, and what is no single value equals nothing."""
    return (type(value) is bool, value) if isinstance(value, str | int | float) else None
