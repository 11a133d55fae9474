"""The systemd units against systemd's own checker, and against the commands and settings that they name."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from schemas.config.settings import load_settings
from stream_app.serve import worker
from stream_app.settings import StreamSettings
from tests.command_lines import is_command
from tests.container_files import REPOSITORY
from trainer.service.settings import TrainerRoot

UNITS: Final = sorted((REPOSITORY / "deploy" / "systemd").glob("*.service"))
PROGRAMS: Final = "/opt/nextclick/bin/"
_COMMANDS: Final = ("ExecStart", "ExecStartPre", "ExecStartPost", "ExecReload", "ExecStop", "ExecStopPost")


def lines(unit: Path, key: str) -> list[str]:
    """The values of a key, with 3 for the name of an instance."""
    text = unit.read_text().replace("%i", "3")
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_it(unit: Path, tmp_path: Path) -> None:
    checker = shutil.which("systemd-analyze")
    if checker is None:
        pytest.skip("needs systemd-analyze")
    here = tmp_path / unit.name.replace("@", "@3")
    here.write_text(unit.read_text().replace(PROGRAMS, f"{Path(sys.executable).parent}/"))
    checked = subprocess.run([checker, "verify", "--man=no", here], capture_output=True, text=True, check=False)
    # What it does not know it only tells of.
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_commands_and_settings_are_ours(unit: Path) -> None:
    (started,) = lines(unit, "ExecStart")
    assert started.startswith(PROGRAMS)
    assert is_command(started.removeprefix(PROGRAMS).split()) is None
    environ = dict(one.split("=", 1) for one in lines(unit, "Environment"))
    assert environ.pop("NEXTCLICK_CONFIG")
    load_settings(StreamSettings, config=None, environ=environ)
    load_settings(TrainerRoot, config=None, environ=environ)
    (folders,) = lines(unit, "StateDirectory")
    for folder in (value for name, value in environ.items() if name.endswith(("_DIR", "_DATA"))):
        assert any(folder.startswith(f"/var/lib/{own}") for own in folders.split()[1:]), f"nobody makes {folder}"
    assert lines(unit, "Restart") == ["always"]


def test_no_two_processes_of_a_machine_want_one_port() -> None:
    units = [dict(one.split("=", 1) for one in lines(unit, "Environment")) for unit in UNITS]
    given = [int(port) for environ in units for name, port in environ.items() if name.endswith("_PORT")]
    settings = load_settings(StreamSettings, config=None, environ={})
    defaults = [settings.worker.web_port, settings.scores.web_port, settings.api.port, settings.sink.web_port]
    assert len(given) == 2, "the guard's and a worker's"
    assert len({*given, *defaults}) == 6


def test_a_worker_has_the_time_that_it_may_take_to_stop() -> None:
    (unit,) = [one for one in UNITS if "worker" in one.name]
    assert float(lines(unit, "TimeoutStopSec")[0]) > 2 * worker._STOP_SECONDS


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_process_may_do_no_more_than_it_needs(unit: Path) -> None:
    """As docs/security.md has it. A key that stands twice is no key of one value: the last one would count."""
    told = {
        "CapabilityBoundingSet": "",  # none at all; without the key, all
        "NoNewPrivileges": "yes",
        "UMask": "0027",
        "ProtectSystem": "strict",
    }
    assert {key: lines(unit, key) for key in told} == {key: [value] for key, value in told.items()}
    (user,) = lines(unit, "User")
    assert user not in ("", "root", "0")
    assert not lines(unit, "AmbientCapabilities")
    assert not any(command[:1] in ("+", "!") for key in _COMMANDS for command in lines(unit, key)), "runs as root"
