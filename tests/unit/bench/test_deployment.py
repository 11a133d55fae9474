"""Workers of a measurement: none outlives it, and one that stands still does so until it is told to go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.deployment import Deployment, Worker
from bench.errors import BenchmarkError

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


def wake(one: Worker) -> None:
    os.kill(one.process.pid, signal.SIGCONT)
    while one.stands_still:
        time.sleep(0.001)


def test_a_worker_that_somebody_wakes_is_told(tmp_path: Path) -> None:
    deployment = Deployment.__new__(Deployment)  # without its topics
    deployment.workers = [worker(tmp_path, OBEDIENT), worker(tmp_path, OBEDIENT)]
    try:
        with deployment.paused():
            pass
        with pytest.raises(BenchmarkError, match="woken"), deployment.paused():
            wake(deployment.workers[1])
        assert not any(one.stands_still for one in deployment.workers)
    finally:
        for one in deployment.workers:
            one.stop()
