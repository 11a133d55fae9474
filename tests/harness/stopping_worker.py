"""`stream-app worker`, which kills itself at one step between a click and its acknowledgement.

Runs in place of the worker, and is no part of what judges it. `HARNESS_STOP_AT` names the step, `HARNESS_STOP_AFTER`
says how often it is gone through before.
"""

import itertools
import os
import signal
from collections.abc import Callable
from typing import Any, Final

from stream_app.__main__ import main
from stream_app.kafka.transport import ChunkConsumer
from stream_app.serve.delivery import Sending
from stream_app.serve.settling import Settling

_AT, _TIMES = os.environ["HARNESS_STOP_AT"], int(os.environ["HARNESS_STOP_AFTER"])
_passed = itertools.count()

BEFORE: Final = {
    "computed": (Settling, "send"),
    "rankings confirmed": (Settling, "_send_changelogs"),
    "changelog confirmed": (Settling, "_write"),
    "RocksDB written": (ChunkConsumer, "ack"),
    "acknowledged": (ChunkConsumer, "_commit"),
}
AFTER: Final = {
    "rankings sent": (Settling, "send"),
    "changelog sent": (Settling, "_send_changelogs"),
    "committed": (ChunkConsumer, "_commit"),
}
HALF: Final = {"half of the rankings": "-rankings", "half of the changelog": "-changelog"}
"""And the end of the topic's name: half of a batch is confirmed, the rest never sent."""


def _end() -> None:
    if next(_passed) >= _TIMES:
        os.kill(os.getpid(), signal.SIGKILL)


def _before(call: Callable[..., Any]) -> Callable[..., Any]:
    def stopping(*args: Any, **named: Any) -> Any:
        _end()
        return call(*args, **named)

    return stopping


def _after(call: Callable[..., Any]) -> Callable[..., Any]:
    def stopping(*args: Any, **named: Any) -> Any:
        found = call(*args, **named)
        _end()
        return found

    return stopping


def _after_awaiting(call: Callable[..., Any]) -> Callable[..., Any]:
    async def stopping(*args: Any, **named: Any) -> Any:
        found = await call(*args, **named)
        _end()
        return found

    return stopping


def _half(call: Callable[..., Any]) -> Callable[..., Any]:
    def stopping(sending: Any, topic: str, records: Any, **named: Any) -> Any:
        if topic.endswith(HALF[_AT]) and len(records) > 1 and next(_passed) >= _TIMES:
            call(sending, topic, records[: len(records) // 2], **named)
            sending._producer.flush(10)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(sending, topic, records, **named)

    return stopping


def hook() -> None:
    """Put the end before or behind the step."""
    if _AT in BEFORE:
        place, name = BEFORE[_AT]
        setattr(place, name, _before(getattr(place, name)))
    elif _AT in HALF:
        Sending.send = _half(Sending.send)  # type: ignore[method-assign]
    else:
        place, name = AFTER[_AT]
        setattr(place, name, (_after_awaiting if name == "_commit" else _after)(getattr(place, name)))


if __name__ == "__main__":
    hook()
    main()
