"""How long a worker stays away, with the time limits that it has by default."""

import time

from tests.harness.attacks.rounds import FEW
from tests.harness.system import System

_BEYOND_SECONDS = 5


def given_up(system: System, seconds: float) -> None:
    """No broker until the worker has given up and was started again at once, and a little longer."""
    system.clicks_pass(FEW)
    gives_up = system.workers["a"].process.pid
    system.broker_down(kill=True)
    system.wait(lambda: system.workers["a"].process.pid != gives_up, "it gives up")
    system.sleep(_BEYOND_SECONDS)
    system.broker_up()
    system.clicks_pass(FEW)


def killed_often(system: System, seconds: float) -> None:
    """Killed again and again, whether it has got to serve or not."""
    system.clicks_pass(FEW)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        system.sleep(system.rng.uniform(1.5, 9))
        system.kill()
        system.start()
    system.wait(system.ready, "worker a serves")
    system.clicks_pass(FEW)
