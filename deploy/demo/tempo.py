"""How fast the shop's time goes by: no faster than this machine ranks its clicks."""

import time
from collections.abc import Callable
from typing import Final

_SLOWER_ABOVE: Final = 1.0
_FASTER_BELOW: Final = 0.5
_SLOWER: Final = 0.7
_FASTER: Final = 1.03
_SLOWEST: Final = 0.05
_EVERY: Final = 1.0


class Tempo:
    """A clock of the shop's seconds, and the sleep that belongs to it, as `wait_until_due` takes them.

    Clicks that wait long for their rankings say that the machine is too slow, and that the trainer, which leaves the
    others the way, gets nothing of it: then the shop's time goes slower, and fewer clicks come.

    Attributes:
        speed: seconds of the shop in a second, at most 1.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.speed = 1.0
        self._clock, self._sleep = clock, sleep
        self._opened_at = self._read_at = self._adapted_at = clock()
        self._shop = 0.0
        self._ranked = 0

    def now(self) -> float:
        """The shop's time, in seconds from its opening."""
        at = self._clock()
        self._shop += (at - self._read_at) * self.speed
        self._read_at = at
        return self._shop

    @property
    def lost(self) -> float:
        """Seconds that the shop's time has lost until it was read last; never fewer than before."""
        return self._read_at - self._opened_at - self._shop

    def sleep(self, seconds: float) -> None:
        """Wait for as many of the shop's seconds."""
        self._sleep(seconds / self.speed)

    def adapt(self, sent: int, ranked: int) -> None:
        """Hear how many clicks were sent and how many of them were ranked; to be called at least once a second."""
        passed = self._clock() - self._adapted_at
        if passed < _EVERY:
            return
        rate, waiting = (ranked - self._ranked) / passed, sent - ranked
        self._adapted_at, self._ranked = self._adapted_at + passed, ranked
        self.now()  # what has passed went by at the speed until now
        if waiting > rate * _SLOWER_ABOVE:
            self.speed = max(_SLOWEST, self.speed * _SLOWER)
        elif waiting <= rate * _FASTER_BELOW:
            self.speed = min(1.0, self.speed * _FASTER)
