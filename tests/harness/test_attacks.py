"""However short an attack is, it does all of its kinds. The system here only notes what is done to it."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults.proxy import ALL
from tests.harness.attacks import clicks
from tests.harness.attacks.clicks import COMPRESSIONS, compressed, with_a_bot
from tests.harness.scenarios import SCENARIOS


class Noting:
    """Does nothing at all; `done` is what it was asked to do, in order."""

    def __init__(self, brokers: int = 1) -> None:
        self.done: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.broker = SimpleNamespace(kafka=SimpleNamespace(running_brokers=set(range(brokers))), size=brokers)
        self.rng = random.Random(1)

    def __getattr__(self, name: str) -> Any:
        def note(*told: Any, **named: Any) -> Any:
            self.done.append((name, told, named))
            return SimpleNamespace(stop=lambda: None)

        return note

    def told(self, name: str) -> list[tuple[Any, ...]]:
        return [told for its, told, _ in self.done if its == name]


def attacked(name: str, brokers: int = 1) -> Noting:
    system: Any = Noting(brokers)
    SCENARIOS[name].attack(system, 0)
    return system  # type: ignore[no-any-return]


def test_one_run_holds_what_goes_each_way() -> None:
    held = [gates for (gates,) in attacked("cut-one-way").told("cut")]
    ways = [[gate for gate in ALL if way in gate] for way in ("requests", "answers", "producer", "consumer")]
    assert held == ways
    assert all(held)


def test_one_run_has_each_delay() -> None:
    assert [seconds for (seconds,) in attacked("slow").told("slow") if seconds] == [0.01, 0.1, 0.3]


@pytest.mark.parametrize(("name", "brokers"), [("three-brokers", 3), ("broker-kill", 1)])
def test_one_run_kills_each_broker(name: str, brokers: int) -> None:
    assert [broker for (broker,) in attacked(name, brokers).told("broker_down")] == [*range(brokers)]


def test_one_run_has_each_compression_of_clicks_and_of_rankings() -> None:
    system: Any = Noting()
    compressed(system, 0)
    told = [named["compression"] for _, _, named in system.done if "compression" in named]
    assert {*told[::2]} == {*told[1::2]} == {*COMPRESSIONS}


def test_half_of_all_clicks_are_the_bots() -> None:
    system: Any = Noting()
    keys = [key for key, _ in (next(records) for records in [with_a_bot(system)] for _ in range(1000))]
    assert keys.count(b"bot") == 500


def test_an_attack_beside_a_bot_goes_on_until_all_that_was_asked_for_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clicks, "killed", lambda system, seconds: None)
    system: Any = Noting()
    system.senders = [SimpleNamespace(sent=0, per_second=2000)]
    clicks.killed_beside_a_bot(system, 100)
    [(until, _)] = system.told("wait")
    system.senders[0].sent = 199_999
    assert not until()
    system.senders[0].sent = 200_000
    assert until()
