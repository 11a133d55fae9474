"""Clicks and rankings in Avro, Protobuf and JSON Schema, by a real broker and a real registry (`make registry`)."""

import contextlib
import io
import json
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from rich.console import Console

from deploy.demo.oracle import read_topic
from schemas.config.settings import load_settings
from schemas.formats.codec import formats_of, schema_text
from schemas.formats.protobuf import message_class
from schemas.messages import examples
from schemas.messages.click import Click, encode_click
from schemas.messages.ranking import Ranking, encode_ranking
from schemas.messages.rejected import decode_rejected
from stream_app.settings import StreamSettings
from stream_app.tools.watch import watch
from tests.admin import delete_topics_of
from tests.conftest import KafkaUnderTest
from tests.faults.deployment import NEVER_TAKEN_FOR_DEAD, Deployment
from tests.integration.api import running_api, wait_until
from tests.integration.apicurio import Registry, apicurio
from tests.integration.redis_server import SERVER, RedisServer
from tests.integration.workers import BEGAN, ITEMS
from tests.stream_process import StreamProcess
from trainer.service.assembly import collect
from trainer.service.settings import TrainerRoot

WIRE: Final = "NEXTCLICK_SCHEMA_REGISTRY__"
GOOD: Final = ("old", "new", "protobuf", "json-schema", "json")
EACH: Final = 50


@dataclass
class Scene:
    """A worker with a registry, and what it was sent: the kind of each good record, the reason of each bad one."""

    deployment: Deployment
    registry: Registry
    sent: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.context = SerializationContext(self.deployment.topics.clicks, MessageField.VALUE)
        self.client = SchemaRegistryClient({"url": self.registry.url})

    @property
    def good(self) -> int:
        """Clicks."""
        return sum(self.sent[kind] for kind in GOOD)

    @property
    def bad(self) -> dict[str, int]:
        """Records that are none."""
        return {kind: count for kind, count in self.sent.items() if kind not in GOOD}

    def avro(self, *fields: str | dict[str, Any], subject: str = "clicks-value") -> AvroSerializer:
        """Of a schema that the shop has made: fields by name and type, or as Avro has them."""
        named = [{"name": one, "type": "string"} if isinstance(one, str) else one for one in fields]
        schema = {"type": "record", "name": "Viewed", "namespace": "shop", "fields": named}
        names = [one["name"] for one in named]
        return AvroSerializer(
            self.client,
            json.dumps(schema),
            lambda click, _: {name: click[name] for name in names},
            self.under(subject),
        )

    def under(self, subject: str) -> dict[str, Any]:
        """A serializer's configuration. A registry keeps schemas of one format under a subject."""
        return {"subject.name.strategy": lambda *_: f"{self.deployment.prefix}-{subject}"}

    def send(self, kind: str, serializer: Any, *, count: int = EACH, **fields: Any) -> None:
        """So many records, durable at the end."""
        for _ in range(count):
            n = self.sent.total()
            click = {"session_id": f"s{n % 7}", "item_id": ITEMS[n % len(ITEMS)], "timestamp": BEGAN + n} | fields
            message = message_class(Click)(**click) if isinstance(serializer, ProtobufSerializer) else click
            self.deployment.send_raw(f"s{n % 7}".encode(), serializer(message, self.context))
            self.sent[kind] += 1
        self.deployment.flush()

    def pause_registry(self, *, over: bool = False) -> None:
        """It answers nobody from now on, or answers again."""
        assert self.registry.process is not None
        self.registry.process.send_signal(signal.SIGCONT if over else signal.SIGSTOP)


def play(scene: Scene) -> None:
    """A schema that changes under load, around a registry that comes late and goes away."""
    deployment = scene.deployment
    deployment.announce(deployment.bundle("v1"))
    worker = deployment.start()
    with running_api(deployment.environment(), deployment.root, part="topics") as api:
        assert not api.is_ready("schema registry")
        deployment.wait(
            lambda: "does not answer" in (worker.ready() or {}).get("schema registry", ""), "it is waited for"
        )
        scene.registry.start()
        wait_until(api.is_ready, "the API takes clicks", seen=api.output)
        assert api.stop() == 0
    time = {"name": "timestamp", "type": {"type": "long", "logicalType": "timestamp-millis"}}
    old = scene.avro("session_id", "item_id", time)
    scene.send("old", old)
    deployment.wait_until_acknowledged()
    scene.pause_registry()
    scene.send("old", old)
    deployment.wait_until_acknowledged()  # a schema that is known needs no registry
    scene.pause_registry(over=True)
    new = scene.avro("session_id", "item_id", time, {"name": "type", "type": "string", "default": "view"})
    new({"session_id": "s", "item_id": "i", "timestamp": 1, "type": "cart"}, scene.context)  # registers, sends nothing
    scene.pause_registry()
    scene.send("new", new, type="cart")
    scene.send("old", old)
    assert deployment.committed() == 2 * EACH
    assert deployment.records(deployment.topics.rejected) == 0
    scene.pause_registry(over=True)
    deployment.wait_until_acknowledged()
    confluents = {"use.deprecated.format": False, **scene.under("protobuf")}
    scene.send("protobuf", ProtobufSerializer(message_class(Click), scene.client, confluents))
    as_it_is = lambda click, _: click  # noqa: E731
    text = schema_text(Click, "json-schema")
    scene.send("json-schema", JSONSerializer(text, scene.client, as_it_is, scene.under("json-schema")))
    scene.send("json", lambda click, _: encode_click(Click(**click)))
    scene.send("incompatible-schema", scene.avro("session_id", time, subject="other"))
    scene.send("unknown-schema", lambda *_: b"\0\x7f\0\0\1?", count=1)
    scene.send("malformed", lambda click, context: old(click, context)[:-3], count=1)
    deployment.wait_until_acknowledged()
    assert worker.stop() == 0


@pytest.fixture(scope="module")
def scene(kafka: KafkaUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    root, prefix = tmp_path_factory.mktemp("registry"), f"registry-{uuid.uuid4().hex[:8]}"
    with apicurio(root) as registry:
        wire = {f"{WIRE}URL": registry.url, f"{WIRE}CLICKS": "avro", f"{WIRE}RANKINGS": "avro"}
        deployment = Deployment(kafka.bootstrap_servers, prefix, root, ITEMS, extra={**NEVER_TAKEN_FOR_DEAD, **wire})
        scene = Scene(deployment, registry)
        try:
            play(scene)
            yield scene
        finally:
            scene.client.close()
            deployment.stop_all()
            delete_topics_of({"bootstrap.servers": kafka.bootstrap_servers}, prefix)


def test_a_schema_changes_under_load(scene: Scene) -> None:
    """Every click is answered, once, whatever schema it was written by; Confluent's deserializer reads the rankings."""
    topics = scene.deployment.topics
    read, context = AvroDeserializer(scene.client), SerializationContext(topics.rankings, MessageField.VALUE)
    records = read_topic(scene.deployment.connection.librdkafka(), topics.rankings)
    rankings: list[Any] = [read(record.value(), context) for record in records]
    assert len({(one["source"]["partition"], one["source"]["offset"]) for one in rankings}) == len(rankings)
    assert len(rankings) == scene.good == 7 * EACH
    assert Counter(one["type"] for one in rankings) == {"cart": EACH, None: 6 * EACH}


def test_what_no_schema_makes_a_click_of_is_rejected(scene: Scene) -> None:
    records = read_topic(scene.deployment.connection.librdkafka(), scene.deployment.topics.rejected)
    rejected = [decode_rejected(record.value() or b"") for record in records]
    assert Counter(one.reason.value for one in rejected) == scene.bad
    assert all("item_id" in one.detail for one in rejected if one.reason == "incompatible-schema")


def test_commands_read_the_same(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_settings(StreamSettings, config=None, environ=scene.deployment.environment())
    quiet = Console(file=io.StringIO())
    code = watch(settings, session_id=None, limit=scene.good, from_beginning=True, json=True, out=quiet, err=quiet)
    assert code == 0
    assert capsys.readouterr().out.count('"model_version":"v1"') == scene.good


def test_the_trainer_collects_the_same(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = scene.deployment.environment() | {"NEXTCLICK_TRAINER__LOG_DIR": str(tmp_path)}
    slept: list[float] = []
    with monkeypatch.context() as patched:
        patched.setattr("schemas.formats.registry.time.sleep", slept.append)
        away = load_settings(TrainerRoot, config=None, environ=environ | {f"{WIRE}URL": "http://127.0.0.1:1"})
        waiting = collect(away, once=False, stopping=lambda: bool(slept))
    assert (waiting.clicks, slept) == (0, [1.0]), "told to stop while it waits for the registry, it ends"
    root = load_settings(TrainerRoot, config=None, environ=environ)
    collected = collect(root, once=True, stopping=lambda: False)
    assert collected.clicks == scene.good
    assert collected.rejected == scene.bad


def test_the_registry_takes_our_other_schemas(scene: Scene) -> None:
    settings = load_settings(StreamSettings, config=None, environ=scene.deployment.environment())
    context = SerializationContext("rankings", MessageField.VALUE)
    values = {}
    for format_ in ("protobuf", "json-schema"):
        told = settings.schema_registry.model_copy(update={"rankings": format_})
        codec = formats_of(told, settings.topics, rankings=f"{scene.deployment.prefix}-{format_}").rankings
        values[format_] = codec.to_wire(encode_ranking(examples.RANKING))
        assert codec.to_json(values[format_]) == encode_ranking(examples.RANKING)
    message = ProtobufDeserializer(message_class(Ranking), {"use.deprecated.format": False})(
        values["protobuf"], context
    )
    assert [item.item_id for item in message.items] == [item.item_id for item in examples.RANKING.items]
    found = JSONDeserializer(schema_text(Ranking, "json-schema"))(values["json-schema"], context)
    assert found["model_version"] == examples.RANKING.model_version


@pytest.mark.skipif(SERVER is None, reason="needs redis-server or valkey-server, of the distribution")
@pytest.mark.parametrize(("format_", "kind"), [("avro", "AVRO"), ("protobuf", "PROTOBUF"), ("json-schema", "JSON")])
def test_every_process_writes_and_reads_it(scene: Scene, tmp_path: Path, format_: str, kind: str) -> None:
    """Clicks from the API, their rankings and those of a shadow, to the API again, a sink and both scorers."""
    wire = {f"{WIRE}URL": scene.registry.url, f"{WIRE}CLICKS": format_, f"{WIRE}RANKINGS": format_}
    prefix, extra = f"{scene.deployment.prefix}-all-{format_}", {**NEVER_TAKEN_FOR_DEAD, **wire}
    deployment = Deployment(scene.deployment.bootstrap, prefix, tmp_path, ITEMS, extra=extra)
    deployment.use_splits()
    topics = deployment.topics
    for version, alias in (("v1", "champion"), ("v2", "next")):
        deployment.announce(deployment.bundle(version), alias=alias)
    deployment.split("next")
    with contextlib.ExitStack() as ends:
        ends.callback(deployment.stop_all)
        deployment.start_ready()
        store = RedisServer(tmp_path)
        store.start()
        ends.callback(store.stop)
        own = {
            "NEXTCLICK_API__STORE_URL": store.url,
            "NEXTCLICK_API__MAX_WAIT": "300s",
            "NEXTCLICK_SCORES__INTERVAL": "0.1",
        }

        def start(*command: str) -> StreamProcess:
            name = "-".join(command)
            started = StreamProcess.start(
                *command,
                log=tmp_path / f"{name}.log",
                data_dir=tmp_path / name,
                environment=deployment.environment() | own,
            )
            ends.callback(started.kill)
            wait_until(started.is_ready, f"{name} ready", seen=started.output)
            return started

        api = ends.enter_context(running_api(deployment.environment() | own, tmp_path))
        sink, scorer, of_shadows = start("sink"), start("score"), start("score", "--shadows")
        told: dict[str, bytes] = {}

        def shadows_rank_too() -> bool:
            for session in ("a", "b", "c"):
                click = {"session_id": session, "item_id": ITEMS[len(told)], "timestamp": time.time_ns() // 1_000_000}
                answer = api.post("/v1/clicks?wait=300s", click)
                assert answer.status_code == 200, answer.text
                told[session] = answer.content
            return deployment.records(topics.rankings_shadow) > 3

        deployment.wait(shadows_rank_too, "shadows rank, too")  # not what came before they had their model
        deployment.wait(lambda: store.rankings() == told, "the store has the last ranking of each session")
        assert {session: api.get(f"/v1/sessions/{session}/ranking").content for session in told} == told
        for process, name, topic in (
            (scorer, "scores", topics.rankings),
            (of_shadows, "scores", topics.rankings_shadow),
            (sink, "sink", topics.rankings),
        ):
            wait_until_read(deployment, process, name, topic)
            assert process.stop() == 0
        assert api.stop() == 0
    for topic in (topics.clicks, topics.rankings, topics.rankings_shadow):
        values = [record.value() or b"" for record in read_topic(deployment.connection.librdkafka(), topic)]
        (head,) = {value[:5] for value in values}
        assert head[:1] == b"\0"
        assert scene.client.get_schema(int.from_bytes(head[1:], "big")).schema_type == kind


def wait_until_read(deployment: Deployment, process: StreamProcess, name: str, topic: str) -> None:
    """Until a process has counted or stored every record of a topic of rankings, and each was one to it."""
    wait_until(
        lambda: process.metric(f"nextclick_{name}_rankings_total") == deployment.records(topic),
        f"{topic} read",
        seen=process.output,
    )
    assert process.metric(f"nextclick_{name}_unreadable_total") == 0
