"""Whatever stands in a file of rejected records that somebody repaired: it can be sent, or nothing is."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.formats.codec import formats_of
from stream_app.settings import StreamSettings
from stream_app.tools.rejected import RejectedError
from stream_app.tools.resend import _problem, read_lines
from tests.unit.odd_bytes import odd_json

EXAMPLES = [
    {"partition": 3, "offset": 17, "key": "s-1", "value": {"session_id": "s-1", "item_id": "i", "timestamp": 1}},
    {"partition": 3, "offset": 17, "key_base64": "c/8=", "value_base64": "eyI=", "reason": "not-json", "detail": "x"},
    {"partition": 0, "offset": 0, "value": "text", "cut": False, "source": {"topic": "clicks"}, "rejected_at": 1},
]
SETTINGS = StreamSettings()
FORMATS = formats_of(SETTINGS.schema_registry, SETTINGS.topics)
lines = st.sampled_from(EXAMPLES).flatmap(lambda example: odd_json(json.dumps(example).encode()))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rejected") / "repaired.jsonl"


@given(found=st.lists(lines, max_size=3), end=st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n", b" \n"]))
def test_any_lines_are_read_or_refused(file: Path, found: list[bytes], end: bytes) -> None:
    file.write_bytes(end.join(found))
    try:
        records = read_lines(file)
    except RejectedError as error:
        str(error).encode()  # can be printed
        return
    assert len({one.place for one in records}) == len(records)
    for one in records:
        assert isinstance(one.key, bytes | None)
        assert isinstance(one.value, bytes | None)
        str(_problem(one, SETTINGS, FORMATS)).encode()
