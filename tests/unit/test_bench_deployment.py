"""Cleaning up after a measurement: no worker outlives it, whatever it does."""

import signal
import subprocess
import sys
from pathlib import Path

from bench.deployment import Worker

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
OBEDIENT = "import time; print('here', flush=True); time.sleep(600)"


def worker(folder: Path, code: str) -> Worker:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # it is past its start
    process.stdout.close()
    log = folder / "log"
    log.write_text("waiting for Kafka [and nothing else]")
    return Worker(process, 1, log, folder / "data")


def test_a_worker_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    deaf = worker(tmp_path, DEAF)

    deaf.stop(seconds=0.1)

    assert deaf.process.returncode == -signal.SIGKILL


def test_one_that_stops_is_left_to_it(tmp_path: Path) -> None:
    obedient = worker(tmp_path, OBEDIENT)

    obedient.stop()

    assert obedient.process.returncode == -signal.SIGTERM
