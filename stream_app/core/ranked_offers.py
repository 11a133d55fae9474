"""Rankings of what may be shown: the model ranks a market's offer, and what the session itself hides is left out after.

Exactly the ranking of everything, less what may not be shown: the model ranks as many more items as a session hides.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from schemas.bundle.adjust import EXCLUDED
from schemas.bundle.runtime import Model, finite_rows
from schemas.messages.ranking import RankedItem, RankingReason
from stream_app.core.offer import Offer, Pin
from stream_app.core.plan import Plan
from stream_app.core.query import Queries
from stream_app.core.ranked import RankedClick, session_inputs

Top = tuple[list[int], list[float]]
"""Item indices, best first, and their scores."""


def ranked_offers(
    plans: Sequence[Plan], asked: Queries, model: Model, offers: Mapping[str | None, Offer]
) -> list[list[RankedClick]]:
    """Of each plan, one ranking a click, by the offers of the clicks' markets."""
    clicks = [sourced for one in plans for sourced in one.clicks]
    unknown = [is_unknown for one in plans for is_unknown in one.unknown]
    item_ids = [hidden for one in plans for hidden in one.hidden] or [[]] * len(clicks)
    hidden = [_known(of_click, model) for of_click in item_ids]
    offered = [offers[sourced.click.market] for sourced in clicks]
    tops = _tops(plans, asked, model, offered, hidden)
    failed = (asked.has_state | ~asked.finite).tolist()
    answers = []
    for number, sourced in enumerate(clicks):
        offer, top = offered[number], tops.get(number)
        if top is None:
            reason = RankingReason.NOT_FINITE if failed[number] else RankingReason.POPULARITY
            top = _without(offer.popular(model.k + len(hidden[number])), hidden[number], model.k)
        else:
            reason = RankingReason.UNKNOWN_ITEM if unknown[number] else RankingReason.MODEL
        pins = _placed(offer.pins, item_ids[number], model.k) if offer.pins else ()
        rules = _rules(offer, top, pins)
        answers.append(RankedClick(sourced.click, sourced.offset, *top, reason, pins, rules))
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
            at[place] = pin if place == pin.place else Pin(place, pin.item_id, pin.rule_id)
    return tuple(at[place] for place in sorted(at))


def _tops(
    plans: Sequence[Plan],
    asked: Queries,
    model: Model,
    offered: Sequence[Offer],
    hidden: Sequence[Collection[int]],
) -> dict[int, Top]:
    """What the model ranks for the clicks that it can rank: one call for each offer."""
    by_model = np.flatnonzero(asked.has_state & asked.finite).tolist()
    recents = [recent for one in plans for recent in one.recents]
    groups: dict[int, list[int]] = {}
    for click in by_model:
        groups.setdefault(id(offered[click]), []).append(click)
    tops = {}
    for clicks in groups.values():
        query = None if asked.query is None else asked.query[clicks]  # [M, D]
        k = model.k + max(len(hidden[click]) for click in clicks)
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
                tops[click] = _without(of_offer, hidden[click], model.k)
    return tops


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


def _rules(offer: Offer, top: Top, pins: Sequence[Pin]) -> tuple[str, ...]:
    """Those that a reader of this list can see at work: boosts of its items, and pins."""
    touching = {pin.rule_id for pin in pins}
    if offer.boosted_by is not None:
        for code in set(offer.boosted_by[top[0]].tolist()):
            rules = offer.rule_sets.values[code]
            assert isinstance(rules, tuple)
            touching.update(rules)
    return tuple(sorted(touching))
