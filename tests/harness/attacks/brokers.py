"""On the network, on brokers, and on what topics and the group keep."""

import shutil
from collections.abc import Callable
from typing import Final

from tests.faults.proxy import ALL
from tests.harness.attacks.rounds import BEYOND, FEW, FULL_SECONDS, SMALL, Attack, rounds
from tests.harness.clients import leaders, move_leaders_back, set_committed
from tests.harness.system import System

_DELAYS: Final = (0.01, 0.1, 0.3)
"""Seconds."""


def cut(*ways: str) -> Attack:
    """Hold what goes these ways, in turns."""

    def attack(system: System, seconds: float) -> None:
        system.start_ready("b")
        for number in rounds(seconds, least=max(2, len(ways))):
            way = ways[number % len(ways)]
            system.clicks_pass(FEW)
            system.cut([gate for gate in ALL if way in (*gate, "both")])
            system.sleep(BEYOND)
            system.heal()
            system.sleep(2)

    return attack


def slow(system: System, seconds: float) -> None:
    system.start_ready("b")
    for number in rounds(seconds, least=len(_DELAYS)):
        system.slow(_DELAYS[number % len(_DELAYS)])
        system.sleep(8)
        system.slow(0)
        system.clicks_pass(FEW)


def down(*, kill: bool, seconds: float = 2.0) -> Attack:
    """One broker after the other is away so long."""
    away = seconds

    def attack(system: System, seconds: float) -> None:
        brokers = sorted(system.broker.kafka.running_brokers)
        for number in rounds(seconds, least=len(brokers)):
            one = brokers[number % len(brokers)]
            system.clicks_pass(FEW)
            system.broker_down(one, kill=kill)
            system.sleep(away)
            system.broker_up(one)
            system.clicks_pass(FEW)

    return attack


def leader_moved(system: System, seconds: float) -> None:
    for number in rounds(seconds, least=3):
        system.clicks_pass(FEW)
        system.broker_down(number % 3, kill=False)
        system.clicks_pass(FEW)
        system.broker_up(number % 3)
        system.did("leaders moved back", healed=True)
        move_leaders_back(system.broker.direct)
        system.clicks_pass(FEW)


def cut_off_from_the_coordinator(system: System, seconds: float) -> None:
    _cut_off_from_one(system, seconds, system.coordinator)


def cut_off_from_a_leader(system: System, seconds: float) -> None:
    def another() -> int:
        others = {*leaders(system.broker.direct, system.changelog).values()} - {system.coordinator()}
        return system.rng.choice(sorted(others))

    _cut_off_from_one(system, seconds, another)


def _cut_off_from_one(system: System, seconds: float, broker: Callable[[], int]) -> None:
    system.start_ready("b")
    for _ in rounds(seconds):
        system.clicks_pass(FEW)
        system.cut(brokers=[broker()])
        system.sleep(BEYOND)
        system.heal()
        system.sleep(2)


def disk_full(system: System, seconds: float) -> None:
    for _ in rounds(seconds, least=1):
        system.clicks_pass(FEW)
        system.broker_disk_full(SMALL)
        system.sleep(FULL_SECONDS)
        system.broker_down(kill=True)  # whoever runs it makes room, and starts it again
        system.broker_up()
        system.clicks_pass(FEW)


def refused_rankings(system: System, seconds: float) -> None:
    # Not by min.insync.replicas: one broker takes what a topic of one replica gets, whatever that says.
    for _ in rounds(seconds):
        system.clicks_pass(FEW)
        system.configure(system.rankings, "max.message.bytes", 2)
        system.sleep(6)
        system.configure(system.rankings, "max.message.bytes", None)
        system.clicks_pass(FEW)


# -- what topics and the group lose ------------------------------------------------------------------------------------


def clicks_expired(system: System, seconds: float) -> None:
    for number in rounds(seconds):
        system.clicks_pass(FEW)
        if number % 2:
            system.stop()
        else:
            system.freeze(expelled=False)
        system.sleep(3)
        system.expire_clicks(keep=100)
        if number % 2:
            system.start_ready()
        else:
            system.thaw()
        system.clicks_pass(FEW)


def clicks_lost(system: System, seconds: float) -> None:
    """The worker runs meanwhile, or finds a topic that has grown beyond what it knows."""
    for number in rounds(seconds):
        system.clicks_pass(FEW)
        sender = system.senders[-1]
        sender.stop()
        system.wait(lambda: system.lag() == 0, "all clicks are acknowledged")
        if number % 2 == 0:
            system.stop()
        system.lose_clicks(keep=system.rng.uniform(0.7, 0.95))
        system.load(sender.records, per_second=sender.per_second)
        if number % 2 == 0:
            system.sleep(3)
            system.start_ready()
        system.clicks_pass(FEW)


def all_rows_lost(system: System) -> None:
    system.expire_rows()
    system.did("data deleted", worker="a")
    shutil.rmtree(system.data("a"))
    system.note_begin_anew()


def delivered_again(system: System) -> None:
    system.did("offsets set back", to=0)
    set_committed(system.broker.direct, system.name, system.clicks, 0)
