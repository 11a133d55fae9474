"""Some scenarios of the matrix, others each day; `make matrix` runs all of them, and longer."""

import datetime
import gc
import importlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import matrix
from tests.harness.attacks.workers import STEPS
from tests.harness.matrix import main, row, run
from tests.harness.scenarios import SCENARIOS
from tests.harness.system import Broker
from tests.harness.verdict import Verdict

LONG = {
    "api", "clock", "compression", "cut-one-way", "disk-full", "items", "open-transactions", "outage",
    "refused-rankings", "replaced", "sink", "slow", "slow-bundles", "splits", "steps", "trainer",
    "trainer-disk-full", "workers",
}  # fmt: skip
QUICK = sorted(name for name, one in SCENARIOS.items() if name not in LONG and not one.by_hand and one.brokers == 1)

EACH_DAY = 4
"""About a tenth of all, in two minutes."""


@pytest.fixture
def left_connections() -> Iterator[None]:
    """Those that kafka-python gave up when a broker or a proxy cut them: closed here, not in somebody else's test."""
    yield
    gc.collect()


@pytest.mark.kafka
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.usefixtures("left_connections")
@pytest.mark.parametrize("number", range(EACH_DAY))
def test_the_scenarios_of_the_day(tmp_path: Path, number: int) -> None:
    today = datetime.date.today().toordinal()
    name = QUICK[(today * EACH_DAY + number) % len(QUICK)]
    with Broker(tmp_path / "broker") as broker:
        verdict = run(name, SCENARIOS[name], broker, tmp_path / name, seconds=5, seed=today, rate=300)
    assert not verdict.found, f"{name}, seed {today}:\n{verdict}"
    assert verdict.clicks > 0


def test_each_step_has_its_place_in_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_STOP_AT", STEPS[0])
    monkeypatch.setenv("HARNESS_STOP_AFTER", "0")
    module = importlib.import_module("tests.harness.stopping_worker")
    assert {*module.BEFORE, *module.AFTER, *module.HALF} == set(STEPS)
    for place, name in [*module.BEFORE.values(), *module.AFTER.values()]:
        assert callable(getattr(place, name))


def test_a_row_says_of_which_code_and_which_clicks_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = Verdict(clicks=1200, repeats=3, may_repeat=1024, recovery=7.25)
    verdict.actions.update({"killed": 2, "announced": 1, "clicks of one session": 100_000})
    what = SCENARIOS["kills"].what
    assert row("kills", verdict, 61.4, "1 Dec, 150, seed 7, abc1234") == (
        f"| `kills` | 1 Dec, 150, seed 7, abc1234 | {what} | 1,200 | 100,000 clicks of one session, 2 killed | 61 s "
        "| 7.2 s | 3 of 1024 | kept |"
    )


def test_the_commit_is_that_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.setattr(matrix, "REPOSITORY", tmp_path)
    git("init", "-q")
    (tmp_path / "code").touch()
    git("add", "code")
    git("commit", "-qm", "begun")
    head = git("rev-parse", "--short=7", "HEAD")
    assert matrix.commit() == head
    (tmp_path / "code").write_text("more")
    assert matrix.commit() == f"{head}+"


def test_nothing_begins_once_the_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--minutes", "0", "--folder", str(tmp_path)]) == 1
    _, *told = capsys.readouterr().out.splitlines()
    assert told == [
        f"| {name} | **not run: 0 minutes are over** |" for name, one in SCENARIOS.items() if not one.by_hand
    ]
    assert not [*tmp_path.iterdir()]
