"""`make demo`, shortened: the same command with less of everything."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.patience import PATIENCE

PREDICTIONS = 300
SHORT = ["--seconds", "20", "--predictions", f"{PREDICTIONS}", "--rate", "300"]
SHORT += ["--retrain-every", "12", "--new-sessions", "150"]


def test_the_demo_swaps_a_model_and_loses_nothing(kafka: KafkaUnderTest, tmp_path: Path) -> None:
    done = _demo(kafka, *SHORT, "--keep", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    _check(result)
    for told in (
        r"out of stock: (\S+), which \d+ of",
        r"(\S+) is in no ranking any more, \d+ ms",
        r"back in stock: (\S+)",
    ):
        assert re.findall(told, done.stderr) == [result["sold_out"]["item_id"]]
    assert "look and click in a browser: http://127.0.0.1:" in done.stderr


def test_the_demo_replays_a_click_file(kafka: KafkaUnderTest, tmp_path: Path, shared_data: Path) -> None:
    file = tmp_path / "my clicks.tsv.gz"
    file.symlink_to(shared_data / "rsc15_100k.tsv.gz")
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})

    def topics() -> set[str]:
        return {topic for topic in admin.list_topics(timeout=30).topics if topic.startswith("demo-")}

    before = topics()
    done = _demo(kafka, *SHORT, "--no-page", clicks=file)
    assert done.returncode == 0, done.stderr
    assert "in a browser" not in done.stderr
    _check(json.loads(done.stdout.splitlines()[-1]))
    assert "is not removed" not in done.stderr
    while topics() != before:  # they go from a Kafka that is not the demo's own; the deletion is told before it is seen
        time.sleep(0.1)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=lambda end: end.name)
def test_nothing_of_the_demo_outlives_it(kafka: KafkaUnderTest, tmp_path: Path, end: signal.Signals) -> None:
    """Ctrl-C, pressed twice, and a kill. With a Kafka of the demo's own."""
    if kafka.local is None:
        pytest.skip("starts a local Kafka, and KAFKA_BOOTSTRAP_SERVERS says that there is another")
    temporary, said = tmp_path / "tmp", tmp_path / "stderr"
    temporary.mkdir()
    with said.open("wb") as errors:
        process = subprocess.Popen(
            _make(*SHORT),
            cwd=REPOSITORY,
            env=_environment() | {"TMPDIR": str(temporary)},
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while "trainer running" not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.2)
        assert _processes_of(temporary) != []
        os.killpg(process.pid, end)  # a terminal signals everything that runs in its foreground, make too
        if end is signal.SIGINT:
            time.sleep(0.3)
            os.killpg(process.pid, end)
        process.wait(PATIENCE)
        if end is not signal.SIGKILL:
            assert "everything that the demo started is stopped" in said.read_text()
            assert list(temporary.glob("nextclick*")) == []
        deadline = time.monotonic() + PATIENCE
        while _processes_of(temporary):  # of a killed one the guards see to it, a moment later
            assert end is signal.SIGKILL
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _processes_of(folder: Path) -> list[str]:
    """Brokers name it in their command line, worker and trainer in their settings."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if str(folder).encode() in told:
                found.append(told.decode(errors="replace"))
    return found


def _make(*options: str, clicks: Path | None = None) -> list[str]:
    """`make demo` with the environment that the tests run in."""
    made = ["--no-print-directory", "-o", f"{sys.prefix}/.installed", f"VENV={sys.prefix}"]
    return ["make", *made, "demo", f"DEMO={shlex.join(options)}", *([f"CLICKS={clicks}"] if clicks else [])]


def _environment() -> dict[str, str]:
    """That of a terminal: what a `make test` around us tells its own is not for this `make`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "KAFKA_"))}


def _demo(kafka: KafkaUnderTest, *options: str, clicks: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        _make(*options, clicks=clicks),
        cwd=REPOSITORY,
        env=_environment() | {"KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers},
        capture_output=True,
        text=True,
        check=False,
    )


def _check(result: dict[str, object]) -> None:
    assert result["lost"] == 0
    assert result["state_mismatches"] == 0
    assert result["duplicates"] == 0
    assert result["rejected"] == 0
    sold_out = result["sold_out"]
    assert isinstance(sold_out, dict)
    assert sold_out["shown"] > 0
    assert sold_out["rankings_meanwhile"] > 100
    assert sold_out["shown_meanwhile"] == 0
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
    assert max(model["online"]["predictions"] for model in models[1:]) >= PREDICTIONS
    assert all(model["online"]["recall@20"] > 0 for model in models if model["online"]["predictions"] >= PREDICTIONS)
    latency = result["latency_ms"]
    assert isinstance(latency, dict)
    assert 0 <= latency["p50"] <= latency["p99"]
