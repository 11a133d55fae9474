"""Diverse lists are those that a plain greedy choice makes of the whole ranking, for any items, rules and settings.

Rows are of halves and ones, so that cosines are exact in float32, whatever order their products are added in.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages.item import Item
from schemas.messages.ranking import Diversified, RankedItem, RankingReason
from schemas.messages.rule import Match, Rule, RuleAction
from stream_app.core.catalogue import Catalogue
from stream_app.core.diversity import DiversityRules
from stream_app.core.offer import Offer, Offers
from stream_app.core.ranked_offers import with_pins
from stream_app.core.recommend import recommend
from stream_app.core.session import SessionRules
from tests.unit.models import exact_model
from tests.unit.stream_app.core.test_ranked_offers import sourced

IDS = tuple(f"i{number}" for number in range(24))
ROWS = np.array(
    [
        *(sign * np.eye(4)[axis] for axis in range(4) for sign in (1, -1)),
        *([a / 2, b / 2, c / 2, 0.5] for a in (1, -1) for b in (1, -1) for c in (1, -1)),
        *np.zeros((2, 4)),
        *([0.5, 0.5, 0.5, 0.5] for _ in range(6)),
    ],
    dtype=np.float32,
)  # [24, 4]
MODEL = exact_model("v1", IDS)
MODEL.rows = ROWS  # type: ignore[misc]  # an ExactModel's
BOOST = 50.0
EVERYTHING: dict[str | None, Offer] = {None: Offers(MODEL, None).of(None)}

texts = st.sampled_from(["shoes", "hats", "sale"])
clicks = st.lists(
    st.tuples(st.sampled_from("xy"), st.sampled_from([*IDS, "unknown"]), st.none()), min_size=1, max_size=6
)
settings = st.builds(
    DiversityRules,
    max_per_category=st.one_of(st.none(), st.integers(1, 3)),
    mmr_lambda=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    mmr_candidates=st.integers(MODEL.k, 15),
)


def catalogue_of(
    categories: Mapping[str, Sequence[str]], boosted: Sequence[str] = (), pinned: Sequence[str] = ()
) -> Catalogue:
    """Items of these categories, a boost for some of them, and some pinned, all to the second place."""
    catalogue = Catalogue()
    catalogue.put_items([(item, Item(item_id=item, categories=tuple(own))) for item, own in categories.items()])
    rules = [
        Rule(rule_id=f"pin{number}", action=RuleAction.PIN, match=Match(items=(item,)), place=2)
        for number, item in enumerate(pinned)
    ]
    if boosted:
        rules.append(Rule(rule_id="boost", action=RuleAction.BOOST, match=Match(items=tuple(boosted)), boost=BOOST))
    for rule in rules:
        catalogue.put_rule(rule.rule_id, rule)
    return catalogue


def offers_of(catalogue: Catalogue | None, rules: DiversityRules | None) -> dict[str | None, Offer]:
    offers = Offers(MODEL, catalogue, 0, rules)
    if catalogue is not None:
        offers.refresh(0)
    return {None: offers.of(None)}


def greedy(
    ranked: Sequence[tuple[int, float]],
    boosts: Mapping[int, float],
    categories: Mapping[int, Sequence[str]],
    pinned: Sequence[Sequence[str]],
    *,
    rules: DiversityRules,
    most: int,
) -> list[int]:
    """By hand: items one after the other from the whole ranking, as the module's text says."""
    count = Counter(name for own in pinned for name in set(own))
    listed: list[int] = []

    def offer(item: int) -> None:
        own = set(categories.get(item, ()))
        if len(listed) < most and (
            rules.max_per_category is None or all(count[name] < rules.max_per_category for name in own)
        ):
            listed.append(item)
            count.update(own)

    chosen_among = list(ranked[: rules.mmr_candidates]) if rules.mmr_lambda < 1 else []
    plain = [np.float32(score - boosts.get(item, 0)) for item, score in chosen_among]
    least, spread = min(plain, default=0), max(plain, default=0) - min(plain, default=0)
    of_relevance = np.float32(rules.mmr_lambda)
    while chosen_among:

        def marginal(one: tuple[int, float]) -> np.float32:
            relevance = (np.float32(one[1]) - least) / np.float32(spread or 1)
            alike = max(((1 - of_relevance) * (ROWS[one[0]] @ ROWS[other]) for other in listed), default=np.float32(0))
            return np.float32(of_relevance * relevance - alike)

        best = max(chosen_among, key=marginal)  # the first of equals
        chosen_among.remove(best)
        offer(best[0])
    for item, _ in ranked[rules.mmr_candidates if rules.mmr_lambda < 1 else 0 :]:
        offer(item)
    return listed


@given(
    given=clicks,
    categories=st.dictionaries(st.sampled_from(IDS), st.lists(texts, max_size=2, unique=True)),
    boosted=st.sets(st.sampled_from(IDS)),
    pinned=st.lists(st.sampled_from(IDS), max_size=2, unique=True),
    rules=settings,
    hide=st.booleans(),
)
def test_a_list_is_what_a_plain_greedy_choice_makes_of_the_whole_ranking(
    *,
    given: list[tuple[str, str, None]],
    categories: dict[str, list[str]],
    boosted: set[str],
    pinned: list[str],
    rules: DiversityRules,
    hide: bool,
) -> None:
    catalogue = catalogue_of(categories, sorted(boosted), pinned)
    session_rules = SessionRules(hide=hide, recent_items=3)
    found = recommend({}, sourced(given), MODEL, session_rules, offers_of(catalogue, rules)).ranked
    plain = recommend({}, sourced(given), MODEL, session_rules, offers_of(catalogue, None)).ranked
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(MODEL), "k", len(IDS))
        whole = recommend({}, sourced(given), MODEL, session_rules, offers_of(catalogue, None)).ranked
    index_of = IDS.index
    for one, before, of_all in zip(found, plain, whole, strict=True):
        shown = [pin.item_id for pin in before.pins]
        ranked = [
            (item, score)
            for item, score in zip(of_all.top_index, of_all.top_score, strict=True)
            if IDS[item] not in shown
        ]
        expected = greedy(
            ranked,
            {index_of(item): BOOST for item in boosted},
            {index_of(item): own for item, own in categories.items()},
            [categories[item] for item in shown],
            rules=rules,
            most=MODEL.k,
        )
        assert list(one.top_index) == expected
        scores = dict(ranked)
        assert list(one.top_score) == [scores[item] for item in expected]
        assert [pin.item_id for pin in one.pins] == shown
        assert one.reason == before.reason
        seen = MODEL.k - len(shown)  # pins take the room of the last ones
        assert bool(one.diversity) == (expected[:seen] != [item for item, _ in ranked[:seen]])
        assert ("boost" in one.rules) == any(IDS[item] in boosted for item in expected[:seen])


@given(given=clicks, categories=st.dictionaries(st.sampled_from(IDS), st.lists(texts, max_size=2)))
def test_rules_that_ask_for_nothing_change_nothing(
    given: list[tuple[str, str, None]], categories: dict[str, list[str]]
) -> None:
    catalogue = catalogue_of(categories)
    nothing = recommend({}, sourced(given), MODEL, SessionRules(), offers_of(catalogue, DiversityRules())).ranked
    assert nothing == recommend({}, sourced(given), MODEL, SessionRules(), offers_of(catalogue, None)).ranked


def test_the_most_popular_items_keep_to_the_cap_and_pins_count() -> None:
    categories = {item: ["shoes"] if number < 20 else ["hats"] for number, item in enumerate(IDS)}
    offers = offers_of(catalogue_of(categories, pinned=["i3", "i4"]), DiversityRules(max_per_category=3))
    [one] = recommend({}, sourced([("x", "unknown", None)]), MODEL, SessionRules(), offers).ranked
    assert one.reason == RankingReason.POPULARITY
    # Both pins are shoes, so one more pair, and of hats no fourth though the list would have room.
    assert [IDS[item] for item in one.top_index] == ["i0", "i20", "i21", "i22"]
    assert one.diversity == (Diversified.CATEGORY_CAP,)
    listed = [RankedItem(IDS[item], 1.0) for item in one.top_index]
    assert [item.item_id for item in with_pins(listed, one.pins, MODEL.k)] == ["i0", "i3", "i4", "i20"]


def test_categories_that_change_count_from_then_on() -> None:
    catalogue = catalogue_of({item: ["shoes"] for item in IDS})
    offers = Offers(MODEL, catalogue, 0, DiversityRules(max_per_category=1))
    [one] = recommend({}, sourced([("x", "i1", None)]), MODEL, SessionRules(), {None: offers.of(None)}).ranked
    assert len(one.top_index) == 1
    catalogue.put_items([("i9", Item(item_id="i9", categories=("hats",))), ("i8", Item(item_id="i8"))])
    offers.refresh(0)
    [one] = recommend({}, sourced([("x", "i1", None)]), MODEL, SessionRules(), {None: offers.of(None)}).ranked
    assert len(one.top_index) == 3
    assert {"i8", "i9"} < {IDS[item] for item in one.top_index}
    catalogue.put_items([(item, Item(item_id=item)) for item in IDS])
    offers.refresh(0)
    [one] = recommend({}, sourced([("x", "i1", None)]), MODEL, SessionRules(), {None: offers.of(None)}).ranked
    assert len(one.top_index) == MODEL.k
    assert one.diversity == ()


def test_mmr_alone_needs_no_catalogue_and_tells_when_it_changed_a_list() -> None:
    [one] = recommend(
        {}, sourced([("x", "i1", None)]), MODEL, SessionRules(), offers_of(None, DiversityRules(mmr_lambda=0.25))
    ).ranked
    [plain] = recommend({}, sourced([("x", "i1", None)]), MODEL, SessionRules(), EVERYTHING).ranked
    assert one.top_index != plain.top_index
    assert one.top_index[0] == plain.top_index[0]
    assert one.diversity == (Diversified.MMR,)
