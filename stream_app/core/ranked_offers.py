"""Rankings of what may be shown: the model ranks a market's offer, and what the session itself hides is left out after.

Exactly the ranking of everything, less what may not be shown: the model ranks as many more items as a session hides. A
list that has to be diverse is chosen from a longer one, and from a still longer one where that does not fill it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from schemas.bundle.adjust import EXCLUDED
from schemas.bundle.runtime import Model, finite_rows
from schemas.messages.ranking import Diversified, RankedItem, RankingReason
from stream_app.core.offer import Offer, Pin
from stream_app.core.plan import Plan
from stream_app.core.query import Queries
from stream_app.core.ranked import RankedClick, session_inputs

Top = tuple[list[int], list[float]]
"""Item indices and their scores, best first unless a list is diverse."""

_DEEPER: Final = 4
"""How many times as much of a ranking is looked at where it was not enough for a list."""


def ranked_offers(
    plans: Sequence[Plan], asked: Queries, model: Model, offers: Mapping[str | None, Offer]
) -> list[list[RankedClick]]:
    """Of each plan, one ranking a click, by the offers of the clicks' markets."""
    clicks = [sourced for one in plans for sourced in one.clicks]
    unknown = [is_unknown for one in plans for is_unknown in one.unknown]
    item_ids = [hidden for one in plans for hidden in one.hidden] or [[]] * len(clicks)
    offered = [offers[sourced.click.market] for sourced in clicks]
    pins = [
        _placed(offer.pins, hidden, model.k) if offer.pins else ()
        for offer, hidden in zip(offered, item_ids, strict=True)
    ]
    hidden = [_known(of_click, model) for of_click in item_ids]
    batch = _Batch(plans, asked, model, offered, hidden)
    if not offered or offered[0].diversity is None:
        lists = batch.best(range(len(clicks)), model.k)
    else:
        lists = _diverse(batch, pins)
    failed = (asked.has_state | ~asked.finite).tolist()
    answers = []
    for number, sourced in enumerate(clicks):
        listed = lists[number]
        if listed.by_model:
            reason = RankingReason.UNKNOWN_ITEM if unknown[number] else RankingReason.MODEL
        else:
            reason = RankingReason.NOT_FINITE if failed[number] else RankingReason.POPULARITY
        rules = _rules(offered[number], _beside(pins[number], listed.top, model), pins[number])
        answers.append(
            RankedClick(sourced.click, sourced.offset, *listed.top, reason, pins[number], rules, listed.diversity)
        )
    ends = np.cumsum([len(one.clicks) for one in plans]).tolist()
    return [answers[end - len(one.clicks) : end] for one, end in zip(plans, ends, strict=True)]


def with_pins(items: Sequence[RankedItem], pins: Sequence[Pin], most: int) -> tuple[RankedItem, ...]:
    """At most ``most`` ranked items with the pinned ones at their places, each with the score of the item behind it.

    No two pins have one place.
    """
    pinned = {pin.item_id for pin in pins}
    listed = [item for item in items if item.item_id not in pinned]
    for pin in pins:
        at = min(pin.place - 1, len(listed))
        next_best = listed[at : at + 1] or listed[-1:]
        listed.insert(at, RankedItem(pin.item_id, next_best[0].score if next_best else 0.0))
    return tuple(listed[:most])


def _placed(pins: Sequence[Pin], hidden: Collection[str], most: int) -> tuple[Pin, ...]:
    """The pins that this ranking shows, by place: of an item that several rules pin the first place.

    Where a lower rule id has the place, a pin takes the next one that is free.
    """
    by_item: dict[str, Pin] = {}
    for pin in pins:
        if pin.place <= most and pin.item_id not in hidden:
            by_item.setdefault(pin.item_id, pin)
    at: dict[int, Pin] = {}
    for pin in sorted(by_item.values(), key=lambda pin: pin.rule_id):
        place = pin.place
        while place in at:
            place += 1
        if place <= most:
            at[place] = replace(pin, place=place)
    return tuple(at[place] for place in sorted(at))


@dataclass(frozen=True, slots=True)
class _Listed:
    """What is shown, from the model or else the most popular items, and what made it another list than the best."""

    top: Top
    by_model: bool
    diversity: tuple[Diversified, ...] = ()


@dataclass(frozen=True, slots=True)
class _Batch:
    """Clicks to be ranked together; of each its offer, and the items that its list must not hold."""

    plans: Sequence[Plan]
    asked: Queries
    model: Model
    offered: Sequence[Offer]
    hidden: Sequence[Collection[int]]

    def best(self, some: Collection[int], most: int) -> dict[int, _Listed]:
        """The ``most`` best items for some of the clicks."""
        tops = self._tops(some, most)
        return {
            click: _Listed(tops[click], by_model=True)
            if click in tops
            else _Listed(self._popular(click, most), by_model=False)
            for click in some
        }

    def _popular(self, click: int, most: int) -> Top:
        hidden = self.hidden[click]
        return _without(self.offered[click].popular(most + len(hidden)), hidden, most)

    def _tops(self, some: Collection[int], most: int) -> dict[int, Top]:
        """What the model ranks for the clicks that it can rank: one call for each offer."""
        asked, model, offered, hidden = self.asked, self.model, self.offered, self.hidden
        by_model = np.flatnonzero(asked.has_state & asked.finite).tolist()
        recents = [recent for one in self.plans for recent in one.recents]
        groups: dict[int, list[int]] = {}
        for click in by_model:
            if click in some:
                groups.setdefault(id(offered[click]), []).append(click)
        tops = {}
        for clicks in groups.values():
            query = None if asked.query is None else asked.query[clicks]  # [M, D]
            k = most + max(len(hidden[click]) for click in clicks)
            index, score = model.rank(
                query,
                *session_inputs([recents[click] for click in clicks], model.recent_size),
                adjust=offered[clicks[0]].adjust,
                k=k,
            )
            finite = finite_rows(score)
            shown = np.count_nonzero(score > EXCLUDED / 2, axis=1).tolist()
            indices, scores = index.tolist(), score.tolist()
            for row, click in enumerate(clicks):
                if finite[row]:
                    of_offer = indices[row][: shown[row]], scores[row][: shown[row]]
                    tops[click] = _without(of_offer, hidden[click], most)
        return tops


def _diverse(batch: _Batch, pins: Sequence[Sequence[Pin]]) -> dict[int, _Listed]:
    """Lists that keep to the rules of diversity, each from as much of its ranking as it takes."""
    model, offered = batch.model, batch.offered
    # What a rule has pinned is in the list already, and counts among its categories.
    pinned = [_known([pin.item_id for pin in of_click], model) for of_click in pins]
    batch = replace(batch, hidden=[{*own, *theirs} for own, theirs in zip(batch.hidden, pinned, strict=True)])
    diversity = offered[0].diversity
    assert diversity is not None
    lists: dict[int, _Listed] = {}
    left, depth = set(range(len(offered))), diversity.rules.depth(model.k)
    while left:
        best = batch.best(left, depth)
        for click, ranked in best.items():
            index, score = ranked.top
            categories = [pin.categories for pin in pins[click]]
            places, touched = diversity.chosen(index, score, offered[click].adjust, model.k, categories)
            top = [index[place] for place in places], [score[place] for place in places]
            lists[click] = _Listed(top, ranked.by_model, touched)
        left = {click for click in left if len(lists[click].top[0]) < model.k and len(best[click].top[0]) == depth}
        depth *= _DEEPER
    return lists


def _without(top: Top, hidden: Collection[int], most: int) -> Top:
    """The best of the items that are not hidden."""
    index, score = top
    if not hidden:
        return index[:most], score[:most]
    kept = [place for place, item in enumerate(index) if item not in hidden][:most]
    return [index[place] for place in kept], [score[place] for place in kept]


def _known(item_ids: Sequence[str], model: Model) -> Collection[int]:
    index_of = model.vocabulary.index
    return {index for item_id in item_ids if (index := index_of(item_id)) is not None}


def _beside(pins: Sequence[Pin], top: Top, model: Model) -> Top:
    """What of a list is still shown once the pinned items are in it."""
    return _without(top, _known([pin.item_id for pin in pins], model), model.k - len(pins)) if pins else top


def _rules(offer: Offer, top: Top, pins: Sequence[Pin]) -> tuple[str, ...]:
    """Those that a reader of this list can see at work: boosts of its items, and pins."""
    touching = {pin.rule_id for pin in pins}
    if offer.boosted_by is not None:
        for code in set(offer.boosted_by[top[0]].tolist()):
            rules = offer.rule_sets.values[code]
            assert isinstance(rules, tuple)
            touching.update(rules)
    return tuple(sorted(touching))
