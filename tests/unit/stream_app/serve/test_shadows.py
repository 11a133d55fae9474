"""Shadows: what they answer, and that a worker hands them what there is room for. Processes and pipes are real."""

import fcntl
import io
import json
import os
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from confluent_kafka import Producer

from schemas.messages.click import Click
from schemas.messages.item import Item
from schemas.messages.ranking import decode_ranking
from stream_app.core.catalogue import Catalogue
from stream_app.core.plan import SourcedClick, SourcedForget
from stream_app.core.recommend import rank, recommend
from stream_app.core.session import SessionRules, SessionState
from stream_app.serve import shadows as feeding
from stream_app.serve.live_catalogue import LiveCatalogue
from stream_app.serve.metrics import Metrics
from stream_app.serve.serving import Records, Serves
from stream_app.serve.shadow_process import ShadowModels, ShadowRanker, run
from stream_app.serve.shadows import LENGTH_BYTES, Batch, Shadows, batch_of
from tests.patience import PATIENCE
from tests.unit.models import exact_model

CHAMPION, SHADOW = exact_model("v1", tuple("abcdef")), exact_model("v2", tuple("abcdef"), salt=5)
RULES = SessionRules(recent_items=4)
READER = """
import os, sys, time
while os.path.exists(sys.argv[1] + ".wait"):
    time.sleep(0.01)
from stream_app.serve.shadow_process import batches
from tests.patience import PATIENCE
for batch in batches(sys.stdin.buffer):
    with open(sys.argv[1], "a") as file:
        print(len(batch.records), file=file)
    if len(sys.argv) > 2:
        sys.exit(1)
"""


class FakeProducer:
    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, bytes | None]] = []

    def produce(self, topic: str, value: bytes | None, key: bytes, *, on_delivery: Any) -> None:
        self.sent.append((topic, key, value))

    def poll(self, _: float) -> None:
        """Nothing is to be confirmed."""


class Models:
    def __init__(self, *aliases: str) -> None:
        self.aliases = aliases or ("b",)

    def serving(self) -> list[Serves]:
        return [Serves(SHADOW, f"shadow:{alias}") for alias in self.aliases]


def click(offset: int) -> SourcedClick:
    return SourcedClick(Click(f"s{offset % 3}", "abcdef"[offset * 5 % 6], timestamp=offset, market="de"), offset)


def pipe_of(*batches: Batch) -> io.BytesIO:
    encoded = [msgspec.msgpack.encode(batch) for batch in batches]
    return io.BytesIO(b"".join(len(one).to_bytes(LENGTH_BYTES, "big") + one for one in encoded))


def ranked(*batches: Batch, shadows: tuple[str, ...] = ("b",)) -> FakeProducer:
    producer = FakeProducer()
    ranker = ShadowRanker(cast(Producer, producer), "rankings.shadow", RULES)
    run(pipe_of(*batches), ranker, cast(ShadowModels, Models(*shadows)), lambda: True)
    return producer


def test_a_shadow_ranks_from_what_rows_remember_and_says_which_click_came_before() -> None:
    rows, batches, expected = dict[str, SessionState](), [], []
    stream: Records = [click(offset) for offset in range(60)]
    stream[30] = SourcedForget("s0", 30)
    last: dict[str, int] = {}
    for begin in range(0, 60, 12):
        batch = stream[begin : begin + 12]
        batches.append(batch_of("clicks", 2, 7, dict(rows), batch))
        for answer in recommend(rows, batch, SHADOW, RULES).ranked:
            expected.append((answer.offset, last.get(answer.click.session_id, -1), tuple(answer.top_score)))
            last[answer.click.session_id] = answer.offset
        # The rows are the champion's: a shadow's own states are in none.
        served = recommend(rows, batch, CHAMPION, RULES)
        rows |= served.rows
    sent = ranked(*batches).sent
    assert {topic for topic, _, _ in sent} == {"rankings.shadow"}
    assert [key for _, key, value in sent if value is None] == [b"s0"]
    rankings = [decode_ranking(value) for _, _, value in sent if value is not None]
    assert {(one.variant, one.model_version, one.produced_at) for one in rankings} == {("shadow:b", "v2", 7)}
    assert {(one.source.topic, one.source.partition, one.market) for one in rankings} == {("clicks", 2, "de")}
    seen = [(one.source.offset, one.follows, tuple(item.score for item in one.items)) for one in rankings]
    assert seen == expected


def test_a_shadow_shows_only_what_may_be_shown() -> None:
    catalogue, producer = Catalogue(), FakeProducer()
    catalogue.put_items([(item_id, Item(item_id=item_id)) for item_id in "be"])
    ranker = ShadowRanker(cast(Producer, producer), "rankings.shadow", RULES, LiveCatalogue(catalogue))
    run(pipe_of(batch_of("clicks", 0, 0, {}, [click(0)])), ranker, cast(ShadowModels, Models()), lambda: True)
    [(_, _, value)] = producer.sent
    assert sorted(item.item_id for item in decode_ranking(value or b"").items) == ["b", "e"]


def test_what_comes_before_items_are_read_or_is_cut_short_is_passed_over() -> None:
    batch, producer = batch_of("clicks", 0, 0, {}, [click(0)]), FakeProducer()
    ranker, models = ShadowRanker(cast(Producer, producer), "rankings.shadow", RULES), cast(ShadowModels, Models())
    run(pipe_of(batch), ranker, models, lambda: False)
    run(io.BytesIO(pipe_of(batch).read()[:-1]), ranker, models, lambda: True)  # the worker was killed meanwhile
    assert producer.sent == []


def test_a_shadow_that_fails_keeps_no_other_from_ranking_and_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        return 1 / 0 if len(calls) == 1 else rank(*arguments)

    monkeypatch.setattr("stream_app.serve.shadow_process.rank", failing)
    batches = (batch_of("clicks", 0, 0, {}, [click(offset)]) for offset in range(2))
    found = [decode_ranking(value or b"") for _, _, value in ranked(*batches, shadows=("b", "c")).sent]
    assert [(one.source.offset, one.variant) for one in found] == [(0, "shadow:c"), (1, "shadow:b"), (1, "shadow:c")]


class Fed:
    """A process that reads batches and notes them."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.notes, self.metrics = folder / "notes", Metrics()
        self.shadows = Shadows([sys.executable, "-c", READER, str(self.notes), *more], os.environ, self.metrics)
        self.shadows.start()

    def offer(self, clicks: int) -> None:
        self.shadows.offer("clicks", 0, 0, {}, [click(offset) for offset in range(clicks)])

    def count(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"nextclick_shadow_{name}_total") or 0.0

    def read(self) -> list[int]:
        return [json.loads(line) for line in self.notes.read_text().splitlines()] if self.notes.exists() else []

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Fed]:
    fed = Fed(tmp_path)
    yield fed
    fed.shadows.stop()
    assert not fed.shadows._thread.is_alive()


def test_clicks_are_handed_over_as_long_as_a_shadow_is_wanted_and_what_is_too_much_is_skipped(fed: Fed) -> None:
    fed.offer(3)
    assert not fed.shadows._waiting
    fed.shadows.want(True)
    for _ in range(10):
        fed.offer(1000)  # the process takes its time to begin
    assert fed.count("skipped_clicks") >= 5000
    fed.until(lambda: sum(fed.read()) + fed.count("skipped_clicks") == 10_000)
    fed.offer(0)
    fed.offer(7)
    fed.until(lambda: fed.read()[-1] == 7)
    process = fed.shadows._process
    assert process is not None
    fed.shadows.want(False)
    fed.until(lambda: process.poll() is not None)
    fed.offer(1)
    assert not fed.shadows._waiting


def test_what_waits_is_bounded_by_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids may have 256 bytes each, and rows hold dozens: clicks alone say little of the memory."""
    (tmp_path / "notes.wait").touch()
    monkeypatch.setattr(feeding, "_MOST_BYTES", 100_000)
    fed = Fed(tmp_path)
    fed.shadows.want(True)
    item = "i" * 256
    for offset in range(100):
        row = SessionState("", offset, offset, 30, (item,) * 30, None)
        fed.shadows.offer("clicks", 0, 0, {"s": row}, [SourcedClick(Click("s", item, timestamp=offset), offset)])
    assert fed.shadows._waiting_bytes <= 100_000
    taken = 100 - fed.count("skipped_clicks")
    assert 10 < taken < 40  # what the pipe holds beside it
    (tmp_path / "notes.wait").unlink()
    fed.until(lambda: len(fed.read()) == taken)
    assert (fed.shadows._waiting_clicks, fed.shadows._waiting_bytes) == (0, 0)
    fed.shadows.stop()


def test_copies_are_tidied_once_nobody_wants_the_process(tmp_path: Path) -> None:
    tidied: list[int] = []
    shadows = Shadows(
        [sys.executable, "-c", READER, str(tmp_path / "notes")], os.environ, Metrics(), lambda: tidied.append(1)
    )
    shadows.start()
    shadows.want(True)
    deadline = time.monotonic() + PATIENCE
    while shadows._process is None and time.monotonic() < deadline:
        time.sleep(0.01)
    shadows.want(False)
    while not tidied and time.monotonic() < deadline:
        time.sleep(0.01)
    shadows.want(True)
    shadows.stop()
    assert tidied == [1]


def test_what_comes_while_a_batch_of_before_is_written_is_handed_over(tmp_path: Path) -> None:
    (wait := tmp_path / "notes.wait").touch()
    fed = Fed(tmp_path)
    fed.shadows.want(True)
    fed.offer(4000)  # more than the pipe holds
    fed.until(lambda: (process := fed.shadows._process) is not None and in_pipe(process.stdin) > 0)
    fed.shadows.want(False)
    fed.shadows.want(True)
    fed.offer(7)
    wait.unlink()
    fed.until(lambda: fed.count("clicks") == 4007)
    fed.until(lambda: fed.read() == [4000, 7])
    assert fed.shadows._waiting_clicks == 0
    fed.shadows.stop()


def in_pipe(pipe: Any) -> int:
    """Bytes that nobody has read."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_process_that_ends_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "_RESTART_SECONDS", 0.0)
    fed = Fed(tmp_path, "ends after the first")
    fed.shadows.want(True)

    def again() -> bool:
        fed.offer(1)
        return len(fed.read()) > 1

    fed.until(again)
    fed.shadows.stop()


def test_a_process_that_begins_while_the_worker_stops_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begins, begun, begin = threading.Event(), list[subprocess.Popen[bytes]](), subprocess.Popen

    def begin_late(*arguments: Any, **more: Any) -> Any:
        begins.set()
        one.until(lambda: one.shadows._stopping)
        time.sleep(0.1)  # who stops has looked for a process by now
        begun.append(begin(*arguments, **more))
        return begun[-1]

    monkeypatch.setattr("stream_app.serve.shadows.subprocess.Popen", begin_late)
    one = Fed(tmp_path)
    one.shadows.want(True)
    assert begins.wait(PATIENCE)
    one.shadows.stop()
    [process] = begun
    ended = process.poll() is not None
    process.kill()
    assert ended
