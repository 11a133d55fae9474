from dataclasses import replace
from pathlib import Path

import pytest

from schemas.click_files.options import ReadOptions
from schemas.errors import ClickFileError
from tests.unit.trainer.builders import sessions_of
from trainer.data.datasets import load
from trainer.data.options import DataOptions
from trainer.data.preprocessing import collapse_repeats, core
from trainer.data.sessions import SessionSet
from trainer.errors import TooFewSessionsError


def items_of(sessions: SessionSet) -> list[list[str]]:
    bounds = zip(sessions.offsets[:-1].tolist(), sessions.offsets[1:].tolist(), strict=True)
    return [[sessions.item_ids[i] for i in sessions.items[start:stop].tolist()] for start, stop in bounds]


def test_clicks_in_a_row_become_one() -> None:
    collapsed = collapse_repeats(sessions_of([[0, 0, 1, 0, 0], [0, 1], [1, 1], [1, 2]]))
    assert items_of(collapsed) == [["i0", "i1", "i0"], ["i0", "i1"], ["i1", "i2"]]


def test_the_core_is_filtered_until_nothing_changes() -> None:
    # Item 3 has one click; without it session 1 has one click, and without that item 2 has one, and so session 2 goes.
    sessions = sessions_of([[0, 1], [3, 2], [2, 0], [0, 1, 0]])
    assert items_of(core(sessions, 2)) == [["i0", "i1"], ["i0", "i1", "i0"]]
    assert core(sessions, 2).ends.tolist() == [0, 3]
    with pytest.raises(TooFewSessionsError, match="lower the core"):
        core(sessions, 9)


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    """Ten sessions of the items a and b, one a day; a's click is followed by n clicks of b in session n."""
    rows = [f"{n},{item},{n * 86_400 + i}" for n in range(10) for i, item in enumerate(["a", *["b"] * (n + 1)])]
    path = tmp_path / "clicks.csv"
    path.write_text("\n".join(["session_id,item_id,timestamp", *rows]) + "\n")
    return path


def test_seventy_ten_twenty(ten: Path) -> None:
    options = DataOptions([ten], valid_fraction=0.1, test_fraction=0.2)
    valid, test = load(options), load(replace(options, part="test"))
    assert valid.train.lengths.tolist() == test.train.lengths.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert (valid.test.lengths.tolist(), test.test.lengths.tolist()) == ([9], [10, 11])


def test_the_newest_share_of_the_training_part_is_trained_on(ten: Path) -> None:
    # Eight sessions are left to train on, of 1 to 8 transitions: 36. A quarter of them, 9, has room for the last alone.
    quarter = load(DataOptions([ten], valid_days=2, train_share=0.25))
    assert (quarter.train.lengths.tolist(), quarter.test.lengths.tolist()) == ([9], [10, 11])
    assert load(DataOptions([ten], valid_days=2, train_share=0.5)).train.lengths.tolist() == [8, 9]  # 15 of 18
    with pytest.raises(TooFewSessionsError, match=r"no session fits into 0\.1"):
        load(DataOptions([ten], valid_days=2, train_share=0.1))


def test_a_session_of_diginetica_is_in_the_order_of_its_timeframe(tmp_path: Path) -> None:
    """Not in that of its rows: with it the published figures differ by a third."""
    path = tmp_path / "train-item-views.csv"
    rows = ["1;NA;c;900000;2016-05-09", "1;NA;a;1;2016-05-09", "2;NA;b;7;2016-05-08", "1;NA;b;20000;2016-05-09"]
    rows += ["2;44;a;1000;2016-05-08", "2;44;c;999;2016-05-08"]
    path.write_text("\n".join(["sessionId;userId;itemId;timeframe;eventdate", *rows]) + "\n")
    data = load(DataOptions([path], valid_days=0.5))
    assert (items_of(data.train), items_of(data.test)) == ([["b", "c", "a"]], [["a", "b", "c"]])


def test_by_days(ten: Path) -> None:
    assert load(DataOptions([ten], valid_days=2)).test.lengths.tolist() == [10, 11]


def test_the_last_days_can_be_set_aside_before_anything_is_held_out(ten: Path) -> None:
    options = DataOptions([ten], valid_days=1, test_days=2)
    valid, test = load(options), load(replace(options, part="test"))
    assert valid.train.lengths.tolist() == test.train.lengths.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert (valid.test.lengths.tolist(), test.test.lengths.tolist()) == ([9], [10, 11])


@pytest.mark.parametrize("by", [{"valid_days": 2}, {"valid_fraction": 0.2}])
def test_the_newest_of_the_training_part_can_be_held_out_as_well(ten: Path, by: dict[str, float]) -> None:
    data = load(DataOptions([ten], holdout=True, **by))  # type: ignore[arg-type]
    assert data.holdout is not None
    assert [part.lengths.tolist()[-1] for part in (data.train, data.holdout, data.test)] == [7, 9, 11]
    assert data.holdout.item_ids == data.train.item_ids
    with_file = load(DataOptions([ten], [ten], holdout=True, **by))  # type: ignore[arg-type]
    assert with_file.holdout is not None
    assert [len(part) for part in (with_file.train, with_file.holdout, with_file.test)] == [8, 2, 10]
    assert load(DataOptions([ten], **by)).holdout is None  # type: ignore[arg-type]


def test_filters_come_before_the_split(ten: Path) -> None:
    data = load(DataOptions([ten], valid_fraction=0.5, collapse_repeats=True, core=10))
    assert items_of(data.test) == [["a", "b"]] * 5


def test_a_visitor_is_no_session(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    minutes = [0, 59, 59 + 61, 59 + 62, 500, 501]
    rows = [f"{minute * 60_000},7,view,{item},\n" for item, minute in zip("ababab", minutes, strict=True)]
    path.write_text("timestamp,visitorid,event,itemid,transactionid\n" + "".join(rows))
    assert len(load(DataOptions([path], valid_fraction=0.3)).train) == 2
    assert len(load(DataOptions([path], valid_fraction=0.5, idle_gap=100)).train) == 1


def test_bad_rows_are_told_by_file(ten: Path, tmp_path: Path) -> None:
    bad = tmp_path / "yoochoose-clicks.dat"
    bad.write_text("1,2014-04-07T10:51:09.277Z,a,0\n1,noon,a,0\n1,2014-04-07T10:52:09.277Z,b,0\n")
    with pytest.raises(ClickFileError, match="line 2"):
        load(DataOptions([ten], [bad]))
    data = load(DataOptions([ten], [bad], reading=ReadOptions(skip_bad_rows=True)))
    assert [(file.path, file.bad_rows) for file in data.files] == [(ten, 0), (bad, 1)]
    (row,) = data.files[1].bad_examples
    assert row.place == "line 2"
