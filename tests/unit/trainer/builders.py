"""Small sessions for the trainer's tests."""

from collections.abc import Sequence

import numpy as np

from trainer.data.sessions import SessionSet


def sessions_of(clicks: Sequence[Sequence[int]], items: int | None = None) -> SessionSet:
    """Sessions of item indexes, oldest first; item i is called ``i<i>``."""
    lengths = [len(session) for session in clicks]
    flat = np.array([item for session in clicks for item in session], dtype=np.int64)
    count = items if items is not None else int(flat.max()) + 1
    return SessionSet(
        items=flat,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_ids=tuple(f"i{i}" for i in range(count)),
        ends=np.arange(len(clicks), dtype=np.int64),
        timed=False,
    )


def random_sessions(count: int, items: int, *, longest: int = 9, seed: int = 0) -> SessionSet:
    """Sessions of two and more clicks whose next item leans on the last one, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    clicks = []
    for _ in range(count):
        session = [int(rng.integers(items))]
        for _ in range(int(rng.integers(1, longest))):
            session.append((session[-1] + 1 + int(rng.random() < 0.2)) % items)
        clicks.append(session)
    return sessions_of(clicks, items)
