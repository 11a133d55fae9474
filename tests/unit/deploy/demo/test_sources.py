"""What the demo makes of a click file."""

import itertools
from pathlib import Path

import pytest

from deploy.demo import sources
from deploy.demo.sources import ClickSource, click_file, from_now_on
from schemas.messages.click import Click

START = 1_767_225_600_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Ten sessions of three clicks, one after the other, a click a second."""
    file = tmp_path / "clicks.tsv"
    rows = [f"s{n // 3}\ti{n}\t{1000 + n}\n" for n in range(30)]
    file.write_text("session_id\titem_id\ttimestamp\n" + "".join(rows))
    return file


def live(source: ClickSource, seconds: float, count: int) -> list[Click]:
    clicks = itertools.chain.from_iterable(batch.clicks for batch in source.live(START, seconds))
    return list(itertools.islice(clicks, count))


def test_the_first_half_is_history_and_the_second_is_live(path: Path) -> None:
    source = click_file(path)
    history = list(source.history(START))
    assert [click.item_id for click in history] == [f"i{n}" for n in range(15)]
    assert history[-1].timestamp < START
    clicks = live(source, 7.0, 15)
    assert [click.item_id for click in clicks] == [f"i{n}" for n in range(15, 30)]
    assert [click.timestamp - START for click in clicks] == [500 * n for n in range(15)]


def test_a_replay_that_ends_begins_again_as_other_sessions(path: Path) -> None:
    clicks = live(click_file(path), 7.0, 45)
    assert [click.item_id for click in clicks[15:]] == [click.item_id for click in clicks[:15]] * 2
    assert len({click.session_id for click in clicks}) == 15
    times = [click.timestamp for click in clicks]
    assert times == sorted(times)
    assert times[15] > times[14]


def test_a_large_file_is_trained_on_in_part_and_not_replayed_faster_than_the_demo_can(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "HISTORY_CLICKS", 7)
    monkeypatch.setattr(sources, "LIVE_CLICKS_PER_SECOND", 1.0)
    source = click_file(path)
    assert [click.session_id for click in source.history(START)] == ["s3"] * 3 + ["s4"] * 3
    clicks = live(source, 7.0, 15)
    assert clicks[-1].timestamp - START == 15_000


def test_time_begins_when_the_first_clicks_are_there(path: Path) -> None:
    """However long they took to make: the shop opens then, and each click has the time at which it is sent."""
    began = itertools.count(START + 5000, 700)
    moved = list(itertools.islice(from_now_on(click_file(path).live(START, 7.0), lambda: next(began)), 10))
    given = list(itertools.islice(click_file(path).live(START, 7.0), 10))
    assert [batch.due_s for batch in moved] == [batch.due_s for batch in given]
    assert moved[0].clicks[-1].timestamp == START + 5000
    later = START + 5000 - given[0].clicks[-1].timestamp
    assert [click.timestamp - later for batch in moved for click in batch.clicks] == [
        click.timestamp for batch in given for click in batch.clicks
    ]
