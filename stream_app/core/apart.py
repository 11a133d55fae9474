"""A batch with sessions to which the model has no answer: they are found, and all others get theirs."""

from collections.abc import Callable, Sequence
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Final

from schemas.errors import NoAnswerError
from stream_app.core.plan import SourcedClick, SourcedForget
from stream_app.core.recommend import Recommended

Clicks = Sequence[Sequence[SourcedClick | SourcedForget]]
"""Those of each partition."""
Recommend = Callable[[Clicks], list[Recommended]]

_MOST_FAILURES: Final = 32
"""Calls in vain a batch, which find at least three sessions among 512. A model that has no answer to many is asked for
no more of them: the batch would take as long for each."""


def recommend_apart(recommend: Recommend, popular: Recommend, clicks: Clicks) -> list[Recommended]:
    """What `recommend`, which has failed on these clicks together, makes of the sessions to which it has an answer.

    They are looked for by halves. `popular` answers to the others.
    """
    left = _MOST_FAILURES

    def apart(failed: Clicks) -> list[Recommended]:
        nonlocal left
        sessions = {_session_of(one): None for theirs in failed for one in theirs}
        if len(sessions) <= 1 or left <= 0:
            return popular(failed)
        first = set(islice(sessions, len(sessions) // 2))
        halves = []
        for is_first in (True, False):
            half = [[one for one in theirs if (_session_of(one) in first) is is_first] for theirs in failed]
            try:
                halves.append(recommend(half))
            except NoAnswerError:
                left -= 1
                halves.append(apart(half))
        return [_together(*of_partition) for of_partition in zip(*halves, strict=True)]

    return apart(clicks)


def _session_of(one: SourcedClick | SourcedForget) -> str:
    """Whose session a click, or a request to forget it, is of."""
    return one.session_id if isinstance(one, SourcedForget) else one.click.session_id


def _together(some: Recommended, others: Recommended) -> Recommended:
    """What clicks of different sessions lead to, in the order of the clicks."""
    by_offset = attrgetter("offset")
    return Recommended(
        rows=some.rows | others.rows,
        requests=list(merge(some.requests, others.requests, key=by_offset)),
        ranked=list(merge(some.ranked, others.ranked, key=by_offset)),
        redelivered=some.redelivered + others.redelivered,
        rebuilt=some.rebuilt + others.rebuilt,
        waves=some.waves + others.waves,
        unmoved=some.unmoved + others.unmoved,
    )
