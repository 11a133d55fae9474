"""Rejected records as lines that can be edited, and back."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages.click import RejectReason
from schemas.messages.headers import RESENT
from schemas.messages.rejected import KEPT_BYTES, RejectedClick, encode_rejected
from schemas.messages.source import Source
from stream_app.tools.rejected import Filters, Parked, RejectedError, RejectedTopic, _in_full, as_line
from stream_app.tools.resend import Repaired, read_lines
from stream_app.tools.terminal import escaped


def parked(
    key: bytes | None,
    value: bytes | None,
    *,
    place: tuple[int, int] = (3, 17),
    at: int = 0,
    reason: RejectReason = RejectReason.NOT_JSON,
    size: int | None = None,
) -> Parked:
    source = Source("clicks", 1, 2)
    return Parked(
        place, RejectedClick(reason, "why", source, key, value, len(value or b"") if size is None else size, at)
    )


def read(folder: Path, *lines: bytes) -> list[Repaired]:
    path = folder / "lines.jsonl"
    path.write_bytes(b"\n".join(lines))
    return read_lines(path)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"null",
        b"5",
        b'"text"',
        b"[1]",
        b"\xff\x00",
        b'{"session_id":',
        "line\nü\u2028".encode(),
        b'{"timestamp":1.7672256e12,"big":123456789012345678901234567890,"a":"\\u00fc","a":2}',
        b"[" * 60_000,
    ],
)
def test_what_is_not_edited_comes_back_as_it_was(tmp_path: Path, value: bytes | None) -> None:
    for key in (None, b"", b"s-1", b"\xfe"):
        line = as_line(parked(key, value))
        assert b"\n" not in line
        [one] = read(tmp_path, line)
        assert (one.place, one.key, one.value) == ((3, 17), key, value)


@given(value=st.binary(max_size=40) | st.text().map(str.encode))
def test_any_bytes_come_back(tmp_path_factory: pytest.TempPathFactory, value: bytes) -> None:
    [one] = read(tmp_path_factory.mktemp("lines"), as_line(parked(value, value)))
    assert (one.key, one.value) == (value, value)


def test_an_object_over_several_lines_becomes_one(tmp_path: Path) -> None:
    [one] = read(tmp_path, as_line(parked(b"s", b'{\n  "a": 1.50\n}\n')))
    assert one.value == b'{"a":1.50}'


def test_a_record_that_was_cut_must_be_made_whole(tmp_path: Path) -> None:
    line = as_line(parked(b"s", b"x" * KEPT_BYTES, size=KEPT_BYTES + 1))
    with pytest.raises(RejectedError, match="holds the beginning of the record only"):
        read(tmp_path, line)
    fields = json.loads(line) | {"value": {"session_id": "s"}}
    del fields["cut"]
    [one] = read(tmp_path, json.dumps(fields).encode())
    assert one.value == b'{"session_id": "s"}'


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"valeu": 1}, "unknown field `valeu`"),
        ({"value": 5}, "Expected `str | null`"),
        ({"value_base64": "eA=="}, "has value and value_base64"),
        ({"key_base64": "eA=="}, "has key and key_base64"),
        ({"partition": "3"}, "Expected `int`"),
        ({"key": 4711}, r"Expected `str | null`"),
    ],
)
def test_a_line_that_cannot_be_sent_is_named(tmp_path: Path, changed: dict[str, Any], problem: str) -> None:
    good = as_line(parked(b"s", b"{}"))
    fields = json.loads(good) | {"offset": 18} | changed
    with pytest.raises(RejectedError, match=r"lines\.jsonl: line 2: .*; nothing was sent") as told:
        read(tmp_path, good, json.dumps(fields).encode())
    assert problem in str(told.value)


class TopicInMemory:
    """Records of the rejected topic by partition, as messages."""

    def __init__(self, *records: Parked, marks: Iterable[tuple[int, int, int]] = ()) -> None:
        self._messages: dict[int, list[Any]] = defaultdict(list)
        for one in records:
            self._add(*one.place, encode_rejected(one.rejected), None)
        for partition, offset, resent in marks:
            self._add(partition, offset, None, [(RESENT, f"clicks.rejected/{partition}/{resent}".encode())])
        self.partitions = sorted(self._messages)

    def _add(self, partition: int, offset: int, value: bytes | None, headers: list[tuple[str, bytes]] | None) -> None:
        told = {"partition": partition, "offset": offset, "value": value, "headers": headers}
        message = SimpleNamespace(**{name: (lambda found=found: found) for name, found in told.items()})
        self._messages[partition].append(message)

    def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        return {partition: self._messages[partition][-1].offset() + 1 for partition in partitions}

    def history(self, partition: int) -> list[Any]:
        return self._messages[partition]

    def come_later(self, one: Parked) -> None:
        self._add(*one.place, encode_rejected(one.rejected), None)


def test_filters_leave_the_newest_that_match() -> None:
    records = [
        parked(b"a", None, at=3, place=(0, 1), reason=RejectReason.NO_VALUE),
        parked(b"b", b"", at=1, place=(1, 5)),
        parked(b"c", None, at=2, place=(2, 0), reason=RejectReason.NO_VALUE),
    ]

    def meant(**filters: Any) -> list[tuple[int, int]]:
        topic: Any = TopicInMemory(*records)
        return [one.place for one in RejectedTopic(topic, Filters(**filters), print).records()]

    assert meant() == [(0, 1), (1, 5), (2, 0)]
    assert meant(limit=2) == [(0, 1), (2, 0)]
    assert meant(reasons=["no-value"], limit=1) == [(0, 1)]
    assert meant(topic="others") == []


def test_what_is_rejected_while_it_is_read_is_left_for_the_next_time() -> None:
    """Or a record that is sent again, and rejected again, would be sent again for ever."""
    topic: Any = TopicInMemory(parked(b"a", b""), parked(b"b", b"", place=(3, 18)), marks=[(3, 19, 17)])
    found = RejectedTopic(topic, Filters(), print)
    topic.come_later(parked(b"a", b"", place=(3, 20)))
    assert [one.place for one in found.records()] == [(3, 17), (3, 18)]
    assert found.resent == {(3, 17)}
    assert found.reasons == {RejectReason.NOT_JSON: 2}


@pytest.mark.parametrize("value", ['{"a":"\x9b2J\x7f\u202e\U000e0001"}', "\x9b2J", "plain ü"])
def test_a_line_of_json_cannot_take_a_terminal_over(value: str) -> None:
    line = as_line(parked("\x9b2J".encode(), value.encode()))
    assert escaped(line).isprintable()
    assert json.loads(escaped(line)) == json.loads(line)
    assert "ü" not in value or "ü" in escaped(line)


@pytest.mark.parametrize("data", [b"a\x1b[2J", "a\x9b2J".encode(), b"a\rb", b"\xff", "\u202e".encode(), b"a\x0bb"])
def test_what_a_terminal_might_obey_is_shown_byte_by_byte(data: bytes) -> None:
    assert data.hex(" ") in _in_full(data).plain
    assert all(letter.isprintable() for letter in _in_full(data).plain)


def test_text_is_shown_as_it_is() -> None:
    assert _in_full('{\n\t"ü": 1}'.encode()).plain == '{\n    "ü": 1}'
