"""A simulated shop: seeded click streams with something to learn in them, and a catalogue that drifts.

`Shop.history` is yesterday, for the first model; `Shop.live` is today, in the order and with the times in which clicks
happen: sessions arrive as a Poisson process and many are open at once. Yesterday is season 0 of the catalogue and today
begins with season 1, so the first model is out of date from the first live click on, and a retrained one pays.

A shopper has a brand in mind and at each click does one of four things: goes back to something seen before, compares
with a neighbour on the same line, wanders off to another category, or follows the flow to the next accessory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import erfc, log, sqrt

import numpy as np
from numpy.typing import NDArray

from deploy.demo.shop_catalogue import DEPARTMENTS, Catalogue, Ints, first_catalogue, next_season
from schemas.messages.click import Click

_BLOCK = 2048  # sessions drawn at once: large enough for numpy to pay, small enough for memory and the first click
_HISTORY, _LIVE, _SEASONS = 1, 2, 3  # one stream of random numbers each: a longer history changes no live click


@dataclass(frozen=True)
class ShopSettings:
    seed: int = 0
    departments: int = 6  # with six categories each; see shop_catalogue.DEPARTMENTS
    brands: int = 8
    items_per_line: int = 10  # items on sale = departments * 6 * brands * items_per_line
    zipf: float = 1.0  # exponent of the popularity within a line; departments and brands are half as skewed

    sessions_per_second: float = 150.0  # live arrivals; clicks per second are mean_length times as many
    mean_length: float = 7.0  # clicks of a session
    max_length: int = 30
    length_spread: float = 0.8  # sigma of the log-normal length: few long sessions, many short ones
    think_time_s: float = 3.0  # median time between two clicks of a session, log-normal
    think_spread: float = 0.8
    max_think_time_s: float = 60.0

    repeat: float = 0.22  # chance of a click on an item seen before in the session; the real shops we know have .27-.37
    compare: float = 0.25
    wander: float = 0.05  # the rest follows the flow

    season_s: float = 600.0  # length of a live season
    retired: float = 0.3  # share of the items replaced by new ones from one season to the next
    shifted: float = 0.35  # share of the flows that change

    def __post_init__(self) -> None:
        if not 1 <= self.departments <= len(DEPARTMENTS):
            raise ValueError(f"departments is {self.departments}; the shop knows 1 to {len(DEPARTMENTS)}")
        if self.brands < 1 or self.items_per_line < 1:
            raise ValueError("brands and items_per_line must be at least 1")
        if not 1 < self.mean_length < self.max_length / 2:
            raise ValueError(f"mean_length {self.mean_length} must lie between 1 and half of max_length")
        if min(self.repeat, self.compare, self.wander) < 0 or self.repeat + self.compare + self.wander > 1:
            raise ValueError("repeat, compare and wander are chances: none below 0, together at most 1")
        if not (0 <= self.retired <= 1 and 0 <= self.shifted <= 1):
            raise ValueError("retired and shifted are shares between 0 and 1")
        above_0 = (self.sessions_per_second, self.season_s, self.think_time_s, self.think_spread)
        if not all(value > 0 for value in above_0):
            raise ValueError("sessions_per_second, season_s, think_time_s and think_spread must be above 0")
        if not 0.05 <= self.length_spread <= 2:
            raise ValueError(f"length_spread {self.length_spread} must lie between 0.05 and 2")
        if self.max_think_time_s < self.think_time_s:
            raise ValueError("max_think_time_s must not be below think_time_s, the median")

    @property
    def longest_session_ms(self) -> int:
        return int((self.max_length - 1) * self.max_think_time_s * 1000)


@dataclass(frozen=True)
class _Clicks:
    """Clicks as columns, `[n]` each."""

    time_ms: Ints
    session: Ints  # running number
    position: Ints  # within the session, from 0
    item: Ints  # index into the catalogue's names

    def __getitem__(self, chosen: NDArray[np.bool_] | Ints) -> "_Clicks":
        return _Clicks(self.time_ms[chosen], self.session[chosen], self.position[chosen], self.item[chosen])

    def followed_by(self, other: "_Clicks") -> "_Clicks":
        mine_and_others = (
            (self.time_ms, other.time_ms),
            (self.session, other.session),
            (self.position, other.position),
            (self.item, other.item),
        )
        return _Clicks(*(np.concatenate(pair) for pair in mine_and_others))

    def in_time_order(self) -> "_Clicks":
        return self[np.lexsort((self.position, self.session, self.time_ms))]


_NO_CLICKS = _Clicks(*(np.empty(0, dtype=np.int64) for _ in range(4)))


class Shop:
    """Immutable: every call starts its own random numbers, so equal arguments give equal clicks."""

    def __init__(self, settings: ShopSettings | None = None) -> None:
        self.settings = settings or ShopSettings()
        self._lengths_cdf = np.cumsum(length_probabilities(self.settings))

    def catalogue(self, season: int) -> Catalogue:
        """Season 0 is yesterday, 1 the first live one."""
        s = self.settings
        catalogue = first_catalogue(
            s.departments, s.brands, s.items_per_line, np.random.default_rng([s.seed, _SEASONS])
        )
        for _ in range(season):
            catalogue = self._after(catalogue)
        return catalogue

    def history(self, sessions: int = 20_000, *, before_ms: int, span_ms: int = 86_400_000) -> Iterator[Click]:
        """Exactly `sessions` complete sessions of season 0, all clicks before `before_ms`, in time order.

        Their starts are spread evenly over the `span_ms` that end early enough for the longest session to finish.
        """
        s = self.settings
        rng = np.random.default_rng([s.seed, _HISTORY])
        catalogue = self.catalogue(0)
        starts = np.sort(rng.integers(-span_ms, 0, sessions)) + before_ms - s.longest_session_ms
        open_clicks = _NO_CLICKS
        for first in range(0, sessions, _BLOCK):
            block = self._sessions(catalogue, starts[first : first + _BLOCK], first, rng)
            open_clicks = open_clicks.followed_by(block)
            until = int(starts[first + _BLOCK]) if first + _BLOCK < sessions else before_ms
            yield from _named(open_clicks[open_clicks.time_ms < until].in_time_order(), catalogue, f"past-{before_ms}")
            open_clicks = open_clicks[open_clicks.time_ms >= until]

    def live(self, start_ms: int, until_ms: int | None = None) -> Iterator[Click]:
        """Clicks from `start_ms` on, in time order, before `until_ms` or without end.

        The shop opens empty: the rate rises over the first half minute or so, until as many sessions end as begin.
        A session keeps the catalogue of the season in which it began.
        """
        s = self.settings
        rng = np.random.default_rng([s.seed, _LIVE])
        catalogue = self.catalogue(1)
        season_ends = start_ms + s.season_s * 1000
        now, sessions, open_clicks = float(start_ms), 0, _NO_CLICKS
        while until_ms is None or now < until_ms:
            arrivals = now + np.cumsum(rng.exponential(1000 / s.sessions_per_second, _BLOCK))
            # A Poisson process has no memory: it may be cut at the end of the season and drawn anew from there.
            starts = arrivals[arrivals < season_ends]
            now = float(arrivals[-1]) if len(starts) == _BLOCK else season_ends
            block = self._sessions(catalogue, starts.astype(np.int64), sessions, rng)
            sessions += len(starts)
            open_clicks = open_clicks.followed_by(block)
            horizon = int(now) if until_ms is None else min(int(now), until_ms)
            yield from _named(open_clicks[open_clicks.time_ms < horizon].in_time_order(), catalogue, f"live-{start_ms}")
            open_clicks = open_clicks[open_clicks.time_ms >= horizon]
            if now >= season_ends:
                catalogue = self._after(catalogue)
                season_ends += s.season_s * 1000

    def _after(self, catalogue: Catalogue) -> Catalogue:
        s = self.settings
        rng = np.random.default_rng([s.seed, _SEASONS, catalogue.season + 1])
        return next_season(catalogue, s.retired, s.shifted, rng)

    def _sessions(self, catalogue: Catalogue, starts_ms: Ints, first: int, rng: np.random.Generator) -> _Clicks:
        """All clicks of the sessions that start at `starts_ms` `[n]`, numbered from `first`, session by session."""
        s = self.settings
        n = len(starts_ms)
        if n == 0:
            return _NO_CLICKS
        lengths = _draw(self._lengths_cdf, rng, n) + 1  # [n]
        walks = walk(catalogue, s, lengths, rng)  # [n, longest]
        thought = s.think_time_s * np.exp(s.think_spread * rng.standard_normal(walks.shape))
        # Two clicks of a session are never in the same millisecond: their order must survive a sort by time.
        thought_ms = (np.minimum(thought, s.max_think_time_s) * 1000).astype(np.int64).clip(min=1)
        thought_ms[:, 0] = 0
        times_ms = starts_ms[:, None] + np.cumsum(thought_ms, axis=1)  # [n, longest]
        session, position = np.nonzero(np.arange(walks.shape[1]) < lengths[:, None])  # [clicks], [clicks]
        return _Clicks(times_ms[session, position], first + session, position, walks[session, position])


def walk(catalogue: Catalogue, s: ShopSettings, lengths: Ints, rng: np.random.Generator) -> Ints:
    """The items of n sessions of the given lengths `[n]` -> `[n, longest]`; undefined after a session's end."""
    C, _, P = catalogue.lines.shape
    n, longest = len(lengths), int(lengths.max())
    brands_cdf = _zipf_cdf(s.brands, s.zipf / 2)
    departments_cdf = _zipf_cdf(s.departments, s.zipf / 2)
    ranks_cdf = _zipf_cdf(P, s.zipf)

    def take(category: Ints, brand: Ints) -> Ints:
        """An item of each category `[m]`, from the line that fits, by popularity."""
        any_line = _draw(brands_cdf, rng, len(category))
        line = np.where(catalogue.universal[category], any_line, catalogue.fits[category, brand])
        return catalogue.lines[category, line, _draw(ranks_cdf, rng, len(category))]

    def anywhere(m: int) -> Ints:
        """`[m]` categories: a popular department, half of the time at its first category."""
        size = C // s.departments
        stage = np.where(rng.random(m) < 0.5, 0, rng.integers(0, size, m))
        categories: Ints = _draw(departments_cdf, rng, m) * size + stage
        return categories

    brand = _draw(brands_cdf, rng, n)
    items = np.empty((n, longest), dtype=np.int64)
    items[:, 0] = take(anywhere(n), brand)
    for t in range(1, longest):
        on = np.flatnonzero(lengths > t)  # [m] the sessions that go on
        m = len(on)
        here = items[on, t - 1]
        category, line, rank = catalogue.category_of[here], catalogue.line_of[here], catalogue.rank_of[here]
        back = np.minimum(rng.geometric(0.4, m), t)  # 1: the same item again, 2: the one before, ...
        again = items[on, t - back]
        near = rank + rng.integers(1, 4, m) * rng.choice((-1, 1), m)
        beside = catalogue.lines[category, line, near % P]
        wanders = rng.random(m) < s.wander / max(1 - s.repeat - s.compare, 1e-9)
        onward = take(np.where(wanders, anywhere(m), catalogue.next_category[category]), brand[on])
        does = rng.random(m)
        items[on, t] = np.select([does < s.repeat, does < s.repeat + s.compare], [again, beside], onward)
    return items


def length_probabilities(s: ShopSettings) -> NDArray[np.float64]:
    """`[max_length]` chances of 1, 2, ... clicks: a log-normal rounded up, cut off at the maximum, its mean as set."""

    def chances(mu: float) -> NDArray[np.float64]:
        scale = s.length_spread * sqrt(2)
        at_most: NDArray[np.float64] = np.array([erfc((mu - log(k)) / scale) for k in range(1, s.max_length + 1)])
        each: NDArray[np.float64] = np.diff(at_most, prepend=0.0) / at_most[-1]
        return each

    clicks = np.arange(1, s.max_length + 1)
    low, high = -5.0, log(s.max_length) + 1 + s.length_spread**2
    for _ in range(60):  # bisection: the mean grows with mu
        mu = (low + high) / 2
        low, high = (mu, high) if chances(mu) @ clicks < s.mean_length else (low, mu)
    return chances(mu)


def _zipf_cdf(n: int, exponent: float) -> NDArray[np.float64]:
    weights = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    return np.cumsum(weights / weights.sum())


def _draw(cdf: NDArray[np.float64], rng: np.random.Generator, n: int) -> Ints:
    # The last edge may lie a rounding error below 1.
    return np.minimum(np.searchsorted(cdf, rng.random(n), side="right"), len(cdf) - 1)


def _named(clicks: _Clicks, catalogue: Catalogue, prefix: str) -> Iterator[Click]:
    columns = (clicks.session.tolist(), clicks.position.tolist(), clicks.item.tolist(), clicks.time_ms.tolist())
    for session, position, item, time_ms in zip(*columns, strict=True):
        session_id = f"{prefix}-{session}"
        yield Click(session_id, catalogue.names[item], time_ms, f"{session_id}.{position}")
