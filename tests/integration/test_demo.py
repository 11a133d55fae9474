"""`make demo`, shortened: the same command with less of everything."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, KafkaUnderTest

SHORT = ["--seconds", "40", "--rate", "300", "--retrain-every", "12", "--new-sessions", "150"]


@pytest.mark.timeout(400)
def test_the_demo_swaps_a_model_and_loses_nothing(kafka: KafkaUnderTest, tmp_path: Path) -> None:
    done = _demo(kafka, *SHORT, "--keep", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    _check(result)


@pytest.mark.timeout(400)
def test_the_demo_replays_a_click_file(kafka: KafkaUnderTest, tmp_path: Path, shared_data: Path) -> None:
    file = shared_data / "rsc15_100k.tsv.gz"
    done = _demo(kafka, *SHORT, "--clicks", str(file), "--keep", str(tmp_path))
    assert done.returncode == 0, done.stderr
    _check(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.timeout(200)
def test_the_demo_stops_everything_on_ctrl_c(kafka: KafkaUnderTest, tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.demo", *SHORT, "--keep", str(tmp_path / "demo")],
            cwd=REPOSITORY,
            env=os.environ | {"KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        deadline = time.monotonic() + 120
        while "worker ready" not in (tmp_path / "stderr").read_text():
            assert process.poll() is None, (tmp_path / "stderr").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 130
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "demo")], capture_output=True, text=True, check=False)
    assert left.stdout == ""


def _demo(kafka: KafkaUnderTest, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "deploy.demo", *options],
        cwd=REPOSITORY,
        env=os.environ | {"KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers},
        capture_output=True,
        text=True,
        check=False,
    )


def _check(result: dict[str, object]) -> None:
    assert result["lost"] == 0
    assert result["state_mismatches"] == 0
    assert result["duplicates"] == 0
    assert result["rejected"] == 0
    clicks, swaps, models = result["clicks"], result["swaps"], result["models"]
    assert isinstance(clicks, int)
    assert isinstance(swaps, int)
    assert isinstance(models, list)
    assert clicks > 1000
    assert result["rankings"] == clicks
    assert swaps >= 1
    assert len(models) == swaps + 1
    for model in models:
        assert set(model) == {"version", "offline", "online"}
        assert set(model["offline"]) == {"recall@20", "mrr@20"}
        assert set(model["online"]) == {"recall@20", "mrr@20", "predictions"}
    latency = result["latency_ms"]
    assert isinstance(latency, dict)
    assert 0 <= latency["p50"] <= latency["p99"]
