"""Benchmarks that fail say so: `python -m bench` by its exit code, a deployment by a BenchmarkError."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.deployment import Deployment
from bench.errors import BenchmarkError
from schemas.messages.click import Click
from tests.conftest import REPOSITORY, KafkaUnderTest


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


def test_a_record_that_kafka_does_not_take_is_told(kafka: KafkaUnderTest, tmp_path: Path) -> None:
    with Deployment(kafka.bootstrap_servers, tmp_path) as deployment:
        assert deployment.send([Click("s", "i", 1), Click("t", "i", 2)]) == 2
        nobody = deployment.producer(**{"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 500, "log_level": 0})
        nobody.produce(deployment.topics.clicks, b"{}")

        with pytest.raises(
            BenchmarkError, match=rf"1 records; the first was {deployment.topics.clicks}: .*_MSG_TIMED_OUT"
        ):
            deployment.flush(nobody)
