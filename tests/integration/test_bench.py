"""`python -m bench` with several names: each in a process of its own."""

import json
import os
import subprocess
import sys

from tests.conftest import REPOSITORY


def bench(*names: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bench", *names],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_that_fails_is_named_and_the_others_run() -> None:
    done = bench("state", "capacity", SESSIONS="many")

    assert done.returncode == 1
    assert "ValueError" in done.stderr
    assert done.stderr.splitlines()[-1] == "failed, see above: state"
    (line,) = done.stdout.splitlines()
    assert set(json.loads(line)) == {"bench", "machine", "rows", "ratios"}


def test_an_unknown_one_stops_all_before_they_run() -> None:
    done = bench("capacity", "speed")

    assert (done.returncode, done.stdout) == (1, "")
    assert "no benchmark 'speed'" in done.stderr
