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
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.shop import Shop
from tests.admin import topic_names
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.patience import PATIENCE

PREDICTIONS = 300
SMALL = ["--history", "1500", "--rate", "300", "--retrain-every", "10", "--new-sessions", "150"]
SHORT = [*SMALL, "--seconds", "20", "--predictions", f"{PREDICTIONS}", "--canary", "40", "--judged-sessions", "100"]


def test_the_demo_shows_a_swap_a_canary_and_a_rollback_and_loses_nothing(kafka: KafkaUnderTest) -> None:
    def topics() -> set[str]:
        names = topic_names({"bootstrap.servers": kafka.bootstrap_servers})
        return {name for name in names if name.startswith("demo-")}

    before = topics()
    done = _demo(kafka, *SHORT)
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
    tried, bad = result["canary"]["version"], result["rolled_back"]["version"]
    for told in (
        f"canary: 40 % of the sessions get {tried}",
        f"the split has ended: {tried} ranks for everybody",
        f"a bad model that passed every check is announced: {bad}",
        f"rolled back from {bad}: the guard: Recall@20",
        f"{tried} ranks again",
    ):
        assert told in done.stderr
    assert result["canary"]["challenger"]["recall"] > result["canary"]["champion"]["recall"]
    online = {model["version"]: model["online"]["recall@20"] for model in result["models"]}
    assert online[bad] < online[tried]
    assert "is not removed" not in done.stderr
    while topics() != before:  # they go from a Kafka that is not the demo's own; the deletion is told before it is seen
        time.sleep(0.1)


@pytest.mark.long
def test_ctrl_c_pressed_twice_stops_a_demo_that_replays_a_click_file(kafka: KafkaUnderTest, tmp_path: Path) -> None:
    file = tmp_path / "my clicks.csv"
    clicks = Shop().history(1500, before_ms=1_700_000_000_000)
    rows = (f"{click.session_id},{click.item_id},{click.timestamp / 1000}\n" for click in clicks)
    file.write_text("session_id,item_id,timestamp\n" + "".join(rows))
    with _running(kafka, tmp_path, *SHORT[:-4], "--no-page", clicks=file) as (process, said):
        _wait(process, said, " ranks")
        os.killpg(process.pid, signal.SIGINT)  # a terminal signals everything that runs in its foreground, make too
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(PATIENCE)
        assert "everything that the demo started is stopped" in said.read_text()
        assert "in a browser" not in said.read_text()
        assert list((tmp_path / "tmp").glob("nextclick*")) == []
        assert _processes_of(tmp_path / "tmp") == []


@pytest.mark.long
def test_nothing_of_a_demo_that_is_killed_outlives_it(kafka: KafkaUnderTest, tmp_path: Path) -> None:
    with _running(kafka, tmp_path, *SHORT) as (process, said):
        _wait(process, said, "starting the worker")
        while not any("stream_app worker" in told for told in _processes_of(tmp_path / "tmp")):
            assert process.poll() is None, said.read_text()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while _processes_of(tmp_path / "tmp"):  # the guards see to it, a moment later
            assert time.monotonic() < deadline
            time.sleep(0.1)


@contextlib.contextmanager
def _running(
    kafka: KafkaUnderTest, folder: Path, *options: str, clicks: Path | None = None
) -> "Iterator[tuple[subprocess.Popen[bytes], Path]]":
    """A demo with a Kafka of its own, in a group of its own, and what it says on standard error."""
    if kafka.is_named:
        pytest.skip("starts a local Kafka, and KAFKA_BOOTSTRAP_SERVERS says that there is another")
    said, temporary = folder / "stderr", folder / "tmp"
    temporary.mkdir()
    with said.open("wb") as errors:
        process = subprocess.Popen(
            _make(*options, clicks=clicks),
            cwd=REPOSITORY,
            env=_environment() | {"TMPDIR": str(temporary)},
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    try:
        yield process, said
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _wait(process: "subprocess.Popen[bytes]", said: Path, text: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while text not in said.read_text():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.2)
    assert _processes_of(said.parent / "tmp") != []


def _processes_of(folder: Path) -> list[str]:
    """Brokers name it in their command line, worker and trainer in their settings."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if str(folder).encode() in told:
                found.append(told.decode(errors="replace").replace("\0", " "))
    return found


def _make(*options: str, clicks: Path | None = None) -> list[str]:
    """`make demo` with the environment that the tests run in."""
    made = ["--no-print-directory", "-o", f"{sys.prefix}/.installed", f"VENV={sys.prefix}"]
    return ["make", *made, "demo", f"DEMO={shlex.join(options)}", *([f"CLICKS={clicks}"] if clicks else [])]


def _environment() -> dict[str, str]:
    """That of a terminal: what a `make test` around us tells its own is not for this `make`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "KAFKA_"))}


def _demo(kafka: KafkaUnderTest, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        _make(*options),
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
    rolled_back = result["rolled_back"]
    assert isinstance(rolled_back, dict)
    good = [model["online"] for model in models if model["version"] != rolled_back["version"]]
    assert all(online["recall@20"] > 0 for online in good if online["predictions"] >= PREDICTIONS)
    latency = result["latency_ms"]
    assert isinstance(latency, dict)
    assert 0 <= latency["p50"] <= latency["p99"]
