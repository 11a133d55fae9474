"""Static membership (KIP-345) as far as aiokafka 0.14 leaves it out.

aiokafka joins under `group.instance.id`, and sends it with nothing else. A member whose place another has taken is then
told that it is unknown, as one that was away for too long is; it joins anew, and takes the place back, for ever.
"""

from collections.abc import Callable
from typing import Any, Final

from aiokafka.protocol.api import Request, RequestStruct
from aiokafka.protocol.group import (
    HeartbeatRequest,
    HeartbeatRequest_v0,
    HeartbeatRequest_v1,
    HeartbeatResponse_v1,
    JoinGroupRequest,
)
from aiokafka.protocol.types import Int32, Schema, String

from stream_app.errors import FencedError

_FENCED_INSTANCE_ID: Final = 82


class _HeartbeatResponse_v3(HeartbeatResponse_v1):  # noqa: N801 - as aiokafka names its own
    API_VERSION = 3


class _HeartbeatRequest_v3(RequestStruct):  # noqa: N801
    API_KEY = 12
    API_VERSION = 3
    RESPONSE_TYPE = _HeartbeatResponse_v3
    SCHEMA = Schema(
        ("group", String("utf-8")),
        ("generation_id", Int32),
        ("member_id", String("utf-8")),
        ("group_instance_id", String("utf-8")),
    )


class _Heartbeat(Request[HeartbeatRequest_v0 | HeartbeatRequest_v1 | _HeartbeatRequest_v3]):
    """aiokafka's heartbeat, with the instance id where the broker takes one."""

    API_KEY = 12

    def __init__(self, group: str, generation: int, member: str, instance: str) -> None:
        self._sent = group, generation, member, instance

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(*self._sent[: 4 if request_struct_class.API_VERSION >= 3 else 3])


class StaticMembership:
    """Stands between a coordinator of aiokafka's and its broker.

    Attributes:
        fenced: whether another worker has this one's place.
    """

    def __init__(self, coordinator: Any, instance: str, on_fenced: Callable[[BaseException], None]) -> None:
        self._coordinator = coordinator
        self._instance = instance
        self._on_fenced = on_fenced
        self._send = coordinator._send_req
        self._last: tuple[int, str] | None = None  # generation and member id, as the broker last knew this one
        self.fenced = False
        coordinator._send_req = self.send

    async def send(self, request: Any) -> Any:
        """Send a request to the group's coordinator.

        Raises:
            FencedError: another worker has this one's place.
        """
        coordinator = self._coordinator
        if isinstance(request, HeartbeatRequest):
            request = self._heartbeat(coordinator.generation, coordinator.member_id)
        elif isinstance(request, JoinGroupRequest) and not coordinator.member_id and self._last is not None:
            # Forgotten for being away, or because another came? Only under the old name does the broker tell.
            self._look(await self._send(self._heartbeat(*self._last)))
            self._last = None
        response = self._look(await self._send(request))
        if coordinator.member_id and coordinator.generation > 0:
            self._last = coordinator.generation, coordinator.member_id
        return response

    def leave(self) -> None:
        """Let the coordinator leave the group when it closes; aiokafka's static members never do."""
        self._coordinator._group_instance_id = None

    def _heartbeat(self, generation: int, member: str) -> _Heartbeat:
        return _Heartbeat(self._coordinator.group_id, generation, member, self._instance)

    def _look(self, response: Any) -> Any:
        if getattr(response, "error_code", 0) == _FENCED_INSTANCE_ID:
            self.fenced = True
            error = FencedError(
                "another worker has taken this one's place in the consumer group: it has the same "
                "worker.group_instance_id, the same worker.data_dir, or a clone of its disk. Give each worker a name "
                "and a folder of its own; in a clone, delete member.json"
            )
            self._on_fenced(error)
            raise error
        return response
