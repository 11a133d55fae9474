"""A click file in, produced records and a summary out."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from schemas.click_files.options import ReadOptions
from schemas.messages.click import Click, ClickLimits, decode_click
from stream_app.tools.click_file import ClickFile, read_click_file
from stream_app.tools.replay import Interruption, Replayed, as_json, as_text, publish, timed, warnings_of

NOW = 1_767_225_600_000
TIMED_OUT = KafkaError(KafkaError._MSG_TIMED_OUT)


def click_file(tmp_path: Path, *times: float) -> ClickFile:
    path = tmp_path / "clicks.tsv"
    rows = [f"s{n % 2}\ti{n}\t{time}" for n, time in enumerate(times)]
    path.write_text("\n".join(["session_id\titem_id\ttimestamp", *rows]) + "\n")
    return read_click_file(path)


def times(file: ClickFile, **how: Any) -> list[int]:
    arguments: dict[str, Any] = {"limit": None, "speed": 1.0, "rebased": True, "now_ms": NOW} | how
    return [click.timestamp for click in timed(file, **arguments)]


def test_clicks_carry_the_time_at_which_they_are_sent(tmp_path: Path) -> None:
    file = click_file(tmp_path, 100, 110, 160)
    assert times(file) == [NOW, NOW + 10_000, NOW + 60_000]
    assert times(file, speed=10.0) == [NOW, NOW + 1000, NOW + 6000]


def test_as_fast_as_possible_the_last_click_is_due_now(tmp_path: Path) -> None:
    file = click_file(tmp_path, 100, 110, 160)
    assert times(file, speed=None) == [NOW - 60_000, NOW - 50_000, NOW]
    assert times(file, speed=None, limit=2) == [NOW - 10_000, NOW]
    assert times(file, speed=None, limit=99) == [NOW - 60_000, NOW - 50_000, NOW]


def test_no_rebase_keeps_the_times_of_the_file(tmp_path: Path) -> None:
    file = click_file(tmp_path, 100, 110, 160)
    assert times(file, rebased=False) == times(file, rebased=False, speed=None) == [100_000, 110_000, 160_000]
    assert times(file, rebased=False, limit=1) == [100_000]


def test_what_may_be_wrong_with_a_file_is_told(tmp_path: Path) -> None:
    day = 86_400
    path = tmp_path / "clicks.csv"
    rows = [f"s,i,{1_700_000_000 + n * day}" for n in (0, 0, 5, 45)]
    path.write_text("\n".join(["session_id,item_id,timestamp", *rows, "s,i,0", "s,i,4102444800"]))
    file = read_click_file(path, ReadOptions(skip_bad_rows=True))
    bad, lonely, gaps = warnings_of(file, max_gap_ms=3_600_000)
    assert bad.startswith(f"{path}: left out 2 bad rows (line 6: timestamp '0' (1970-01-01) is not between 1995 and")
    assert lonely == f"{path}: 1 of 4 clicks lie 40 days after all others (first: session 's'): a wrong clock?"
    assert gaps == "2 gaps without a click, up to 40 days, shortened to 1 h: --max-gap says how long a gap may be"
    # The clicks before a gap of years are not rejected for their age: the gap is shortened for them as well.
    assert times(file.shortened(3_600_000), speed=None) == [NOW - 7_200_000, NOW - 7_200_000, NOW - 3_600_000, NOW]


@dataclass
class FakeProducer:
    """Confirms at the flush. `answers` are what becomes of the clicks: None, an error, or an exception at once."""

    answers: Sequence[KafkaError | KafkaException | None] = ()
    full: int = 0  # how many polls it takes until there is room
    after_produce: Callable[[], None] = lambda: None
    records: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    waiting: list[Callable[[], None]] = field(default_factory=list)

    def produce(self, topic: str, value: bytes, key: bytes, *, on_delivery: Any) -> None:
        if self.full:
            raise BufferError
        answer = self.answers[len(self.records)] if len(self.records) < len(self.answers) else None
        if isinstance(answer, KafkaException):
            raise answer
        self.records.append((topic, value, key))
        self.waiting.append(lambda: on_delivery(answer, None))
        self.after_produce()

    def poll(self, _: float) -> int:
        self.full = max(0, self.full - 1)
        return 0

    def flush(self, _: float) -> int:
        if self.waiting:
            self.waiting.pop(0)()
        return len(self.waiting)


def published(
    fake: FakeProducer, count: int, *, interruption: Interruption | None = None
) -> tuple[Replayed, list[int]]:
    clicks = [Click(f"s{n % 2}", f"i{n}", NOW - count + n, None) for n in range(count)]
    progress: list[int] = []
    done = publish(
        iter(clicks),
        cast(Producer, fake),
        "clicks",
        speed=None,
        interruption=interruption or Interruption(),
        progress=progress.append,
    )
    return done, progress


def test_every_click_goes_out_under_its_session() -> None:
    fake = FakeProducer()
    done, progress = published(fake, 3)
    assert (done.clicks, done.unconfirmed, done.skipped_rows, done.interrupted, done.error) == (3, 0, 0, False, None)
    assert progress == sorted(progress)
    assert progress[-1] == 3
    assert {topic for topic, _, _ in fake.records} == {"clicks"}
    read = [decode_click(key, value, now_ms=NOW, limits=ClickLimits()) for _, value, key in fake.records]
    assert [click.item_id for click in read] == ["i0", "i1", "i2"]


def test_a_full_queue_is_waited_for() -> None:
    done, _ = published(FakeProducer(full=3), 2)
    assert (done.clicks, done.unconfirmed) == (2, 0)


def test_clicks_that_are_not_confirmed_are_counted() -> None:
    done, _ = published(FakeProducer(answers=[None, TIMED_OUT, None]), 3)
    assert (done.clicks, done.unconfirmed, done.interrupted) == (2, 1, False)
    assert done.error == TIMED_OUT.str()


def test_a_refusal_ends_the_replay() -> None:
    too_large = KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
    fake = FakeProducer(answers=[None, too_large])
    done, _ = published(fake, 5000)
    assert (done.clicks, done.unconfirmed, len(fake.records)) == (1, 1, 1)
    assert done.error is not None


def test_an_interruption_ends_it_after_what_is_under_way() -> None:
    interruption = Interruption()
    fake = FakeProducer(after_produce=lambda: None if interruption.asked else interruption.ask())
    done, _ = published(fake, 5000, interruption=interruption)
    assert done.interrupted
    assert 0 < done.clicks < 5000
    assert (done.clicks, done.unconfirmed) == (len(fake.records), 0)


def test_the_second_interruption_is_an_order() -> None:
    interruption = Interruption()
    interruption.ask()
    assert interruption.asked
    with pytest.raises(KeyboardInterrupt):
        interruption.ask()


DONE = Replayed(
    clicks=3000, unconfirmed=0, seconds=2.0, skipped_rows=0, interrupted=False, error=None, read_as=("click-file",)
)


def test_the_summary_for_programs() -> None:
    assert json.loads(as_json(DONE)) == {
        "clicks": 3000,
        "unconfirmed": 0,
        "seconds": 2.0,
        "skipped_rows": 0,
        "interrupted": False,
        "error": None,
        "read_as": ["click-file"],
        "warnings": [],
        "clicks_per_second": 1500.0,
    }


@pytest.mark.parametrize(
    ("done", "text"),
    [
        (DONE, "3,000 clicks on clicks in 2.0 s, 1,500 a second"),
        (
            Replayed(clicks=1, unconfirmed=2, seconds=0.0, skipped_rows=3, interrupted=True, error="Timed out"),
            "1 clicks on clicks in 0.0 s, 0 a second; 3 rows left out; interrupted before the end of the file; "
            "2 clicks NOT confirmed: Timed out",
        ),
    ],
)
def test_the_summary_for_people(done: Replayed, text: str) -> None:
    assert as_text(done, "clicks") == text
