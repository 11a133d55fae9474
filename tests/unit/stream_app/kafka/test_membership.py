"""What a member asks its group's coordinator, and what it makes of the answers."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest

from stream_app.errors import FencedError
from stream_app.kafka.membership import _FENCED_INSTANCE_ID, StaticMembership, _HeartbeatRequest_v3

UNKNOWN_MEMBER_ID = 25


@dataclass
class Coordinator:
    """aiokafka's, and the broker behind it."""

    answers: list[int] = field(default_factory=list)  # error codes; 0 when there is none
    asked: list[Any] = field(default_factory=list)
    group_id: str = "group"
    generation: int = -1
    member_id: str = ""

    async def _send_req(self, request: Any) -> Any:
        self.asked.append(request)
        return SimpleNamespace(error_code=self.answers.pop(0) if self.answers else 0)

    def knows(self, generation: int, member_id: str) -> None:
        self.generation, self.member_id = generation, member_id


@dataclass
class Member:
    coordinator: Coordinator = field(default_factory=Coordinator)
    told: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.membership = StaticMembership(self.coordinator, "instance", self.told.append)

    async def join(self) -> Any:
        return await self.coordinator._send_req(JoinGroupRequest("group", 1, 1, "", "instance", "consumer", []))

    async def beat(self) -> Any:
        return await self.coordinator._send_req(HeartbeatRequest("group", 5, "member"))

    async def with_a_place(self) -> "Member":
        await self.join()
        self.coordinator.knows(5, "member")
        await self.beat()
        self.coordinator.asked.clear()
        return self


def sent(request: Any) -> tuple[Any, ...]:
    struct = request.build(_HeartbeatRequest_v3)
    return struct.group, struct.generation_id, struct.member_id, struct.group_instance_id


async def test_a_heartbeat_names_the_instance() -> None:
    member = await Member().with_a_place()
    await member.beat()
    [request] = member.coordinator.asked
    assert sent(request) == ("group", 5, "member", "instance")
    assert not member.membership.fenced


async def test_a_member_whose_place_is_taken_is_told_and_stops() -> None:
    member = await Member().with_a_place()
    member.coordinator.answers = [_FENCED_INSTANCE_ID]
    with pytest.raises(FencedError, match=r"taken this one's place.*worker\.data_dir"):
        await member.beat()
    assert member.membership.fenced
    assert [type(error) for error in member.told] == [FencedError]


async def test_a_member_that_is_unknown_asks_why_before_it_takes_the_place_of_another() -> None:
    """aiokafka forgets its name on an answer to a commit, which tells only that the name is unknown."""
    member = await Member().with_a_place()
    member.coordinator.knows(-1, "")
    member.coordinator.answers = [_FENCED_INSTANCE_ID]
    with pytest.raises(FencedError):
        await member.join()
    [request] = member.coordinator.asked
    assert sent(request) == ("group", 5, "member", "instance"), "and does not join"


async def test_a_member_that_was_away_for_too_long_joins_anew() -> None:
    member = await Member().with_a_place()
    member.coordinator.knows(-1, "")
    member.coordinator.answers = [UNKNOWN_MEMBER_ID]
    assert (await member.join()).error_code == 0
    assert [type(request).__name__ for request in member.coordinator.asked] == ["_Heartbeat", "JoinGroupRequest"]
    await member.join()  # a second try asks nothing
    assert [type(request).__name__ for request in member.coordinator.asked[2:]] == ["JoinGroupRequest"]
    assert member.told == []
