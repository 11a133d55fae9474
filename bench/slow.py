"""A slower machine than this one: workers that share a part of one core.

    CORE_SHARE=0.4 python -m bench latency

The worker is kept to one core and gets that share of it, in periods so short that it looks slower rather than paused.
What an old processor lacks beside that, `bench.avx2` hides.
"""

import os
from pathlib import Path
from typing import Final

from bench.errors import BenchmarkError

_ROOT: Final = Path("/sys/fs/cgroup")
_PERIOD_US: Final = 5_000
_SHORTEST_QUOTA_US: Final = 1_000
"""The kernel takes no less."""


def core_share() -> float | None:
    """What CORE_SHARE says; None without it. Raises BenchmarkError for what is no share."""
    given = os.environ.get("CORE_SHARE")
    if given is None:
        return None
    try:
        share = float(given)
    except ValueError:
        share = 0.0
    if not _SHORTEST_QUOTA_US / _PERIOD_US <= share <= 1.0:
        raise BenchmarkError(f"CORE_SHARE is {given!r}; it takes a number from 0.2 to 1")
    return share


class SlowCore:
    """A control group of processes that have a share of one core together. Needs Linux, and root.

    Args:
        name: of the group, which nobody else has.
        share: 0.2 to 1 of a core.
    """

    def __init__(self, name: str, share: float) -> None:
        self._path = (_ROOT / "cpu" if (_ROOT / "cpu").exists() else _ROOT) / name
        quota = int(_PERIOD_US * share)
        try:
            self._path.mkdir()
            if (self._path / "cpu.max").exists():
                (self._path / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
            else:
                (self._path / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                (self._path / "cpu.cfs_quota_us").write_text(str(quota))
        except OSError as error:
            raise BenchmarkError(
                f"CORE_SHARE needs a CPU control group, and {self._path} cannot be made: {error}. Run as root, or "
                f"unset CORE_SHARE"
            ) from error

    def add(self, pid: int) -> None:
        """Slow a process that has just been started, and keep it to the last core."""
        (self._path / "cgroup.procs").write_text(str(pid))
        os.sched_setaffinity(pid, {max(os.sched_getaffinity(0))})

    def remove(self) -> None:
        """The processes have ended."""
        self._path.rmdir()
