"""A batch with sessions to which the model has no answer: each other one gets its own, in few calls."""

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

from schemas.errors import NoAnswerError
from schemas.messages.click import Click
from stream_app.core.apart import Clicks, recommend_apart
from stream_app.core.plan import SourcedClick, SourcedForget
from stream_app.core.recommend import Recommended


class Answers:
    """Who recommends: `by` says so in each answer. Fails on sessions that are `unanswered`, and counts that."""

    def __init__(self, by: str, unanswered: Collection[str] = ()) -> None:
        self.by, self.unanswered = by, set(unanswered)
        self.asked: list[set[str]] = []
        self.failures = 0

    def __call__(self, clicks: Clicks) -> list[Recommended]:
        self.asked.append({_session(one) for theirs in clicks for one in theirs})
        if not self.unanswered.isdisjoint(self.asked[-1]):
            self.failures += 1
            raise NoAnswerError("none")
        return [self._of(theirs) for theirs in clicks]

    def _of(self, theirs: Any) -> Recommended:
        ranked: list[Any] = [
            SimpleNamespace(offset=one.offset, by=self.by) for one in theirs if isinstance(one, SourcedClick)
        ]
        requests = [one for one in theirs if isinstance(one, SourcedForget)]
        rows: dict[str, Any] = {_session(one): self.by for one in theirs}
        return Recommended(rows, requests, ranked, redelivered=len(theirs), rebuilt=len(rows), waves=1, unmoved=1)


def _session(one: SourcedClick | SourcedForget) -> str:
    return one.session_id if isinstance(one, SourcedForget) else one.click.session_id


def of(sessions: str, *, forget: int = -1) -> list[SourcedClick | SourcedForget]:
    """A click of each, or a request to forget it, by its offset."""
    return [
        SourcedForget(session, offset) if offset == forget else SourcedClick(Click(session, "item", 1), offset)
        for offset, session in enumerate(sessions)
    ]


def answers(done: Recommended) -> list[tuple[int, str]]:
    """Offsets, and by whom."""
    ranked: Any = done.ranked
    return [(one.offset, one.by) for one in ranked]


def test_answers_stand_in_the_order_of_the_clicks_and_only_the_unanswered_get_what_is_popular() -> None:
    model, popular = Answers("model", "cf"), Answers("popular")
    first, second = recommend_apart(model, popular, [of("hcabhca", forget=5), of("fdegf")])
    by = {session: "popular" if session in "cf" else "model" for session in "hcabfdeg"}
    assert answers(first) == [(offset, by[session]) for offset, session in enumerate("hcabhca") if offset != 5]
    assert answers(second) == [(offset, by[session]) for offset, session in enumerate("fdegf")]
    assert first.requests == [SourcedForget("c", 5)]
    rows: Any = first.rows | second.rows
    assert rows == by
    assert popular.asked == [{"c"}, {"f"}]
    assert (first.redelivered, first.rebuilt, second.redelivered, second.rebuilt) == (7, 4, 5, 4)


def test_a_model_that_answers_nobody_is_not_asked_for_each() -> None:
    names = [f"s{number}" for number in range(512)]
    model, popular = Answers("model", names), Answers("popular")
    clicks = [SourcedClick(Click(name, "item", 1), offset) for offset, name in enumerate(names)]
    [done] = recommend_apart(model, popular, [clicks])
    assert answers(done) == [(offset, "popular") for offset in range(512)]
    assert model.failures < 64
