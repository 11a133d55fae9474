"""Whatever schema a registry has under an id: records are read by it, or rejected with a reason."""

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from schemas.formats.avro import avro_reader, avro_schema
from schemas.formats.protobuf import protobuf_reader, protobuf_writer
from schemas.formats.unreadable import UnreadableError
from schemas.messages import examples
from schemas.messages.click import Click, encode_click
from schemas.messages.ranking import Ranking, encode_ranking
from tests.unit.odd_bytes import odd_json
from tests.unit.schemas.formats.test_codec import AVRO_OF_A_SHOP
from tests.unit.test_decoders import damaged

INNER = {"type": "record", "name": "Id", "namespace": "shop", "fields": [{"name": "text", "type": "string"}]}
SCHEMAS = [avro_schema(Click), AVRO_OF_A_SHOP, avro_schema(Ranking), INNER]
KINDS = [
    {"type": "array", "items": "string"}, {"type": "map", "values": "long"}, {"type": "fixed", "name": "F", "size": 3},
    {"type": "enum", "name": "E", "symbols": ["A"]}, ["null", "string"], "bytes", "double", "shop.Id", "Click", {},
    {"type": "bytes", "logicalType": "decimal", "precision": 40}, {"type": "string", "logicalType": "uuid"},
]  # fmt: skip

WRITTEN: list[tuple[type[msgspec.Struct], bytes]] = [
    (Click, encode_click(examples.CLICK)),
    (Ranking, encode_ranking(examples.RANKING)),
]


@st.composite
def with_another_type(draw: st.DrawFn) -> bytes:
    """A schema of which one field has another type, or another default, or the whole another name."""
    schema = json.loads(json.dumps(draw(st.sampled_from(SCHEMAS))))
    field = draw(st.sampled_from(schema["fields"]))
    what = draw(st.sampled_from(["type", "default", "namespace", "name", "aliases"]))
    odd = draw(st.sampled_from([*KINDS, None, 1, "", ".", "a.", ".a", "a-b", "é", ["a", 1], True]))
    if what in ("type", "default"):
        field[what] = draw(st.sampled_from(KINDS)) if what == "type" else odd
    else:
        draw(st.sampled_from([field, schema]))[what] = odd
    return json.dumps(schema).encode()


texts = with_another_type() | st.sampled_from(SCHEMAS).flatmap(lambda one: odd_json(json.dumps(one).encode()))
values = st.binary(max_size=60) | damaged(b"\x06abc\x06def\x80\xb0\xe2\xe2\xd4\x67\x00\x00\x00\x00")


@given(text=texts, references=st.lists(texts | st.just(json.dumps(INNER).encode()), max_size=2), value=values)
def test_any_avro_schema_reads_or_is_refused(text: bytes, references: list[bytes], value: bytes) -> None:
    try:
        referred = [one.decode(errors="replace") for one in references]
        read = avro_reader(Click, text.decode(errors="replace"), referred)
        found = read(value)
    except UnreadableError as error:
        str(error).encode()  # can be printed
        return
    assert json.loads(found)["session_id"]


@given(data=st.data())
def test_any_protobuf_message_is_read_or_refused(data: st.DataObject) -> None:
    kind, example = data.draw(st.sampled_from(WRITTEN))
    whole = protobuf_writer(kind)(example)
    try:
        found = protobuf_reader(kind)(data.draw(damaged(whole) | st.binary(max_size=60)))
    except UnreadableError as error:
        str(error).encode()  # can be printed
        return
    json.loads(found)
