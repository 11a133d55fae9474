"""Rankings of what may be shown are those of everything, less what may not be, for any clicks, markets and rules."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bundle.runtime import Model
from schemas.messages.click import Click
from schemas.messages.item import Item
from schemas.messages.ranking import RankedItem, RankingReason
from schemas.messages.rule import Match, Rule, RuleAction
from stream_app.core.catalogue import Catalogue
from stream_app.core.offer import Offer, Offers, Pin
from stream_app.core.plan import SourcedClick
from stream_app.core.ranked_offers import with_pins
from stream_app.core.recommend import recommend
from stream_app.core.session import SessionRules
from tests.unit.models import exact_model, no_encoder_model, sick_model, window_model

IDS = tuple(f"i{number}" for number in range(12))
MODELS = {
    "recurrent": exact_model("v1", IDS),
    "window": window_model("v2", IDS),
    "none": no_encoder_model("v3", IDS),
}
MARKETS = [None, "de", "at"]

clicks = st.lists(
    st.tuples(st.sampled_from("xyz"), st.sampled_from([*IDS, "unknown"]), st.sampled_from(MARKETS)), max_size=12
)


def sourced(given: Sequence[tuple[str, str, str | None]]) -> list[SourcedClick]:
    return [SourcedClick(Click(session, item, 1, market=market), n) for n, (session, item, market) in enumerate(given)]


def offers_of(model: Model, catalogue: Catalogue | None) -> dict[str | None, Offer]:
    offers = Offers(model, catalogue)
    if catalogue is not None:
        offers.refresh(0)
    return {market: offers.of(market) for market in MARKETS}


@pytest.mark.parametrize("encoder", MODELS)
@given(
    given=clicks,
    shown=st.dictionaries(st.sampled_from(IDS), st.sampled_from([None, ("de",), ()])),
    boosted=st.sets(st.sampled_from(IDS)),
    hide=st.booleans(),
)
def test_the_ranking_is_that_of_everything_less_what_may_not_be_shown(
    encoder: str,
    given: list[tuple[str, str, str | None]],
    shown: dict[str, tuple[str, ...] | None],
    boosted: set[str],
    hide: bool,
) -> None:
    model, rules = MODELS[encoder], SessionRules(hide=hide, recent_items=3)
    catalogue = Catalogue()
    catalogue.put_items([(item, Item(item_id=item, markets=markets)) for item, markets in shown.items()])
    if boosted:
        rule = Rule(rule_id="r", action=RuleAction.BOOST, match=Match(items=tuple(sorted(boosted))), boost=50.0)
        catalogue.put_rule("r", rule)
    found = recommend({}, sourced(given), model, rules, offers_of(model, catalogue)).ranked
    everything = Catalogue()
    everything.put_items([(item, Item(item_id=item)) for item in IDS])
    offers = offers_of(model, everything)
    clicked: dict[str, list[str]] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(model), "k", len(IDS))
        whole = recommend({}, sourced(given), model, SessionRules(recent_items=3), offers).ranked
    assert [one.reason for one in found] == [one.reason for one in whole]
    for one, of_all in zip(found, whole, strict=True):
        own = clicked.setdefault(one.click.session_id, [])
        own.append(one.click.item_id)
        boost = 50.0
        scored = [
            (score + (boost if IDS[index] in boosted else 0), index)
            for index, score in zip(of_all.top_index, of_all.top_score, strict=True)
            if IDS[index] in shown
            and (shown[IDS[index]] is None or one.click.market in (shown[IDS[index]] or ()))
            and not (hide and IDS[index] in own[-3:])
        ]
        best = sorted(scored, key=lambda pair: (-pair[0], pair[1]))[: model.k]
        assert list(one.top_index) == [index for _, index in best]
        assert np.allclose(one.top_score, [score for score, _ in best])
        assert one.rules == (("r",) if any(IDS[index] in boosted for _, index in best) else ())


def test_hidden_items_alone_need_no_catalogue() -> None:
    model = MODELS["recurrent"]
    given = [("x", "i1", None), ("x", "i2", "de"), ("y", "unknown", None)]
    found = recommend({}, sourced(given), model, SessionRules(hide=True), offers_of(model, None)).ranked
    assert all(len(one.top_index) == model.k for one in found)
    assert not {1, 2} & set(found[1].top_index)
    assert found[2].reason == RankingReason.POPULARITY


def test_numbers_that_are_none_lead_to_the_most_popular_that_may_be_shown() -> None:
    model = sick_model("sick", IDS)
    catalogue = Catalogue()
    catalogue.put_items([(item, Item(item_id=item)) for item in IDS[5:]])
    with pytest.MonkeyPatch.context() as patched:

        def rank(_: object, *__: object, k: int, **___: object) -> tuple[object, object]:
            return np.zeros((1, k), np.int64), np.full((1, k), np.nan, np.float32)

        patched.setattr(type(model), "rank", rank)
        [one] = recommend({}, sourced([("x", "i3", None)]), model, SessionRules(), offers_of(model, catalogue)).ranked
    assert one.reason == RankingReason.NOT_FINITE
    assert list(one.top_index) == [5, 6, 7, 8]


def pinned(*pins: tuple[int, str]) -> list[Pin]:
    return [Pin(place, item, "r") for place, item in pins]


LISTED = [RankedItem("a", 3.0), RankedItem("b", 2.0), RankedItem("c", 1.0)]


@pytest.mark.parametrize(
    ("listed", "pins", "expected"),
    [
        (LISTED, [(1, "x")], ["x", "a", "b"]),
        (LISTED, [(3, "x")], ["a", "b", "x"]),
        (LISTED, [(1, "c")], ["c", "a", "b"]),
        (LISTED, [(3, "a")], ["b", "c", "a"]),
        (LISTED, [(1, "x"), (2, "y")], ["x", "y", "a"]),
        (LISTED[:1], [(3, "x")], ["a", "x"]),
        ([], [(2, "x")], ["x"]),
    ],
)
def test_pins_stand_at_their_places(listed: list[RankedItem], pins: list[tuple[int, str]], expected: list[str]) -> None:
    found = with_pins(listed, pinned(*pins), 3)
    assert [item.item_id for item in found] == expected
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)


def test_a_pin_that_the_session_hides_or_behind_the_end_is_left_out_and_unknown_items_can_be_pinned() -> None:
    model, catalogue = MODELS["recurrent"], Catalogue(keeps_items=False)
    for rule_id, place, items in (("a", 1, ("i1", "new")), ("b", 5, ("i4",)), ("c", 3, ("new",))):
        rule = Rule(rule_id=rule_id, action=RuleAction.PIN, match=Match(items=items), place=place)
        catalogue.put_rule(rule_id, rule)
    offers = offers_of(model, catalogue)
    hidden, other = recommend(
        {}, sourced([("x", "i1", None), ("y", "i2", None)]), model, SessionRules(hide=True), offers
    ).ranked
    assert [(pin.place, pin.item_id) for pin in hidden.pins] == [(2, "new")]
    assert [(pin.place, pin.item_id) for pin in other.pins] == [(1, "i1"), (2, "new")]
    assert other.rules == ("a",)


def test_of_two_rules_that_want_one_place_the_lower_id_gets_it() -> None:
    model, catalogue = MODELS["recurrent"], Catalogue(keeps_items=False)
    for rule_id, place, items in (("b", 1, ("z", "i7")), ("a", 1, ("x", "y")), ("c", model.k, ("v", "w"))):
        rule = Rule(rule_id=rule_id, action=RuleAction.PIN, match=Match(items=items), place=place)
        catalogue.put_rule(rule_id, rule)
    [one] = recommend({}, sourced([("s", "i1", None)]), model, SessionRules(), offers_of(model, catalogue)).ranked
    listed = [RankedItem(f"n{n}", 1.0) for n in range(model.k)]
    assert [item.item_id for item in with_pins(listed, one.pins, model.k)] == ["x", "y", "z", "i7"]
    assert one.rules == ("a", "b")  # the last place is taken, so nothing of c is shown


def test_a_boost_of_what_pins_push_out_or_put_elsewhere_is_not_told() -> None:
    model, catalogue = MODELS["recurrent"], Catalogue(keeps_items=False)
    given = sourced([("s", "i1", None)])
    [plain] = recommend({}, given, model, SessionRules(), offers_of(model, catalogue)).ranked
    first, *_, last = (IDS[index] for index in plain.top_index)
    boost = Rule(rule_id="boost", action=RuleAction.BOOST, match=Match(items=(first, last)), boost=1e-6)
    pin = Rule(rule_id="pin", action=RuleAction.PIN, match=Match(items=(first, "new")), place=1)
    catalogue.put_rule("boost", boost)
    [seen] = recommend({}, given, model, SessionRules(), offers_of(model, catalogue)).ranked
    catalogue.put_rule("pin", pin)
    [pinned] = recommend({}, given, model, SessionRules(), offers_of(model, catalogue)).ranked
    assert seen.top_index == pinned.top_index == plain.top_index
    assert (seen.rules, pinned.rules) == (("boost",), ("pin",))
