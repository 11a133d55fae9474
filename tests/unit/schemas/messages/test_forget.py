"""A request to forget: taken for one only where nothing else could be meant."""

import pytest

from schemas.messages.forget import Forget, decode_forget, encode_forget

REQUEST = b'{"session_id":"s","action":"forget"}'


def test_a_request_is_what_it_says() -> None:
    assert encode_forget(Forget("s", "forget")) == REQUEST
    assert decode_forget(b"s", REQUEST) == Forget("s", "forget")
    assert decode_forget(b"s", b'{"action": "forget", "session_id": "s", "why": "asked"}') == Forget("s", "forget")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"s", None),
        (None, REQUEST),
        (b"t", REQUEST),
        (b"s", b""),
        (b"s", b'{"session_id":"s"}'),
        (b"s", b'{"session_id":"s","action":"remember"}'),
        (b"s", b'{"session_id":"s","action":true}'),
        (b"", b'{"session_id":"","action":"forget"}'),
        (b"s" * 257, b'{"session_id":"%b","action":"forget"}' % (b"s" * 257)),
        (b"s", b"[" * 100_000),
        (b"s", b"\xff"),
        (b"s", b'{"session_id":"\\ud800","action":"forget"}'),
    ],
)
def test_nothing_else_forgets(key: bytes | None, value: bytes | None) -> None:
    assert decode_forget(key, value) is None


@pytest.mark.parametrize("session_id", ["", "s" * 257])
def test_an_id_that_no_click_has_is_refused(session_id: str) -> None:
    with pytest.raises(ValueError, match="1 to 256 bytes"):
        encode_forget(Forget(session_id, "forget"))
