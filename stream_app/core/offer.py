"""Which items a ranking may hold, and what is added to their scores: of one model, by market and time.

The worker asks before each batch. What has changed since is put into the arrays then, item by item, so a change costs
as much as it changes, and a ranking is of one state of the catalogue. Shapes: N items of the model.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.bundle.adjust import EXCLUDED
from schemas.bundle.runtime import Model
from schemas.messages.rule import MOST_BOOST, Rule, RuleAction
from stream_app.core.catalogue import NEVER, NOWHERE, Catalogue, Indices, Interned, Truths, scalar
from stream_app.core.diversity import Diversity, DiversityRules

Floats = NDArray[np.float32]

_MOST_STEPS: Final = 1024  # of changes, before all is made anew
_OFFER_BYTES: Final = 64 * 2**20  # of the offers of all markets
_LEAST_OFFERS: Final = 8
_LEAST_DUE: Final = 1024  # times to come, before those that do not count any more are left out
_SET_BACK_MS: Final = 1000
"""A clock that goes back by less brings nothing back; one that goes back further was wrong before."""


@dataclass(frozen=True, slots=True)
class Pin:
    """An item that a rule puts at a place, 1 being the first; its categories where their number counts."""

    place: int
    item_id: str
    rule_id: str
    categories: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Offer:
    """What may be shown in a market now.

    Attributes:
        adjust: float32[N] for the rank graph; None without items and rules.
        boosted_by: int32[N], numbers of `rule_sets`: the boosts of each item; None without any.
        pins: by place, items that may be shown alone.
        diversity: what a list of it has to be like; None for the best items.
    """

    share: Floats
    adjust: Floats | None = None
    boosted_by: NDArray[np.int32] | None = None
    rule_sets: Interned = field(default_factory=lambda: Interned(()))
    pins: tuple[Pin, ...] = ()
    diversity: Diversity | None = None
    epoch: int = -1
    steps: int = 0
    pins_of: int = -1
    pins_due: int = NEVER
    _popular: tuple[list[int], list[float]] | None = None
    _popular_k: int = 0

    def popular(self, k: int) -> tuple[list[int], list[float]]:
        """The k most popular items that may be shown, with their shares of all clicks, boosts included."""
        if self._popular is None or self._popular_k < k:
            score = self.share if self.adjust is None else self.share + self.adjust
            k = min(k, len(score))
            least = np.partition(score, len(score) - k)[len(score) - k]
            index = np.flatnonzero(score >= max(least, np.float32(EXCLUDED / 2)))
            index = index[np.argsort(-score[index], kind="stable")][:k]
            self._popular, self._popular_k = (index.tolist(), score[index].tolist()), k
        return self._popular

    def changed(self) -> None:
        """The numbers are others than before."""
        self._popular = None


class Offers:
    """The offers of one model, from a catalogue that nobody changes while a method runs.

    Without a catalogue everything may be shown everywhere. ``now_ms`` is the time by which it is made: of what was over
    before, nothing needs to be watched.
    """

    def __init__(
        self, model: Model, catalogue: Catalogue | None, now_ms: int = 0, diversity: DiversityRules | None = None
    ) -> None:
        self.version = model.version
        self._vocabulary = model.vocabulary
        self._catalogue = catalogue
        self._share = (model.popularity / max(int(model.popularity.sum()), 1)).astype(np.float32)
        self._offers: dict[str | None, Offer] = {}
        self._most_offers = max(_OFFER_BYTES // (4 * max(len(self._share), 1)), _LEAST_OFFERS)
        rows = model.rows if diversity is not None and diversity.uses_rows else None
        self._diversity = None if diversity is None else Diversity(diversity, rows)
        if catalogue is None:
            self._offers[None] = Offer(self._share, diversity=self._diversity, epoch=0)
            return
        self._changes = catalogue.watch()
        self._place_of: Indices = self._places()
        self._capped = diversity is not None and diversity.max_per_category is not None
        self._categorise()
        self._epoch = 0  # is raised when all is to be made anew
        self._steps: list[Indices] = []  # what has changed since
        self._version = 0  # of items that may be pinned, and are perhaps none of the model's
        self._now = now_ms
        self._due: list[tuple[int, int]] = []  # times and items, a heap
        self._pins_due = NEVER
        self._timeline()
        self._rules_version = -1
        self._rules_due = 0
        self._rules: list[_ActiveRule] = []
        self._markets: frozenset[str] = frozenset()
        self._markets_of = (-1, -1)

    def needs(self, now_ms: int) -> bool:
        """Whether anything has changed, or become due, since `refresh`."""
        catalogue = self._catalogue
        return catalogue is not None and (
            bool(self._changes)
            or catalogue.rules_version != self._rules_version
            or now_ms >= min(self._rules_due, self._pins_due, self._due[0][0] if self._due else NEVER)
            or now_ms < self._now - _SET_BACK_MS
        )

    def refresh(self, now_ms: int) -> None:
        """Take in what has changed in the catalogue, and what became due."""
        catalogue = self._catalogue
        assert catalogue is not None
        if now_ms < self._now - _SET_BACK_MS:
            self._now = now_ms
            self._timeline()
            self._take_in_rules()
        self._now = max(self._now, now_ms)
        if self._changes:
            self._version += 1
            self._take_in(self._changes.take())
        due = []
        while self._due and self._due[0][0] <= self._now:
            due.append(heapq.heappop(self._due)[1])
        if due:
            self._steps.append(np.unique(np.array(due, dtype=np.int64)))
        if catalogue.rules_version != self._rules_version or self._now >= self._rules_due:
            self._take_in_rules()
        if len(self._steps) > _MOST_STEPS or sum(map(len, self._steps)) > len(self._share):
            self._anew()
        self._await_pins()

    def of(self, market: str | None) -> Offer:
        """What may be shown in a market; the same for all of which neither an item nor a rule knows."""
        if self._catalogue is None:
            return self._offers[None]
        known = market if market in self._known_markets() else None
        offer = self._offers.pop(known, None) or Offer(self._share, diversity=self._diversity)
        self._offers[known] = offer  # the last one used is the last
        if len(self._offers) > self._most_offers:
            del self._offers[next(iter(self._offers))]
        if offer.epoch != self._epoch:
            self._evaluate(offer, known, None)
            offer.epoch = self._epoch
        elif offer.steps < len(self._steps):
            self._evaluate(offer, known, np.unique(np.concatenate(self._steps[offer.steps :])))
        offer.steps = len(self._steps)
        if offer.pins_of != (self._version + self._epoch) or self._now >= offer.pins_due:
            self._pin(offer, known)
            offer.pins_of = self._version + self._epoch
        return offer

    # -- what has changed ---------------------------------------------------------------------------------------------

    def _places(self) -> Indices:
        assert self._catalogue is not None
        place = self._catalogue.place.get
        items = self._vocabulary.items
        return np.fromiter((place(item_id, NOWHERE) for item_id in items), dtype=np.int64, count=len(items))

    def _categorise(self, index: Indices | None = None) -> None:
        """Look up the categories of all items, or of int64[n] ``index``, where their number counts."""
        catalogue, diversity = self._catalogue, self._diversity
        if not self._capped or diversity is None or catalogue is None:
            return
        places = self._place_of if index is None else self._place_of[index]
        found = np.zeros(len(places), dtype=np.int32)  # the combination of no categories
        found[places >= 0] = catalogue.categories[places[places >= 0]]
        if index is None:
            diversity.categories, diversity.category_sets = found, catalogue.category_sets.values
        elif diversity.categories is not None:
            diversity.categories[index] = found

    def _timeline(self) -> None:
        """Every time to come at which an item may be shown, or not any more."""
        catalogue = self._catalogue
        assert catalogue is not None
        self._due = []
        if len(catalogue.begin):
            self._due = self._times(np.flatnonzero(self._place_of >= 0))
            heapq.heapify(self._due)

    def _times(self, index: Indices) -> list[tuple[int, int]]:
        """Those of these items int64[n], and the items."""
        catalogue = self._catalogue
        assert catalogue is not None
        places = self._place_of[index]
        index, places = index[places >= 0], places[places >= 0]
        found: list[tuple[int, int]] = []
        for times in (catalogue.begin[places], catalogue.end[places]):
            to_come = (times > self._now) & (times < NEVER)
            found += zip(times[to_come].tolist(), index[to_come].tolist(), strict=True)
        return found

    def _take_in(self, item_ids: Sequence[str] | None) -> None:
        """These items are others now; all of them without any."""
        if item_ids is None or len(item_ids) > len(self._share) // 2:
            self._place_of = self._places()
            self._categorise()
            self._timeline()
            self._anew()
            return
        assert self._catalogue is not None
        place, items = self._catalogue.place.get, self._vocabulary.items
        index = np.unique(self._vocabulary.encode(item_ids))
        index = index[index >= 0]
        if len(index):
            self._place_of[index] = [place(items[one], NOWHERE) for one in index.tolist()]
            self._categorise(index)
            for due in self._times(index):
                heapq.heappush(self._due, due)
            # An item that changes again and again leaves its earlier times behind.
            if len(self._due) > max(_LEAST_DUE, 4 * len(self._share)):
                self._timeline()
            self._steps.append(index)

    def _take_in_rules(self) -> None:
        catalogue = self._catalogue
        assert catalogue is not None
        self._rules_version = catalogue.rules_version
        rules = [catalogue.rules[rule_id] for rule_id in sorted(catalogue.rules)]
        times = [time for rule in rules for time in (rule.begin, rule.until) if time is not None and time > self._now]
        self._rules_due = min(times, default=NEVER)
        self._rules = [
            _ActiveRule(rule, self._vocabulary.encode(rule.match.items))
            for rule in rules
            if (rule.begin or 0) <= self._now < (NEVER if rule.until is None else rule.until)
        ]
        self._anew()

    def _anew(self) -> None:
        self._epoch += 1
        self._steps = []

    def _known_markets(self) -> frozenset[str]:
        catalogue = self._catalogue
        assert catalogue is not None
        if (of := (len(catalogue.market_sets), self._rules_version)) != self._markets_of:
            sets = [*catalogue.market_sets.values, *(active.rule.markets for active in self._rules)]
            self._markets = frozenset(market for one in sets if isinstance(one, tuple) for market in one)
            self._markets_of = of
        return self._markets

    # -- what follows -------------------------------------------------------------------------------------------------

    def _evaluate(self, offer: Offer, market: str | None, at: Indices | None) -> None:
        """Of all items, or of those int64[n] ``at``."""
        catalogue = self._catalogue
        assert catalogue is not None
        places = self._place_of if at is None else self._place_of[at]  # [n]
        shown = np.ones(len(places), dtype=np.bool_)
        if catalogue.keeps_items:
            shown = self._available(places, market)
        boost = np.zeros(len(places), dtype=np.float32)
        boosted_by: NDArray[np.int32] | None = None
        if at is None:
            offer.rule_sets = Interned(())
        for active in self._rules:
            if active.rule.action == RuleAction.PIN or not active.counts_in(market):
                continue
            matched = active.matches(catalogue, places, at)
            if active.rule.action == RuleAction.EXCLUDE:
                shown &= ~matched
            else:
                boost[matched] += active.rule.boost or 0.0
                boosted_by = np.zeros(len(places), dtype=np.int32) if boosted_by is None else boosted_by
                boosted_by[matched] = _also(boosted_by[matched], active.rule.rule_id, offer.rule_sets)
        adjust = np.where(shown, np.clip(boost, -MOST_BOOST, MOST_BOOST), np.float32(EXCLUDED)).astype(np.float32)
        if at is None:
            offer.adjust, offer.boosted_by = adjust, boosted_by
        else:
            assert offer.adjust is not None
            offer.adjust[at] = adjust
            if boosted_by is not None:
                assert offer.boosted_by is not None, "the same rules as when all was evaluated"
                offer.boosted_by[at] = boosted_by
        offer.changed()

    def _available(self, places: Indices, market: str | None) -> Truths:
        """bool[n]: which of the items at these places may be shown in a market now."""
        catalogue = self._catalogue
        assert catalogue is not None
        if not len(catalogue.begin):
            return np.zeros(len(places), dtype=np.bool_)
        allowed = np.array(
            [one is None or (isinstance(one, tuple) and market in one) for one in catalogue.market_sets.values]
        )
        at = np.maximum(places, 0)
        in_time = (catalogue.begin[at] <= self._now) & (self._now < catalogue.end[at])
        return np.asarray((places >= 0) & in_time & allowed[catalogue.markets[at]])

    def _pin(self, offer: Offer, market: str | None) -> None:
        catalogue = self._catalogue
        assert catalogue is not None
        pins, due = [], NEVER
        for active in self._rules:
            rule = active.rule
            if rule.action != RuleAction.PIN or not active.counts_in(market):
                continue
            assert rule.place is not None
            for number, item_id in enumerate(rule.match.items):
                place = catalogue.place.get(item_id, NOWHERE)
                if place >= 0:
                    times = (int(catalogue.begin[place]), int(catalogue.end[place]))
                    due = min([due, *(time for time in times if time > self._now)])
                if self._may_pin(item_id, place, market):
                    pins.append(Pin(rule.place + number, item_id, rule.rule_id, self._counted(place)))
        offer.pins = tuple(sorted(pins, key=lambda pin: (pin.place, pin.rule_id)))
        offer.pins_due = due
        self._await_pins()

    def _await_pins(self) -> None:
        """Those that are due already wait until their market is asked for."""
        self._pins_due = min((at for one in self._offers.values() if (at := one.pins_due) > self._now), default=NEVER)

    def _counted(self, place: int) -> tuple[str, ...]:
        """The categories of the item at a place, where their number counts."""
        assert self._catalogue is not None
        if not self._capped or place < 0:
            return ()
        found = self._catalogue.category_sets.values[self._catalogue.categories[place]]
        assert isinstance(found, tuple)
        return found

    def _may_pin(self, item_id: str, place: int, market: str | None) -> bool:
        """Whether an item may be shown, one that the model does not know too."""
        catalogue = self._catalogue
        assert catalogue is not None
        places = np.array([place], dtype=np.int64)
        if catalogue.keeps_items and not self._available(places, market)[0]:
            return False
        return not any(
            active.rule.action == RuleAction.EXCLUDE
            and active.counts_in(market)
            and active.matches_item(catalogue, places, item_id)
            for active in self._rules
        )


class _ActiveRule:
    """A rule that counts now, and ``index`` int64[n]: its items in the model's vocabulary, negative where unknown."""

    def __init__(self, rule: Rule, index: Indices) -> None:
        self.rule = rule
        self._index = index
        self._categories = np.zeros(0, dtype=np.bool_)  # of each combination, whether one of the rule's is in it
        self._attributes = {
            name: frozenset(scalar(value) for value in values) for name, values in rule.match.attributes.items()
        }

    def counts_in(self, market: str | None) -> bool:
        return self.rule.markets is None or market in self.rule.markets

    def matches(self, catalogue: Catalogue, places: Indices, at: Indices | None) -> Truths:
        """bool[n] of all items, or of those int64[n] ``at``, which lie at ``places``."""
        matched = np.ones(len(places), dtype=np.bool_)
        if self.rule.match.items:
            if at is None:
                matched = np.zeros(len(places), dtype=np.bool_)
                matched[self._index[self._index >= 0]] = True
            else:
                matched = np.isin(at, self._index)
        return matched & self._described(catalogue, places)

    def matches_item(self, catalogue: Catalogue, places: Indices, item_id: str) -> bool:
        """As `matches`, of one item that the model may not know."""
        items = self.rule.match.items
        return (not items or item_id in items) and bool(self._described(catalogue, places)[0])

    def _described(self, catalogue: Catalogue, places: Indices) -> Truths:
        """Which have the categories and attributes."""
        match = self.rule.match
        described = np.ones(len(places), dtype=np.bool_)
        if not (match.categories or self._attributes) or not len(catalogue.begin):
            return described if not (match.categories or self._attributes) else ~described
        described = places >= 0
        at = np.maximum(places, 0)
        if match.categories:
            wanted, known = set(match.categories), len(self._categories)
            new = catalogue.category_sets.values[known:]
            found = [isinstance(one, tuple) and not wanted.isdisjoint(one) for one in new]
            self._categories = np.append(self._categories, np.array(found, dtype=np.bool_))
            described &= self._categories[catalogue.categories[at]]
        for name, wanted_values in self._attributes.items():
            values = catalogue.attribute_values[name].values
            codes = [code for code, value in enumerate(values) if code and value in wanted_values]
            described &= np.isin(catalogue.attributes[name][at], codes)
        return described


def _also(codes: NDArray[np.int32], rule_id: str, rule_sets: Interned) -> NDArray[np.int32]:
    """Numbers of rule sets -> of the same with another rule in each."""
    before, which = np.unique(codes, return_inverse=True)
    after = []
    for code in before.tolist():
        rules = rule_sets.values[code]
        assert isinstance(rules, tuple)
        after.append(rule_sets.code((*rules, rule_id)))
    return np.array(after, dtype=np.int32)[which]
