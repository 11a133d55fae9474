"""What is counted of what is on its way, and what becomes of parts that go on together."""

import asyncio
from typing import Any, cast

from faust.types import TP

from stream_app.core.session import SessionState
from stream_app.kafka.click_reader import Record
from stream_app.kafka.transport import Chunk
from stream_app.serve.in_flight import InFlight, Part, Partition
from stream_app.serve.metrics import Metrics


def chunk(*offsets: int) -> tuple[Chunk, Any]:
    records = [Record(offset, timestamp=0, timestamp_type=0, key=b"s", value=b"") for offset in offsets]
    return Chunk(TP("clicks", 0), records, generation=1), None


def part(partition: Partition, *offsets: int, item: str) -> Part:
    """A part whose attributes are all its own."""
    state = SessionState("v1", offset=offsets[-1], last_click=0, clicks=1, recent=(item,), hidden=None)
    named = Part(partition, [cast(Any, f"rankings of {item}")], [chunk(*offsets)], {"s": state, item: state})
    named.begun_anew, named.reasons, named.spans = {item}, [item], [cast(Any, f"spans of {item}")]
    return named


def test_parts_that_go_on_together_keep_all_that_either_waits_for_and_the_newest_rows() -> None:
    partition = Partition(generation=1)
    first, later = part(partition, 1, 2, item="a"), part(partition, 3, item="b")
    newest = later.states["s"]
    rankings, spans = first.rankings + later.rankings, first.spans + later.spans
    first.join(later)
    assert (first.rankings, first.spans) == (rankings, spans)
    assert ({*first.states}, first.states["s"]) == ({"s", "a", "b"}, newest)
    assert (first.begun_anew, first.reasons) == ({"a", "b"}, ["a", "b"])
    assert [record.offset for one, _ in first.chunks for record in one.records] == [1, 2, 3]
    assert first.last is later.last


def test_clicks_from_the_end_on_that_a_partition_had_are_not_redelivered() -> None:
    partition = Partition(generation=1, ended_at=5)
    first, later = part(partition, 4, 5, item="a"), part(partition, 6, item="b")
    assert not later.may_be_redelivered
    first.join(later)
    assert first.may_be_redelivered
    assert not part(partition, 5, item="c").may_be_redelivered


async def test_more_clicks_than_fit_have_room_alone_and_all_others_wait() -> None:
    in_flight = InFlight(Metrics(), on_fatal=lambda _: None)
    assert in_flight.has_room(9, most=8)
    few, many = part(Partition(generation=1), 0, item="a"), part(Partition(generation=1), *range(1, 6), item="b")
    in_flight.moved(+2)
    in_flight.clicks += 6
    assert in_flight.has_room(2, most=8)
    waiting = asyncio.create_task(in_flight.wait_for_room(4, most=8))
    for ends in (few, many):
        await asyncio.sleep(0)
        assert not waiting.done()
        in_flight.ended([ends])
    await waiting
    assert (in_flight.chunks, in_flight.clicks) == (0, 0)


def test_the_first_error_tells_why_the_worker_ends() -> None:
    told: list[BaseException] = []
    in_flight = InFlight(Metrics(), on_fatal=told.append)
    for reason in ("the disk is full", "the clicks before these could not be computed"):
        in_flight.fail(RuntimeError(reason))
    assert [str(error) for error in told] == ["the disk is full"]
