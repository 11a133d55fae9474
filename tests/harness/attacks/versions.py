"""On versions: workers of this one and of the one before take over from each other."""

import subprocess
from pathlib import Path
from typing import Final

from tests.harness.attacks.rounds import FEW, rounds
from tests.harness.system import REPOSITORY, System

_ROWS: Final = "stream_app/core/state_codec.py"


def mixed(system: System, seconds: float) -> None:
    """Two workers go up and down in turns, on the data folder of the other version, or by what Kafka has of it.

    Bundles of both formats serve meanwhile.
    """
    before = _version_before(system.folder / "before")
    paths = [system.bundle("gru", format_1=number % 2 == 0) for number in range(2)]
    system.start_ready("b", root=before)
    for number in rounds(seconds, least=3):
        for name, root in (("a", before), ("b", REPOSITORY)) if number % 2 == 0 else (("b", before), ("a", REPOSITORY)):
            system.clicks_pass(FEW)
            (system.kill if system.rng.random() < 0.5 else system.stop)(name)
            system.start_ready(name, root=root)
            system.did("downgraded" if root == before else "upgraded", worker=name)
        system.announce(paths[number % len(paths)])
        system.clicks_pass(FEW)


def _version_before(folder: Path) -> Path:
    """The code as it was before what rows hold was changed last, from the repository's history."""
    git = ("git", "-C", str(REPOSITORY))
    changed = subprocess.run(
        [*git, "log", "-1", "--format=%H", "--", _ROWS], capture_output=True, text=True, check=True
    )
    command = [*git, "archive", f"{changed.stdout.strip()}^", "schemas", "stream_app"]
    packed = subprocess.run(command, capture_output=True, check=False)
    assert packed.returncode == 0, f"the version before is only in a clone with its history: {packed.stderr.decode()}"
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder
