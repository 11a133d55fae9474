"""The click log's folder: names are positions, files appear whole, and what contradicts itself is refused."""

import errno
import fcntl
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.bundle.files import read_manifest
from schemas.click_files.read import read_log
from tests.contract.tiny_model import TinyModel
from trainer.data.click_log_lock import keeping_files
from trainer.data.sessions import SessionSet
from trainer.errors import ClickLogError, TooFewSessionsError
from trainer.service.click_log import ClickLogFolder, LogFile, LostOffsets, Rows, TopicIdentity
from trainer.service.window import Seen, Window, hold_out, read_window

TOPIC = TopicIdentity("clicks", "id-1")
MINUTE = 60_000


def put(
    log: ClickLogFolder, partition: int, first: int, last: int, *, expected: int | None = None, time: int = 0
) -> None:
    """A file with one click an offset, a second apart, session and item named after the offset."""
    offsets = list(range(first, last + 1))
    rows = Rows(
        session_id=[f"s{partition}-{offset // 2}" for offset in offsets],
        item_id=[f"i{offset % 3}" for offset in offsets],
        timestamp=[time + 1000 * offset for offset in offsets],
        offset=offsets,
        type=[None] * len(offsets),
    )
    log.write(partition, first, last, rows, topic=TOPIC, expected=first if expected is None else expected)


@pytest.fixture
def log(tmp_path: Path) -> ClickLogFolder:
    return ClickLogFolder(tmp_path)


def test_the_next_position_is_read_off_the_names(log: ClickLogFolder) -> None:
    put(log, 0, 0, 9)
    put(log, 0, 10, 14)
    put(log, 1, 3, 3)
    state = log.scan()
    assert state.next_offsets == {0: 15, 1: 4}
    assert state.files == (LogFile(0, 0, 9), LogFile(0, 10, 14), LogFile(1, 3, 3))
    assert state.lost == ()


def test_an_empty_folder_has_no_positions(log: ClickLogFolder) -> None:
    assert log.scan().next_offsets == {}


def test_a_range_without_any_click_still_moves_the_position(log: ClickLogFolder) -> None:
    log.write(0, 0, 4, Rows([], [], [], [], []), topic=TOPIC, expected=0)
    put(log, 0, 5, 6)
    assert log.scan().next_offsets == {0: 7}
    assert log.newest_timestamp(LogFile(0, 0, 4)) is None
    assert len(read_log([log.folder])) == 2


def test_files_read_back_as_the_trainer_reads_a_session_log(log: ClickLogFolder) -> None:
    put(log, 0, 0, 3)
    put(log, 1, 0, 1)
    clicks = read_log([log.folder])
    assert len(clicks) == 6
    assert clicks.timestamp is not None
    assert clicks.timestamp.tolist() == [0, 1000, 2000, 3000, 0, 1000]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([(0, 9), (5, 12)], "overlap"),
        ([(0, 9), (9, 12)], "overlap"),
        ([(0, 9), (11, 12)], "offsets 10 to 10 of partition 0 is missing"),
        ([(0, 9), (10, 11), (20, 21)], "offsets 12 to 19 of partition 0 is missing"),
    ],
)
def test_overlaps_and_unexplained_gaps_are_refused(
    log: ClickLogFolder, files: list[tuple[int, int]], message: str
) -> None:
    for first, last in files:
        put(log, 0, first, last)
    with pytest.raises(ClickLogError, match=message):
        log.scan()


def test_a_gap_that_retention_made_is_told_with_its_size(log: ClickLogFolder) -> None:
    put(log, 0, 0, 9)
    put(log, 0, 25, 30, expected=10)
    assert log.scan().lost == (LostOffsets(0, 10, 24),)
    assert log.scan().lost[0].count == 15


def test_a_log_may_begin_anywhere(log: ClickLogFolder) -> None:
    put(log, 0, 1000, 1001)
    assert log.scan().next_offsets == {0: 1002}


def test_a_foreign_parquet_file_is_refused_since_a_reader_would_read_it(log: ClickLogFolder) -> None:
    pq.write_table(pa.table({"a": [1]}), log.folder / "export.parquet")
    with pytest.raises(ClickLogError, match=r"export\.parquet: is no file of a click log"):
        log.scan()


def test_a_damaged_file_is_named(log: ClickLogFolder) -> None:
    put(log, 0, 0, 3)
    path = log.folder / LogFile(0, 0, 3).name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ClickLogError, match=path.name):
        log.rows(LogFile(0, 0, 3))


def test_what_a_killed_writer_left_is_cleaned_and_counts_for_nothing(log: ClickLogFolder) -> None:
    put(log, 0, 0, 3)
    unfinished = log.folder / ".clicks-p00000-00000000000000000004-00000000000000000009.parquet.unfinished"
    unfinished.write_bytes(b"PAR1 and no more")
    assert log.scan().next_offsets == {0: 4}
    assert log.clean() == [unfinished]
    assert not unfinished.exists()


def test_a_second_writer_is_refused(log: ClickLogFolder) -> None:
    with (
        log.locked(),
        pytest.raises(ClickLogError, match="another process collects"),
        ClickLogFolder(log.folder).locked(),
    ):
        pass
    with log.locked():
        pass


def test_those_who_share_a_log_and_one_who_has_it_alone_keep_each_other_out(log: ClickLogFolder) -> None:
    other = ClickLogFolder(log.folder)
    with log.shared(), other.shared(trainer=True):
        with pytest.raises(ClickLogError, match="another process collects"), ClickLogFolder(log.folder).locked():
            pass
        with pytest.raises(ClickLogError, match="another process trains from it"), log.shared(trainer=True):
            pass
        claim = log.claim(3)
        assert claim is not None
        with claim:
            assert other.claim(3) is None
        again = other.claim(3)
        assert again is not None
        again.close()
    with log.locked(), pytest.raises(ClickLogError, match=r"without trainer\.collect_group"), other.shared():
        pass


def test_the_locks_can_be_had_on_nfs(log: ClickLogFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux makes them fcntl's there: who shares one must have opened the file to read, who has it alone to write."""
    taken = fcntl.flock

    def as_on_nfs(file: TextIO, how: int) -> None:
        if not (file.readable() if how & fcntl.LOCK_SH else file.writable()):
            raise OSError(errno.EBADF, "Bad file descriptor")
        taken(file, how)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    with log.shared(trainer=True), keeping_files(log.folder):
        claim = log.claim(0)
        assert claim is not None
        claim.close()
    with log.locked():
        log.tidy(keep_seconds=0)


def test_where_there_are_no_locks_nobody_writes_and_a_copy_can_be_read(
    log: ClickLogFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    put(log, 0, 0, 1)
    with log.locked():
        pass
    monkeypatch.setattr(fcntl, "flock", without_locks)
    no_locks = r"\.lock: cannot be locked: No locks available"
    with pytest.raises(ClickLogError, match=no_locks), log.locked():
        pass
    with pytest.raises(ClickLogError, match=no_locks), log.shared():
        pass
    with keeping_files(log.folder):
        assert len(log.scan().files) == 1


def test_a_folder_of_some_partitions_leaves_the_others_alone(log: ClickLogFolder) -> None:
    for partition in (0, 1):
        for first in range(0, 32, 2):
            put(log, partition, first, first + 1)
    (log.folder / f".{LogFile(1, 32, 33).name}.unfinished").touch()
    ours = ClickLogFolder(log.folder, {0})
    assert ours.scan().next_offsets == {0: 32}
    assert ours.clean() == []
    ours.tidy(keep_seconds=0)
    assert [file.partition for file in log.scan().files] == [0] + 16 * [1]


def test_files_are_not_joined_while_somebody_reads_them(log: ClickLogFolder) -> None:
    for first in range(0, 32, 2):
        put(log, 0, first, first + 1)
    with log.locked():
        with keeping_files(log.folder):
            log.tidy(keep_seconds=0)
            assert len(log.scan().files) == 16
        log.tidy(keep_seconds=0)
        assert len(log.scan().files) == 1


def test_a_file_that_comes_while_names_are_listed_leaves_no_gap(
    log: ClickLogFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(log, 0, 0, 9)
    listed = ClickLogFolder._named

    def with_two_new_ones(self: ClickLogFolder) -> Iterator[LogFile]:
        files = set(listed(self))
        put(log, 0, 10, 19)
        put(log, 0, 20, 29)
        return iter(files | {LogFile(0, 20, 29)})  # the second was created where the listing had not been yet

    with monkeypatch.context() as patched:
        patched.setattr(ClickLogFolder, "_named", with_two_new_ones)
        assert log.scan().next_offsets == {0: 30}


def test_merging_keeps_every_offset_once(log: ClickLogFolder) -> None:
    for first in range(0, 40, 2):
        put(log, 0, first, first + 1)
    put(log, 1, 0, 1)
    before = read_log([log.folder])
    assert log.merge(at_least=16) == 19
    assert log.scan().files == (LogFile(0, 0, 39), LogFile(1, 0, 1))
    after = read_log([log.folder])
    assert before.timestamp is not None
    assert after.timestamp is not None
    assert after.timestamp.tolist() == before.timestamp.tolist()
    assert log.topic_of(LogFile(0, 0, 39)) == TOPIC


def test_merging_stops_at_a_lost_range_and_at_the_target_size(log: ClickLogFolder) -> None:
    for first in (0, 2, 4):
        put(log, 0, first, first + 1)
    for first in (20, 22, 24):
        put(log, 0, first, first + 1, expected=6 if first == 20 else first)
    assert log.merge(at_least=3) == 4
    assert log.scan().files == (LogFile(0, 0, 5), LogFile(0, 20, 25))
    assert log.scan().lost == (LostOffsets(0, 6, 19),)
    assert log.merge(at_least=2, target_bytes=1) == 0


def test_a_merge_that_was_killed_before_its_parts_went_is_finished(log: ClickLogFolder) -> None:
    parts = [(0, 1), (2, 3), (4, 5)]
    for first, last in parts:
        put(log, 0, first, last)
    copies = {LogFile(0, *part).name: (log.folder / LogFile(0, *part).name).read_bytes() for part in parts}
    log.merge(at_least=3)
    for name, data in copies.items():  # as after a kill between the rename and the removals
        (log.folder / name).write_bytes(data)
    assert log.scan().files == (LogFile(0, 0, 5),)  # whoever reads before the next writer comes
    assert sorted(path.name for path in log.clean()) == sorted(copies)
    assert log.scan().files == (LogFile(0, 0, 5),)


def test_pruning_takes_old_files_from_the_beginning_and_never_the_last(log: ClickLogFolder) -> None:
    put(log, 0, 0, 1, time=0)
    put(log, 0, 2, 3, time=10 * MINUTE)
    put(log, 0, 4, 5, time=60 * MINUTE)
    put(log, 1, 0, 1, time=0)  # all of partition 1 is old: its position must survive
    assert log.prune(keep_ms=20 * MINUTE) == [LogFile(0, 0, 1), LogFile(0, 2, 3)]
    assert log.scan().next_offsets == {0: 6, 1: 2}


def test_pruning_leaves_no_gap_where_times_are_out_of_order(log: ClickLogFolder) -> None:
    put(log, 0, 0, 1, time=60 * MINUTE)
    put(log, 0, 2, 3, time=0)  # a replay of old clicks
    put(log, 0, 4, 5, time=61 * MINUTE)
    assert log.prune(keep_ms=20 * MINUTE) == []
    log.scan()


def write_sessions(
    log: ClickLogFolder,
    partition: int,
    first: int,
    clicks: list[tuple[str, str, int]],
    types: list[str | None] | None = None,
) -> None:
    sessions, items, times = map(list, zip(*clicks, strict=True))
    rows = Rows(sessions, items, times, list(range(first, first + len(clicks))), types or [None] * len(clicks))
    log.write(partition, first, first + len(clicks) - 1, rows, topic=TOPIC, expected=first)


def test_the_window_holds_the_sessions_that_ended_lately_whole(log: ClickLogFolder) -> None:
    hour = 60 * MINUTE
    write_sessions(log, 0, 0, [("old", "a", 0), ("old", "b", 1000), ("long", "a", 9 * hour)])
    write_sessions(log, 0, 3, [("long", "b", 9 * hour + 1000), ("single", "a", 10 * hour)])
    write_sessions(log, 1, 0, [("new", "b", 10 * hour), ("new", "c", 10 * hour + 5)])
    window = read_window(log, log.scan(), window_ms=2 * hour, idle_gap_ms=30 * MINUTE, last=Seen(), champion=Seen())
    assert window is not None
    named = [[window.sessions.item_ids[i] for i in items] for items in sessions_of(window.sessions)]
    assert named == [["a", "b"], ["b", "c"]]  # `long` and `new`; a session of one click teaches nothing
    assert window.positions == {0: 5, 1: 2}


def test_the_window_tells_which_sessions_which_model_has_seen(log: ClickLogFolder) -> None:
    write_sessions(log, 0, 0, [("a", "x", 0), ("a", "y", 1), ("b", "x", 2), ("b", "y", 3)])
    write_sessions(log, 1, 0, [("c", "x", 4), ("c", "y", 5)])

    def flags(seen: Seen) -> tuple[list[bool], list[bool]]:
        window = read_window(log, log.scan(), window_ms=0, idle_gap_ms=MINUTE, last=seen, champion=seen)
        assert window is not None
        assert window.topic_id == TOPIC.topic_id
        return window.new.tolist(), window.unseen.tolist()

    def flags_by(positions: dict[int, int], topic_id: str = TOPIC.topic_id) -> tuple[list[bool], list[bool]]:
        return flags(Seen(positions, topic_id, until=1))

    assert flags(Seen()) == ([True] * 3, [True] * 3)
    assert flags_by({}) == ([True] * 3, [True] * 3)
    assert flags_by({0: 3}) == ([False, True, True], [False, False, True])  # b goes on after the position
    assert flags_by({0: 4, 1: 2}) == ([False] * 3, [False] * 3)
    # Positions of a topic that was made anew since tell nothing of this one's: its time does.
    assert flags_by({0: 4, 1: 2}, "another") == ([False, True, True], [False, True, True])
    # So it is with a model that has none, of `trainer fit`.
    assert flags(Seen(until=2)) == ([False, True, True], [False, False, True])
    assert flags(Seen(until=5)) == ([False] * 3, [False] * 3)


def test_a_manifest_tells_what_its_model_has_seen(tmp_path: Path) -> None:
    def seen(training: dict[str, Any]) -> Seen:
        return Seen.by(
            read_manifest(TinyModel().write(tmp_path, f"v{len(list(tmp_path.iterdir()))}", training=training))
        )

    window = {"window": {"from": 1, "to": 7, "sessions": 2, "clicks": 4}}
    assert seen(window) == Seen(until=7)
    assert seen(window | {"positions": {"3": 9}, "topic_id": "id-1"}) == Seen({3: 9}, "id-1", until=7)
    # A file without times, or a bundle by other hands: only what came after the model is surely new to it.
    made = read_manifest(tmp_path / "v0").created_at
    assert seen({"window": {"from": None, "to": None}}) == seen({}) == Seen(until=made)
    assert seen({"window": "all", "positions": [3]}) == Seen(until=made)


def window_of(unseen: list[bool]) -> Window:
    """Sessions of two clicks each, the i-th ending at time i."""
    count = len(unseen)
    sessions = SessionSet(np.zeros(2 * count, np.int64), 2 * np.arange(count + 1), ("x",), np.arange(count), timed=True)
    return Window(sessions, new=np.ones(count, np.bool_), unseen=np.array(unseen), positions={}, topic_id="id-1")


@pytest.mark.parametrize(
    ("unseen", "share", "most", "older", "held"),
    [
        ([True] * 10, 0.2, 100, [0, 1, 2, 3, 4, 5, 6, 7], [8, 9]),
        ([True] * 10, 0.5, 3, [0, 1, 2, 3, 4, 5, 6], [7, 8, 9]),
        # The champion has seen the first six: half of the rest is held out, the other half is there to learn from.
        ([False] * 6 + [True] * 4, 0.5, 100, [0, 1, 2, 3, 4, 5, 6, 7], [8, 9]),
        # A session that it knows and that goes on between those held out is on neither side.
        ([False] * 5 + [True, True, True, False, True], 0.5, 100, [0, 1, 2, 3, 4, 5, 6], [7, 9]),
        ([False] * 9 + [True], 0.5, 100, [0, 1, 2, 3, 4, 5, 6, 7, 8], [9]),
    ],
)
def test_the_holdout_is_the_newest_that_the_champion_has_not_seen(
    unseen: list[bool], share: float, most: int, older: list[int], held: list[int]
) -> None:
    train, test = hold_out(window_of(unseen), share=share, most=most)
    assert (train.ends.tolist(), test.ends.tolist()) == (older, held)


@pytest.mark.parametrize("unseen", [[], [True], [False] * 5, [True, False]])
def test_a_holdout_that_leaves_nothing_on_one_side_is_refused(unseen: list[bool]) -> None:
    with pytest.raises(TooFewSessionsError):
        hold_out(window_of(unseen), share=0.9, most=100)


def test_an_idle_gap_splits_a_session_id(log: ClickLogFolder) -> None:
    write_sessions(log, 0, 0, [("a", "x", 0), ("a", "y", 1), ("a", "x", 40 * MINUTE), ("a", "z", 41 * MINUTE)])
    window = read_window(log, log.scan(), window_ms=0, idle_gap_ms=30 * MINUTE, last=Seen(), champion=Seen())
    assert window is not None
    assert [len(items) for items in sessions_of(window.sessions)] == [2, 2]


def test_of_too_many_clicks_the_newest_are_read(log: ClickLogFolder) -> None:
    write_sessions(log, 0, 0, [("a", "x", 0), ("a", "y", 1)])
    write_sessions(log, 0, 2, [("b", "x", 12), ("c", "y", 10), ("b", "z", 13), ("c", "z", 11)])
    write_sessions(log, 1, 0, [("d", "y", 4), ("d", "z", 5)])

    def read(clicks: int) -> tuple[list[list[str]], int]:
        window = read_window(
            log, log.scan(), window_ms=0, idle_gap_ms=MINUTE, last=Seen(), champion=Seen(), window_clicks=clicks
        )
        assert window is not None
        assert window.positions == {0: 6, 1: 2}  # what was left out is not new in the next cycle
        ids = window.sessions.item_ids
        return [[ids[i] for i in items] for items in sessions_of(window.sessions)], window.left_out

    assert read(8) == ([["x", "y"], ["y", "z"], ["y", "z"], ["x", "z"]], 0)
    assert read(6) == ([["y", "z"], ["y", "z"], ["x", "z"]], 2)
    assert read(4) == ([["y", "z"], ["x", "z"]], 4)
    assert read(2) == ([["x", "z"]], 6)


@pytest.mark.parametrize("clicks", [1, 5, 20, 33, 40, 79])
def test_of_too_many_clicks_the_newest_are_read_of_all_partitions(log: ClickLogFolder, clicks: int) -> None:
    """Files that were joined span weeks: the one with the newest click used up the room for all others' newest."""
    for partition in range(4):
        times = [(f"s{partition}-{at // 4}", "x", 4 * at + partition) for at in range(20)]
        write_sessions(log, partition, 0, times[:15])
        write_sessions(log, partition, 15, times[15:])
    window = read_window(
        log, log.scan(), window_ms=0, idle_gap_ms=MINUTE, last=Seen(), champion=Seen(), window_clicks=clicks
    )
    assert window is not None
    assert window.left_out == 80 - clicks
    # Sessions of four clicks, each of its partition; one that is cut to a single click teaches nothing.
    lengths = Counter((time // 4 // 4, time % 4) for time in range(80 - clicks, 80))
    assert sorted(window.sessions.lengths.tolist()) == sorted(length for length in lengths.values() if length > 1)


def test_of_too_many_clicks_of_one_time_no_more_are_read(log: ClickLogFolder) -> None:
    for partition in range(2):
        write_sessions(log, partition, 0, [(f"s{partition}", "x", 7)] * 10)
    window = read_window(
        log, log.scan(), window_ms=0, idle_gap_ms=MINUTE, last=Seen(), champion=Seen(), window_clicks=13
    )
    assert window is not None
    assert (window.left_out, sorted(window.sessions.lengths.tolist())) == (7, [3, 10])


def test_a_robots_session_counts_with_its_newest_clicks(log: ClickLogFolder) -> None:
    write_sessions(log, 0, 0, [("robot", f"i{at}", at) for at in range(50)] + [("a", "i0", 50), ("a", "i1", 51)])
    seen = Seen({0: 1}, TOPIC.topic_id)
    window = read_window(log, log.scan(), window_ms=0, idle_gap_ms=MINUTE, last=seen, champion=seen, session_clicks=3)
    assert window is not None
    named = [[window.sessions.item_ids[i] for i in items] for items in sessions_of(window.sessions)]
    assert named == [["i47", "i48", "i49"], ["i0", "i1"]]
    assert (window.new.tolist(), window.unseen.tolist()) == ([True, True], [False, True])  # its first click is seen


def test_a_log_without_clicks_has_no_window(log: ClickLogFolder) -> None:
    assert read_window(log, log.scan(), window_ms=0, idle_gap_ms=MINUTE, last=Seen(), champion=Seen()) is None
    log.write(0, 0, 4, Rows([], [], [], [], []), topic=TOPIC, expected=0)
    assert read_window(log, log.scan(), window_ms=0, idle_gap_ms=MINUTE, last=Seen(), champion=Seen()) is None


def sessions_of(sessions: SessionSet) -> list[list[int]]:
    bounds = sessions.offsets.tolist()
    return [sessions.items[a:b].tolist() for a, b in itertools.pairwise(bounds)]


# -- a folder that holds other things, a disk that is full -------------------------------------------------------------


def test_what_is_not_of_the_log_is_never_removed(log: ClickLogFolder) -> None:
    put(log, 0, 0, 9)
    whole = LogFile(0, 0, 9)
    foreign = {
        "thesis.unfinished": b"theirs",
        ".notes.unfinished": b"theirs",
        f".{whole.name}.unfinished.bak": b"theirs",
        ".lock": b"theirs",
        "data/clicks-p00000-00000000000000000000-00000000000000000009.parquet": b"theirs",
    }
    for name, content in foreign.items():
        (log.folder / name).parent.mkdir(exist_ok=True)
        (log.folder / name).write_bytes(content)
    (log.folder / f".{whole.name}.unfinished").write_bytes(b"ours, half written")
    with log.locked():
        assert [path.name for path in log.clean()] == [f".{whole.name}.unfinished"]
        log.prune(0)
        log.merge(at_least=2)
    assert {name: (log.folder / name).read_bytes() for name in foreign} == foreign


@pytest.mark.parametrize("difference", ["topic", "rows"])
def test_a_file_that_was_never_joined_into_the_longer_one_is_refused_and_not_removed(
    log: ClickLogFolder, difference: str
) -> None:
    put(log, 0, 0, 9)
    topic = TopicIdentity("clicks", "id-2") if difference == "topic" else TOPIC
    rows = Rows(["s0-0", "s0-0"], ["i0", "i1" if difference == "topic" else "i7"], [0, 1000], [0, 1], [None] * 2)
    log.write(0, 0, 1, rows, topic=topic, expected=0)
    assert log.clean() == []
    with pytest.raises(ClickLogError, match="overlap"):
        log.scan()


def test_a_log_keeps_the_name_of_its_writer(log: ClickLogFolder) -> None:
    with log.locked():
        name = log.writer()
        assert log.writer() == name
        (log.folder / ".writer").write_bytes(b"\xff")  # torn: the name is only there to know one's own things
        assert log.writer() != name
        assert log.writer() == log.writer()


def test_a_disk_that_is_full_is_told_in_one_line(log: ClickLogFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    put(log, 0, 0, 9)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("schemas.durable.os.fsync", full)
        with pytest.raises(
            ClickLogError, match=r"parquet: cannot be written: No space left on device; see to the disk"
        ):
            put(log, 0, 10, 19)
        with log.locked(), pytest.raises(ClickLogError, match=r"\.writer: cannot be written: No space left"):
            log.writer()
    put(log, 0, 10, 19)
    assert log.scan().next_offsets == {0: 20}


def test_a_log_folder_that_cannot_be_one_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    log = ClickLogFolder(tmp_path / "file" / "log")
    with pytest.raises(ClickLogError, match=r"cannot be written: Not a directory; see to"), log.locked():
        pass


def before_types(log: ClickLogFolder, file: LogFile) -> None:
    """Write a file as a collector of before there were types did."""
    path = log.folder / file.name
    table = pq.read_table(path)
    pq.write_table(table.drop_columns("type").replace_schema_metadata(table.schema.metadata), path, compression="zstd")


TYPED = [("s", "a", 0), ("s", "a", 1), ("s", "b", 2), ("s", "b", 3), ("t", "a", 4), ("t", "b", 5)]


def of_window(window: Window | None) -> list[list[tuple[str, str]]]:
    """Item and type of each click, by session."""
    assert window is not None
    sessions = window.sessions
    types = np.zeros(sessions.clicks, np.int32) if sessions.types is None else sessions.types
    named = [
        (sessions.item_ids[item], sessions.type_names[kind])
        for item, kind in zip(sessions.items.tolist(), types.tolist(), strict=True)
    ]
    return [named[a:b] for a, b in itertools.pairwise(sessions.offsets.tolist())]


def typed_window(log: ClickLogFolder, moving: frozenset[str] | None = None) -> Window | None:
    return read_window(
        log, log.scan(), window_ms=0, idle_gap_ms=30 * MINUTE, last=Seen(), champion=Seen(), moving=moving
    )


def test_the_log_keeps_types_and_a_window_has_those_that_move_sessions_on(log: ClickLogFolder) -> None:
    write_sessions(log, 0, 0, TYPED, [None, "cart", "view", "purchase", None, "cart"])
    write_sessions(log, 1, 0, [("u", "a", 9), ("u", "c", 10)])
    assert of_window(typed_window(log)) == [
        [("a", "view"), ("a", "cart"), ("b", "view"), ("b", "purchase")],
        [("a", "view"), ("b", "cart")],
        [("a", "view"), ("c", "view")],
    ]
    views = [[("a", "view"), ("b", "view")], [("a", "view"), ("c", "view")]]  # a session of one view teaches nothing
    assert of_window(typed_window(log, frozenset({"view"}))) == views
    nothing = typed_window(log, frozenset({"wishlist"}))
    assert nothing is not None
    assert (len(nothing.sessions), nothing.positions) == (0, {0: 6, 1: 2})


def test_a_log_of_before_there_were_types_is_read_and_joined_with_one_of_now(log: ClickLogFolder) -> None:
    write_sessions(log, 0, 0, TYPED[:4])
    before_types(log, LogFile(0, 0, 3))
    assert of_window(typed_window(log)) == [[(item, "view") for item in "aabb"]]
    write_sessions(log, 0, 4, TYPED[4:], ["purchase", None])
    expected = [[(item, "view") for item in "aabb"], [("a", "purchase"), ("b", "view")]]
    assert of_window(typed_window(log)) == expected
    assert log.merge(at_least=2) == 1
    assert log.clean() == []
    assert of_window(typed_window(log)) == expected
    clicks = read_log([log.folder])
    assert (clicks.type_names, len(clicks)) == (("view", "purchase"), 6)


def test_a_collector_of_before_there_were_types_reads_the_log(log: ClickLogFolder) -> None:
    """It asks for the columns that it knows, and for the times by the place of their column."""
    write_sessions(log, 0, 0, TYPED, ["cart"] * 6)
    file = pq.ParquetFile(log.folder / LogFile(0, 0, 5).name)
    known = ["session_id", "item_id", "timestamp", "offset"]
    assert file.schema_arrow.names[:4] == known
    assert file.read(columns=known).column_names == known


def test_forgotten_sessions_leave_the_files_and_positions_stay(log: ClickLogFolder) -> None:
    put(log, 0, 0, 9)
    put(log, 0, 12, 14, expected=10)
    put(log, 1, 0, 3)
    before = log.scan()
    untouched = (log.folder / LogFile(1, 0, 3).name).stat().st_ino
    assert log.forget(0, {"s0-1", "s0-6", "nobody"}) == 4
    assert log.forget(0, {"s0-1"}) == 0
    assert log.scan() == before  # the gap is explained as it was
    assert log.topic_of(LogFile(0, 0, 9)) == TOPIC
    left = [row["session_id"] for file in before.files for row in log.rows(file).to_pylist()]
    assert left == ["s0-0"] * 2 + ["s0-2"] * 2 + ["s0-3"] * 2 + ["s0-4"] * 2 + ["s0-7"] + ["s1-0"] * 2 + ["s1-1"] * 2
    assert (log.folder / LogFile(1, 0, 3).name).stat().st_ino == untouched


def test_a_window_is_read_while_a_session_is_forgotten(log: ClickLogFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector may rewrite a file between the look at its size and the look at its rows."""
    put(log, 0, 0, 19)
    count = ClickLogFolder.count

    def then_forget(self: ClickLogFolder, file: LogFile) -> int:
        found = count(self, file)
        self.forget(0, {"s0-1"})
        return found

    monkeypatch.setattr(ClickLogFolder, "count", then_forget)
    window = read_window(log, log.scan(), window_ms=0, idle_gap_ms=30 * MINUTE, last=Seen(), champion=Seen())
    assert window is not None
    assert len(window.sessions) == 9
    assert window.sessions.clicks == 18


def test_a_folder_that_is_made_is_not_for_everybody_to_look_into(tmp_path: Path) -> None:
    with ClickLogFolder(tmp_path / "log").locked():
        assert (tmp_path / "log").stat().st_mode & 0o007 == 0
