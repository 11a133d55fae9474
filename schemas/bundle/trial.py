"""A bundle opened in a process of its own first, with so much memory and time and no more.

What `open_bundle` verifies says nothing of how much a graph takes when it runs: a few bytes of it may ask for any
amount of memory, and a fault of ONNX Runtime ends the process that it is in. Here that is another one than the worker.
It ends with the worker, however that ends: the other side of its standard input is the worker's alone.
"""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from schemas.bundle.files import open_bundle
from schemas.errors import BundleError

_MOST_TOLD: Final = 4096
_LEFT_ALONE: Final = 3
"""Exit code where whoever wanted to know has ended."""
_BEHIND_OTHERS: Final = 10
"""Niceness: whoever serves beside it comes first."""


def try_bundle(
    uri: str,
    *,
    manifest_sha256: str | None,
    cache_dir: Path,
    adjusts: bool,
    rows: bool,
    batches: Sequence[int],
    memory_mb: int,
    seconds: float,
) -> None:
    """Open the bundle and run it at these batch sizes, as a worker would. Raises BundleError unless that ends well."""
    about = {
        "uri": uri,
        "manifest_sha256": manifest_sha256,
        "cache_dir": str(cache_dir),
        "adjusts": adjusts,
        "rows": rows,
        "batches": list(batches),
        "memory_mb": memory_mb,
        "seconds": seconds,
    }
    command = [sys.executable, "-P", "-m", __name__, json.dumps(about)]
    # Never written to: it is closed by us, or by the end of this process. No other child has it.
    alive, ours = os.pipe()
    try:
        # Its messages come on standard output; what a crash prints goes where the worker's own output goes.
        with subprocess.Popen(command, stdin=alive, stdout=subprocess.PIPE) as process:
            try:
                told, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired as error:
                raise BundleError(f"{uri}: did not open within {seconds:g} s in a process of its own") from error
            finally:
                process.kill()
    finally:
        os.close(alive)
        os.close(ours)
    if process.returncode == -signal.SIGXCPU:
        raise BundleError(f"{uri}: it was not open when a process of its own had used up {_processor_time(seconds)[1]}")
    if process.returncode:
        why = (
            told[-_MOST_TOLD:].decode(errors="replace").strip() or f"its process ended with {_end(process.returncode)}"
        )
        raise BundleError(f"{why} (tried in a process of its own with worker.bundle_memory_mb = {memory_mb})")


def _end(code: int) -> str:
    """An exit code, or the name of a signal; those for real time have none but the first and the last."""
    if code >= 0:
        return str(code)
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _processor_time(seconds: float) -> tuple[int, str]:
    """How many seconds of one processor a trial may have; and in words, with who says so."""
    wanted, (_, hard) = math.ceil(seconds), resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY or wanted < hard:
        return wanted, f"{wanted} s of processor time (worker.bundle_timeout)"
    most = max(1, hard - 1)  # at the hard limit itself the system kills, and does not say why
    return most, f"{most} s of processor time (a limit of this system, ulimit -H -t, below worker.bundle_timeout)"


def _limit_memory(memory_mb: int) -> None:
    """This much beside what the libraries have reserved by now, of which they use a small part."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory_mb * 1024**2
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: float) -> None:
    """So much of one processor: a graph that never ends is ended, though nobody may be there any more to end it."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (_processor_time(seconds)[0], hard))


def _end_with_parent() -> NoReturn:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(_LEFT_ALONE)


def _try(about: dict[str, Any]) -> None:
    os.nice(_BEHIND_OTHERS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _limit_time(about["seconds"])
    _limit_memory(about["memory_mb"])
    model = open_bundle(
        about["uri"],
        manifest_sha256=about["manifest_sha256"],
        cache_dir=Path(about["cache_dir"]),
        adjusts=about["adjusts"],
        rows=about["rows"],
    )
    model.warm_up(about["batches"])


if __name__ == "__main__":
    try:
        _try(json.loads(sys.argv[1]))
    except (BundleError, MemoryError) as problem:
        print(str(problem) or "there is not enough memory for it")
        sys.exit(1)
