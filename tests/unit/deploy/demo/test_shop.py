"""The simulated shop: real-looking sessions, in time order, with something to learn that goes out of date."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice, pairwise
from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.demo.shop import Shop, ShopSettings, length_probabilities
from deploy.demo.shop_catalogue import DEPARTMENTS, Catalogue
from schemas.messages.click import MAX_ID_BYTES, Click, ClickLimits, decode_click, encode_click
from tests.unit.examples import at_most

OPENS = 1_700_000_000_000
SHOP = Shop(ShopSettings(seed=7))
Session = tuple[str, ...]
Context = Callable[[Session], Hashable]


@cache
def history() -> tuple[Click, ...]:
    return tuple(SHOP.history(20_000, before_ms=OPENS))


@cache
def today() -> tuple[Click, ...]:
    return tuple(SHOP.live(OPENS, OPENS + 160_000))


def sessions(clicks: Iterable[Click]) -> list[Session]:
    """In the order of their first clicks."""
    items: defaultdict[str, list[str]] = defaultdict(list)
    for click in clicks:
        items[click.session_id].append(click.item_id)
    return [tuple(session) for session in items.values()]


# -- the stream -------------------------------------------------------------------------------------------------------


def test_equal_settings_give_equal_clicks() -> None:
    other = Shop(ShopSettings(seed=7))
    assert tuple(islice(other.history(20_000, before_ms=OPENS), 5_000)) == history()[:5_000]
    assert tuple(islice(other.live(OPENS), 5_000)) == today()[:5_000]


def test_another_seed_gives_other_clicks() -> None:
    other = islice(Shop(ShopSettings(seed=8)).live(OPENS), 100)
    assert [click.item_id for click in other] != [click.item_id for click in today()[:100]]


def test_a_longer_history_changes_no_live_click_and_a_later_end_no_earlier_click() -> None:
    short = list(SHOP.live(OPENS, OPENS + 5_000))
    assert tuple(short) == today()[: len(short)]
    assert today()[len(short)].timestamp >= OPENS + 5_000


@at_most(25)
@given(
    seed=st.integers(0, 2**32),
    rate=st.floats(0.5, 2_000),
    season_s=st.floats(0.05, 30),
    departments=st.integers(1, len(DEPARTMENTS)),
    brands=st.integers(1, 5),
    items_per_line=st.integers(1, 5),
)
def test_every_stream_is_in_time_order_and_made_of_acceptable_clicks(
    *, seed: int, rate: float, season_s: float, departments: int, brands: int, items_per_line: int
) -> None:
    shop = Shop(
        ShopSettings(
            seed=seed,
            sessions_per_second=rate,
            season_s=season_s,
            departments=departments,
            brands=brands,
            items_per_line=items_per_line,
        )
    )
    past = list(shop.history(50, before_ms=OPENS))
    live = list(islice(shop.live(OPENS, OPENS + 60_000), 2_000))
    assert all(earlier.timestamp <= later.timestamp for earlier, later in pairwise(past + live))
    assert all(click.timestamp < OPENS for click in past)
    assert all(OPENS <= click.timestamp < OPENS + 60_000 for click in live)
    for click in (past + live)[::37]:
        decoded = decode_click(
            click.session_id.encode(), encode_click(click), now_ms=OPENS + 60_000, limits=ClickLimits()
        )
        assert decoded == click


def test_a_session_never_has_two_clicks_in_a_millisecond_and_event_ids_are_unique() -> None:
    times: defaultdict[str, list[int]] = defaultdict(list)
    for click in today():
        times[click.session_id].append(click.timestamp)
    assert all(a < b for of_one in times.values() for a, b in pairwise(of_one))
    events = [click.event_id for click in history() + today()]
    assert len(set(events)) == len(events)
    assert not {click.session_id for click in history()} & {click.session_id for click in today()}


def test_two_days_share_no_session() -> None:
    tomorrow = OPENS + 86_400_000
    ids = {click.session_id for click in islice(SHOP.live(tomorrow), 1_000)}
    assert not ids & {click.session_id for click in today()}
    assert max(len(session_id.encode()) for session_id in ids) < MAX_ID_BYTES


def test_many_sessions_are_open_at_once() -> None:
    last_click = {click.session_id: position for position, click in enumerate(today())}
    first_click: dict[str, int] = {}
    for position, click in enumerate(today()):
        first_click.setdefault(click.session_id, position)
    middle = len(today()) // 2
    assert sum(first_click[session] < middle < last_click[session] for session in last_click) > 1_000


def test_sessions_arrive_at_the_rate_that_is_set() -> None:
    arrivals = len({click.session_id for click in today()})
    expected = SHOP.settings.sessions_per_second * 160
    assert abs(arrivals - expected) < 5 * expected**0.5  # Poisson: variance = mean


# -- sessions as real shops have them ---------------------------------------------------------------------------------


def test_sessions_have_seven_clicks_on_average_and_at_most_thirty() -> None:
    lengths = Counter(map(len, sessions(history())))
    assert lengths.total() == 20_000
    assert max(lengths) == 30
    assert sum(length * count for length, count in lengths.items()) / 20_000 == pytest.approx(7, abs=0.15)
    assert lengths.most_common(1)[0][0] in (2, 3, 4)
    assert sum(count for length, count in lengths.items() if length >= 15) > 0.05 * 20_000


@given(mean=st.floats(1.5, 14.9), spread=st.floats(0.05, 2))
def test_the_mean_length_is_met_exactly(mean: float, spread: float) -> None:
    chances = length_probabilities(ShopSettings(mean_length=mean, length_spread=spread))
    assert chances.sum() == pytest.approx(1)
    assert chances @ np.arange(1, 31) == pytest.approx(mean)


def test_shoppers_come_back_to_items_about_as_often_as_in_real_shops() -> None:
    walks = sessions(history())
    steps = sum(len(walk) - 1 for walk in walks)
    repeats = sum(walk[i] in walk[:i] for walk in walks for i in range(1, len(walk)))
    assert 0.2 < repeats / steps < 0.4  # .27 to .37 in the real files we have


def test_items_of_a_category_are_popular_by_zipf() -> None:
    cameras = Counter(click.item_id for click in history() if click.item_id.startswith("camera-0"))
    counts = sorted(cameras.values(), reverse=True)
    assert len(counts) == SHOP.settings.brands * SHOP.settings.items_per_line
    assert sum(counts[: len(counts) // 10]) > 0.25 * sum(counts)
    assert counts[0] > 8 * counts[-1]


# -- the drift --------------------------------------------------------------------------------------------------------


def items_by_line(catalogue: Catalogue) -> list[set[int]]:
    return [set(line) for category in catalogue.lines.tolist() for line in category]


def test_a_season_replaces_its_share_of_every_line_and_keeps_the_names_of_the_rest() -> None:
    yesterday, now = SHOP.catalogue(0), SHOP.catalogue(1)
    assert now.names[: len(yesterday.names)] == yesterday.names
    assert len(set(now.names)) == len(now.names)
    for before, after in zip(items_by_line(yesterday), items_by_line(now), strict=True):
        assert len(after) == len(before) == 10
        assert len(before - after) == 3
        assert not {item for item in after - before if item < len(yesterday.names)}


def test_new_items_become_popular_and_retired_ones_are_never_clicked() -> None:
    yesterday, now = SHOP.catalogue(0).on_sale, SHOP.catalogue(1).on_sale
    clicked = Counter(click.item_id for click in today())
    assert set(clicked) <= now
    share_of_new = sum(count for item, count in clicked.items() if item not in yesterday) / clicked.total()
    assert share_of_new > len(now - yesterday) / len(now)


def test_flows_shift_and_stay_cycles_of_branded_and_universal_categories_by_turns() -> None:
    yesterday, now = SHOP.catalogue(0), SHOP.catalogue(3)
    assert (yesterday.next_category != now.next_category).any()
    assert (yesterday.fits != now.fits).any()
    for catalogue in (yesterday, now):
        for department in range(SHOP.settings.departments):
            cycle = [6 * department]
            for _ in range(5):
                cycle.append(int(catalogue.next_category[cycle[-1]]))
            assert sorted(cycle) == list(range(6 * department, 6 * department + 6))
            assert [bool(catalogue.universal[category]) for category in cycle] == [False, True] * 3


def test_without_drift_the_catalogue_stays() -> None:
    still = Shop(replace(SHOP.settings, retired=0, shifted=0))
    first, later = still.catalogue(0), still.catalogue(2)
    assert items_by_line(first) == items_by_line(later)
    assert (first.next_category == later.next_category).all()
    assert (first.fits == later.fits).all()


def test_a_new_season_begins_within_a_live_stream() -> None:
    shop = Shop(replace(SHOP.settings, season_s=20.0))
    clicks = list(shop.live(OPENS, OPENS + 60_000))
    first, second = shop.catalogue(1).on_sale, shop.catalogue(2).on_sale
    assert {click.item_id for click in clicks if click.timestamp < OPENS + 20_000} <= first
    assert any(click.item_id in second - first for click in clicks if click.timestamp < OPENS + 25_000)
    begun = [click for click in clicks if click.timestamp >= OPENS + 20_000]
    assert any(click.item_id in first - second for click in begun)  # sessions that began before finish as they began


# -- what there is to learn -------------------------------------------------------------------------------------------


def top_20(walks: Iterable[Session], context: Context) -> Mapping[Hashable, set[str]]:
    """Counts of the next item after each context: with the last item as context, a first-order Markov chain."""
    counts: defaultdict[Hashable, Counter[str]] = defaultdict(Counter)
    for walk in walks:
        for i in range(1, len(walk)):
            counts[context(walk[:i])][walk[i]] += 1
    return {seen: {item for item, _ in following.most_common(20)} for seen, following in counts.items()}


def recall_at_20(model: Mapping[Hashable, set[str]], walks: Sequence[Session], context: Context) -> float:
    hits = [walk[i] in model.get(context(walk[:i]), set()) for walk in walks for i in range(1, len(walk))]
    return sum(hits) / len(hits)


def nothing(_: Session) -> Hashable:
    return None


def last_item(prefix: Session) -> Hashable:
    return prefix[-1]


def brand_remembered(catalogue: Catalogue) -> Context:
    """The last item; but after one of a universal category, that category and the brand the session showed before."""
    index = {name: i for i, name in enumerate(catalogue.names)}
    fits = catalogue.fits.tolist()

    def context(prefix: Session) -> Hashable:
        category = int(catalogue.category_of[index[prefix[-1]]])
        if not catalogue.universal[category]:
            return prefix[-1]
        for item in reversed(prefix):
            shown = int(catalogue.category_of[index[item]])
            if not catalogue.universal[shown]:
                return category, fits[shown].index(catalogue.line_of[index[item]])
        return prefix[-1]

    return context


def test_retraining_pays() -> None:
    walks = sessions(today())
    recent, to_come = walks[: len(walks) * 2 // 3], walks[len(walks) * 2 // 3 :]
    stale = recall_at_20(top_20(sessions(history()), last_item), to_come, last_item)
    retrained = recall_at_20(top_20(sessions(history()) + recent, last_item), to_come, last_item)
    assert retrained > stale + 0.15  # measured: .45 against .19
    assert stale > 0.1  # out of date, not useless


def test_without_drift_yesterdays_model_serves_as_well() -> None:
    still = Shop(replace(SHOP.settings, retired=0, shifted=0))
    past, live = sessions(still.history(20_000, before_ms=OPENS)), sessions(still.live(OPENS, OPENS + 40_000))
    yesterday, its_last = past[:16_000], past[16_000:]
    model = top_20(yesterday, last_item)
    assert recall_at_20(model, live, last_item) == pytest.approx(recall_at_20(model, its_last, last_item), abs=0.03)


def test_the_last_item_says_more_than_popularity_and_the_session_more_than_the_last_item() -> None:
    walks = sessions(history())
    train, test = walks[:16_000], walks[16_000:]
    remembered = brand_remembered(SHOP.catalogue(0))
    popularity, markov, session = (
        recall_at_20(top_20(train, context), test, context) for context in (nothing, last_item, remembered)
    )
    # Measured: .05, .45 and .49; a plain GRU of 100 units, which also learns to come back to items seen, reaches .61.
    assert markov > popularity + 0.3
    assert session > markov + 0.025


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("departments", 99, "departments is 99; the shop knows 1 to 8"),
        ("brands", 0, "at least 1"),
        ("mean_length", 1.0, "mean_length"),
        ("mean_length", 20.0, "mean_length"),
        ("length_spread", 3.0, "length_spread"),
        ("repeat", 0.9, "together at most 1"),
        ("retired", 1.5, "between 0 and 1"),
        ("sessions_per_second", nan, "above 0"),
        ("sessions_per_second", 0, "above 0"),
        ("max_think_time_s", 1.0, "median"),
    ],
)
def test_settings_that_make_no_shop_are_refused(field: str, value: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ShopSettings(**{field: value})  # type: ignore[arg-type]
