"""Clicks in, rankings and rows out: a chunk gives what its clicks give one after the other, come what may."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from schemas.bundle.files import open_bundle
from schemas.bundle.runtime import Model
from schemas.messages.click import Click
from schemas.messages.ranking import RankingReason
from stream_app.core.plan import SourcedClick, SourcedForget, plan
from stream_app.core.query import queries
from stream_app.core.ranked import RankedClick
from stream_app.core.recommend import rank, recommend
from stream_app.core.session import SessionRules, SessionState, forgotten
from stream_app.core.state_codec import decode_state, encode_state
from stream_app.tools.click_file import read_click_file
from tests.contract.tiny_model import TinyModel, TinyNone, TinyWindow
from tests.unit.models import (
    exact_model,
    no_encoder_model,
    own_query_model,
    sick_model,
    sick_own_query_model,
    sick_window_model,
    window_model,
)

GAP = 1000
MOVING = frozenset({"view", "cart"})
RULES = SessionRules(idle_gap_ms=GAP, recent_items=5, advance_on=MOVING, hide_type="purchase")
ITEMS = ("a", "b", "c", "d", "e", "f")
V1 = exact_model("v1", ITEMS)
V2 = exact_model("v2", ("x", "c", "b", "a", "y", "käse"), salt=1)  # other items, and other indices for the same
SICK = sick_model("sick", ("c", "a", "x", "b", "f"))
DEEP = exact_model("deep", ITEMS, salt=2, layers=3, recent_size=2)
OWN = own_query_model("own", ITEMS, salt=3)
WINDOW = window_model("window", ITEMS, salt=4)
SHORT_WINDOW = window_model("short", V2.vocabulary.items, window=2)
NONE = no_encoder_model("none", ITEMS, salt=5, recent_size=3)
SICK_WINDOW = sick_window_model("sick window", ("c", "a", "x", "b", "f"))
SICK_OWN = sick_own_query_model("sick own", ("c", "a", "x", "b", "f"))
ONE_EACH = (V1, OWN, WINDOW, NONE)
ALL = (V1, V2, DEEP, SICK, OWN, WINDOW, SHORT_WINDOW, NONE, SICK_WINDOW, SICK_OWN)

Rows = dict[str, bytes]


@dataclass(frozen=True)
class Answer:
    """A RankedClick with plain numbers, to be compared."""

    offset: int
    session_id: str
    top: tuple[tuple[int, float], ...]
    reason: RankingReason


def answer(ranked: RankedClick) -> Answer:
    top = tuple(zip(ranked.top_index, ranked.top_score, strict=True))
    return Answer(ranked.offset, ranked.click.session_id, top, ranked.reason)


def click(session_id: str, item_id: str, offset: int, timestamp: int = 0, kind: str | None = None) -> SourcedClick:
    return SourcedClick(Click(session_id, item_id, timestamp, type=kind), offset)


def after(rows: Rows, chunk: Sequence[SourcedClick], model: Model = V1) -> tuple[Rows, list[RankedClick]]:
    """The rows as a store holds them after a chunk, and the chunk's rankings."""
    done = recommend({key: decode_state(row) for key, row in rows.items()}, chunk, model, RULES)
    return rows | {key: encode_state(state) for key, state in done.rows.items()}, done.ranked


def one_by_one(rows: Rows, clicks: Sequence[SourcedClick], model: Model) -> tuple[Rows, list[Answer]]:
    """The same, in the plainest way: each click alone, its session's row read and written, no waves."""
    rows, answers = dict(rows), []
    for sourced in clicks:
        row = decode_state(rows[sourced.click.session_id]) if sourced.click.session_id in rows else None
        if row is not None and sourced.offset <= row.offset:
            continue
        state, ranked = _apply(row, sourced, model)
        rows[sourced.click.session_id] = encode_state(state)
        answers.append(ranked)
    return rows, answers


def _apply(row: SessionState | None, sourced: SourcedClick, model: Model) -> tuple[SessionState, Answer]:
    now, known = sourced.click, model.vocabulary.index(sourced.click.item_id)
    if moves := now.type in (None, "view", "cart"):
        if row is None or (row.clicks and now.timestamp > row.last_click + GAP):
            row = SessionState("", sourced.offset, now.timestamp, 0, (), None)
        last_click, clicks = max(row.last_click, now.timestamp), row.clicks + 1
        recent = (*row.recent, now.item_id)[-RULES.recent_items :]
    else:
        row, known = row or SessionState("", sourced.offset, 0, 0, (), None), None
        last_click, clicks, recent = row.last_click, row.clicks, row.recent
    purchased = row.purchased
    if now.type == RULES.hide_type:
        others = tuple(item_id for item_id in purchased if item_id != now.item_id)
        purchased = (*others, now.item_id)[-RULES.recent_items :]
    if model.encoder == "recurrent":
        hidden, asked = _after_step(row, known, model)
    else:
        hidden, asked = None, _of_last_items(recent, model)
    state = SessionState(
        model_version=model.version if hidden is not None else "",
        offset=sourced.offset,
        last_click=last_click,
        clicks=clicks,
        recent=recent,
        hidden=hidden,
        purchased=purchased,
    )
    finite = asked.finite and (asked.query is None or bool(np.isfinite(asked.query).all()))
    index, score, reason = *model.popular, RankingReason.POPULARITY if finite else RankingReason.NOT_FINITE
    if asked.has_state and finite:
        (found,), (found_score,) = model.rank(asked.query, *_memory(recent, state.clicks, model))
        reason = RankingReason.NOT_FINITE
        if np.isfinite(found_score).all():
            index, score = found, found_score
            reason = RankingReason.UNKNOWN_ITEM if moves and known is None else RankingReason.MODEL
    return state, answer(RankedClick(now, sourced.offset, index.tolist(), score.tolist(), reason))


@dataclass(frozen=True)
class Asked:
    """What a click is ranked from; query float32[1, D]."""

    query: NDArray[np.float32] | None
    has_state: bool = True
    finite: bool = True


def _after_step(row: SessionState, known: int | None, model: Model) -> tuple[NDArray[np.float16] | None, Asked]:
    """The hidden state after the click, and what the click is ranked from."""
    before = row.hidden if row.model_version == model.version else _replay(row.recent, model)
    if known is None:
        # A query of the graph's own is in no row: it takes the clicks that the row remembers.
        query = _replay_query(row.recent, model) if model.own_query else _last_layer(before)
        return before, Asked(query, has_state=query is not None)
    hidden, finite = _if_finite(_step(known, before, model), before)
    query = _query(known, before, model) if model.own_query else _last_layer(hidden)
    return hidden, Asked(query, finite=finite)


def _last_layer(hidden: NDArray[np.float16] | None) -> NDArray[np.float32] | None:
    return None if hidden is None else hidden[-1:].astype(np.float32)


def _of_last_items(recent: Sequence[str], model: Model) -> Asked:
    """What a click is ranked from where there is no hidden state."""
    last = recent[-(model.window or model.recent_size) :]
    known = [index for item_id in last if (index := model.vocabulary.index(item_id)) is not None]
    if not known or model.encoder == "none":
        return Asked(None, has_state=bool(known))
    return Asked(model.encode(np.array([known]), np.array([len(known)])))


def _replay(recent: Sequence[str], model: Model) -> NDArray[np.float16] | None:
    hidden = None
    for item_id in recent:
        if (index := model.vocabulary.index(item_id)) is not None:
            hidden, _ = _if_finite(_step(index, hidden, model), hidden)
    return hidden


def _replay_query(recent: Sequence[str], model: Model) -> NDArray[np.float32] | None:
    query = None
    for n, item_id in enumerate(recent):
        if (index := model.vocabulary.index(item_id)) is not None:
            before = _replay(recent[:n], model)
            _, finite = _if_finite(_step(index, before, model), before)
            query = _query(index, before, model) if finite else query
    return query


def _step(index: int, hidden: NDArray[np.float16] | None, model: Model) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return _advanced(index, hidden, model)[0][:, 0, :].astype(np.float16)


def _query(index: int, hidden: NDArray[np.float16] | None, model: Model) -> NDArray[np.float32]:
    return _advanced(index, hidden, model)[1]


def _advanced(
    index: int, hidden: NDArray[np.float16] | None, model: Model
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    before = model.initial_hidden(1) if hidden is None else hidden[:, None, :].astype(np.float32)
    return model.advance(np.array([index]), before)


def _if_finite(
    after: NDArray[np.float16] | None, before: NDArray[np.float16] | None
) -> tuple[NDArray[np.float16] | None, bool]:
    """The state after a click, or the one before it where that is none; and whether it is the one after."""
    finite = after is None or bool(np.isfinite(after).all())
    return (after if finite else before), finite


def _memory(
    recent: Sequence[str], clicks: int, model: Model
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    last = reversed(recent[-model.recent_size :])
    known = [index for item_id in last if (index := model.vocabulary.index(item_id)) is not None]
    distinct = sorted(set(known), key=known.index)
    padding = model.recent_size - len(distinct)
    counts = [known.count(index) for index in distinct] + [0] * padding
    return (
        np.array([distinct + [-1] * padding], dtype=np.int64),
        np.array([counts], dtype=np.float32),
        np.array([clicks], dtype=np.float32),
    )


# -- single stories ---------------------------------------------------------------------------------------------------


def test_each_click_is_answered_in_the_order_of_the_clicks() -> None:
    rows, ranked = after({}, [click("s", "a", 0), click("t", "b", 1), click("s", "c", 2)])
    assert [(one.offset, one.click.session_id, one.reason) for one in ranked] == [
        (0, "s", RankingReason.MODEL),
        (1, "t", RankingReason.MODEL),
        (2, "s", RankingReason.MODEL),
    ]
    state = decode_state(rows["s"])
    assert (state.model_version, state.offset, state.clicks, state.recent) == ("v1", 2, 2, ("a", "c"))
    assert decode_state(rows["t"]).offset == 1


def test_one_advance_serves_the_nth_clicks_of_all_sessions() -> None:
    chunk = [click(f"s{n % 3}", "a", n) for n in range(9)]
    done = recommend({}, chunk, V1, RULES)
    assert done.waves == 3
    assert len(done.ranked) == 9


def test_a_chunk_without_clicks_leads_to_nothing() -> None:
    done = recommend({}, [], V1, RULES)
    assert (done.rows, done.ranked, done.redelivered, done.rebuilt, done.waves) == ({}, [], 0, 0, 0)


def test_a_click_after_the_idle_gap_forgets_the_session() -> None:
    fresh, fresh_ranked = after({}, [click("s", "b", 9, GAP + 1)])
    rows, ranked = after({}, [click("s", "a", 0, 0), click("s", "b", 9, GAP + 1)])
    assert rows == fresh
    assert answer(ranked[1]) == answer(fresh_ranked[0])


def test_a_late_click_neither_ends_a_session_nor_turns_its_clock_back() -> None:
    rows, _ = after({}, [click("s", "a", 0, 5000), click("s", "b", 1, 0), click("s", "c", 2, 5000 + GAP)])
    state = decode_state(rows["s"])
    assert (state.clicks, state.last_click, state.recent) == (3, 5000 + GAP, ("a", "b", "c"))


def test_an_unknown_item_is_remembered_and_answered_from_what_was_known_before() -> None:
    rows, ranked = after({}, [click("s", "a", 0), click("s", "new", 1)])
    before, _ = after({}, [click("s", "a", 0)])
    assert ranked[1].reason is RankingReason.UNKNOWN_ITEM
    np.testing.assert_array_equal(decode_state(rows["s"]).hidden, decode_state(before["s"]).hidden)
    assert decode_state(rows["s"]).recent == ("a", "new")


def test_a_session_of_unknown_items_is_answered_by_popularity_until_a_model_knows_them() -> None:
    rows, ranked = after({}, [click("s", "x", 0), click("s", "y", 1)], V1)
    assert [one.reason for one in ranked] == [RankingReason.POPULARITY] * 2
    assert list(ranked[0].top_index) == [0, 1, 2, 3]
    state = decode_state(rows["s"])
    assert (state.model_version, state.hidden, state.recent) == ("", None, ("x", "y"))
    rows, ranked = after(rows, [click("s", "new", 2)], V2)  # knows x and y, not what is clicked now
    assert [one.reason for one in ranked] == [RankingReason.UNKNOWN_ITEM]
    state = decode_state(rows["s"])
    assert state.model_version == "v2"
    np.testing.assert_array_equal(state.hidden, _replay(("x", "y"), V2))


def test_a_hidden_state_is_never_fed_to_another_model() -> None:
    rows, _ = after({}, [click("s", "a", 0), click("s", "b", 1)], V1)
    rows, _ = after(rows, [click("s", "c", 2)], V2)
    np.testing.assert_array_equal(decode_state(rows["s"]).hidden, _replay(("a", "b", "c"), V2))


def test_a_rollback_replays_what_the_row_remembers() -> None:
    rows, _ = after({}, [click("s", item_id, n) for n, item_id in enumerate("abcdef")], V1)
    rows, _ = after(rows, [click("s", "c", 6)], V2)
    rows, _ = after(rows, [click("s", "a", 7)], V1)
    state = decode_state(rows["s"])
    assert (state.clicks, state.recent) == (8, ("d", "e", "f", "c", "a"))
    np.testing.assert_array_equal(state.hidden, _replay(("c", "d", "e", "f", "c", "a"), V1))  # five, then the click


def test_a_click_that_does_not_move_its_session_on_is_answered_and_leaves_its_offset_alone() -> None:
    before, ranked = after({}, [click("s", "a", 0, 5)])
    rows, unmoved = after(before, [click("s", "b", 1, 9 * GAP, "paid")])
    assert [(one.top_index, one.reason) for one in unmoved] == [(ranked[0].top_index, RankingReason.MODEL)]
    assert rows == {"s": encode_state(replace(decode_state(before["s"]), offset=1))}
    done = recommend({"s": decode_state(rows["s"])}, [click("s", "b", 1, 9 * GAP, "paid")], V1, RULES)
    assert (done.rows, done.redelivered, done.unmoved) == ({}, 1, 0)


def test_the_clock_of_a_session_is_that_of_the_clicks_that_move_it_on() -> None:
    """A purchase half an hour later neither holds a session open nor ends it."""
    chunk = [click("s", "a", 0), click("s", "a", 1, GAP, "paid"), click("s", "b", 2, GAP + 1)]
    assert decode_state(after({}, chunk)[0]["s"]).recent == ("b",)
    chunk = [click("s", "a", 0), click("s", "a", 1, 9 * GAP, "paid"), click("s", "b", 2, GAP)]
    assert decode_state(after({}, chunk)[0]["s"]).recent == ("a", "b")


def test_what_a_session_purchased_is_kept_until_it_starts_anew_or_nobody_asks() -> None:
    bought = [click("s", "a", 0), click("s", "b", 1, 9 * GAP, "purchase"), click("s", "b", 2, 0, "purchase")]
    rows, _ = after({}, [*bought, click("s", "c", 3, 1)])
    assert decode_state(rows["s"]).purchased == ("b",)
    bought = [click("s", item, 4 + n, 2, "purchase") for n, item in enumerate("acdecb")]
    rows, _ = after(rows, bought)
    assert decode_state(rows["s"]).purchased == ("a", "d", "e", "c", "b")  # five, each once, the newest last
    [state] = recommend({"s": decode_state(rows["s"])}, [click("s", "a", 10, 3)], V1, SessionRules()).rows.values()
    assert state.purchased == ()
    again, _ = after(rows, [click("s", "a", 10, 9 * GAP)])
    assert decode_state(again["s"]).purchased == ()
    first, _ = after({}, [click("t", "a", 0, 5, "purchase"), click("t", "b", 1, 5)])
    assert decode_state(first["t"]).purchased == ("a",)


def test_a_session_that_nothing_has_moved_on_is_answered_by_popularity() -> None:
    for model in ALL:
        rows, ranked = after({}, [click("s", "b", 3, 7, "paid"), click("s", "never heard of", 4, 7, "other")], model)
        assert [one.reason for one in ranked] == [RankingReason.POPULARITY] * 2
        assert decode_state(rows["s"]) == SessionState("", 4, 0, 0, (), None)
        later, _ = after(rows, [click("s", "b", 5, 3)], model)
        assert later == after({}, [click("s", "b", 5, 3)], model)[0]


def test_a_click_that_does_not_move_its_session_on_is_answered_by_a_new_model_too() -> None:
    rows, _ = after({}, [click("s", "a", 0), click("s", "b", 1)], V1)
    done = recommend({"s": decode_state(rows["s"])}, [click("s", "c", 2, 0, "paid")], V2, RULES)
    assert (done.rebuilt, done.unmoved) == (1, 1)
    assert done.rows["s"].model_version == "v2"
    np.testing.assert_array_equal(done.rows["s"].hidden, _replay(("a", "b"), V2))


def test_a_state_that_is_not_finite_is_answered_by_popularity_and_not_kept() -> None:
    rows, ranked = after({}, [click("s", "a", 0), click("s", "b", 1), click("s", "x", 2), click("s", "new", 3)], SICK)
    # "a" gives NaN, "x" a number that no row can hold.
    expected = [RankingReason.NOT_FINITE, RankingReason.MODEL, RankingReason.NOT_FINITE, RankingReason.UNKNOWN_ITEM]
    assert [one.reason for one in ranked] == expected
    assert [list(one.top_index) for one in ranked if one.reason is RankingReason.NOT_FINITE] == [[0, 1, 2, 3]] * 2
    state = decode_state(rows["s"])
    assert state.recent == ("a", "b", "x", "new")
    np.testing.assert_array_equal(state.hidden, _replay(("b",), SICK))


def test_a_session_whose_every_state_is_not_finite_has_none() -> None:
    rows, ranked = after({}, [click("s", "a", 0), click("s", "new", 1)], SICK)
    assert [one.reason for one in ranked] == [RankingReason.NOT_FINITE, RankingReason.POPULARITY]
    state = decode_state(rows["s"])
    assert (state.model_version, state.hidden, state.recent) == ("", None, ("a", "new"))


def test_a_score_that_is_not_finite_is_answered_by_popularity() -> None:
    rows, ranked = after({}, [click("s", "f", 0), click("t", "b", 1), click("s", "b", 2)], SICK)
    assert [one.reason for one in ranked] == [RankingReason.NOT_FINITE, RankingReason.MODEL, RankingReason.MODEL]
    assert list(ranked[0].top_score) == [0.25] * 4
    np.testing.assert_array_equal(decode_state(rows["s"]).hidden, _replay(("f", "b"), SICK))  # which is a state


def test_the_session_memory_sees_as_many_clicks_as_the_model_asks_for() -> None:
    """However many more a row remembers: the evaluation shows it as many."""
    clicks = [click("s", item_id, n) for n, item_id in enumerate("abcabcdeac")]
    seen = []
    for kept in (V1.recent_size, V1.recent_size + 1, 30):
        done = recommend({}, clicks, V1, SessionRules(idle_gap_ms=GAP, recent_items=kept))
        seen.append([answer(one) for one in done.ranked])
    assert seen[0] == seen[1] == seen[2]


def test_only_rows_that_a_click_needs_are_rebuilt() -> None:
    old, _ = after({}, [click(session_id, "a", n, 0) for n, session_id in enumerate(("live", "ended", "seen"))], V1)
    chunk = [click("live", "b", 3, GAP), click("ended", "b", 4, GAP + 1), click("seen", "a", 2, 0)]
    done = recommend({key: decode_state(row) for key, row in old.items()}, chunk, V2, RULES)
    assert (done.rebuilt, done.redelivered, done.waves) == (1, 1, 2)
    assert done.rows.keys() == {"live", "ended"}


def test_a_session_of_unknown_items_only_is_no_row_of_another_models() -> None:
    old, _ = after({}, [click("s", "never heard of", 0)], V1)
    done = recommend({"s": decode_state(old["s"])}, [click("s", "a", 1)], V1, RULES)
    assert done.rebuilt == 0


def test_a_redelivered_click_is_skipped_and_counted() -> None:
    chunk = [click("s", "a", 5), click("t", "b", 6), click("s", "c", 7)]
    rows, _ = after({}, chunk)
    done = recommend({key: decode_state(row) for key, row in rows.items()}, chunk, V1, RULES)
    assert (done.rows, done.ranked, done.redelivered) == ({}, [], 3)


def test_an_older_row_computes_a_redelivered_click_as_if_for_the_first_time() -> None:
    chunk = [click("s", "a", 0), click("s", "b", 1)]
    whole, ranked = after({}, chunk)
    half, _ = after({}, chunk[:1])
    again, ranked_again = after(half, chunk)
    assert again == whole
    assert [answer(one) for one in ranked_again] == [answer(ranked[1])]


def test_rows_do_not_share_memory_with_their_chunk() -> None:
    done = recommend({}, [click(f"s{n}", "a", n) for n in range(50)], DEEP, RULES)
    hidden = done.rows["s7"].hidden
    assert hidden is not None
    assert hidden.base is None
    assert hidden.shape == (3, 2)


@pytest.mark.parametrize("model", [WINDOW, NONE], ids=["window", "none"])
def test_a_model_without_a_hidden_state_drops_that_of_a_row(model: Model) -> None:
    rows, _ = after({}, [click("s", "a", 0), click("s", "b", 1)], V1)
    rows, ranked = after(rows, [click("s", "c", 2)], model)
    state = decode_state(rows["s"])
    assert (state.model_version, state.hidden, state.recent, state.clicks) == ("", None, ("a", "b", "c"), 3)
    _, expected = after({}, [click("s", item_id, n) for n, item_id in enumerate("abc")], model)
    assert answer(ranked[0]) == answer(expected[2])  # which needs nothing but the items
    done = recommend({"s": decode_state(rows["s"])}, [click("s", "d", 3)], model, RULES)
    assert (done.rebuilt, done.waves) == (0, 0)


def test_from_recurrent_to_window_to_none_and_back() -> None:
    rows: Rows = {}
    for turn, (model, item_id) in enumerate(zip((V1, WINDOW, NONE, V1), "abcd", strict=True)):
        rows, ranked = after(rows, [click("s", item_id, turn)], model)
        assert [one.reason for one in ranked] == [RankingReason.MODEL]
    state = decode_state(rows["s"])
    assert (state.model_version, state.recent, state.clicks) == ("v1", ("a", "b", "c", "d"), 4)
    np.testing.assert_array_equal(state.hidden, _replay("abcd", V1))


def test_rows_of_a_model_without_a_hidden_state_are_rebuilt() -> None:
    rows, _ = after({}, [click("s", "a", 0)], WINDOW)
    done = recommend({"s": decode_state(rows["s"])}, [click("s", "b", 1)], V1, RULES)
    assert (done.rebuilt, done.waves) == (1, 2)


def test_a_window_begins_at_the_same_click_whatever_the_chunk() -> None:
    """Unknown items in the middle count as clicks of the window, and are not in it."""
    clicks = [click("s", item_id, n) for n, item_id in enumerate(("a", "new", "b", "newer", "c"))]
    rows, ranked = after({}, clicks, SHORT_WINDOW)
    assert [one.reason.value for one in ranked] == ["model", "unknown-item", "model", "unknown-item", "model"]
    _, last = after(rows, [click("s", "newest", 5), click("s", "never heard of", 6)], SHORT_WINDOW)
    assert [one.reason.value for one in last] == ["unknown-item", "popularity"]  # its two clicks are unknown ones


def test_one_encode_serves_all_sessions_of_about_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    wide = window_model("wide", ITEMS, window=40)
    encode = wide.encode

    def counted(items: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.float32]:
        shapes.append(items.shape)
        return encode(items, length)

    monkeypatch.setattr(wide, "encode", counted)
    clicks = [click(f"s{n}", "a", 40 * n + m) for n, length in enumerate((1, 2, 11, 35)) for m in range(length)]
    done = recommend({}, clicks, wide, SessionRules(idle_gap_ms=GAP, recent_items=40))
    assert len(done.ranked) == 49
    # Lengths 1, 2, 3, 4, 5-6, 7-8, 9-12, 13-16, 17-24, 25-32, 33-35 of the sessions as they grow.
    assert shapes == [
        (4, 1), (3, 2), (2, 3), (2, 4), (4, 6), (4, 8), (7, 12), (4, 16), (8, 24), (8, 32), (3, 35)
    ]  # fmt: skip


def test_a_query_that_is_not_finite_is_answered_by_popularity() -> None:
    clicks = [click("s", "a", 0), click("s", "new", 1), click("s", "b", 2), click("s", "f", 3), click("t", "c", 4)]
    rows, ranked = after({}, clicks, SICK_WINDOW)
    sick = RankingReason.NOT_FINITE
    # "a" is last twice, the second time before an item that is unknown; "f" has such scores.
    assert [one.reason for one in ranked] == [sick, sick, RankingReason.MODEL, sick, RankingReason.MODEL]
    assert list(ranked[0].top_score) == [0.25] * 4
    assert decode_state(rows["s"]).recent == ("a", "new", "b", "f")


def test_an_unknown_item_is_answered_by_a_query_that_no_row_keeps() -> None:
    rows, ranked = after({}, [click("s", "a", 0), click("s", "b", 1)], OWN)
    _, later = after(rows, [click("s", "new", 2), click("s", "c", 3)], OWN)
    _, together = after({}, [click("s", item_id, n) for n, item_id in enumerate(("a", "b", "new", "c"))], OWN)
    assert [answer(one) for one in (*ranked, *later)] == [answer(one) for one in together]
    assert later[0].reason is RankingReason.UNKNOWN_ITEM


# -- any stream -------------------------------------------------------------------------------------------------------

SESSIONS = ("s", "t", "ü", "🧀")
CLICKED = (*ITEMS, "x", "y", "käse", "never heard of")
KINDS = (None, None, "view", "cart", "purchase")  # the last does not move a session on
STEPS = (0, 1, 7, GAP, GAP + 1, 5 * GAP, -1, -GAP, -3 * GAP)


@st.composite
def streams(draw: st.DrawFn) -> list[SourcedClick]:
    """One partition's clicks: few sessions, so that they interleave, gaps in the offsets, clocks that jump."""
    drawn = draw(
        st.lists(
            st.tuples(
                st.sampled_from(SESSIONS),
                st.sampled_from(CLICKED),
                st.sampled_from(STEPS),
                st.integers(1, 3),
                st.sampled_from(KINDS),
            ),
            max_size=40,
        )
    )
    clicks, timestamp, offset = [], 10 * GAP, -1
    for session_id, item_id, step, ahead, kind in drawn:
        timestamp, offset = max(0, timestamp + step), offset + ahead
        clicks.append(click(session_id, item_id, offset, timestamp, kind))
    return clicks


def split(clicks: Sequence[SourcedClick], sizes: Sequence[int]) -> Iterator[Sequence[SourcedClick]]:
    """The clicks in chunks of these sizes, over and over."""
    start = turn = 0
    while start < len(clicks):
        size = sizes[turn % len(sizes)]
        yield clicks[start : start + size]
        start, turn = start + size, turn + 1


sizes = st.lists(st.integers(1, 12), min_size=1, max_size=6)
models = st.lists(st.sampled_from(ALL), min_size=1, max_size=6)


@settings(deadline=None)  # a busy machine is no failure
@given(streams(), sizes, models)
def test_chunks_give_what_single_clicks_give(
    clicks: list[SourcedClick], chunk_sizes: list[int], served: list[Model]
) -> None:
    rows: Rows = {}
    expected_rows: Rows = {}
    for turn, chunk in enumerate(split(clicks, chunk_sizes)):
        model = served[turn % len(served)]
        rows, ranked = after(rows, chunk, model)
        expected_rows, expected = one_by_one(expected_rows, chunk, model)
        assert [answer(one) for one in ranked] == expected
        assert rows == expected_rows  # to the byte


@settings(deadline=None)
@given(streams(), sizes, sizes, st.sampled_from(ALL))
def test_any_split_into_chunks_gives_the_same(
    clicks: list[SourcedClick], one: list[int], other: list[int], model: Model
) -> None:
    def served(chunk_sizes: list[int]) -> tuple[Rows, list[Answer]]:
        rows: Rows = {}
        answers = []
        for chunk in split(clicks, chunk_sizes):
            rows, ranked = after(rows, chunk, model)
            answers += [answer(each) for each in ranked]
        return rows, answers

    assert served(one) == served(other)


@settings(deadline=None)
@given(streams(), sizes, models, st.data())
def test_redelivering_any_suffix_changes_nothing(
    clicks: list[SourcedClick], chunk_sizes: list[int], served: list[Model], data: st.DataObject
) -> None:
    rows: Rows = {}
    for turn, chunk in enumerate(split(clicks, chunk_sizes)):
        rows, _ = after(rows, chunk, served[turn % len(served)])
    suffix = clicks[data.draw(st.integers(0, len(clicks)), label="from") :]
    for chunk in split(suffix, chunk_sizes):
        done = recommend({key: decode_state(row) for key, row in rows.items()}, chunk, served[-1], RULES)
        assert (done.rows, done.ranked, done.redelivered) == ({}, [], len(chunk))


REACHED = ("nothing", "rankings", "rows", "acknowledgement")  # how far a chunk came before the worker crashed
chunks_and_crashes = st.lists(st.tuples(st.integers(1, 12), st.sampled_from(REACHED)), max_size=12)


@settings(deadline=None)
@given(streams(), chunks_and_crashes, st.sampled_from(ONE_EACH))
def test_crashes_lose_no_ranking_and_no_click(
    clicks: list[SourcedClick], story: list[tuple[int, str]], model: Model
) -> None:
    expected_rows, expected = one_by_one({}, clicks, model)
    stored: Rows = {}
    published: list[Answer] = []
    acknowledged = 0
    for size, reached in (*story, (len(clicks), "acknowledgement")):
        chunk = clicks[acknowledged : acknowledged + size]  # what was not acknowledged comes again
        rows, ranked = after(stored, chunk, model)
        if reached != "nothing":
            published += [answer(one) for one in ranked]
        if reached in ("rows", "acknowledgement"):
            stored = rows
        if reached == "acknowledgement":
            acknowledged += len(chunk)
    assert stored == expected_rows
    assert {one.offset: one for one in published} == {one.offset: one for one in expected}
    assert set(published) == set(expected)  # what came twice came alike


@settings(deadline=None)
@given(streams(), streams(), st.sampled_from((V2, *ONE_EACH)))
def test_arguments_are_not_changed(earlier: list[SourcedClick], clicks: list[SourcedClick], model: Model) -> None:
    rows, _ = after({}, earlier, V1)
    states = {key: decode_state(row) for key, row in rows.items()}
    given_clicks = [replace(one, offset=one.offset + 1000) for one in clicks]
    before = list(given_clicks)
    recommend(states, given_clicks, model, RULES)
    assert {key: encode_state(state) for key, state in states.items()} == rows
    assert given_clicks == before


# -- real models, real clicks -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_models(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    folder = tmp_path_factory.mktemp("registry")
    others = V2.vocabulary.items
    written = [
        TinyModel(items=ITEMS, layers=2, hidden_size=8, k=4).write(folder, "v1"),
        TinyModel(items=others, layers=1, hidden_size=6, k=4, seed=1).write(folder, "v2"),
        TinyWindow(items=ITEMS, k=4, window=3, seed=2).write(folder, "v3"),
        TinyNone(items=others, k=4, seed=3).write(folder, "v4"),
        TinyModel(items=ITEMS, k=4, seed=4, own_query=True).write(folder, "v5"),
    ]
    return [open_bundle(bundle) for bundle in written]


@settings(deadline=None)
@given(streams(), sizes)
def test_onnx_models_agree_within_rounding(
    onnx_models: list[Model], clicks: list[SourcedClick], chunk_sizes: list[int]
) -> None:
    rows: Rows = {}
    expected_rows: Rows = {}
    for turn, chunk in enumerate(split(clicks, chunk_sizes)):
        model = onnx_models[turn // 2 % len(onnx_models)]
        rows, ranked = after(rows, chunk, model)
        expected_rows, expected = one_by_one(expected_rows, chunk, model)
        assert [(one.offset, one.reason) for one in ranked] == [(one.offset, one.reason) for one in expected]
        for one, other in zip(ranked, expected, strict=True):
            # Another batch, other last bits: now and then the state is rounded the other way.
            np.testing.assert_allclose(one.top_score, [score for _, score in other.top], atol=5e-3)
    assert rows.keys() == expected_rows.keys()
    for key, row in rows.items():
        found, wanted = decode_state(row), decode_state(expected_rows[key])
        assert replace(found, hidden=None) == replace(wanted, hidden=None)
        assert (found.hidden is None) == (wanted.hidden is None)
        if found.hidden is not None and wanted.hidden is not None:
            np.testing.assert_allclose(found.hidden.astype(np.float32), wanted.hidden, atol=2e-3)


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    """One GRU, as a step and unrolled over a window that is longer than any session here."""
    folder = tmp_path_factory.mktemp("registry")
    recurrent = TinyModel(items=ITEMS, layers=2, hidden_size=8, k=4)
    unrolled = TinyWindow(items=ITEMS, layers=2, hidden_size=8, k=4, window=40, unrolled=True)
    return open_bundle(recurrent.write(folder, "step")), open_bundle(unrolled.write(folder, "window"))


@settings(deadline=None)
@given(streams(), sizes, sizes)
def test_a_network_that_is_exported_both_ways_answers_alike(
    both_ways: tuple[Model, Model], clicks: list[SourcedClick], one: list[int], other: list[int]
) -> None:
    answers = []
    for model, chunk_sizes in zip(both_ways, (one, other), strict=True):
        rows: dict[str, SessionState] = {}
        ranked = []
        for chunk in split(clicks, chunk_sizes):
            done = recommend(rows, chunk, model, SessionRules(idle_gap_ms=GAP, recent_items=40, advance_on=MOVING))
            rows |= done.rows
            ranked += done.ranked
        answers.append(ranked)
    for step, window in zip(*answers, strict=True):
        assert (step.offset, step.reason) == (window.offset, window.reason)
        # What rows keep of a hidden state is rounded, a window's query is not.
        np.testing.assert_allclose(step.top_score, window.top_score, atol=2e-2)


@settings(deadline=None)
@given(streams(), streams(), sizes, models)
def test_partitions_share_calls_and_nothing_else(
    first: list[SourcedClick], second: list[SourcedClick], chunk_sizes: list[int], served: list[Model]
) -> None:
    together: list[Rows] = [{}, {}]
    alone: list[Rows] = [{}, {}]
    parts = [list(split(clicks, chunk_sizes)) for clicks in (first, second)]
    for turn in range(max(map(len, parts))):
        chunks = [part[turn] if turn < len(part) else [] for part in parts]
        model = served[turn % len(served)]
        plans = [
            plan({key: decode_state(row) for key, row in rows.items()}, chunk, model, RULES)
            for rows, chunk in zip(together, chunks, strict=True)
        ]
        for n, done in enumerate(rank(plans, queries(plans, model), model)):
            together[n] |= {key: encode_state(state) for key, state in done.rows.items()}
            alone[n], answers = after(alone[n], chunks[n], model)
            assert [answer(one) for one in done.ranked] == [answer(one) for one in answers]
    assert together == alone


def test_real_clicks_in_chunks_of_any_size(shared_data: Path) -> None:
    real = list(islice(read_click_file(shared_data / "rsc15_100k.tsv.gz"), 3000))
    clicks = [SourcedClick(one, offset) for offset, one in enumerate(real)]
    items = tuple(sorted({one.item_id for one in real}))
    # Each model lacks some items; the swap comes in the middle.
    models = exact_model("v1", items[::2], recent_size=30), exact_model("v2", items[::3], salt=3, recent_size=30)
    rows: Rows = {}
    expected_rows: Rows = {}
    for half, model in ((clicks[:1500], models[0]), (clicks[1500:], models[1])):
        expected_rows, expected = one_by_one(expected_rows, half, model)
        found: list[Answer] = []
        for chunk in split(half, [1, 512, 3, 100]):
            rows, ranked = after(rows, chunk, model)
            found += [answer(one) for one in ranked]
        assert found == expected
        assert rows == expected_rows


@pytest.mark.parametrize("make", [exact_model, own_query_model])
def test_a_refreshed_model_goes_on_from_the_states_of_the_one_it_is(make: Callable[..., Model]) -> None:
    """Nothing is rebuilt, there and back; and a worker that does not know of it rebuilds."""
    trained, refreshed = make("v1", ITEMS, salt=7), make("v2", (*ITEMS, "new"), salt=7)
    unknowing = make("v2", (*ITEMS, "new"), salt=7)
    vars(refreshed)["states_of"] = "v1"
    done = recommend({}, [click("s", "a", 0), click("s", "b", 1)], trained, RULES)
    for model in (refreshed, trained):
        after_swap = recommend(done.rows, [click("s", "c", 2)], model, RULES)
        assert after_swap.rebuilt == 0
        assert after_swap.waves == 1
        assert after_swap.rows["s"].model_version == "v1"
    assert recommend(done.rows, [click("s", "c", 2)], unknowing, RULES).rebuilt == 1
    # An item that is new to the model moves the session on.
    new = recommend(done.rows, [click("s", "new", 2)], refreshed, RULES)
    assert new.ranked[0].reason is RankingReason.MODEL
    before, moved = done.rows["s"].hidden, new.rows["s"].hidden
    assert before is not None
    assert moved is not None
    assert not np.array_equal(moved, before)


def test_a_model_that_names_a_version_with_states_of_another_size_rebuilds() -> None:
    trained, wrong = exact_model("v1", ITEMS), exact_model("v2", ITEMS, layers=2)
    vars(wrong)["states_of"] = "v1"
    rows = recommend({}, [click("s", "a", 0)], trained, RULES).rows
    done = recommend(rows, [click("s", "c", 1)], wrong, RULES)
    assert done.rebuilt == 1
    expected, _ = after({}, [click("s", "a", 0), click("s", "c", 1)], wrong)
    assert encode_state(done.rows["s"]) == expected["s"]


def forget(session_id: str, offset: int) -> SourcedForget:
    return SourcedForget(session_id, offset)


@pytest.mark.parametrize("model", ONE_EACH)
@pytest.mark.parametrize("cut", range(8))
def test_a_forgotten_session_begins_anew_wherever_a_chunk_ends(model: Model, cut: int) -> None:
    """Its clicks before the request are answered as ever; those behind it as of a session that was never there."""
    chunk: list[SourcedClick | SourcedForget] = [
        click("s", "a", 0), click("t", "b", 1), click("s", "b", 2), forget("s", 3), click("t", "c", 4),
        click("s", "c", 5), forget("nobody", 6), click("s", "d", 7),
    ]  # fmt: skip
    rows: dict[str, SessionState] = {}
    ranked: list[RankedClick] = []
    for part in (chunk[:cut], chunk[cut:]):
        done = recommend(rows, part, model, RULES)
        rows |= done.rows
        ranked += done.ranked
    before, _ = after({}, [click("s", "a", 0), click("s", "b", 2)], model)
    anew, answers = after({}, [click("s", "c", 5), click("s", "d", 7)], model)
    assert encode_state(rows["s"]) == anew["s"] != before["s"]
    assert [answer(one) for one in ranked if one.offset in (5, 7)] == [answer(one) for one in answers]
    assert rows["nobody"] == forgotten(6)
    assert [one.offset for one in sorted(ranked, key=lambda one: one.offset)] == [0, 1, 2, 4, 5, 7]


def test_a_request_that_comes_again_forgets_nothing_newer() -> None:
    rows = recommend({}, [click("s", "a", 0), forget("s", 1), click("s", "b", 2)], V1, RULES).rows
    done = recommend(rows, [click("s", "a", 0), forget("s", 1)], V1, RULES)
    assert (done.rows, done.ranked, done.redelivered) == ({}, [], 2)


def test_clicks_before_a_request_that_come_again_are_skipped() -> None:
    """A crash between the request's row and its acknowledgement: they had their rankings, of a session that is gone."""
    chunk: list[SourcedClick | SourcedForget] = [click("s", "a", 0), click("s", "b", 1), forget("s", 2)]
    rows = recommend({}, chunk, V1, RULES).rows
    done = recommend(rows, chunk[1:], V1, RULES)
    assert (done.rows, done.ranked, done.requests, done.redelivered) == ({}, [], [], 2)


def test_a_request_alone_has_no_ranking() -> None:
    rows = recommend({}, [click("s", "a", 0)], V1, RULES).rows
    done = recommend(rows, [forget("s", 1)], V1, RULES)
    assert (done.rows, done.ranked) == ({"s": forgotten(1)}, [])
