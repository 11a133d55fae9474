"""Clicks of the RecSys Challenge 2015's shape, made up, so that anyone can run the benchmarks of training."""

import numpy as np

from trainer.data.sessions import SessionSet

ITEMS = 37_483  # of the challenge's training part, as the papers prepare it


def popularity(items: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Share of the clicks on each item, most clicked first, float64[items].

    A Zipf-Mandelbrot law near what RSC15 shows: its first item has six times the clicks of its hundredth, its
    thousandth one twelfth of those, its five thousandth a sixth again.
    """
    weight = (np.arange(items) + 30.0) ** -1.2
    share: np.ndarray[tuple[int], np.dtype[np.float64]] = weight / weight.sum()
    return share


def session_lengths(sessions: int, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Clicks of each session, int64[sessions]: two and more, 4.2 in the mean, rarely more than 20."""
    return np.minimum(1 + rng.geometric(1 / 3.2, sessions), 200).astype(np.int64)


def generated_sessions(sessions: int, *, items: int = ITEMS, seed: int = 1) -> SessionSet:
    """Sessions whose clicks follow :func:`popularity`; every other one leads to the item after the last one."""
    rng = np.random.default_rng(seed)
    lengths = session_lengths(sessions, rng)
    clicks = rng.choice(items, int(lengths.sum()), p=popularity(items))
    follows = rng.random(len(clicks) - 1) < 0.5
    clicks[1:][follows] = (clicks[:-1][follows] + 1) % items
    return SessionSet(
        items=clicks.astype(np.int64),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        item_ids=tuple(str(item) for item in range(items)),
        ends=np.arange(sessions, dtype=np.int64),
        timed=False,
    )
