"""A session at an earlier click: as the worker had it, by the models that answered, as far as they are still there."""

from collections.abc import Sequence

import pytest

from schemas.bundle.runtime import Model
from schemas.messages.click import Click
from schemas.messages.ranking import RankedItem, Ranking
from schemas.messages.source import Source
from stream_app.core.plan import SourcedClick
from stream_app.core.recommend import recommend
from stream_app.core.session import SessionRules, SessionState
from stream_app.tools.announced import ModelError
from stream_app.tools.replay_session import ReplayError, replayed
from tests.unit.models import exact_model, own_query_model, window_model

RULES = SessionRules(idle_gap_ms=1000, recent_items=5)
ITEMS = ("a", "b", "c", "d")
V1 = exact_model("v1", ITEMS)
V1_REFRESHED = exact_model("v1r", (*ITEMS, "new"))
vars(V1_REFRESHED)["states_of"] = "v1"
V2 = exact_model("v2", ("d", "c", "x"), salt=1)
MODELS = {
    model.version: model for model in (V1, V1_REFRESHED, V2, window_model("w", ITEMS), own_query_model("o", ITEMS))
}
HISTORY: list[tuple[str, str]] = [
    ("a", "v1"), ("new", "v1"), ("b", "v1r"), ("new", "v1r"), ("c", "v2"), ("x", "v2"), ("a", "w"), ("b", "o"),
    ("d", "v1"), ("a", "v1r"),
]  # fmt: skip


class Worker:
    """What a worker makes of a session: rows and rankings, click by click."""

    def __init__(self, history: Sequence[tuple[str, str]]) -> None:
        self.clicks = [SourcedClick(Click("s", item, 10 * n), 3 * n) for n, (item, _) in enumerate(history)]
        self.rows: list[SessionState] = []
        self.published: dict[int, Ranking] = {}
        rows: dict[str, SessionState] = {}
        for click, (item, version) in zip(self.clicks, history, strict=True):
            model = MODELS[version]
            done = recommend(rows, [click], model, RULES)
            rows = done.rows
            [answer] = done.ranked
            items = zip(answer.top_index, answer.top_score, strict=True)
            ranked = tuple(RankedItem(model.vocabulary.items[i], score) for i, score in items)
            source = Source("clicks", 2, click.offset)
            self.published[click.offset] = Ranking("s", None, item, version, ranked, source, 0, 0, answer.reason)
            self.rows.append(rows["s"])


def opener(*gone: str):  # type: ignore[no-untyped-def]
    def open_model(version: str) -> Model:
        if version in gone:
            raise ModelError(f"the bundle of {version} cannot be opened")
        return MODELS[version]

    return open_model


@pytest.mark.parametrize("n", range(len(HISTORY)))
def test_row_and_ranking_are_those_of_that_click(n: int) -> None:
    worker = Worker(HISTORY)
    found = replayed(worker.clicks[: n + 1], worker.published, opener(), RULES, 2)
    assert (found.agreement, found.note) == ("equal", None)
    assert found.ranking == worker.published[3 * n]
    same(found.row, worker.rows[n])


def same(found: SessionState, expected: SessionState) -> None:
    for name in ("model_version", "offset", "last_click", "clicks", "recent"):
        assert getattr(found, name) == getattr(expected, name)
    if expected.hidden is None:
        assert found.hidden is None
    else:
        assert found.hidden is not None
        assert found.hidden.tolist() == expected.hidden.tolist()


def test_models_before_the_last_rebuild_are_not_needed() -> None:
    worker = Worker(HISTORY[:6])
    found = replayed(worker.clicks, worker.published, opener("v1", "v1r"), RULES, 2)
    assert (found.agreement, found.note) == ("equal", None)
    same(found.row, worker.rows[-1])


def test_a_refreshed_model_whose_forerunner_is_gone_says_so() -> None:
    """The state goes back beyond it: what was unknown then was no step."""
    worker = Worker(HISTORY[:4])
    found = replayed(worker.clicks, worker.published, opener("v1"), RULES, 2)
    assert found.note is not None
    assert found.note.startswith("the bundle of v1 cannot be opened; the session is taken for rebuilt")
    assert found.agreement == "different"


def test_a_model_that_is_gone_cannot_be_asked() -> None:
    worker = Worker(HISTORY[:5])
    with pytest.raises(ModelError, match="bundle of v2"):
        replayed(worker.clicks, worker.published, opener("v2"), RULES, 2)


def test_a_click_without_an_answer_has_no_model() -> None:
    worker = Worker(HISTORY[:3])
    del worker.published[6]
    with pytest.raises(ReplayError, match="offset 6 has no ranking"):
        replayed(worker.clicks, worker.published, opener(), RULES, 2)
    worker = Worker(HISTORY[:3])
    del worker.published[0]
    found = replayed(worker.clicks, worker.published, opener(), RULES, 2)
    assert found.note == "the click at offset 0 has no ranking: the state goes back to it alone"


def test_another_ranking_than_the_one_that_follows_is_told() -> None:
    worker = Worker(HISTORY[:3])
    wrong = worker.published[3]
    first = wrong.items[0]
    swapped = (RankedItem(first.item_id, first.score + 1), *wrong.items[1:])
    worker.published[6] = Ranking("s", None, "b", "v1r", swapped, Source("clicks", 2, 6), 0, 0, wrong.reason)
    assert replayed(worker.clicks, worker.published, opener(), RULES, 2).agreement == "different"
