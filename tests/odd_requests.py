"""Requests over HTTP as nobody should send them: odd headers, and bytes on the wire that are damaged."""

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote

from hypothesis import strategies as st

Header = tuple[bytes, bytes]

_NAMES = (
    b"cookie",
    b"expect",
    b"upgrade",
    b"connection",
    b"transfer-encoding",
    b"accept-encoding",
    b"range",
    b"x",
    b"",
)
_VALUES = (
    b"",
    b"\xff",
    b"\xe4\xf6",
    b"\0",
    b"x" * 3000,
    b"100-continue",
    b"h2c",
    b"chunked",
    b"bytes=0-",
    b"close",
    b",",
)
_SECONDS = 0.03
"""How long is waited for the answer to what may be half a request."""


def odd_headers(known: Mapping[bytes, Sequence[bytes]]) -> st.SearchStrategy[list[Header]]:
    """A few headers: those that somebody reads, with values that are nearly right, and any others."""
    values = st.sampled_from(_VALUES) | st.binary(max_size=12)
    read = st.sampled_from(sorted(known)).flatmap(
        lambda name: st.tuples(st.just(name), st.sampled_from(known[name]) | values)
    )
    return st.lists(read | st.tuples(st.sampled_from(_NAMES) | st.binary(max_size=5), values), max_size=4)


def wire_request(method: str, target: str, headers: Sequence[Header], body: bytes | None) -> bytes:
    """As a client puts it on the wire, with whatever the headers hold; the last one after which it hangs up."""
    usual = {b"host": b"localhost", b"connection": b"close"}
    if body is not None:
        usual |= {b"content-type": b"application/json", b"content-length": b"%d" % len(body)}
    named = [(name, value) for name, value in usual.items() if name not in dict(headers)]
    lines = [f"{method} {quote(target, safe='/?&=%', errors='replace')} HTTP/1.1".encode()]
    return b"\r\n".join([*lines, *(name + b": " + value for name, value in [*named, *headers]), b"", body or b""])


def damaged_request(whole: bytes) -> st.SearchStrategy[bytes]:
    """It itself, cut off, with a piece replaced, or twice at once."""
    piece = st.binary(max_size=4) | st.sampled_from(
        [b"\r\n", b"\n", b"\r\n\r\n", b" ", b":", b"HTTP/9.9", b"%", b"://"]
    )

    def replaced(at: tuple[int, int, bytes]) -> bytes:
        place, length, other = at
        return whole[:place] + other + whole[place + length :]

    places = st.integers(0, len(whole))
    return st.one_of(
        st.just(whole),
        st.just(whole + whole),
        places.map(lambda end: whole[:end]),
        st.tuples(places, st.integers(0, 8), piece).map(replaced),
    )


@contextlib.contextmanager
def no_errors_logged() -> Iterator[None]:
    """Fails where the block logs one: what goes wrong within a server is told there, and the client sees less."""
    told: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: told.append(handler.format(record))  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
    assert not told, told[0]


async def send(port: int, data: bytes) -> list[int]:
    """The status of each answer that comes at once; none for half a request, or where the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    told = b""
    try:
        writer.write(data)
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_SECONDS):
                while piece := await reader.read(65_536):
                    told += piece
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return [int(status) for status in re.findall(rb"^HTTP/1\.[01] (\d{3}) ", told, re.MULTILINE)]
