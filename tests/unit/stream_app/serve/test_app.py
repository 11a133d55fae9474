"""The app as it is put together: chunks through Faust's own agent, rows in a real RocksDB, only Kafka is a fake."""

import asyncio
import dataclasses
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock
from weakref import WeakSet

import pytest
from confluent_kafka import KafkaError, Producer
from faust.types import TP
from msgspec.structs import replace
from structlog.testing import capture_logs

from schemas.bundle.files import open_bundle
from schemas.bundle.runtime import Model
from schemas.errors import StoppedWaitingError
from schemas.messages.click import Click, encode_click
from schemas.messages.ranking import RankingReason, decode_ranking
from schemas.messages.rejected import decode_rejected
from schemas.messages.split import Split, Variant
from stream_app.core.plan import SourcedClick
from stream_app.core.recommend import recommend
from stream_app.core.session import SessionRules, SessionState
from stream_app.core.state_codec import decode_state, row_offset
from stream_app.errors import DeliveryError, StalledError
from stream_app.kafka.click_reader import Record
from stream_app.kafka.transport import Chunk, ChunkConsumer, ChunkSchema, Fetch
from stream_app.serve import settling
from stream_app.serve.app import RecommenderApp, create_app
from stream_app.serve.delivery import Delivery, Sending
from stream_app.serve.hot_swap import LiveModel, ModelWatcher
from stream_app.serve.metrics import Metrics
from stream_app.serve.pipeline import Pipeline
from stream_app.serve.serving import place_of
from stream_app.serve.splits import LiveSplit
from stream_app.settings import StreamSettings, WorkerSettings
from tests.contract.tiny_model import TinyFailing, TinyModel, TinyOutside
from tests.patience import PATIENCE
from tests.unit.models import exact_model

CLICKS = TP("clicks", 2)
RANKINGS, CHANGELOG, REJECTED = "rankings", "nextclick-sessions-changelog", "clicks.rejected"
BEGAN = 1_700_000_000_000  # the time of a click at offset 0, in milliseconds
GENERATION = 1


@dataclass
class FakeKafka:
    """Producer, consumer and `Delivery` in one: confirms at once, but for topics that are `held`."""

    sent: list[tuple[str, int, bytes]] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)  # topics whose records are never confirmed
    waiting: list[Callable[[], None]] = field(default_factory=list)
    acked: list[int] = field(default_factory=list)
    generation: int = GENERATION
    overdue: bool = False  # heartbeats
    clicks: dict[tuple[TP, int], Record] = field(default_factory=dict)
    looked_up: list[int] = field(default_factory=list)
    looked_up_by: set[int] = field(default_factory=set)  # threads
    end: int | None = None
    _unacked_messages: WeakSet[Any] = field(default_factory=WeakSet)  # Faust's stream looks at it

    def sending(self) -> Sending:
        return Sending(cast(Producer, self), asyncio.get_running_loop())

    def produce(self, topic: str, value: bytes, key: bytes, partition: int, on_delivery: Any, **_: Any) -> None:
        offset = len(self.sent)
        self.sent.append((topic, partition, value))
        confirm = partial(on_delivery, None, SimpleNamespace(offset=lambda: offset))
        if topic in self.lost:
            confirm = partial(on_delivery, KafkaError(KafkaError._MSG_TIMED_OUT), None)
        self.waiting.append(confirm) if topic in self.held else confirm()

    may_wait = False

    def serve(self) -> None:
        """Has confirmed already."""

    def release(self) -> None:
        self.held.clear()
        while self.waiting:
            self.waiting.pop(0)()

    def owns(self, _: TP, generation: int) -> bool:
        return generation == self.generation

    def record_at(self, tp: TP, offset: int) -> Record | None:
        self.looked_up.append(offset)
        self.looked_up_by.add(threading.get_ident())
        return self.clicks.get((tp, offset))

    def end_offset(self, _: TP) -> int | None:
        return self.end

    def may_be_expelled(self) -> bool:
        return self.overdue

    def ack(self, message: Any) -> None:
        assert message.value.durable
        self.acked.append(message.value.records[-1].offset)

    def on_topic(self, topic: str) -> list[bytes]:
        return [value for sent_to, _, value in self.sent if sent_to == topic]


@dataclass
class Running:
    """An app whose agent takes chunks."""

    app: RecommenderApp
    agent: Any
    kafka: FakeKafka
    metrics: Metrics
    fatal: list[BaseException]
    taken: int = 0
    submitted: int = 0

    def __post_init__(self) -> None:
        submit = self.app.pipeline.submit

        async def count(fetch: Fetch) -> None:
            try:
                await submit(fetch)
            finally:
                self.submitted += len(fetch.chunks)

        self.app.pipeline.submit = count  # type: ignore[method-assign]

    async def take(self, *clicks: tuple[str, str] | bytes, at: int, generation: int = GENERATION) -> None:
        """Hand the agent a chunk of clicks (session, item), or of bytes that are none, from this offset on."""
        await self.take_chunks(self.chunk(*clicks, at=at, generation=generation))

    async def take_chunks(self, *chunks: Chunk) -> None:
        """Hand the agent what one fetch brought."""
        await self.agent.put(Fetch([(chunk, cast(Any, SimpleNamespace(value=chunk))) for chunk in chunks]))
        self.taken += len(chunks)

    def chunk(
        self,
        *clicks: tuple[str, str] | bytes,
        at: int,
        generation: int = GENERATION,
        tp: TP = CLICKS,
        later: int = 0,
    ) -> Chunk:
        """Clicks (session, item), or bytes that are none, from this offset on; `later` by so many ms."""
        records = []
        for offset, click in enumerate(clicks, start=at):
            value = click if isinstance(click, bytes) else encode_click(Click(*click, timestamp=BEGAN + offset + later))
            key = b"?" if isinstance(click, bytes) else click[0].encode()
            records.append(Record(offset, timestamp=0, timestamp_type=0, key=key, value=value))
            self.kafka.clicks[tp, offset] = records[-1]
        return Chunk(tp, records, generation)

    @property
    def dropped(self) -> int:
        return self.count("dropped_chunks")

    def count(self, name: str, **labels: str) -> int:
        return int(self.metrics.registry.get_sample_value(f"nextclick_{name}_total", labels) or 0)

    async def ended(self) -> None:
        """Until every chunk is either durable or left to another worker."""
        async with asyncio.timeout(PATIENCE):
            while self.app.pipeline.in_flight.finished + self.dropped < self.taken:
                await asyncio.sleep(0.005)

    async def settle(self) -> None:
        """Let everything happen that can happen without a further confirmation."""
        loop, computing, seen = cast(Any, asyncio.get_running_loop()), self.app.pipeline._computing, None
        async with asyncio.timeout(PATIENCE):
            while self.submitted < self.taken:  # they are still on their way through Faust
                await asyncio.sleep(0.005)
            await _until_idle(loop)
            while (call := computing._last) is not seen and call is not None:
                seen = call
                await asyncio.wait([asyncio.wrap_future(call)])
                await _until_idle(loop)

    def recent(self, session_id: str) -> tuple[str, ...] | None:
        state = self.app.sessions.states(CLICKS.partition, [session_id]).get(session_id)
        return None if state is None else state.recent


async def _until_idle(loop: Any) -> None:
    """Until the event loop has nothing that it could do now, but for timers."""
    while loop._ready:
        await asyncio.sleep(0)


@asynccontextmanager
async def _running(
    data_dir: Path, *, few: int = 0, split: Callable[[LiveModel, Metrics], LiveSplit] | None = None, **worker: int
) -> AsyncIterator[Running]:
    """`few` clicks wait for company before they are made durable; here none does, but where that is the question."""
    live, kafka, metrics, fatal = LiveModel(), FakeKafka(), Metrics(), list[BaseException]()
    live.replace(exact_model("v1", tuple("abcdef")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecommenderApp, "_new_consumer", lambda _: kafka)
        patch.setattr(settling, "_FEW_CLICKS", few)
        app = create_app(
            StreamSettings(worker=WorkerSettings(data_dir=data_dir, **worker)),
            live=live if split is None else split(live, metrics),
            delivery=cast(Delivery, kafka),
            metrics=metrics,
            on_fatal=fatal.append,
        )
        agent = app.agents["rank-clicks"]
        async with agent.test_context(channel=app.channel(schema=ChunkSchema())) as wrapper:
            yield Running(app, wrapper, kafka, metrics, fatal)
        await app.pipeline.stop()
        await app.sessions.data.stop()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with _running(tmp_path) as running:
        yield running
    assert [type(error) for error in running.fatal] == ([DeliveryError] if running.kafka.lost else [])


async def test_a_thread_that_looks_at_the_consumer_first_does_not_take_it(tmp_path: Path) -> None:
    """The watchdog's did, once in hundreds of starts, and the worker ended with a future of a different loop."""
    app = create_app(
        StreamSettings(worker=WorkerSettings(data_dir=tmp_path)),
        live=LiveModel(),
        delivery=cast(Delivery, FakeKafka()),
        metrics=Metrics(),
        on_fatal=lambda error: pytest.fail(str(error)),
    )
    consumer = await asyncio.to_thread(lambda: cast(ChunkConsumer, app.consumer))
    consumer._thread.thread_loop.close()
    assert consumer.loop is consumer._thread.parent_loop is asyncio.get_running_loop()


async def test_a_ranking_tells_the_type_of_its_click(running: Running) -> None:
    await running.take(encode_click(Click("?", "a", timestamp=BEGAN, type="cart")), ("s", "a"), at=10)
    await running.ended()
    first, second = running.kafka.on_topic(RANKINGS)
    assert decode_ranking(first).type == "cart"
    assert b'"type"' not in second  # not a byte more where no click has one


async def test_a_ranking_tells_which_click_it_answers(running: Running) -> None:
    click = Click("?", "a", timestamp=BEGAN, event_id="e7", type="cart", market="de")
    await running.take(encode_click(click), at=10)
    await running.ended()
    [ranking] = map(decode_ranking, running.kafka.on_topic(RANKINGS))
    told = Click(
        ranking.session_id,
        ranking.item_id,
        timestamp=ranking.click_timestamp,
        event_id=ranking.event_id,
        type=ranking.type,
        market=ranking.market,
    )
    assert told == click


async def test_clicks_in_rankings_and_rows_out(running: Running) -> None:
    await running.take(("s", "a"), ("t", "b"), ("s", "c"), at=10)
    await running.ended()
    rankings = [decode_ranking(value) for value in running.kafka.on_topic(RANKINGS)]
    assert [(one.source.offset, one.session_id, one.item_id) for one in rankings] == [
        (10, "s", "a"),
        (11, "t", "b"),
        (12, "s", "c"),
    ]
    assert {(one.source.topic, one.source.partition, one.model_version) for one in rankings} == {("clicks", 2, "v1")}
    assert (running.recent("s"), running.recent("t")) == (("a", "c"), ("b",))
    assert running.kafka.acked == [12]
    assert (running.count("clicks"), running.count("rankings", reason="model")) == (3, 3)


async def test_the_wait_of_a_click_is_counted_from_the_time_of_its_record(running: Running) -> None:
    chunk = running.chunk(("s", "a"), at=10)
    came = time.time() - 5.0
    chunk.records = [replace(record, timestamp=int(came * 1000)) for record in chunk.records]
    await running.take_chunks(chunk)
    await running.ended()
    waited = running.metrics.registry.get_sample_value("nextclick_end_to_end_seconds_sum")
    assert waited is not None
    assert 5.0 <= waited <= time.time() - came + 0.001


async def test_partitions_are_computed_together_and_kept_apart(running: Running) -> None:
    """The same session id in two partitions, as no sound producer sends it: two sessions."""
    other, lost = TP("clicks", 3), TP("clicks", 4)
    await running.take_chunks(
        running.chunk(("s", "a"), ("t", "b"), at=10),
        running.chunk(("s", "c"), at=5, tp=other),
        running.chunk(("s", "d"), at=7, tp=lost, generation=GENERATION - 1),
    )
    await running.ended()
    rankings = [decode_ranking(value) for value in running.kafka.on_topic(RANKINGS)]
    assert [(one.source.partition, one.source.offset, one.item_id) for one in rankings] == [
        (2, 10, "a"),
        (2, 11, "b"),
        (3, 5, "c"),
    ]
    states = running.app.sessions.states
    assert states(2, ["s"])["s"].recent == ("a",)
    assert states(3, ["s"])["s"].recent == ("c",)
    assert sorted(running.kafka.acked) == [5, 11]
    assert running.dropped == 1
    assert running.metrics.registry.get_sample_value("nextclick_chunk_clicks_count") == 1


async def test_no_more_clicks_are_computed_together_than_told(tmp_path: Path) -> None:
    async with _running(tmp_path, chunk_clicks=3) as running:
        partitions = [TP("clicks", number) for number in range(3)]
        await running.take_chunks(*(running.chunk(("s", "a"), ("t", "b"), at=10, tp=tp) for tp in partitions))
        await running.ended()
        assert running.metrics.registry.get_sample_value("nextclick_chunk_clicks_count") == 3
        assert len(running.kafka.on_topic(RANKINGS)) == 6


async def test_what_waits_becomes_durable_together(running: Running) -> None:
    kafka = running.kafka
    kafka.held.add(RANKINGS)
    await running.take(("s", "a"), at=0)
    await running.settle()
    await running.take(("s", "b"), at=1)
    await running.settle()
    await running.take(("s", "c"), ("t", "c"), at=2)
    await running.settle()
    kafka.release()
    await running.ended()
    rows = [decode_state(row) for row in kafka.on_topic(CHANGELOG)]
    assert [(row.offset, row.recent) for row in rows] == [(0, ("a",)), (2, ("a", "b", "c")), (3, ("c",))]
    assert kafka.acked == [0, 1, 3]
    assert running.count("rankings", reason="model") == 4


async def test_what_becomes_durable_together_waits_for_the_rankings_of_all_of_it(running: Running) -> None:
    kafka = running.kafka
    kafka.held.add(RANKINGS)
    for at, item in enumerate("abc"):
        await running.take(("s", item), at=at)
        await running.settle()
    kafka.waiting.pop(0)()
    kafka.waiting.pop(0)()  # of two clicks whose row is one, only the first one's
    await running.settle()
    assert (len(kafka.on_topic(CHANGELOG)), kafka.acked, running.recent("s")) == (1, [0], ("a",))
    kafka.release()
    await running.ended()
    assert (running.recent("s"), kafka.acked) == (("a", "b", "c"), [0, 1, 2])


async def test_the_newest_row_is_kept_until_it_is_stored_itself(running: Running) -> None:
    pipeline, kafka = running.app.pipeline, running.kafka
    kafka.held.add(RANKINGS)
    await running.take(("s", "a"), at=0)
    await until(lambda: len(kafka.on_topic(RANKINGS)) == 1)
    await running.take(("s", "b"), at=1)
    await until(lambda: len(kafka.on_topic(RANKINGS)) == 2)
    kafka.waiting.pop(0)()
    await until(lambda: kafka.acked == [0])  # the first click's row is stored, the second one's is on its way
    await running.take(("s", "c"), at=2)
    await until(lambda: len(kafka.on_topic(RANKINGS)) == 3)
    kafka.release()
    await running.ended()
    assert running.recent("s") == ("a", "b", "c")
    assert pipeline._partitions[CLICKS].pending == {}


async def test_no_fetch_is_wanted_while_clicks_wait_for_the_model(running: Running) -> None:
    pipeline = running.app.pipeline
    entered, leave, compute = threading.Event(), threading.Event(), pipeline._compute

    def compute_slowly(*args: Any) -> None:
        entered.set()
        leave.wait(PATIENCE)
        compute(*args)

    pipeline._compute = compute_slowly  # type: ignore[method-assign, assignment]
    await running.take(("s", "a"), at=0)
    await asyncio.to_thread(entered.wait, PATIENCE)
    async with asyncio.timeout(PATIENCE):
        await pipeline.wants_more()  # the next clicks may come while these are computed
    await running.take(("s", "b"), at=1)
    loop = asyncio.get_running_loop()
    await _until_idle(loop)  # but for the call that is held
    wanted = asyncio.create_task(pipeline.wants_more())
    await _until_idle(loop)
    assert not wanted.done()
    leave.set()
    async with asyncio.timeout(PATIENCE):
        await wanted
    await running.ended()
    assert running.recent("s") == ("a", "b")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


class HeldReads:
    """Reads of rows by the pipeline's thread wait until they are let go; the first one then raises `error`."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self._read = pipeline._read
        pipeline._read = self  # type: ignore[method-assign, assignment]

    def __call__(self, *arguments: Any) -> Any:
        self.entered.set()
        assert self.leave.wait(PATIENCE)
        error, self.error = self.error, None
        if error is not None:
            raise error
        return self._read(*arguments)


class Watcher:
    """In a watcher's place: has the variant's model at once, or never."""

    is_settled = True

    def __init__(self, live: LiveModel, model: Model | None) -> None:
        self._live, self._model = live, model

    def start(self) -> None:
        if self._model is not None:
            self._live.replace(self._model)

    def stop(self) -> None:
        """Nothing runs."""


@asynccontextmanager
async def two_begun(
    data_dir: Path, between: Callable[[Running], None] = lambda _: None
) -> AsyncIterator[tuple[Running, HeldReads]]:
    """Two batches of a session's clicks, a and b, c and d, begun and held; `between` comes after the first."""
    async with _running(data_dir, chunk_clicks=2) as running:
        reads = HeldReads(running.app.pipeline)
        await running.take(("s", "a"), ("s", "b"), at=0)
        await asyncio.to_thread(reads.entered.wait, PATIENCE)
        between(running)
        await running.take(("s", "c"), ("s", "d"), at=2)
        await until(lambda: len(running.app.pipeline._begun) == 2)
        yield running, reads


async def test_one_whole_batch_is_begun_behind_the_one_that_is_computed(tmp_path: Path) -> None:
    async with _running(tmp_path, chunk_clicks=2) as running:
        pipeline, kafka = running.app.pipeline, running.kafka
        reads = HeldReads(pipeline)
        kafka.held.add(RANKINGS)  # no row gets to RocksDB before all are computed
        await running.take(("s", "a"), ("s", "b"), at=0)
        await asyncio.to_thread(reads.entered.wait, PATIENCE)
        await running.take(("s", "c"), ("s", "d"), at=2)
        await running.take(("s", "e"), ("s", "f"), at=4)
        await until(lambda: (len(pipeline._begun), len(pipeline._waiting)) == (2, 1))
        reads.leave.set()
        await until(lambda: len(kafka.on_topic(RANKINGS)) == 6)
        kafka.release()
        await running.ended()
        assert (running.recent("s"), kafka.acked) == (("a", "b", "c", "d", "e", "f"), [1, 3, 5])


async def test_each_session_is_its_variants_and_is_rebuilt_when_that_changes(tmp_path: Path) -> None:
    """Compared click by click with a worker of one model that replays what a row of another's remembers."""
    models = {"champion": exact_model("v1", tuple("abcdef")), "b": exact_model("v2", tuple("abcdef"), salt=5)}

    def split(live: LiveModel, metrics: Metrics) -> LiveSplit:
        def watch(alias: str, of: LiveModel) -> ModelWatcher:
            return cast(ModelWatcher, Watcher(of, models.get(alias)))

        return LiveSplit("champion", live, watch, metrics)

    lines: list[dict[str, float]] = [
        {},
        {"champion": 60, "b": 40},
        {"champion": 20, "b": 40, "none": 40},
        {"b": 100},
        {},
    ]
    rows: dict[str, SessionState] = {}
    expected = []
    async with _running(tmp_path, split=split) as running:
        live = cast(LiveSplit, running.app.pipeline._live)
        for n, line in enumerate(lines):
            variants = tuple(Variant(alias, share) for alias, share in line.items())
            live.put(Split(app_id="nextclick", variants=variants) if line else None)
            clicks = [(f"s{m % 20}", "abcdef"[(m + n) % 6]) for m in range(40)]
            await running.take(*clicks, at=100 * n)
            await running.ended()
            for offset, (session, item) in enumerate(clicks, start=100 * n):
                ends = list(itertools.accumulate(line.values()))
                place = place_of(session, "") / 100
                alias = next((a for a, end in zip(line, ends, strict=True) if place < end), "champion")
                alias = alias if alias in models else "champion"
                click = SourcedClick(Click(session, item, timestamp=BEGAN + offset), offset)
                done = recommend(rows, [click], models[alias], SessionRules())
                rows |= done.rows
                expected.append((offset, alias if line else None, tuple(done.ranked[0].top_score)))
        found = [decode_ranking(value) for value in running.kafka.on_topic(RANKINGS)]
        seen = [(one.source.offset, one.variant, tuple(item.score for item in one.items)) for one in found]
        assert sorted(seen, key=lambda one: one[0]) == expected
        assert {variant for _, variant, _ in seen} == {None, "champion", "b"}
        sample = running.metrics.registry.get_sample_value
        assert 0 < (sample("nextclick_variant_fallbacks_total") or 0) < 40
        assert (sample("nextclick_rebuilt_rows_total") or 0) > 20
        stored = running.app.sessions.states(CLICKS.partition, list(rows))
        assert {name: row.recent for name, row in stored.items()} == {
            name: row.recent for name, row in rows.items() if isinstance(row, SessionState)
        }


async def test_what_is_no_click_is_parked_once_however_many_models_serve(tmp_path: Path) -> None:
    def split(live: LiveModel, metrics: Metrics) -> LiveSplit:
        second = exact_model("v2", tuple("abcdef"), salt=5)
        return LiveSplit("champion", live, lambda _, of: cast(ModelWatcher, Watcher(of, second)), metrics)

    async with _running(tmp_path, split=split) as running:
        variants = Variant("champion", 50.0), Variant("b", 50.0)
        cast(LiveSplit, running.app.pipeline._live).put(Split(app_id="nextclick", variants=variants))
        await running.take(b"{}", *[(f"s{n}", "a") for n in range(20)], at=0)
        await running.ended()
        assert {decode_ranking(value).variant for value in running.kafka.on_topic(RANKINGS)} == {"champion", "b"}
        assert len(running.kafka.on_topic(REJECTED)) == 1


FAULTS = {"fails": TinyFailing, "names items outside its vocabulary": TinyOutside}


@pytest.mark.parametrize("kind", FAULTS.values(), ids=FAULTS.keys())
async def test_a_model_without_an_answer_stops_no_worker(tmp_path: Path, kind: type[TinyModel]) -> None:
    """What is popular takes its place, and the session goes on from its items."""
    tiny = kind(items=tuple("abcdefghijkl"))
    model = open_bundle(tiny.write(tmp_path / "registry"))
    async with _running(tmp_path / "data") as running:
        cast(LiveModel, running.app.pipeline._live).replace(model)
        with capture_logs() as told:
            for n in range(11):  # from the ninth on there is no answer
                await running.take(("s", "abc"[n % 3]), ("t", "a"), at=2 * n)
                await running.ended()
            await running.take(("u", "a"), at=22)
            await running.ended()
        found = [decode_ranking(value) for value in running.kafka.on_topic(RANKINGS)]
        reasons = [(one.source.offset, one.reason) for one in found]
        assert [offset for offset, _ in reasons] == list(range(23))
        assert [reason for offset, reason in reasons if reason is RankingReason.MODEL] == [RankingReason.MODEL] * 17
        assert {reason for offset, reason in reasons[16:22]} == {RankingReason.NOT_FINITE}
        popular = [model.vocabulary.item(index) for index in model.popular[0].tolist()]
        assert [item.item_id for item in found[16].items] == popular
        assert (running.recent("s"), running.kafka.acked[-1]) == (tuple("abcabcabcab"), 22)
        [line] = [line for line in told if "cannot rank" in line["event"]]
        assert (line["version"], line["log_level"]) == ("v1", "error")
        assert line["error"].startswith("rank.onnx: ")


@pytest.mark.parametrize("kind", FAULTS.values(), ids=FAULTS.keys())
async def test_sessions_beside_one_without_an_answer_have_their_rankings_and_states(
    tmp_path: Path, kind: type[TinyModel]
) -> None:
    """Those of a run without it."""
    model = open_bundle(kind(items=tuple("abcdefghijkl")).write(tmp_path / "registry"))
    names = ("t", "u", "v", "w", "x")
    came: list[tuple[Any, Any]] = []
    for beside in ([], [("s", "a"), ("s", "b")]):  # from the ninth click on there is no answer
        async with _running(tmp_path / f"data {len(beside)}") as running:
            cast(LiveModel, running.app.pipeline._live).replace(model)
            for n in range(7):
                clicks = [(name, "abcdefg"[(n + place) % 7]) for place, name in enumerate(names)]
                await running.take(*clicks, *beside, at=10 * n)
                await running.ended()
            found = [decode_ranking(value) for value in running.kafka.on_topic(RANKINGS)]
            rows = running.app.sessions.states(CLICKS.partition, names)
        own = [[item.item_id for item in one.items] for one in found if one.session_id != "s"]
        came.append((own, {name: (row.recent, cast(Any, row.hidden).tolist()) for name, row in rows.items()}))
        assert {one.reason for one in found if one.session_id != "s"} == {RankingReason.MODEL}
        assert [one.reason for one in found if one.session_id == "s"][8:] == [RankingReason.NOT_FINITE] * (
            3 * len(beside)
        )
    assert came[0] == came[1]


async def test_a_variant_that_names_items_outside_its_vocabulary_leaves_its_sessions_to_the_champion(
    tmp_path: Path,
) -> None:
    model = open_bundle(TinyOutside(items=tuple("abcdefghijkl"), by=-12).write(tmp_path / "registry"))

    def split(live: LiveModel, metrics: Metrics) -> LiveSplit:
        return LiveSplit("champion", live, lambda _, of: cast(ModelWatcher, Watcher(of, model)), metrics)

    async with _running(tmp_path / "data", split=split) as running:
        cast(LiveSplit, running.app.pipeline._live).put(Split(app_id="nextclick", variants=(Variant("b", 100.0),)))
        for n in range(10):
            await running.take(("s", "abc"[n % 3]), at=n)
            await running.ended()
        found = [decode_ranking(value) for value in running.kafka.on_topic(RANKINGS)]
        assert [one.variant for one in found] == ["b"] * 8 + ["champion"] * 2
        assert {one.reason for one in found} == {RankingReason.MODEL}
        sample = running.metrics.registry.get_sample_value
        assert sample("nextclick_refused_bundles_total") == 1
        assert sample("nextclick_variant_fallbacks_total") == 2


async def test_a_swap_between_two_batches_that_are_begun(tmp_path: Path) -> None:
    second = exact_model("v2", tuple("abcdef"), salt=5)
    async with two_begun(tmp_path, lambda running: cast(LiveModel, running.app.pipeline._live).replace(second)) as (
        running,
        reads,
    ):
        kafka = running.kafka
        reads.leave.set()
        await running.ended()
        rankings = [decode_ranking(value) for value in kafka.on_topic(RANKINGS)]
        assert [one.model_version for one in rankings] == ["v1", "v1", "v2", "v2"]
        clicks = [SourcedClick(Click("s", item, timestamp=n), n) for n, item in enumerate("abcd")]
        expected = recommend({}, clicks, second, SessionRules())
        assert [item.score for item in rankings[-1].items] == list(expected.ranked[-1].top_score)
        row = running.app.sessions.states(CLICKS.partition, ["s"])["s"]
        assert row.hidden is not None
        assert row.hidden.tolist() == cast(Any, expected.rows["s"].hidden).tolist()


async def test_a_partition_lost_under_two_batches_that_are_begun(tmp_path: Path) -> None:
    async with two_begun(tmp_path) as (running, reads):
        kafka = running.kafka
        kafka.generation += 1
        reads.leave.set()
        await running.ended()
        assert running.dropped == 2
        assert (kafka.on_topic(CHANGELOG), kafka.acked, running.recent("s")) == ([], [], None)
        await running.take(("s", "a"), ("s", "b"), at=0, generation=kafka.generation)
        await running.ended()
        assert (running.recent("s"), kafka.acked) == (("a", "b"), [1])


async def test_nothing_is_computed_behind_a_batch_that_failed(tmp_path: Path) -> None:
    """Its rankings would come from sessions that lack the clicks before."""
    async with two_begun(tmp_path) as (running, reads):
        pipeline, kafka = running.app.pipeline, running.kafka
        reads.error = OSError("disk failure")
        reads.leave.set()
        await pipeline.drained()
        assert [str(error) for error in running.fatal] == ["disk failure"]
        assert (kafka.sent, kafka.acked, running.recent("s")) == ([], [], None)


async def test_few_clicks_wait_for_company_before_they_are_made_durable_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each partition costs a request and a write, however few its rows are."""
    monkeypatch.setattr(settling, "_COMPANY_SECONDS", 3600.0)
    async with _running(tmp_path, few=4) as running:
        kafka = running.kafka
        for n, item in enumerate("abc"):
            await running.take(("s", item), at=n)
            await running.settle()
        assert len(kafka.on_topic(RANKINGS)) == 3  # nobody waits for these
        assert (kafka.on_topic(CHANGELOG), kafka.acked, running.recent("s")) == ([], [], None)
        await running.take(("t", "d"), at=3)
        await running.ended()
        assert (len(kafka.on_topic(CHANGELOG)), kafka.acked) == (2, [0, 1, 2, 3])
        assert (running.recent("s"), running.recent("t")) == (("a", "b", "c"), ("d",))


async def test_few_clicks_wait_no_longer_than_that(tmp_path: Path) -> None:
    async with _running(tmp_path, few=100) as running:
        await running.take(("s", "a"), at=0)
        await running.ended()
        assert (running.recent("s"), running.kafka.acked) == (("a",), [0])


@pytest.mark.parametrize("who", ["a rebalance", "the next clicks"])
async def test_nobody_waits_for_clicks_that_wait_for_company(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    monkeypatch.setattr(settling, "_COMPANY_SECONDS", 3600.0)
    async with _running(tmp_path, few=100, chunk_clicks=1, chunks_in_flight=2) as running:
        for n, item in enumerate("ab"):
            await running.take(("s", item), at=n)
        await running.settle()
        assert running.kafka.acked == []
        async with asyncio.timeout(PATIENCE):
            if who == "a rebalance":
                await running.app.pipeline.drained()
                assert running.kafka.acked == [0, 1]
                await running.take(("s", "c"), at=2)  # and then they do again
                await running.settle()
                assert running.kafka.acked == [0, 1]
            else:
                await running.take(("s", "c"), at=2)
                await until(lambda: running.submitted == 3)
                assert running.kafka.acked[:1] == [0]


async def test_a_row_goes_to_the_changelog_partition_of_its_clicks(running: Running) -> None:
    await running.take(("s", "a"), at=0)
    await running.ended()
    assert [partition for topic, partition, _ in running.kafka.sent if topic == CHANGELOG] == [CLICKS.partition]


async def test_rankings_then_changelog_then_row_then_acknowledgement(running: Running) -> None:
    kafka = running.kafka
    kafka.held.update({RANKINGS, CHANGELOG})
    await running.take(("s", "a"), at=0)
    await running.settle()
    assert (len(kafka.on_topic(RANKINGS)), len(kafka.on_topic(CHANGELOG))) == (1, 0)
    kafka.held.discard(RANKINGS)
    kafka.waiting.pop(0)()
    await running.settle()
    assert len(kafka.on_topic(CHANGELOG)) == 1
    assert (running.recent("s"), kafka.acked) == (None, [])
    kafka.release()
    await running.ended()
    assert (running.recent("s"), kafka.acked) == (("a",), [0])


async def test_the_next_chunk_builds_on_rows_that_are_not_stored_yet(running: Running) -> None:
    running.kafka.held.add(RANKINGS)
    await running.take(("s", "a"), at=0)
    await running.take(("s", "b"), at=1)
    await running.settle()
    assert running.kafka.acked == []
    running.kafka.release()
    await running.ended()
    assert (running.recent("s"), running.kafka.acked) == (("a", "b"), [0, 1])


async def test_what_is_no_click_is_parked_and_acknowledged_with_its_chunk(running: Running) -> None:
    await running.take(b"{}", ("s", "a"), b"not json", at=5)
    await running.ended()
    parked = [decode_rejected(value) for value in running.kafka.on_topic(REJECTED)]
    assert [(one.reason, one.source.offset) for one in parked] == [("wrong-type", 5), ("not-json", 7)]
    assert (running.recent("s"), running.kafka.acked) == (("a",), [7])


async def test_what_is_in_flight_ends_though_a_click_waits_for_a_schema_when_the_worker_stops(running: Running) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def load(_: object) -> None:
        loop.call_soon_threadsafe(asked.set)
        raise StoppedWaitingError("stopped; the schema registry does not answer")

    running.kafka.held = {RANKINGS}
    await running.take(("s", "a"), at=0)
    await running.settle()
    running.app.pipeline._schemas = cast(Any, SimpleNamespace(missing=list, load=load))
    await running.take(("s", "b"), at=1)
    await asked.wait()
    running.kafka.release()
    async with asyncio.timeout(PATIENCE):
        while running.kafka.acked != [0]:
            await asyncio.sleep(0.005)
    assert (running.recent("s"), running.fatal) == (("a",), [])


async def test_redelivered_clicks_are_acknowledged_without_a_second_ranking(running: Running) -> None:
    await running.take(("s", "a"), ("s", "b"), at=0)
    await running.take(("s", "a"), ("s", "b"), at=0)
    await running.ended()
    assert len(running.kafka.on_topic(RANKINGS)) == 2
    assert (running.recent("s"), running.kafka.acked) == (("a", "b"), [1, 1])


async def test_sessions_whose_last_clicks_kafka_has_lost_begin_anew(running: Running) -> None:
    """Their rows say of the clicks that have come to these offsets that they are out."""
    await running.take(("s", "a"), at=5)
    await running.take(("t", "a"), ("t", "b"), at=49)
    await running.take(("u", "a"), at=57)
    await running.take(("v", "a"), at=90)
    await running.ended()
    running.kafka.clicks = {where: record for where, record in running.kafka.clicks.items() if where[1] < 50}
    written = Mock(wraps=running.app.sessions.write)
    running.app.sessions.write = written  # type: ignore[method-assign]
    with capture_logs() as logs:
        await running.take_chunks(running.chunk(*[(one, "c") for one in "tsuxt"], at=50, later=1000))
        await running.ended()
    assert [running.recent(one) for one in "stuv"] == [("a", "c"), ("c", "c"), ("c",), ("a",)]
    assert len(running.kafka.on_topic(RANKINGS)) == 5 + 5
    assert [(line["sessions"], line["first"]) for line in logs if "begin anew" in line["event"]] == [(2, 50)]
    # A restore keeps the row with the highest offset, unless it was deleted.
    changelog = running.kafka.on_topic(CHANGELOG)
    assert changelog[4:6] == [None, None]
    assert None not in changelog[6:]
    # Or the table takes the deletions for somebody else's records.
    assert [call.kwargs["deleted"] for call in written.call_args_list] == [2]
    assert sorted(row_offset(row) for row in changelog[6:]) == [51, 52, 53, 54]


async def test_whether_the_topic_has_the_click_of_a_row(running: Running) -> None:
    pipeline, click = running.app.pipeline, Click("s", "b", timestamp=BEGAN + 5)
    rules = SessionRules(advance_on=frozenset({"view"}))
    pipeline._settings = dataclasses.replace(pipeline._settings, rules=rules)
    row = SessionState("v1", offset=5, last_click=BEGAN + 5, clicks=2, recent=("a", "b"), hidden=None)
    for key, found, there in (
        (b"s", encode_click(click), True),
        (b"s", encode_click(replace(click, timestamp=BEGAN)), True),  # it came late
        (b"s", encode_click(replace(click, timestamp=BEGAN + 6)), False),
        (b"s", encode_click(replace(click, item_id="a")), False),
        (b"s", encode_click(replace(click, item_id="z", type="payment")), True),  # the row keeps its offset alone
        (b"t", encode_click(replace(click, session_id="t")), False),
        (b"s", b"{}", False),
        (b"s", b'{"session_id": "s", "action": "forget"}', True),
        (b"s", None, False),
    ):
        running.kafka.clicks[CLICKS, 5] = Record(5, timestamp=0, timestamp_type=0, key=key, value=found)
        assert pipeline._is_there(CLICKS, "s", row) is there, found
    running.kafka.clicks.clear()
    assert not pipeline._is_there(CLICKS, "s", row)


async def test_a_session_begins_anew_in_the_changelog_whatever_its_click_becomes_durable_with(running: Running) -> None:
    await running.take(("t", "a"), at=90)
    await running.ended()
    running.kafka.clicks.clear()
    running.kafka.held.add(RANKINGS)
    for chunk in (("s", "a"), ("s", "b"), ("t", "b")):
        await running.take(chunk, at=50 + running.taken)
        await running.settle()
    running.kafka.release()
    await running.ended()
    assert [row and row_offset(row) for row in running.kafka.on_topic(CHANGELOG)] == [90, 51, None, 52, 53]


async def test_a_later_click_of_the_same_session_is_not_the_one_of_its_row(running: Running) -> None:
    await running.take(("s", "a"), at=50)
    await running.ended()
    await running.take_chunks(running.chunk(("s", "b"), at=50, later=1000))
    await running.ended()
    assert running.recent("s") == ("b",)


async def test_rows_ahead_of_a_chunk_are_redelivered_clicks_while_the_topic_has_them(running: Running) -> None:
    """The furthest of them is looked up, and says it of all others."""
    clicks = [(session, item) for item in "ab" for session in "stu"]
    await running.take(*clicks, at=0)
    await running.ended()
    for at in (0, 2):
        await running.take_chunks(running.chunk(*clicks[at : at + 2], at=at))
        await running.ended()
    assert [running.recent(one) for one in "stu"] == [("a", "b")] * 3
    assert running.kafka.acked == [5, 1, 3]
    assert running.kafka.looked_up == [4, 5]


async def test_clicks_are_looked_up_beside_the_event_loop(running: Running) -> None:
    """It would stand still with it while a leader is away: no page of health, no signal."""
    for at in range(3):
        await running.take(("s", "a"), at=at)
        await running.ended()
    computing, again = running.app.pipeline._computing, GENERATION + 1
    computing._seconds_each = dict.fromkeys(computing._seconds_each, 1e-9)  # all calls are short
    running.kafka.generation, running.kafka.end = again, 3
    for at in range(1, 3):
        await running.take(("s", "a"), at=at, generation=again)
        await running.ended()
    assert running.kafka.looked_up_by
    assert threading.get_ident() not in running.kafka.looked_up_by
    submitted = computing._last
    await running.take(("s", "b"), at=3, generation=again)
    await running.ended()
    assert computing._last is submitted, "what is new is computed here"


async def test_what_may_have_to_wait_for_room_is_sent_beside_the_event_loop(running: Running) -> None:
    """It would stand still as long as Kafka confirms nothing."""
    for at in range(3):
        await running.take(("s", "a"), at=at)
        await running.ended()
    pipeline, here, sent_by = running.app.pipeline, threading.get_ident(), list[bool]()
    computing, settling = pipeline._computing, pipeline._settling
    computing._seconds_each = dict.fromkeys(computing._seconds_each, 1e-9)  # all calls are short
    for sender, name in ((pipeline, "_compute"), (settling, "_send_changelogs")):
        send = getattr(sender, name)

        def noted(*arguments: Any, send: Any = send) -> None:
            sent_by.append(threading.get_ident() == here)
            send(*arguments)

        setattr(sender, name, noted)
    for may_wait in (False, True):
        running.kafka.may_wait = may_wait
        await running.take(("s", "a"), at=running.taken)
        await running.ended()
    assert sent_by == [True, True, False, False]


@pytest.mark.parametrize("what", ["owns", "sending"])
async def test_what_is_taken_when_something_raises_is_not_in_flight_for_ever(tmp_path: Path, what: str) -> None:
    """Or a rebalance, and a stop, would wait for it."""
    async with _running(tmp_path) as running:

        def fail(*_: Any) -> Any:
            raise RuntimeError("on purpose")

        setattr(running.kafka, what, fail)
        await running.take_chunks(running.chunk(("s", "a"), at=0), running.chunk(("s", "b"), at=0, tp=TP("clicks", 3)))
        await until(lambda: bool(running.fatal))
        async with asyncio.timeout(PATIENCE):
            await running.app.pipeline.drained()
        assert [str(error) for error in running.fatal] == ["on purpose"]
        in_flight = running.app.pipeline.in_flight
        assert (in_flight.chunks, in_flight.clicks) == (0, 0)


async def test_a_stop_can_be_given_up_while_a_call_does_not_end(tmp_path: Path) -> None:
    """A call that hangs must not stop the event loop, which is what gives up."""
    async with _running(tmp_path) as running:
        reads = HeldReads(running.app.pipeline)
        await running.take(("s", "a"), at=0)
        await asyncio.to_thread(reads.entered.wait, PATIENCE)
        stopping = asyncio.create_task(running.app.pipeline.stop())
        await _until_idle(asyncio.get_running_loop())
        assert not stopping.done()  # and we got here
        reads.leave.set()
        await stopping


async def test_an_agent_that_is_cancelled_while_clicks_wait_for_room_ends_the_worker(tmp_path: Path) -> None:
    """Faust starts it anew with the clicks behind those, and a stop must not wait for what nobody holds."""
    async with _running(tmp_path, chunk_clicks=1, chunks_in_flight=1) as running:
        pipeline, kafka = running.app.pipeline, running.kafka
        kafka.held.add(RANKINGS)
        await running.take(("s", "a"), at=0)
        await running.settle()
        lost, behind = (running.chunk(("s", item), at=at) for at, item in enumerate("bc", start=1))
        waiting = asyncio.create_task(pipeline.submit(Fetch([(lost, cast(Any, None))])))
        await _until_idle(asyncio.get_running_loop())
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert pipeline.in_flight.chunks == 1
        kafka.release()
        await running.ended()
        await pipeline.submit(Fetch([(behind, cast(Any, None))]))
        async with asyncio.timeout(PATIENCE):
            await pipeline.drained()
        assert [type(error) for error in running.fatal] == [StalledError]
        assert (kafka.acked, running.recent("s")) == ([0], ("a",))


async def test_a_chunk_of_an_earlier_generation_leaves_no_trace(running: Running) -> None:
    await running.take(("s", "a"), at=0, generation=GENERATION - 1)
    await running.ended()
    assert running.dropped == 1
    assert (running.kafka.sent, running.kafka.acked, running.recent("s")) == ([], [], None)


async def test_a_partition_that_comes_back_in_the_same_generation_is_taken_up_again(running: Running) -> None:
    """As a static member's does: a chunk that was left must not hold up all that is fetched from then on."""
    kafka = running.kafka
    kafka.held.add(RANKINGS)
    await running.take(("s", "a"), at=0)
    await running.settle()
    kafka.generation = -1  # the broker has said that it does not know this member
    kafka.release()
    await running.ended()
    await running.app.pipeline.drained()  # the partitions are given back
    kafka.generation = GENERATION
    await running.take(("s", "a"), at=0)
    await running.ended()
    assert running.dropped == 1
    assert (running.recent("s"), kafka.acked) == (("a",), [0])


async def test_a_partition_lost_on_the_way_gets_neither_row_nor_acknowledgement(running: Running) -> None:
    running.kafka.held.add(RANKINGS)
    await running.take(("s", "a"), at=0)
    await running.settle()
    running.kafka.generation += 1
    running.kafka.release()
    await running.ended()
    assert running.dropped == 1
    assert running.kafka.on_topic(CHANGELOG) == []
    assert (running.recent("s"), running.kafka.acked) == (None, [])


@pytest.mark.parametrize("still_owned", [True, False])
@pytest.mark.parametrize("topic", [RANKINGS, CHANGELOG])
async def test_nothing_goes_on_while_another_worker_may_have_the_partition(
    running: Running, topic: str, still_owned: bool
) -> None:
    """It was cut off while the topic's records were on their way; what follows waits for the broker's word."""
    kafka = running.kafka
    kafka.held.add(topic)
    await running.take(("s", "a"), at=0)
    await until(lambda: bool(kafka.on_topic(topic)))
    kafka.overdue = True
    kafka.release()
    await running.settle()
    sent = 0 if topic == RANKINGS else 1
    assert (len(kafka.on_topic(CHANGELOG)), running.recent("s"), kafka.acked) == (sent, None, [])
    kafka.overdue = False
    if not still_owned:
        kafka.generation += 1
    await running.ended()
    assert running.dropped == (0 if still_owned else 1)
    assert (running.recent("s"), kafka.acked) == ((("a",), [0]) if still_owned else (None, []))


async def test_what_cannot_be_parked_is_not_acknowledged_and_ends_the_worker(running: Running) -> None:
    running.kafka.lost.add(REJECTED)
    await running.take(("s", "a"), b"{}", at=0)
    await running.take(("t", "b"), at=2)
    await running.app.pipeline.drained()
    assert (running.kafka.acked, running.recent("s"), running.recent("t")) == ([], None, None)
    assert [type(error) for error in running.fatal] == [DeliveryError]


@pytest.mark.parametrize("topic", [RANKINGS, CHANGELOG])
async def test_nothing_behind_a_chunk_that_failed_is_acknowledged(running: Running, topic: str) -> None:
    """Or the commit of a later chunk would be a commit of the failed one."""
    kafka = running.kafka
    kafka.held.add(RANKINGS)
    kafka.lost.add(topic)
    await running.take(("s", "a"), at=0)
    await running.settle()
    if topic == RANKINGS:
        kafka.lost.clear()  # the next chunk's rankings are delivered
    await running.take(("t", "b"), at=1)
    await running.settle()
    kafka.lost.add(topic)
    kafka.release()
    await running.app.pipeline.drained()
    assert (kafka.acked, running.recent("s"), running.recent("t")) == ([], None, None)
