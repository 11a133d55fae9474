"""`trainer run` and `trainer guard` under attack, and what they must have come to, once all is at rest."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from schemas.bundle.files import open_bundle
from schemas.errors import BundleError
from schemas.messages.score import decode_score
from tests.harness.clients import read_all
from tests.harness.oracle import click_of
from tests.harness.parts import compare
from tests.harness.system import System, limit_files
from tests.patience import PATIENCE

PHASES: Final = ("collecting", "training", "publishing", "published", "next cycle")
"""Of a cycle, in this order."""
_LOOK_SECONDS: Final = 0.01
_REFUSED: Final = 2
_GIVES_UP: Final = (1, 2)
_NEVER: Final = str(10**9)
_DISK_KB: Final = 8192


class Command:
    """A command of the trainer, as a process that is started again and again.

    Attributes:
        log: all that it ever logged.
        kills: when it was killed.
    """

    words: tuple[str, ...]

    def __init__(self, system: System, name: str, settings: Mapping[str, str]) -> None:
        self._system, self._name = system, name
        self._settings = {f"NEXTCLICK_{key}": value for key, value in settings.items()}
        self.log = system.folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._before = 0
        self.kills: list[datetime] = []
        system.closing.callback(self.end)

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The last one that was started."""
        assert self._process is not None, "it is not started"
        return self._process

    def start(self) -> None:
        """Start it."""
        self._system.did(f"{self._name} started")
        self._before = self._logged()
        command = [sys.executable, "-m", "trainer", *self.words]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(command, env=self.environment(), stdout=output, stderr=output)

    def kill(self, action: str) -> None:
        """SIGKILL."""
        self._system.did(action)
        self.kills.append(datetime.now(UTC))
        self.end()

    def end(self) -> None:
        """SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def waits(self, until: Callable[[], bool], what: str) -> None:
        """Look again and again, at once when it comes; one that has given up meanwhile is started anew."""
        deadline = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < deadline, f"never: the {self._name} is {what}; see {self.log}"
            if self.process.poll() is not None:
                self._system.did(f"{self._name} gave up", code=self.process.returncode)
                assert self.process.returncode in _GIVES_UP, f"the {self._name} exited, see {self.log}"
                self.start()
            time.sleep(_LOOK_SECONDS)

    def told(self, event: str, *, since: int | None = None) -> bool:
        """Whether it has logged an event, since its start or since its log had so many bytes."""
        return f'"event": "{event}"'.encode() in self.log.read_bytes()[self._before if since is None else since :]

    def announced(self, alias: str) -> list[dict[str, Any]]:
        """What was announced under an alias, as the topic still has it."""
        records = read_all(self._system.broker.direct, f"{self._system.name}-models")
        return [json.loads(one.value) for one in records if one.key == alias.encode()]

    def environment(self) -> dict[str, str]:
        """What the process is told."""
        return self._system.environment() | self._settings

    def _logged(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0


class Trainer(Command):
    """Trains on the clicks of a system, in cycles, and announces under an alias that no worker serves.

    Attributes:
        registry: where it publishes; another one may share it.
    """

    words = ("run", "--every", "1s")
    ALIAS: Final = "challenger"

    def __init__(self, system: System, name: str = "trainer", *, registry: Path | None = None) -> None:
        self._clicks = system.folder / f"{name}-clicks"
        self.registry = registry or system.folder / f"{name}-registry"
        told = {
            "REGISTRY": str(self.registry),
            "LOG_DIR": str(self._clicks),
            "WORK_DIR": str(system.folder / f"{name}-work"),
            "MODEL_ALIAS": self.ALIAS,
            "FLUSH_INTERVAL": "200ms",
            "MAX_FAILURES": "20",  # cycles follow each other at once
            "MIN_NEW_SESSIONS": "100",
            "GATE_PREDICTIONS": "100",
            "GATE_MARGIN": "1",  # of clicks by chance no model learns anything
            "GATE_BEATS": "[]",
            "LOG_FORMAT": "json",
            "REFIT": "false",
            "WINDOW_CLICKS": "5000",
            "TRAINING__EPOCHS": "1",
            "TRAINING__HIDDEN_SIZE": "12",
            "TRAINING__N_SAMPLE": "32",
        }
        super().__init__(system, name, {f"TRAINER__{key}": value for key, value in told.items()})

    def reaches(self, phase: str) -> None:
        """Wait until it gets there from now on."""
        before, logged = self._traces(phase), self._logged()
        self.waits(lambda: bool(self._traces(phase) - before) or self.told(phase, since=logged), phase)

    def _traces(self, phase: str) -> set[Path]:
        """Files that it makes in a phase."""
        match phase:
            case "collecting":
                return {*self._clicks.glob("clicks-*.parquet")}
            case "publishing":
                return {*self.registry.glob("_unfinished/*.json")}
            case "published":
                return {*self.registry.glob("*/manifest.json")}
        return set()

    def limit_files(self, most: int | None = None) -> None:
        """No file of it may grow beyond so many bytes, if it still runs."""
        if self.process.poll() is None:
            limit_files(self.process.pid, *(() if most is None else (most,)))

    def freeze(self) -> None:
        """SIGSTOP."""
        self._system.did(f"{self._name} frozen")
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._system.did(f"{self._name} thawed")
        self.process.send_signal(signal.SIGCONT)

    def is_refused(self, other: "Trainer") -> None:
        """It ends, and names the one that has the lease."""
        code = self.process.wait(PATIENCE)
        told = self.log.read_bytes()[self._before :].decode()
        assert code == _REFUSED, f"the {self._name} exited {code}, see {self.log}"
        assert f"process {other.process.pid}" in told, f"the {self._name} does not name the other, see {self.log}"
        self._system.did(f"{self._name} refused")

    def note_recoveries(self) -> None:
        """How long after a kill a cycle came to its end, where none was killed before that."""
        told = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        ends = [datetime.fromisoformat(one["timestamp"]) for one in told if one["event"] == PHASES[-1]]
        for killed, again in pairwise([*self.kills, datetime.max.replace(tzinfo=UTC)]):
            ended = next((at for at in ends if killed < at < again), None)
            if ended is not None:
                self._system.history.note("recovered", seconds=(ended - killed).total_seconds())

    def is_whole(self) -> None:
        """Its log has each click of the topic once; what is published and announced is whole."""
        self.note_recoveries()
        self.end()
        # Nothing is trained any more; what kills left is removed, and what they kept from the topic is announced.
        last = subprocess.run(
            [sys.executable, "-m", "trainer", "run", "--once"],
            env=self.environment() | {"NEXTCLICK_TRAINER__MIN_NEW_SESSIONS": _NEVER},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert last.returncode == 0, last.stderr[-2000:]
        self._has_each_click_once()
        self._has_whole_models()

    def _has_each_click_once(self) -> None:
        system, expected = self._system, dict[str, list[tuple[str, str, int]]]()
        for one in read_all(system.broker.direct, system.clicks):
            if (click := click_of(one.key, one.value)) is not None:
                expected[f"{one.partition}@{one.offset}"] = [(click.session_id, click.item_id, click.timestamp)]
        found: dict[str, list[tuple[str, str, int]]] = {}
        for path in self._clicks.glob("*.parquet"):
            partition = int(path.name.split("-")[1].removeprefix("p"))
            for row in pq.ParquetFile(path).read().to_pylist():
                click_there = row["session_id"], row["item_id"], row["timestamp"]
                found.setdefault(f"{partition}@{row['offset']}", []).append(click_there)
        compare(system, f"clicks of the {self._name}", expected, lambda: found)

    def _has_whole_models(self) -> None:
        """Each version opens, and the newest that passed the gate is announced, as it was published."""
        versions = [path for path in self.registry.iterdir() if not path.name.startswith("_")]
        opened = {path.name: _opened(str(path)) for path in versions}
        passed = [name for _, name in sorted(filter(None, map(_passed, versions)))]
        told = self.announced(self.ALIAS)
        announced = _opened(told[-1]["uri"], told[-1]["manifest_sha256"]) if told else "none"
        expected = {name: name for name in opened} | {"announced": passed[-1] if passed else "none"}
        compare(self._system, "models", expected if opened else {}, lambda: opened | {"announced": announced})


class Guard(Command):
    """Judges the models of a system by its scores."""

    words = ("guard",)
    SESSIONS: Final = 250
    """With scores of fewer it decides nothing."""

    def __init__(self, system: System) -> None:
        told = {
            "TRAINER__REGISTRY": str(system.models[0].parent),
            "TRAINER__WORK_DIR": str(system.folder / "guard-work"),
            "TRAINER__LOG_FORMAT": "json",
            "GUARD__EVERY": "1s",
            "GUARD__MIN_SESSIONS": str(self.SESSIONS),
        }
        super().__init__(system, "guard", told)

    def promotes(self, path: Path, why: str) -> None:
        """Somebody announces a bundle with `trainer promote`: so it is in the history, and can be returned to."""
        self._system.did("announced", version=path.name)
        command = [sys.executable, "-m", "trainer", "promote", path.name, "--why", why]
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    def scored_sessions(self, path: Path) -> int:
        """How many sessions there are scores of, of a bundle."""
        records = read_all(self._system.broker.direct, f"{self._system.name}-scores")
        newest = {one.key: decode_score(one.value) for one in records}
        return sum(score.sessions for score in newest.values() if score.model_version == path.name)

    def split_is_over(self) -> bool:
        """Whether the topic of splits says so."""
        records = read_all(self._system.broker.direct, f"{self._system.name}-splits")
        own = [one.value for one in records if one.key == self._system.name.encode()]
        return bool(own) and own[-1] is None

    def has_decided(self, better: Path) -> None:
        """It announced the better model once, which is champion, and ended the split."""
        expected = _serves_alone(better) | {"the split is over": True}
        compare(self._system, "guard", expected, lambda: self._came_to() | {"the split is over": self.split_is_over()})

    def has_rolled_back(self, good: Path) -> None:
        """It announced the model of before once, which is champion."""
        compare(self._system, "guard", _serves_alone(good), self._came_to)

    def _came_to(self) -> dict[str, Any]:
        told = self.announced("champion")
        ranked = {
            one.partition: json.loads(one.value)["model_version"]
            for one in read_all(self._system.broker.direct, self._system.rankings)
        }
        return {
            "announced": [one["version"] for one in told if one.get("evidence")],
            "champion": told[-1]["version"] if told else None,
            "ranks last": sorted({*ranked.values()}),
        }


class Disk:
    """A small disk of its own (tmpfs), for which its user must be allowed to mount; it ends with `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_KB}k", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        assert mounted.returncode == 0, f"only who may mount can fill a disk: {mounted.stderr}"

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self) -> None:
        """No file can grow any more."""
        with self._ballast.open("wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(4096)):
                    pass
            except OSError:
                return

    def empty(self) -> None:
        """There is room again."""
        self._ballast.unlink()

    def close(self) -> None:
        """Unmount it, with all that is there."""
        subprocess.run(["umount", str(self.folder)], check=True)


def _opened(uri: str, manifest_sha256: str | None = None) -> str:
    """The version of a bundle, as a worker opens it; why not, if it cannot be."""
    try:
        return open_bundle(uri, manifest_sha256=manifest_sha256).version
    except BundleError as error:
        return str(error)


def _serves_alone(bundle: Path) -> dict[str, Any]:
    return {"announced": [bundle.name], "champion": bundle.name, "ranks last": [bundle.name]}


def _passed(version: Path) -> tuple[int, str] | None:
    """When a version was made, and its name, if it passed the gate."""
    try:
        manifest = json.loads((version / "manifest.json").read_bytes())
        passed = manifest["metrics"]["gate"]["passed"]
        return (manifest["created_at"], version.name) if passed else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # half of one, or damaged: then it does not open, either
