"""A TCP proxy before a broker, which can hold or delay what one worker's clients and the broker send to each other.

Nothing is lost and no connection is closed: what is held is delivered later, as by a network that stood still.
"""

import asyncio
import struct
import threading
from collections.abc import Iterable
from typing import Final, Literal

Who = Literal["producer", "consumer"]
"""What sends rankings and rows; or what reads clicks, and aiokafka, which is the group's member."""
Gate = tuple[Who, Literal["requests", "answers"]]
"""Through which traffic goes, or in which it is held."""

_PRODUCE: Final = 0
_HEADER: Final = struct.Struct(">hhih")  # api key, its version, correlation id, length of the client's id
ALL: Final[tuple[Gate, ...]] = (
    ("producer", "requests"),
    ("producer", "answers"),
    ("consumer", "requests"),
    ("consumer", "answers"),
)


class Proxy:
    """Listens on a port until it is closed, and forwards to another, both on this machine.

    Attributes:
        delay: for so many seconds each request and each answer is held, as by a slow network.
    """

    delay = 0.0

    def __init__(self, host: str, port: int, target: int) -> None:
        self._host, self._port, self._target = host, port, target
        self._open: dict[Gate, asyncio.Event] = {gate: asyncio.Event() for gate in ALL}
        self._trap: tuple[bytes, tuple[Gate, ...]] | None = None
        self.caught = threading.Event()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="proxy")
        self._thread.start()
        assert self._listens.wait(30), "the proxy cannot listen; its thread has told why"
        self.heal()

    def hold_at_produce(self, topic: str, gates: Iterable[Gate] = ALL) -> None:
        """Hold what goes through those gates from the next request on that produces to the topic, and it with them."""
        self.caught.clear()
        self._trap = topic.encode(), tuple(gates)

    def hold(self, gates: Iterable[Gate] = ALL) -> None:
        """Hold what goes through those gates from now on."""
        for gate in gates:
            self._loop.call_soon_threadsafe(self._open[gate].clear)

    def heal(self, gates: Iterable[Gate] = ALL) -> None:
        """Deliver what was held there, and all that comes."""
        for gate in gates:
            self._loop.call_soon_threadsafe(self._open[gate].set)

    def close(self) -> None:
        """Listen no more."""
        self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._closed = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, self._host, self._port)
        self._listens.set()
        await self._closed.wait()
        server.close()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            broker, to_broker = await asyncio.open_connection(self._host, self._target)
        except ConnectionError:
            to_client.close()  # the broker is down: its client learns that here, too
            return
        try:
            request = await _frame(client)
            *_, length = _HEADER.unpack_from(request)
            # Each client names itself in every request; aiokafka as Faust does, the reader of clicks as the app does.
            name = request[_HEADER.size : _HEADER.size + length]
            who: Who = "consumer" if name.startswith(b"faust") or name.endswith(b"-clicks") else "producer"
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._answers(who, broker, to_client))
                while True:
                    if self._trap is not None and _api(request) == _PRODUCE and self._trap[0] in request:
                        for gate in self._trap[1]:
                            self._open[gate].clear()
                        self._trap = None
                        self.caught.set()
                    await self._passes((who, "requests"))
                    to_broker.write(len(request).to_bytes(4, "big") + request)
                    request = await _frame(client)
        except* (asyncio.IncompleteReadError, ConnectionError):
            pass  # one of the two has closed its connection: so does the other
        finally:
            to_client.close()
            to_broker.close()

    async def _answers(self, who: Who, broker: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        while True:
            answer = await _frame(broker)
            await self._passes((who, "answers"))
            to_client.write(len(answer).to_bytes(4, "big") + answer)

    async def _passes(self, gate: Gate) -> None:
        await asyncio.sleep(self.delay)
        await self._open[gate].wait()


async def _frame(stream: asyncio.StreamReader) -> bytes:
    """A request or an answer, without its length."""
    return await stream.readexactly(int.from_bytes(await stream.readexactly(4), "big"))


def _api(request: bytes) -> int:
    key: int = _HEADER.unpack_from(request)[0]
    return key
