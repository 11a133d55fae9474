"""Each format against Confluent's own serializers, and what becomes of records that no schema makes a message of."""

import json
from collections import Counter
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from confluent_kafka.schema_registry import (
    Schema,
    SchemaReference,
    SchemaRegistryError,
    header_schema_id_serializer,
)
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st

from schemas.config.schema_registry_settings import SchemaRegistrySettings
from schemas.errors import SchemaRegistryError as RegistryAwayError
from schemas.formats import codec as codecs
from schemas.formats.codec import PLAIN, RegistryCodec, formats_of, schema_text
from schemas.formats.protobuf import message_class
from schemas.formats.structs import fields_of, messages_of
from schemas.formats.unreadable import UnreadableError
from schemas.kafka.connection import TopicSettings
from schemas.messages import examples
from schemas.messages.click import OWN_KEY, Click, ClickLimits, ClickRejectedError, RejectReason, encode_click
from schemas.messages.ranking import Applied, Diversified, Ranking, decode_ranking, encode_ranking
from tests.unit.registry import SETTINGS, Registry

FORMATS = ("avro", "protobuf", "json-schema")
NOW = 1_767_225_700_000
WITH_EVERYTHING = msgspec.structs.replace(
    examples.RANKING,
    event_id=None,
    rules=("summer-sale",),
    applied=Applied(-1, 0),
    diversity=(Diversified.MMR,),
    type="cart",
    market="de",
    variant="shadow:b",
    follows=-1,
)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr("schemas.formats.registry.time.sleep", lambda _: None)
    return Registry()


def decoded(codec: RegistryCodec, value: bytes, limits: ClickLimits | None = None) -> Click:
    """As workers, trainer and commands decode it."""
    return codecs._decode_framed(codec, OWN_KEY, value, now_ms=NOW, limits=limits or ClickLimits())


def context(topic: str) -> SerializationContext:
    return SerializationContext(topic, MessageField.VALUE)


@pytest.mark.parametrize("ranking", [examples.RANKING, WITH_EVERYTHING], ids=["few-fields", "all-fields"])
@pytest.mark.parametrize("format_", FORMATS)
def test_confluent_reads_our_rankings_and_so_do_we(registry: Registry, format_: str, ranking: Ranking) -> None:
    codec = RegistryCodec(Ranking, format_, "rankings", registry)
    value = codec.to_wire(encode_ranking(ranking))
    if format_ == "avro":
        told: Any = AvroDeserializer(registry.client)(value, context("rankings"))
    elif format_ == "protobuf":
        kind = message_class(Ranking)
        message = ProtobufDeserializer(kind, {"use.deprecated.format": False})(value, context("rankings"))
        told = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    else:
        told = JSONDeserializer(schema_text(Ranking, "json-schema"))(value, context("rankings"))
    assert msgspec.convert({"event_id": None} | told, Ranking, strict=False) == ranking  # numbers as text, in one
    assert registry.client.get_subjects() == ["rankings-value"]
    assert codec.to_json(value) == encode_ranking(ranking)
    assert decode_ranking(codec.to_json(value)) == ranking


AVRO_OF_A_SHOP = {
    "type": "record",
    "name": "Viewed",
    "namespace": "com.example.shop",
    "fields": [
        {"name": "shop", "type": {"type": "enum", "name": "Shop", "symbols": ["EU", "US"]}},
        {"name": "item_id", "type": "string"},
        {"name": "session_id", "type": ["null", "string"]},
        {"name": "timestamp", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "event_id", "type": ["null", "string"], "default": None},
    ],
}


def test_clicks_of_confluents_serializers(registry: Registry) -> None:
    click = msgspec.structs.replace(examples.CLICK, market="de")
    fields: dict[str, Any] = {name: getattr(click, name) for name in Click.__struct_fields__}
    to_dict = lambda found, _: found  # noqa: E731
    serializers = [
        AvroSerializer(registry.client, schema_text(Click, "avro"), to_dict),
        JSONSerializer(schema_text(Click, "json-schema"), registry.client, to_dict),
        ProtobufSerializer(message_class(Click), registry.client, {"use.deprecated.format": False}),
    ]
    codec = RegistryCodec(Click, "avro", "clicks", registry)
    for serializer in serializers:
        message = message_class(Click)(**fields) if isinstance(serializer, ProtobufSerializer) else fields
        assert decoded(codec, serializer(message, context("clicks"))) == click
    own = AvroSerializer(registry.client, json.dumps(AVRO_OF_A_SHOP), to_dict)
    theirs = own(fields | {"shop": "EU"}, context("clicks"))
    assert decoded(codec, theirs) == Click(click.session_id, click.item_id, click.timestamp, click.event_id)
    assert decoded(codec, encode_click(click)) == click  # of a producer that has not changed over yet


def test_a_schema_that_refers_to_others(registry: Registry) -> None:
    named = {"type": "record", "name": "Id", "namespace": "shop", "fields": [{"name": "text", "type": "string"}]}
    outer = {
        "type": "record",
        "name": "Click",
        "fields": [
            {"name": "shop", "type": "shop.Id"},
            {"name": "session_id", "type": "string"},
            {"name": "item_id", "type": "string"},
            {"name": "timestamp", "type": "long"},
        ],
    }
    registry.client.register_schema("id", Schema(json.dumps(named), "AVRO"))
    schema = Schema(json.dumps(outer), "AVRO", [SchemaReference("shop.Id", "id", 1)])
    fields = {"shop": {"text": "eu"}, "session_id": "s", "item_id": "i", "timestamp": NOW}
    serializer = AvroSerializer(registry.client, schema, lambda found, _: found)
    codec = RegistryCodec(Click, "avro", "clicks", registry)
    assert decoded(codec, serializer(fields, context("clicks"))) == Click("s", "i", NOW)


def test_a_click_that_is_not_the_first_message_of_its_file(registry: Registry) -> None:
    codec = RegistryCodec(Click, "protobuf", "clicks", registry)
    value = codec.to_wire(encode_click(examples.CLICK))
    assert value[5:6] == b"\0"  # the short form of the first
    assert decoded(codec, value[:5] + b"\x02\x04" + value[6:]) == examples.CLICK
    assert decoded(codec, value[:5] + b"\x04\x80\x02\x00" + value[6:]) == examples.CLICK


def avro(fields: list[dict[str, Any]]) -> Schema:
    return Schema(json.dumps({"type": "record", "name": "Click", "fields": fields}), "AVRO")


TEXT, NUMBER = {"type": "string"}, {"type": "long"}
WHOLE = [{"name": "session_id", **TEXT}, {"name": "item_id", **TEXT}, {"name": "timestamp", **NUMBER}]
NULLS = {"type": {"type": "array", "items": "null"}}
ENDLESS = b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f"  # a list of 2**62 elements
WITHIN = {"type": ["null", "Click"]}
NOTHING = {"type": "record", "name": "Nothing", "fields": []}
TWICE = {"type": {"type": "record", "name": "Twice", "fields": [{"name": "n", "type": NOTHING}]}}
PROTO = Schema(schema_text(Click, "protobuf"), "PROTOBUF")


@pytest.mark.parametrize(
    ("schema", "payload", "reason", "detail"),
    [
        (None, b"\0\0\0", RejectReason.MALFORMED, "ends within the id"),
        (None, b"\0\0\0\0\x63abc", RejectReason.UNKNOWN_SCHEMA, "no schema 99"),
        (avro(WHOLE), b"\x02s\x02", RejectReason.MALFORMED, "not what its Avro schema says"),
        (avro(WHOLE), b"\x02s\x02\xff\x00", RejectReason.MALFORMED, "not what its Avro schema says"),
        (avro(WHOLE[:2]), b"\x02s\x02i", RejectReason.INCOMPATIBLE_SCHEMA, "timestamp"),
        (avro([*WHOLE[:2], {"name": "timestamp", **TEXT}]), b"\x02s\x02i\x021", RejectReason.INCOMPATIBLE_SCHEMA, ""),
        (Schema('"string"', "AVRO"), b"\x02s", RejectReason.INCOMPATIBLE_SCHEMA, "not of a record"),
        (Schema("{", "AVRO"), b"\x02s", RejectReason.INCOMPATIBLE_SCHEMA, "no usable Avro schema"),
        (Schema('{"type": "record", "fields": []}', "AVRO"), b"", RejectReason.INCOMPATIBLE_SCHEMA, "no usable Avro"),
        (Schema('{"type": "record", "name": 5}', "AVRO"), b"", RejectReason.INCOMPATIBLE_SCHEMA, "no usable Avro"),
        (Schema("[" * 100_000, "AVRO"), b"", RejectReason.INCOMPATIBLE_SCHEMA, "no usable Avro schema"),
        (avro([{"name": "a", **WITHIN}, *WHOLE]), b"\x02" * 50, RejectReason.INCOMPATIBLE_SCHEMA, "inside itself"),
        (avro([{"name": "a", **NULLS}, *WHOLE]), ENDLESS, RejectReason.INCOMPATIBLE_SCHEMA, "take no bytes"),
        (avro([{"name": "a", **TWICE}, *WHOLE]), b"", RejectReason.INCOMPATIBLE_SCHEMA, "takes no bytes"),
        (PROTO, b"\0\xff", RejectReason.MALFORMED, "no Protobuf message"),
        (PROTO, b"\xff\xff\xff\xff\xff\xff", RejectReason.MALFORMED, "the path to"),
        (PROTO, b"\x02", RejectReason.MALFORMED, "the path to"),
        (PROTO, b"\0\x0a\x01s\x12\x01i\x1a\x011", RejectReason.INCOMPATIBLE_SCHEMA, "timestamp (field 3) has another"),
        (PROTO, b"\0\x0a\x01s\x12\x01i", RejectReason.BAD_TIMESTAMP, ""),
        (Schema("{}", "JSON"), b"{", RejectReason.NOT_JSON, ""),
        (avro(WHOLE), b"\0" * 100, RejectReason.TOO_LARGE, "105 bytes, the limit is 64"),
    ],
)
def test_what_is_no_click_is_rejected_with_its_reason(
    registry: Registry, schema: Schema | None, payload: bytes, reason: RejectReason, detail: str
) -> None:
    codec = RegistryCodec(Click, "avro", "clicks", registry)
    if schema is not None:
        payload = b"\0" + registry.client.register_schema("clicks-value", schema).to_bytes(4, "big") + payload
    with pytest.raises(ClickRejectedError) as told:
        decoded(codec, payload, ClickLimits(max_bytes=64))
    assert told.value.reason == reason
    assert detail in told.value.detail


KNOWN = Registry()
CODECS = {format_: RegistryCodec(Click, format_, "clicks", KNOWN) for format_ in FORMATS}


@given(st.binary(max_size=60), st.sampled_from(FORMATS))
def test_whatever_the_bytes_are(data: bytes, format_: str) -> None:
    codec = CODECS[format_]
    head = codec.to_wire(encode_click(examples.CLICK))[:5]
    for value in (head + data, head + b"\0" + data):
        with suppress(ClickRejectedError):  # and nothing else
            decoded(codec, value)


def test_an_unknown_schema_is_asked_for_again_after_a_while(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("schemas.formats.codec.time.monotonic", lambda: now[0])
    codec = RegistryCodec(Click, "json-schema", "clicks", registry)
    values = [b"\0\0\0\0\x01{}", None, b"{}", b"\0\0"]
    codec.ready(values)
    codec.ready(values)
    assert registry.asked == [1, 1], "twice: a replica may be behind"
    registry.client.register_schema("clicks-value", Schema("{}", "JSON"))
    with pytest.raises(UnreadableError):
        codec.to_json(b"\0\0\0\0\x01{}")
    now[0] += 6
    codec.ready([*values, b"\0\0\0\0\x02{}"])
    codec.ready(values)
    assert Counter(registry.asked) == {1: 3, 2: 1}, "not twice again so soon"
    assert codec.to_json(b"\0\0\0\0\x01{}") == b"{}"


def test_a_replica_that_is_behind_is_waited_for(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = Schema("{}", "JSON")
    monkeypatch.setattr(
        "schemas.formats.codec.time.sleep", lambda _: registry.client.register_schema("clicks-value", schema)
    )
    codec = RegistryCodec(Click, "json-schema", "clicks", registry)
    codec.ready([b"\0\0\0\0\x01{}"])
    assert codec.to_json(b"\0\0\0\0\x01{}") == b"{}"


def test_json_is_read_whose_schema_is_in_a_header(registry: Registry) -> None:
    settings = {"schema.id.serializer": header_schema_id_serializer}
    serializer = JSONSerializer(schema_text(Click, "json-schema"), registry.client, lambda found, _: found, settings)
    headers: list[tuple[str, bytes]] = []
    fields = {"session_id": "s", "item_id": "i", "timestamp": NOW}
    value = serializer(fields, SerializationContext("clicks", MessageField.VALUE, headers))
    assert [name for name, _ in headers] == ["__value_schema_id"]
    assert decoded(RegistryCodec(Click, "json-schema", "clicks", registry), value) == Click("s", "i", NOW)


def test_a_registry_that_is_away_is_waited_for(registry: Registry) -> None:
    codec = RegistryCodec(Click, "json-schema", "clicks", registry)
    value = codec.to_wire(encode_click(examples.CLICK))
    registry.away = [SchemaRegistryError(503, -1, "starting"), ConnectionError("refused")]
    assert decoded(codec, value) == examples.CLICK
    assert registry.asked == [1, 1, 1]
    assert registry.waiting_for is None


def test_waiting_ends(registry: Registry) -> None:
    codec = RegistryCodec(Click, "json-schema", "clicks", registry)
    registry.away = [ConnectionError("refused")] * 2
    registry._settings = SETTINGS.model_copy(update={"timeout": 0.0})
    with pytest.raises(RegistryAwayError, match=r"does not answer for schema 1: ConnectionError.*gave up after"):
        codec.to_json(b"\0\0\0\0\x01{}")
    assert registry.waiting_for is not None
    registry._stopping = lambda: True
    with pytest.raises(RegistryAwayError, match="stopped"):
        codec.to_json(b"\0\0\0\0\x01{}")
    for refusal in (SchemaRegistryError(401, 40101, "who?"), SchemaRegistryError(404, -1, "no such page")):
        registry.away = [refusal]  # neither passes by waiting, nor is the record to blame
        with pytest.raises(RegistryAwayError, match=r"refuses schema 1: 40[14]"):
            codec.to_json(b"\0\0\0\0\x01{}")


def test_schemas_that_are_registered_by_hand() -> None:
    registry = Registry(register_schemas=False)
    codec = RegistryCodec(Ranking, "avro", "rankings", registry)
    with pytest.raises(RegistryAwayError, match="our schema of the subject rankings-value"):
        codec.start()
    registry.client.register_schema("rankings-value", Schema(schema_text(Ranking, "avro"), "AVRO"))
    assert codec.to_wire(encode_ranking(examples.RANKING))[:5] == b"\0\0\0\0\x01"


def test_fields_are_only_added_and_at_the_end() -> None:
    """A field's number in Protobuf is its place."""
    known = {
        "Click": "session_id item_id timestamp event_id type market",
        "Ranking": "session_id event_id item_id model_version items source click_timestamp produced_at reason rules "
        "applied diversity type market variant follows",
        "RankedItem": "item_id score",
        "Source": "topic partition offset",
        "Applied": "items rules",
    }
    for kind in (*messages_of(Click), *messages_of(Ranking)):
        names = known.pop(kind.__name__).split()
        assert [field.name for field in fields_of(kind)][: len(names)] == names
    assert not known


def test_without_a_registry_nothing_changes() -> None:
    assert formats_of(SchemaRegistrySettings(), TopicSettings()) is PLAIN
    assert PLAIN.rankings.to_wire(b"{}") == PLAIN.rankings.to_json(b"{}") == b"{}"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"clicks": "avro"}, "clicks = 'avro' needs url"),
        ({"url": "http://r"}, "url without a format"),
        ({"url": "r:8081", "clicks": "avro"}, "url must be http"),
        ({"url": "http://user:secret@r", "clicks": "avro"}, "username and password"),
        ({"url": "http://r", "clicks": "avro", "username": "u"}, "go together"),
        ({"url": "http://r", "clicks": "avro", "ssl_key_location": "k"}, "mTLS"),
        ({"url": "http://r", "clicks": "avro", "timeout": 241}, "less than or equal to 240"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        SchemaRegistrySettings(**settings)
