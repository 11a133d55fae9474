"""What may be acknowledged, with the whole pipeline on a real Kafka and deliveries that fail where the test says."""

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from deploy.demo.oracle import read_topic
from schemas.kafka.record_headers import headers_of
from schemas.messages.click import Click, encode_click
from schemas.messages.rejected import decode_rejected
from stream_app.errors import DeliveryError, StalledError
from stream_app.serve.delivery import Delivery, Sending
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.doc_pages import blocks
from tests.integration.workers import BEGAN, ITEMS, Group, running, until
from tests.patience import PATIENCE
from tests.told_spans import in_memory, parents, traces


class LostSending(Sending):
    """A batch that the broker never confirms, though later ones go through: one partition's leader is away."""

    async def delivered(self) -> int:
        await super().delivered()
        await asyncio.sleep(0.3)  # so that the chunks behind it are on their way too
        raise DeliveryError("not confirmed, on purpose")


class FirstSendingIsLost(Delivery):
    """Loses the rankings of the first chunk."""

    lost = False

    def sending(self) -> Sending:
        if self.lost:
            return super().sending()
        self.lost = True
        return LostSending(self._producer, asyncio.get_running_loop())


@pytest.fixture
def group(kafka: KafkaUnderTest, topic_prefix: str) -> Group:
    return Group(kafka.bootstrap_servers, topic_prefix)


async def test_nothing_behind_a_chunk_that_failed_is_acknowledged(group: Group, tmp_path: Path) -> None:
    """Or the commit of a later chunk would take the lost one with it, and its clicks would never be ranked."""
    group.produce(40)
    async with running(group.settings(tmp_path, chunk_clicks=10), delivery_type=FirstSendingIsLost) as worker:
        await until(lambda: bool(worker.errors), "the failure is told")
        async with asyncio.timeout(PATIENCE):
            await worker.app.pipeline.drained()
        await worker.consumer.commit()
    assert [type(error) for error in worker.errors] == [DeliveryError]
    assert group.committed() is None
    assert group.marks(group.changelog) == (0, 0)

    async with running(group.settings(tmp_path, chunk_clicks=10)) as worker:  # as its supervisor starts it again
        await until(lambda: worker.metrics.registry.get_sample_value("nextclick_clicks_total") == 40, "all again")
        await until(lambda: not worker.app.pipeline.in_flight.chunks, "all acknowledged")
        assert worker.metrics.registry.get_sample_value("nextclick_redelivered_total") == 0
    assert worker.errors == []
    assert group.committed() == 40


async def test_no_session_id_reaches_what_the_store_keeps_beside_the_rows(group: Group, tmp_path: Path) -> None:
    """Producers choose session ids: one that is the name of Faust's own key must be a session like any other."""
    for session in ("__faust\0offset__", "__faust\0offset__", "s"):
        group.produce(5, session=session, start=0)
    async with running(group.settings(tmp_path, chunk_clicks=5)) as worker:
        await until(lambda: bool(worker.errors) or group.committed() == 15, "all acknowledged")
        assert worker.errors == []
        states = worker.app.sessions.states(0, ["__faust\0offset__", "s"])
        assert {session: state.clicks for session, state in states.items()} == {"__faust\0offset__": 10, "s": 5}


async def test_an_agent_that_is_cancelled_over_a_chunk_ends_the_worker(group: Group, tmp_path: Path) -> None:
    """Faust starts it anew; but no chunk may pass the one that it dropped, or its clicks would never be ranked."""
    # One click at a time: how many a fetch brings of more depends on when it comes.
    async with running(group.settings(tmp_path, chunk_clicks=1, chunks_in_flight=1)) as worker:
        await worker.ready()
        entered, leave, compute = threading.Event(), threading.Event(), worker.app.pipeline._compute

        def compute_slowly(*args: Any) -> Any:
            entered.set()
            leave.wait(PATIENCE)
            return compute(*args)

        worker.app.pipeline._compute = compute_slowly  # type: ignore[method-assign, assignment]
        group.produce(3)
        await until(
            lambda: entered.is_set() and worker.app.pipeline.in_flight.chunks == 2, "a chunk waits behind another"
        )
        [agent] = worker.app.agents.values()
        for actor in agent._actors:
            actor.actor_task.cancel()
        await until(lambda: bool(worker.errors), "the failure is told")
        leave.set()
        async with asyncio.timeout(PATIENCE):
            await worker.app.pipeline.drained()
        await worker.consumer.commit()
        assert {type(error) for error in worker.errors} == {StalledError}
    assert group.committed() in {None, 1}


async def test_rankings_and_rejected_records_tell_of_themselves_in_headers(group: Group, tmp_path: Path) -> None:
    """Content type, model, the trace of the click that goes on; and what went wrong, as Kafka Streams tells it."""
    trace = [("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("tracestate", b"shop=1")]
    group.produce(1, session="untraced")
    producer, click = group.producer(), Click("traced", ITEMS[0], BEGAN)
    producer.produce(group.topics.clicks, encode_click(click), b"traced", 0, headers=[*trace, ("other", b"stays")])
    producer.produce(group.topics.clicks, b"no click", b"bad", 0, headers=trace)
    assert producer.flush(PATIENCE) == 0
    async with running(group.settings(tmp_path, headers=True)) as worker:
        await until(lambda: bool(worker.errors) or group.committed() == 3, "all acknowledged")
        assert worker.errors == []
    config = group.connection.librdkafka()
    headers = {record.key(): record.headers() for record in read_topic(config, group.topics.rankings)}
    common = [("content-type", b"application/json"), ("nextclick-model", b"v1")]
    assert headers == {b"untraced": common, b"traced": common + trace}
    [rejected] = read_topic(config, group.topics.rejected)
    assert dict(rejected.headers() or ()) == {
        "content-type": b"application/json",
        "__streams.errors.exception": b"not-json",
        "__streams.errors.message": decode_rejected(rejected.value() or b"").detail.encode(),
        "__streams.errors.topic": group.topics.clicks.encode(),
        "__streams.errors.partition": b"0",
        "__streams.errors.offset": b"2",
    }


class NoText(str):
    """A header's name as clients write it that know bytes alone."""

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


async def test_a_click_with_a_header_whose_name_is_no_utf_8_is_ranked(group: Group, tmp_path: Path) -> None:
    producer = KafkaProducer(bootstrap_servers=group.connection.bootstrap_servers)
    headers = [("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), (NoText("x"), b"")]
    click = encode_click(Click("s", ITEMS[0], BEGAN))
    producer.send(group.topics.clicks, click, b"s", headers=headers, partition=0).get(PATIENCE)
    producer.close()
    async with running(group.settings(tmp_path, headers=True)) as worker:
        await until(lambda: bool(worker.errors) or group.committed() == 1, "it is acknowledged")
        assert worker.errors == []
    [ranking] = read_topic(group.connection.librdkafka(), group.topics.rankings)
    assert [name for name, _ in ranking.headers() or ()] == ["content-type", "nextclick-model"]
    [record] = read_topic(group.connection.librdkafka(), group.topics.clicks)
    assert [headers_of(record), headers_of(record)] == [(), ()]


async def test_one_trace_from_the_producer_of_a_click_to_the_consumer_of_its_ranking(
    group: Group, tmp_path: Path
) -> None:
    """Where the trace is sampled; the headers of others are passed on, whatever they hold."""
    tracing, memory = in_memory()
    shop: dict[str, Any] = {}
    (example,) = blocks(REPOSITORY / "docs" / "tracing.md", "python")
    exec(example, shop)
    shop["tracer"] = tracing._provider.get_tracer("shop")
    producer, topics = group.producer(), group.topics
    shop["send_click"](producer, topics.clicks, encode_click(Click("sampled", ITEMS[0], BEGAN)), b"sampled")
    others = {
        b"unsampled": [("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")],
        b"malformed": [("traceparent", b"\xff-01"), ("tracestate", b"\xff")],
        b"untraced": None,
    }
    for key, headers in others.items():
        producer.produce(topics.clicks, encode_click(Click(key.decode(), ITEMS[0], BEGAN)), key, headers=headers)
    with tracing.sending("somewhere") as bad:
        producer.produce(topics.clicks, b"no click", b"bad", headers=bad)
    assert producer.flush(PATIENCE) == 0
    async with running(group.settings(tmp_path), tracing=tracing) as worker:
        clicks = partial(worker.metrics.registry.get_sample_value, "nextclick_clicks_total")
        pipeline = worker.app.pipeline
        await until(lambda: clicks() == 5 and not pipeline.in_flight.chunks, "all acknowledged")
        assert worker.errors == []
    rankings = {record.key(): record for record in read_topic(group.connection.librdkafka(), topics.rankings)}
    assert {key: rankings[key].headers() for key in others} == others
    shop["take_ranking"](rankings[b"sampled"])

    whole, rejected = sorted(traces(memory), key=len, reverse=True)
    read, ranked = f"process {topics.clicks}", f"send {topics.rankings}"
    assert parents(whole) == {
        f"send {topics.clicks}": None,
        read: f"send {topics.clicks}",
        "compute": read,
        ranked: read,
        f"process {topics.rankings}": ranked,
    }
    process, compute, send = whole[read], whole["compute"], whole[ranked]
    told = [process.start_time, compute.start_time, compute.end_time, send.start_time, send.end_time, process.end_time]
    assert told == sorted(told, key=lambda at: at or 0)
    assert process.attributes is not None
    assert process.attributes["messaging.consumer.group.name"] == group.prefix
    assert (process.attributes["nextclick.model_version"], process.attributes["nextclick.reason"]) == ("v1", "model")
    assert parents(rejected) == {"send somewhere": None, read: "send somewhere"}
    assert (rejected[read].attributes or {})["error.type"] == "not-json"
