"""What may be shown: the same after any changes as if the catalogue had always been so, and as by hand."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bundle.adjust import EXCLUDED
from schemas.bundle.runtime import Model
from schemas.messages.item import Item
from schemas.messages.refused import RecordRefusedError
from schemas.messages.rule import MOST_BOOST, Match, Rule, RuleAction
from stream_app.core.catalogue import Catalogue
from stream_app.core.offer import Offer, Offers, Pin
from tests.unit.models import exact_model

IDS = tuple(f"i{number}" for number in range(8))
MARKETS = [None, "de", "at", "nowhere"]
ATTRIBUTE = "brand"

MODEL = exact_model("v1", IDS)


def offers_of(catalogue: Catalogue | None, model: Model = MODEL) -> Offers:
    return Offers(model, catalogue)


texts = st.sampled_from(["de", "at"])
times = st.one_of(st.none(), st.integers(1, 30))


@st.composite
def items(draw: st.DrawFn) -> Item:
    begin, end = draw(times), draw(times)
    return Item(
        item_id=draw(st.sampled_from([*IDS, "unknown"])),
        available=draw(st.sampled_from([True, True, True, False])),
        available_from=begin,
        available_until=None if begin is not None and end is not None and end <= begin else end,
        markets=draw(st.one_of(st.none(), st.lists(texts, max_size=2).map(tuple))),
        categories=tuple(draw(st.lists(st.sampled_from(["shoes", "hats"]), max_size=2))),
        attributes=draw(st.sampled_from([{}, {ATTRIBUTE: "a"}, {ATTRIBUTE: 1}, {ATTRIBUTE: True}, {ATTRIBUTE: ["a"]}])),
    )


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    action = draw(st.sampled_from(list(RuleAction)))
    pins = action == RuleAction.PIN
    begin, until = draw(times), draw(times)
    match = Match(
        items=tuple(draw(st.lists(st.sampled_from([*IDS, "unknown"]), min_size=pins, max_size=3))),
        categories=() if pins else tuple(draw(st.lists(st.sampled_from(["shoes", "hats"]), max_size=1))),
        attributes={} if pins else draw(st.sampled_from([{}, {ATTRIBUTE: ("a", 1)}, {ATTRIBUTE: (True,)}])),
    )
    return Rule(
        rule_id=draw(st.sampled_from(["r1", "r2", "r3"])),
        action=action,
        match=match if match.items or match.categories or match.attributes else Match(items=("i0",)),
        boost=draw(st.sampled_from([-1.0, 0.5, 2.0])) if action == RuleAction.BOOST else None,
        place=draw(st.integers(1, 4)) if pins else None,
        markets=draw(st.one_of(st.none(), st.lists(texts, max_size=2).map(tuple))),
        begin=begin,
        until=None if begin is not None and until is not None and until <= begin else until,
    )


@dataclass
class Shop:
    """Items and rules as they are, and by hand what follows."""

    items: dict[str, Item] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)

    def active(self, market: str | None, now: int) -> list[Rule]:
        return [
            rule
            for _, rule in sorted(self.rules.items())
            if (rule.markets is None or market in rule.markets) and (rule.begin or 0) <= now < (rule.until or 99)
        ]

    def matches(self, rule: Rule, item_id: str) -> bool:
        item, match = self.items.get(item_id), rule.match
        if match.items and item_id not in match.items:
            return False
        if match.categories and (item is None or not set(match.categories) & set(item.categories)):
            return False
        for name, values in match.attributes.items():
            own = None if item is None else item.attributes.get(name)
            if not any(type(own) is type(value) and own == value for value in values):
                return False
        return True

    def is_shown(self, item_id: str, market: str | None, now: int) -> bool:
        item = self.items.get(item_id)
        return (
            item is not None
            and item.available
            and (item.available_from or 0) <= now < (item.available_until or 99)
            and (item.markets is None or market in item.markets)
            and not any(
                rule.action == RuleAction.EXCLUDE and self.matches(rule, item_id) for rule in self.active(market, now)
            )
        )

    def boosts(self, item_id: str, market: str | None, now: int) -> list[Rule]:
        return [
            rule for rule in self.active(market, now) if rule.action == RuleAction.BOOST and self.matches(rule, item_id)
        ]

    def pins(self, market: str | None, now: int) -> list[Pin]:
        pins = [
            Pin((rule.place or 0) + number, item_id, rule.rule_id)
            for rule in self.active(market, now)
            if rule.action == RuleAction.PIN
            for number, item_id in enumerate(rule.match.items)
            if self.is_shown(item_id, market, now)
        ]
        return sorted(pins, key=lambda pin: (pin.place, pin.rule_id))


def compare(shop: Shop, offer: Offer, market: str | None, now: int) -> None:
    assert offer.adjust is not None
    for index, item_id in enumerate(IDS):
        boosts = shop.boosts(item_id, market, now)
        shown = shop.is_shown(item_id, market, now)
        assert (offer.adjust[index] > EXCLUDED / 2) == shown, item_id
        if shown:
            assert offer.adjust[index] == sum(rule.boost or 0 for rule in boosts)
        by = () if offer.boosted_by is None else offer.rule_sets.values[offer.boosted_by[index]]
        assert by == tuple(rule.rule_id for rule in boosts)
    assert list(offer.pins) == shop.pins(market, now)
    share = np.full(len(IDS), 1 / 8, dtype=np.float32) + offer.adjust
    best = [int(index) for index in np.argsort(-share, kind="stable") if share[index] > EXCLUDED / 2]
    assert offer.popular(3)[0] == best[:3]


changes = st.lists(
    st.one_of(
        items(),
        rules(),
        st.sampled_from([*IDS, "unknown"]),  # an item is gone
        st.sampled_from(["r1", "r2", "r3"]),  # a rule ends
        st.integers(0, 6),  # time goes by, and somebody looks
    ),
    min_size=1,
    max_size=40,
)


@pytest.mark.parametrize("most_unused", [1024, -1024], ids=["numbers as given", "numbers anew with each change"])
@given(steps=changes)
def test_any_changes_lead_to_what_the_shop_says_now(most_unused: int, steps: list[Item | Rule | str | int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stream_app.core.catalogue._MOST_UNUSED", most_unused)
        check_changes(steps)


def check_changes(steps: list[Item | Rule | str | int]) -> None:
    shop, catalogue, now = Shop(), Catalogue(attributes=[ATTRIBUTE]), 0
    offers = offers_of(catalogue)
    for step in steps:
        match step:
            case Item():
                shop.items[step.item_id] = step
                catalogue.put_items([(step.item_id, step)])
            case Rule():
                shop.rules[step.rule_id] = step
                catalogue.put_rule(step.rule_id, step)
            case str() if step.startswith("r"):
                shop.rules.pop(step, None)
                catalogue.put_rule(step, None)
            case str():
                shop.items.pop(step, None)
                catalogue.put_items([(step, None)])
            case int():
                now += step
                if offers.needs(now):
                    offers.refresh(now)
                for market in MARKETS:
                    compare(shop, offers.of(market), market, now)
    fresh = offers_of(catalogue)
    for one in (offers, fresh):
        one.refresh(now)
        for market in MARKETS:
            compare(shop, one.of(market), market, now)


def test_many_changes_at_once_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that is changed, gone and back in one go is as it is last; a place that became free serves another."""
    catalogue = Catalogue()
    offers = offers_of(catalogue)
    catalogue.put_items([("i1", Item(item_id="i1")), ("i1", None), ("i2", Item(item_id="i2", available=False))])
    offers.refresh(0)
    assert offers.of(None).popular(8)[0] == []
    catalogue.put_items([("i2", None), ("i3", Item(item_id="i3")), ("i2", Item(item_id="i2"))])
    offers.refresh(0)
    assert offers.of(None).popular(8)[0] == [2, 3]


def test_markets_that_nobody_names_share_an_offer() -> None:
    """Else whoever writes clicks could fill the memory."""
    catalogue = Catalogue()
    catalogue.put_items([("i1", Item(item_id="i1", markets=("de",)))])
    offers = offers_of(catalogue)
    offers.refresh(0)
    assert offers.of("xx") is offers.of(None) is offers.of("yy")
    assert offers.of("de") is not offers.of(None)


def test_offers_of_many_markets_take_so_much_memory_and_the_last_one_used_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stream_app.core.offer._OFFER_BYTES", 0)  # eight at least
    catalogue, markets = Catalogue(), [f"m{number}" for number in range(20)]
    catalogue.put_items(
        [(item, Item(item_id=item, markets=tuple(markets[number::8]))) for number, item in enumerate(IDS)]
    )
    offers = offers_of(catalogue)
    offers.refresh(0)
    kept = offers.of("m0")
    for number, market in enumerate(markets):
        last = offers.of(market)
        assert last.popular(8)[0] == [number % 8]
        assert offers.of(market) is last
        assert offers.of("m0") is kept
        assert len(offers._offers) <= 8


def test_changes_of_one_item_after_the_other_do_not_pile_up() -> None:
    catalogue = Catalogue()
    offers = offers_of(catalogue)
    for now in range(100):
        catalogue.put_items([("i1", Item(item_id="i1", available=now % 2 == 0))])
        offers.refresh(now)
        assert len(offers._steps) <= len(IDS)
    assert offers.of(None).popular(8)[0] == []


def test_boosts_together_are_no_more_than_one_may_be() -> None:
    catalogue = Catalogue(keeps_items=False)
    for rule_id in "abc":
        match = Match(items=("i1",))
        catalogue.put_rule(rule_id, Rule(rule_id=rule_id, action=RuleAction.BOOST, match=match, boost=-MOST_BOOST))
    offers = offers_of(catalogue)
    offers.refresh(0)
    adjust = offers.of(None).adjust
    assert adjust is not None
    assert adjust[1] == -MOST_BOOST


def test_an_item_that_changes_for_days_leaves_nothing_behind() -> None:
    """A shop that publishes its catalogue every hour sends an item's last day again each time."""
    catalogue = Catalogue()
    offers = offers_of(catalogue)
    for now in range(3_000):
        catalogue.put_items([("i1", Item(item_id="i1", available_until=10_000 + now))])
        offers.refresh(now)
    assert len(offers._due) < 2_000
    assert (offers.needs(12_998), offers.needs(12_999)) == (True, True)
    shown = []
    for now in (12_998, 12_999):
        offers.refresh(now)
        shown.append(offers.of(None).popular(8)[0])
    assert shown == [[1], []]


def test_changes_that_nobody_looks_at_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without a partition has no click to rank, and items change all the same."""
    monkeypatch.setattr("stream_app.core.catalogue._MOST_CHANGES", 10)
    catalogue = Catalogue()
    offers = offers_of(catalogue)
    for n in range(100):
        catalogue.put_items([("i1", Item(item_id="i1", available=bool(n % 2)))])
    catalogue.put_items([("i2", Item(item_id="i2", available_until=5))])
    assert len(offers._changes._item_ids) <= 10
    assert offers.needs(0)
    offers.refresh(0)
    assert offers.of(None).popular(8)[0] == [1, 2]
    assert offers.needs(5)
    catalogue.put_items([("i1", None)])
    offers.refresh(5)
    assert offers.of(None).popular(8)[0] == []


def test_values_that_no_item_has_any_more_take_no_memory() -> None:
    """A price is ever another one."""
    catalogue = Catalogue(attributes=["price"])
    offers = offers_of(catalogue, exact_model("v1", IDS))
    cheap = Rule(rule_id="r", action=RuleAction.EXCLUDE, match=Match(attributes={"price": (4_999,)}))
    catalogue.put_rule("r", cheap)
    for price in range(5_000):
        item = Item(item_id="i1", attributes={"price": price}, categories=(str(price),), markets=(str(price),))
        catalogue.put_items([("i1", item), ("i2", Item(item_id="i2"))])
        offers.refresh(price)
    sets = (catalogue.market_sets, catalogue.category_sets, catalogue.attribute_values["price"])
    assert max(map(len, sets)) < 1_100
    assert offers.of("4999").popular(8)[0] == [2]
    catalogue.put_rule("r", None)
    offers.refresh(5_000)
    assert [offers.of(market).popular(8)[0] for market in ("4999", "4998")] == [[1, 2], [2]]


def test_a_pin_that_is_due_in_a_market_that_nobody_asks_for_is_no_work() -> None:
    catalogue = Catalogue()
    catalogue.put_items([("i1", Item(item_id="i1")), ("new", Item(item_id="new", available_from=3, available_until=7))])
    catalogue.put_items([("i2", Item(item_id="i2", markets=("de",)))])
    catalogue.put_rule("r", Rule(rule_id="r", action=RuleAction.PIN, match=Match(items=("new",)), place=1))
    offers = offers_of(catalogue)
    offers.refresh(0)
    for market in ("de", None):
        assert not offers.of(market).pins
    offers.refresh(3)
    assert offers.of(None).pins
    assert not offers.needs(4)
    assert offers.of("de").pins
    offers.refresh(7)
    assert not offers.needs(8)
    assert not offers.of("de").pins


def test_what_was_over_before_a_model_came_is_not_watched() -> None:
    """Else the first batch of each model would go through all of it."""
    catalogue = Catalogue()
    catalogue.put_items([(item, Item(item_id=item, available_from=5, available_until=9)) for item in IDS])
    offers = Offers(MODEL, catalogue, 7)
    assert len(offers._due) == len(IDS)
    offers.refresh(7)
    assert offers.of(None).popular(8)[0] == list(range(8))
    assert not offers.needs(8)
    assert offers.needs(9)


def test_a_clock_that_is_set_right_again_brings_back_what_it_took() -> None:
    """An hour ahead, and back: items and rules count as if it had never been wrong. A step of NTP changes nothing."""
    hour, shop, catalogue = 3_600_000, Shop(), Catalogue()
    for item in (Item(item_id="i1", available_from=hour), Item(item_id="i2", available_until=hour), Item(item_id="i3")):
        shop.items[item.item_id] = item
    catalogue.put_items(list(shop.items.items()))
    pin = Rule(rule_id="r", action=RuleAction.PIN, match=Match(items=("i3",)), place=1, begin=hour - 1)
    catalogue.put_rule("r", pin)
    offers = offers_of(catalogue)
    shown = []
    for now in (0, hour, hour - 500, 0, hour):
        if offers.needs(now):
            offers.refresh(now)
        offer = offers.of(None)
        shown.append((sorted(offer.popular(8)[0]), [pinned.item_id for pinned in offer.pins]))
    pins = [[], ["i3"], ["i3"], [], ["i3"]]
    assert shown == [([1, 3] if pinned else [2, 3], pinned) for pinned in pins]


def test_a_pinned_item_that_no_model_knows_is_shown_in_its_markets_and_ends_at_its_time() -> None:
    catalogue = Catalogue()
    catalogue.put_items([("new", Item(item_id="new", available_from=3, available_until=7, markets=("de", "at")))])
    match = Match(items=("new",))
    catalogue.put_rule("r", Rule(rule_id="r", action=RuleAction.PIN, match=match, place=1, markets=("de", "fr")))
    offers = offers_of(catalogue)
    shown = []
    for now in (0, 3, 6, 7):
        assert offers.needs(now) == (now != 6)
        offers.refresh(now)
        shown.append([len(offers.of(market).pins) for market in ("de", "fr", "at", None)])
    assert shown == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_without_a_catalogue_everything_is_shown() -> None:
    offer = offers_of(None).of("anywhere")
    assert offer.adjust is None
    assert offer.popular(3)[0] == [0, 1, 2]
    assert offer.popular(5)[0] == [0, 1, 2, 3, 4]
    many = offers_of(None, exact_model("v2", tuple(f"i{number}" for number in range(300)))).of(None)
    assert many.popular(200)[0] == list(range(200))  # of equals the first


@pytest.mark.parametrize(
    ("catalogue", "match"),
    [
        (Catalogue(keeps_items=False), Match(categories=("shoes",))),
        (Catalogue(keeps_items=False), Match(attributes={ATTRIBUTE: ("a",)})),
        (Catalogue(attributes=["other"]), Match(attributes={ATTRIBUTE: ("a",)})),
    ],
)
def test_a_rule_that_asks_for_what_is_not_kept_is_refused_and_the_last_good_one_stays(
    catalogue: Catalogue, match: Match
) -> None:
    good = Rule(rule_id="r", action=RuleAction.EXCLUDE, match=Match(items=("i1",)))
    catalogue.put_rule("r", good)
    with pytest.raises(RecordRefusedError, match="bad-rule: matches"):
        catalogue.put_rule("r", Rule(rule_id="r", action=RuleAction.EXCLUDE, match=match))
    assert catalogue.rules == {"r": good}
