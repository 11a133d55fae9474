"""Is each kind of error found? A right history is made by hand, and one thing after the other is made wrong in it."""

import copy
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_app.core.session import SessionState
from stream_app.core.state_codec import encode_state
from tests.harness.clients import record, shop
from tests.harness.history import History, as_bytes, as_text, lines
from tests.harness.oracle import Catalogue, Click, Model, Row, click_of, decode_row, variant_of, wrong
from tests.harness.system import ITEMS, KINDS, KNOWN
from tests.harness.verdict import CHANGELOG, judge

Lines = list[dict[str, Any]]
CLICKS = 240


def encoded(row: Row) -> str | None:
    """A row as workers write it."""
    state = SessionState(row.model, row.offset, row.last_click, row.clicks, row.recent, row.hidden)
    return as_text(encode_state(state))


def answer(model: Model, row: Row, click: Any, offset: int, hidden: Set[str] = frozenset()) -> dict[str, Any]:
    """The ranking of the click that led to a row."""
    reason, items, scores = model.answer(row, hidden)
    return {
        "session_id": click.session_id,
        "event_id": click.event_id,
        "item_id": click.item_id,
        "click_timestamp": click.timestamp,
        "model_version": model.version,
        "reason": reason,
        "produced_at": 0,
        "items": [
            {"item_id": item, "score": float(score)} for item, score in zip(items[:20], scores[:20], strict=True)
        ],
        "source": {"topic": "clicks", "partition": 0, "offset": offset},
    }


def made(path: Path, kind: str) -> Lines:
    """A history in which all is right: one partition, one worker, a swap in the middle, a record that is no click."""
    models = [Model(KINDS[kind](seed).write(path, f"v{seed}")) for seed in (1, 2)]
    found: Lines = [{"at": 0, "what": "setting", "name": "in_flight", "value": 10}]
    found += [{"at": 0, "what": "model", "version": one.version, "path": str(path / one.version)} for one in models]
    records = list(islice(shop(random.Random(1), ITEMS, open_sessions=20), CLICKS))
    records[50] = (b"x", b"no click")
    rows: dict[str, Row] = {}
    for offset, (key, value) in enumerate(records):
        event, at = f"0.{offset}", offset / 100
        found.append({"at": at, "what": "sent", "event": event})
        found.append({"at": at, "what": "acknowledged", "event": event, "partition": 0, "offset": offset})
        text = {"key": as_text(key), "value": as_text(value)}
        found.append({"at": 99, "what": "click", "partition": 0, "offset": offset, **text})
        click = click_of(key, value)
        if click is None:
            found.append({"at": 99, "what": "rejected", "partition": 0, "offset": offset})
            continue
        model = models[offset > CLICKS // 2]
        rows[click.session_id] = row = model.after(rows.get(click.session_id), click, offset)
        ranking = answer(model, row, click, offset)
        found.append({"at": at + 0.05, "what": "received", "partition": 0, "offset": offset, "ranking": ranking})
        told = {"partition": 0, "key": click.session_id, "row": encoded(row)}
        found.append({"at": 99, "what": "row", "where": CHANGELOG, "offset": offset, **told})
        if offset < CLICKS // 3:
            found.append({"at": 99, "what": "row", "where": "b", "offset": -1, **told})
    found.append({"at": 99, "what": "covered", "where": "b", "partition": 0, "offset": CLICKS // 3 - 1})
    for session_id, row in rows.items():
        told = {"partition": 0, "key": session_id, "row": encoded(row)}
        found.append({"at": 99, "what": "row", "where": "a", "offset": -1, **told})
    found.append({"at": 99, "what": "covered", "where": "a", "partition": 0, "offset": CLICKS - 1})
    found.append({"at": 99, "what": "committed", "partition": 0, "offset": CLICKS, "end": CLICKS})
    found.append({"at": 99, "what": "setting", "name": "holder", "value": "a"})
    return [*found, {"at": 99, "what": "end"}]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Lines:
    return made(tmp_path_factory.mktemp("registry"), "gru")


def of(history: Lines, what: str, **told: Any) -> Iterator[dict[str, Any]]:
    """The lines of a kind."""
    return (line for line in history if line["what"] == what and told.items() <= line.items())


def middle(history: Lines, what: str, **told: Any) -> dict[str, Any]:
    """One that has others of its session behind it, and before it."""
    found = list(of(history, what, **told))
    return found[len(found) // 2]


def test_another_part_may_take_longest_to_recover(right: Lines) -> None:
    told = [{"at": 99, "what": "recovered", "seconds": seconds} for seconds in (7.5, 2)]
    assert judge([*right, *told]).recovery == 7.5


def test_a_model_that_never_ranked_is_not_opened(right: Lines) -> None:
    damaged = {"at": 0, "what": "model", "version": "damaged", "path": "/nowhere"}
    assert dict(judge([*right, damaged]).found) == {}


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"large"}))
def test_nothing_is_found_where_all_is_right(tmp_path: Path, kind: str) -> None:
    verdict = judge(made(tmp_path, kind))
    assert dict(verdict.found) == {}
    assert verdict.clicks == CLICKS - 1
    assert list(verdict.latency) == pytest.approx([0.05, 0.05])


def lost_ranking(history: Lines) -> None:
    history.remove(middle(history, "received"))


def lost_click(history: Lines) -> None:
    """Kafka confirmed it, and it is gone, with all that came of it."""
    offset = middle(history, "click")["offset"]
    for line in [line for line in history if line.get("offset") == offset and line["what"] != "acknowledged"]:
        history.remove(line)


def not_rejected(history: Lines) -> None:
    history.remove(next(of(history, "rejected")))


def not_acknowledged(history: Lines) -> None:
    next(of(history, "committed"))["offset"] -= 1


def other_score(history: Lines) -> None:
    middle(history, "received")["ranking"]["items"][3]["score"] += 0.1


def other_item(history: Lines) -> None:
    items = middle(history, "received")["ranking"]["items"]
    items[0]["item_id"], items[19]["item_id"] = items[19]["item_id"], items[0]["item_id"]


def fewer_items(history: Lines) -> None:
    middle(history, "received")["ranking"]["items"].pop()


def of_another_click(history: Lines) -> None:
    middle(history, "received")["ranking"]["event_id"] = "another"


def by_another_model(history: Lines) -> None:
    list(of(history, "received"))[-CLICKS // 4]["ranking"]["model_version"] = "v1"


def one_click_short(history: Lines) -> None:
    """A ranking from a session without the click before, as after a lost row."""
    model = Model(Path(next(of(history, "model", version="v1"))["path"]))
    for line in of(history, "row", where=CHANGELOG):
        row = decode_row(as_bytes(line["row"]))
        if row.clicks == 2 and set(row.recent) <= model.index.keys():
            [record] = of(history, "click", offset=row.offset)
            click = click_of(as_bytes(record["key"]), as_bytes(record["value"]))
            assert click is not None
            [received] = of(history, "received", offset=row.offset)
            received["ranking"] = answer(model, model.after(None, click, row.offset), click, row.offset)
            return


def of_no_click(history: Lines) -> None:
    line = copy.deepcopy(middle(history, "received"))
    line["ranking"]["source"]["offset"] = CLICKS + 7
    history.append(line)


def rejected_click(history: Lines) -> None:
    next(of(history, "rejected"))["offset"] += 1
    history.append({"at": 99, "what": "rejected", "partition": 0, "offset": 50})


def _change(line: dict[str, Any], **changed: Any) -> None:
    row = decode_row(as_bytes(line["row"]))
    line["row"] = encoded(Row(**(vars(row) | changed)))


def other_items_in_the_changelog(history: Lines) -> None:
    _change(middle(history, "row", where=CHANGELOG), recent=("10",))


def other_count_in_a_store(history: Lines) -> None:
    line = middle(history, "row", where="b")
    _change(line, clicks=decode_row(as_bytes(line["row"])).clicks + 1)


def other_state_in_a_store(history: Lines) -> None:
    for line in of(history, "row", where="a"):
        hidden = decode_row(as_bytes(line["row"])).hidden
        if hidden is not None:
            _change(line, hidden=(hidden + np.float16(0.01)).astype(np.float16))
            return


def row_of_another_session(history: Lines) -> None:
    middle(history, "row", where="a")["key"] = "nobody"


def old_row_in_the_holder(history: Lines) -> None:
    """The right row of an earlier click."""
    by_session: dict[str, list[dict[str, Any]]] = {}
    for line in of(history, "row", where=CHANGELOG):
        by_session.setdefault(line["key"], []).append(line)
    session_id, rows = next((key, rows) for key, rows in by_session.items() if len(rows) > 1)
    next(of(history, "row", where="a", key=session_id))["row"] = rows[0]["row"]


def no_row_in_the_changelog(history: Lines) -> None:
    key = middle(history, "row", where=CHANGELOG)["key"]
    for line in list(of(history, "row", where=CHANGELOG, key=key)):
        history.remove(line)


def store_covers_too_much(history: Lines) -> None:
    """A restore of this store would pass over the rows that it has not."""
    next(of(history, "covered", where="b"))["offset"] = CLICKS


def repeated_without_a_cause(history: Lines) -> None:
    history.append(copy.deepcopy(middle(history, "received")))


def repeated_too_often(history: Lines) -> None:
    history.append({"at": 2, "what": "nemesis", "action": "killed", "unclean": 1})
    history += [copy.deepcopy(line) for line in list(of(history, "received"))[:11]]


def _expire(history: Lines, below: int) -> None:
    """Retention removes a click that is the only one of its session, before anybody ranks it."""
    counts = Counter(line["key"] for line in of(history, "click"))
    click = next(line for line in of(history, "click") if counts[line["key"]] == 1 and line["offset"] != 50)
    offset, key = click["offset"], click["key"]
    history[:] = [
        line
        for line in history
        if line["what"] not in ("row", "received") or (line.get("key") != key and line["offset"] != offset)
    ]
    history.append({"at": 99, "what": "expired", "partition": 0, "first": offset, "below": offset + below})


def expired_without_a_word(history: Lines) -> None:
    _expire(history, 1)
    history.append({"at": 99, "what": "told", "partition": 1, "expired": 1})


def lost_beside_what_expired(history: Lines) -> None:
    _expire(history, 0)


def gone_on_with_a_row_that_is_lost(history: Lines) -> None:
    history.append({"at": 50, "what": "anew", "partition": 0, "offset": CLICKS // 2})


def other_scores(history: Lines) -> None:
    history.append({"at": 99, "what": "part", "name": "scores", "compared": 9, "wrong": 1, "told": ["one more"]})


def _use_items(history: Lines) -> None:
    """Every item may be shown, as workers have read."""
    for line in of(history, "received"):
        line["ranking"]["applied"] = {"items": len(KNOWN) - 1, "rules": -1}
    told = {"at": 99, "what": "catalogue", "topic": "items", "value": "{}"}
    history += [told | {"offset": offset, "key": item} for offset, item in enumerate(KNOWN)]


def change_that_nobody_applied(history: Lines) -> None:
    _use_items(history)
    history.append({"at": 99, "what": "catalogue", "topic": "rules", "offset": 0, "key": "no", "value": None})


def items_that_nobody_applied(history: Lines) -> None:
    _use_items(history)
    for line in of(history, "received"):
        del line["ranking"]["applied"]


def gone_on_without_items(history: Lines) -> None:
    _use_items(history)
    del middle(history, "received")["ranking"]["applied"]


def _use_split(history: Lines) -> None:
    """From the middle on two models share the sessions."""
    shares = [("champion", 50), ("b", 50)]
    history.insert(0, {"at": 0, "what": "split", "shares": shares})
    for line in of(history, "received"):
        if line["offset"] > CLICKS // 2:
            line["ranking"]["variant"] = variant_of(line["ranking"]["session_id"], shares)


def of_another_variant(history: Lines) -> None:
    _use_split(history)
    *_, last = (line for line in of(history, "received") if line["ranking"].get("variant") == "b")
    last["ranking"]["variant"] = "champion"


def gone_on_without_the_split(history: Lines) -> None:
    _use_split(history)
    del list(of(history, "received"))[-1]["ranking"]["variant"]


def cut_short(history: Lines) -> None:
    history.pop()


def late(history: Lines) -> None:
    """The first ranking of a session comes behind its second."""
    rankings = list(of(history, "received"))
    first = rankings[0]
    second = next(one for one in rankings[1:] if one["ranking"]["session_id"] == first["ranking"]["session_id"])
    history.remove(first)
    history.insert(history.index(second) + 1, first)


def _late_beside(history: Lines, **in_flight: int) -> None:
    """A worker was expelled, and had these clicks in flight: not the first one, which comes late."""
    late(history)
    history.append({"at": 1, "what": "nemesis", "action": "frozen", "unclean": 1})
    history.append({"at": 1, "what": "in_flight", **in_flight})


def late_where_another_worker_was_expelled(history: Lines) -> None:
    _late_beside(history, partition=1, first=0, below=CLICKS)


def late_though_it_was_acknowledged_before(history: Lines) -> None:
    _late_beside(history, partition=0, first=1, below=CLICKS)


def late_though_it_came_when_the_expelled_one_read_no_more(history: Lines) -> None:
    _late_beside(history, partition=0, first=0, below=0)


def _lose(history: Lines) -> None:
    """Kafka loses the clicks from 160 on; then others come, of sessions that begin anew, for their rows are ahead."""
    begin, look = 160, ("click", "row", "covered", "committed", "rejected", "end")
    rows = list(of(history, "row", where=CHANGELOG))
    lost = [(row["key"], row["row"]) for row in rows if row["offset"] >= begin]
    newest = dict(lost)
    anew = [key for key, row in newest.items() if decode_row(as_bytes(row)).offset > begin + 10][:10]
    model = Model(Path(next(of(history, "model", version="v2"))["path"]))
    seen = [line for line in history if line["what"] not in look]
    seen.append({"at": 50, "what": "lost", "partition": 0, "offset": begin, "rows": lost, "newest": newest})
    left = [line for line in history if line["what"] in look[:2] and (line["what"] == "row" or line["offset"] < begin)]
    left = [line for line in left if line["what"] == "click" or line["where"] != "a" or line["key"] not in anew]
    for n, key in enumerate(anew):
        offset, at, its = begin + n, {"at": 60 + n, "partition": 0}, decode_row(as_bytes(newest[key]))
        sent = record(key, KNOWN[n], its.last_click + 1000, event=None)
        click = click_of(*sent)
        assert click is not None
        row = model.after(None, click, offset)
        told = {"key": key, "row": encoded(row)}
        seen.append({"at": 60 + n, "what": "sent", "event": f"1.{n}"})
        seen.append({**at, "what": "acknowledged", "event": f"1.{n}", "offset": offset})
        seen.append({**at, "what": "received", "offset": offset, "ranking": answer(model, row, click, offset)})
        left.append({**at, "what": "click", "offset": offset, "key": as_text(sent[0]), "value": as_text(sent[1])})
        left.append({**at, "what": "row", "where": CHANGELOG, "offset": CLICKS + 2 * n, "key": key, "row": None})
        left.append({**at, "what": "row", "where": CHANGELOG, "offset": CLICKS + 2 * n + 1, **told})
        left.append({**at, "what": "row", "where": "a", "offset": -1, **told})
    left += [line for line in history if line["what"] in ("covered", "rejected")]
    left.append({"at": 99, "what": "committed", "partition": 0, "offset": begin + 10, "end": begin + 10})
    history[:] = [*seen, *left, {"at": 99, "what": "end"}]


def new_click_without_a_ranking(history: Lines) -> None:
    _lose(history)
    history.remove(next(of(history, "received", offset=163, at=63)))


def row_of_a_lost_click_comes_back(history: Lines) -> None:
    _lose(history)
    history.remove(next(of(history, "row", where=CHANGELOG, row=None)))


def gone_on_with_a_lost_click(history: Lines) -> None:
    """Its place is another's now, as a click before it has shown."""
    _lose(history)
    ranking = next(of(history, "received", offset=163, at=63))["ranking"]
    model = Model(Path(next(of(history, "model", version="v2"))["path"]))
    click = Click(ranking["session_id"], ranking["item_id"], ranking["click_timestamp"], None)
    before = decode_row(as_bytes(next(of(history, "lost"))["newest"][click.session_id]))
    ranking |= answer(model, model.after(before, click, 163), click, 163)


def _use_shadow(history: Lines) -> dict[str, Any]:
    """The first model ranks a click of the second half as a shadow, from the row that the second one left."""
    model = Model(Path(next(of(history, "model", version="v1"))["path"]))
    rows = [row for row in of(history, "row", where=CHANGELOG) if row["offset"] > CLICKS * 3 // 4]
    row = next(row for row in rows if [row["key"] for row in rows].count(row["key"]) > 1)
    behind = next(one for one in rows if one["key"] == row["key"] and one["offset"] > row["offset"])
    line = next(of(history, "click", offset=behind["offset"]))
    click = click_of(as_bytes(line["key"]), as_bytes(line["value"]))
    assert click is not None
    after = model.after(decode_row(as_bytes(row["row"])), click, behind["offset"])
    ranking = answer(model, after, click, behind["offset"]) | {"follows": row["offset"]}
    history.append({"at": 99, "what": "shadow", "partition": 0, "offset": behind["offset"], "ranking": ranking})
    return ranking


def other_score_of_a_shadow(history: Lines) -> None:
    _use_shadow(history)["items"][3]["score"] += 0.1


def shadow_that_follows_another_click(history: Lines) -> None:
    _use_shadow(history)["follows"] += 1


PLANTED: list[tuple[Callable[[Lines], None], str]] = [
    (lost_ranking, "lost"),
    (lost_click, "lost"),
    (not_rejected, "lost"),
    (not_acknowledged, "lost"),
    (other_score, "wrong ranking"),
    (other_item, "wrong ranking"),
    (fewer_items, "wrong ranking"),
    (of_another_click, "wrong ranking"),
    (by_another_model, "wrong ranking"),
    (one_click_short, "wrong ranking"),
    (of_no_click, "wrong ranking"),
    (rejected_click, "wrong ranking"),
    (other_items_in_the_changelog, "wrong row"),
    (other_count_in_a_store, "wrong row"),
    (other_state_in_a_store, "wrong row"),
    (row_of_another_session, "wrong row"),
    (old_row_in_the_holder, "wrong row"),
    (no_row_in_the_changelog, "wrong row"),
    (store_covers_too_much, "wrong row"),
    (repeated_without_a_cause, "too many repeats"),
    (repeated_too_often, "too many repeats"),
    (late, "out of order"),
    (late_where_another_worker_was_expelled, "out of order"),
    (late_though_it_was_acknowledged_before, "out of order"),
    (late_though_it_came_when_the_expelled_one_read_no_more, "out of order"),
    (cut_short, "incomplete history"),
    (expired_without_a_word, "not told"),
    (lost_beside_what_expired, "lost"),
    (gone_on_with_a_row_that_is_lost, "wrong ranking"),
    (other_scores, "wrong scores"),
    (change_that_nobody_applied, "not applied"),
    (items_that_nobody_applied, "not applied"),
    (gone_on_without_items, "not applied"),
    (of_another_variant, "wrong variant"),
    (gone_on_without_the_split, "wrong variant"),
    (new_click_without_a_ranking, "lost"),
    (row_of_a_lost_click_comes_back, "wrong row"),
    (gone_on_with_a_lost_click, "wrong ranking"),
    (other_score_of_a_shadow, "wrong ranking"),
    (shadow_that_follows_another_click, "wrong ranking"),
]


@pytest.mark.parametrize(("plant", "kind"), PLANTED, ids=lambda one: getattr(one, "__name__", None))
def test_what_is_wrong_is_found(right: Lines, plant: Callable[[Lines], None], kind: str) -> None:
    history = copy.deepcopy(right)
    plant(history)
    assert kind in judge(history).found


def test_what_may_be_is_not_found(right: Lines) -> None:
    """Repeats after a kill, also by another model; disorder after an expulsion."""
    history = copy.deepcopy(right)
    last = next(of(history, "model", version="v2"))["path"]
    model, again = Model(Path(last)), list(of(history, "received"))[CLICKS // 2]
    click = next(of(history, "click", offset=again["offset"]))
    at = click_of(as_bytes(click["key"]), as_bytes(click["value"]))
    before: Row | None = None
    for line in of(history, "row", where=CHANGELOG, key=again["ranking"]["session_id"]):
        if line["offset"] < again["offset"]:
            before = decode_row(as_bytes(line["row"]))
    assert at is not None
    repeated = answer(model, model.after(before, at, again["offset"]), at, again["offset"])
    history.append(again | {"ranking": repeated})
    history.append({"at": 2, "what": "nemesis", "action": "frozen", "unclean": 1})
    late(history)
    history.append({"at": 2, "what": "in_flight", "partition": 0, "first": 0, "below": 1})
    assert dict(judge(history).found) == {}


@pytest.mark.parametrize("use", [_use_items, _use_split, _use_shadow, _lose])
def test_what_is_right_is_not_found(right: Lines, use: Callable[[Lines], Any]) -> None:
    history = copy.deepcopy(right)
    use(history)
    assert dict(judge(history).found) == {}


def test_what_expired_and_is_told_of_is_not_found(right: Lines) -> None:
    history = copy.deepcopy(right)
    _expire(history, 1)
    history.append({"at": 99, "what": "told", "partition": 0, "expired": 1})
    verdict = judge(history)
    assert dict(verdict.found) == {}
    assert verdict.expired == 1


def test_items_are_hidden_as_of_what_was_applied(tmp_path: Path) -> None:
    model = Model(replace(KINDS["gru"](1), chooses_k=True).write(tmp_path, "v1"))
    click = Click("s", KNOWN[1], 1, None)
    row = model.after(None, click, 0)
    best = model.answer(row)[1][0]
    catalogue = Catalogue()
    catalogue.records["items"] = [(n, item, b"{}") for n, item in enumerate(KNOWN)]
    rule = json.dumps({"match": {"items": [best]}}).encode()
    catalogue.records["rules"] = [(0, "no", rule), (1, "no", None)]
    for rules, barred in ((-1, set()), (0, {best}), (1, set())):
        hidden = catalogue.hidden({"items": len(KNOWN) - 1, "rules": rules}, model.items, 0)
        assert hidden == barred
        assert wrong(answer(model, row, click, 0, hidden), click, row, model, hidden) is None
        assert (wrong(answer(model, row, click, 0), click, row, model, hidden) is None) == (not barred)
    assert catalogue.hidden({"items": 0, "rules": -1}, model.items, 0) == {*KNOWN[1:]}
    assert catalogue.hidden(None, model.items, 0) == set()
    times = {"available_from": 5, "available_until": 7}
    catalogue.records["items"].append((len(KNOWN), best, json.dumps(times).encode()))
    applied = {"items": len(KNOWN), "rules": -1}
    assert [catalogue.hidden(applied, model.items, now) == set() for now in (4, 5, 6, 7)] == [False, True, True, False]


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    with History(tmp_path / "history.jsonl") as history:
        history.note("row", key=as_text(b"\xff\0\n"))
        history.received(1, 2, b'{"session_id": "\xc3\xa4"}')
        history.received(1, 3, None)
    row, ranking, forgotten = lines(history.path)
    assert as_bytes(row["key"]) == b"\xff\0\n"
    assert ranking["ranking"] == {"session_id": "ä"}
    assert forgotten["ranking"] is None
    assert json.loads((tmp_path / "history.jsonl").read_text().splitlines()[0])["what"] == "row"
