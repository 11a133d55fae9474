"""How attacks go: rounds until the time is over."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Final

from tests.harness.system import SESSION_TIMEOUT, System

Attack = Callable[[System, float], None]
"""Gets the seconds that it has to go on; begins nothing anew behind them."""
BEYOND: Final = SESSION_TIMEOUT + 4
"""Seconds after which a silent worker has been replaced."""
FEW: Final = 300
SMALL: Final = 1000
"""Bytes that a file may have, as where the disk is full."""
FULL_SECONDS: Final = 5


def rounds(seconds: float, *, least: int = 2) -> Iterator[int]:
    """Rounds, until the time is over."""
    began = time.monotonic()
    for number in itertools.count():
        if number >= least and time.monotonic() - began > seconds:
            return
        yield number


def while_down(harm: Callable[[System], None], *, kill: bool = True) -> Attack:
    """Kill or stop the worker, do harm to what it will find, and start it."""

    def attack(system: System, seconds: float) -> None:
        for _ in rounds(seconds):
            system.clicks_pass(FEW)
            (system.kill if kill else system.stop)()
            harm(system)
            system.start_ready()

    return attack
