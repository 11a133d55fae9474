"""`stream-app` with a wall clock that the harness sets, in place of a worker; no part of what judges it.

The file that `HARNESS_CLOCK` names has the seconds by which it is ahead of the true one. Python code alone sees it:
librdkafka and RocksDB ask the system.
"""

import os
import runpy
import time
from pathlib import Path
from typing import Final

_FILE: Final = Path(os.environ["HARNESS_CLOCK"])
_NS: Final = 10**9
_true_ns = time.time_ns


def _ns() -> int:
    return _true_ns() + int(_FILE.read_text()) * _NS


if __name__ == "__main__":
    vars(time).update(time_ns=_ns, time=lambda: _ns() / _NS)
    runpy.run_module("stream_app", run_name="__main__", alter_sys=True)
