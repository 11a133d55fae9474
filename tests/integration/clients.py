"""The programs of docs/clients/ as processes, against a deployment's own topics."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from deploy.kafka.errors import LocalKafkaError
from deploy.kafka.jars import cache_folder, resolve_jars
from deploy.kafka.java import find_java
from tests.conftest import REPOSITORY
from tests.faults.deployment import Deployment
from tests.patience import PATIENCE

SOURCES: Final = REPOSITORY / "docs" / "clients"
LANGUAGES: Final = ("python", "java", "javascript")
_PROGRAMS: Final = {
    "python": {"clicks": "send_clicks.py", "rankings": "show_rankings.py"},
    "java": {"clicks": "SendClicks.java", "rankings": "ShowRankings.java"},
    "javascript": {"clicks": "send_clicks.mjs", "rankings": "show_rankings.mjs"},
}


@cache
def lacking(language: str) -> str | None:
    """Why no program of this language runs here; None where one does."""
    if language == "javascript":
        missing = [program for program in ("node", "npm") if shutil.which(program) is None]
        return f"needs {' and '.join(missing)}" if missing else None
    if language == "java":
        try:
            java = find_java()
        except LocalKafkaError as error:
            return str(error)
        modules = subprocess.run([java, "--list-modules"], capture_output=True, text=True, check=True).stdout
        return None if "jdk.compiler" in modules else f"needs a JDK: {java} has no compiler"
    return None


class Clients:
    """Copies of the programs with the deployment's topics, and a group for each language."""

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        self._folder = folder
        self._environment = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": deployment.bootstrap}
        self._topics = deployment.topics
        self._running: list[subprocess.Popen[bytes]] = []

    def clicks(self, language: str, clicks: Sequence[tuple[str, str]]) -> dict[str, int]:
        """Send clicks of a session and an item; returns the partition of each session."""
        lines = "".join(f"{session} {item}\n" for session, item in clicks).encode()
        process = self._start(language, "clicks", stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        out, _ = process.communicate(lines, PATIENCE)
        assert process.returncode == 0, self.log(language, "clicks").read_text()
        told = [line.split() for line in out.decode().splitlines()]
        assert len(told) == len(clicks)
        return {session: int(partition) for session, partition, _ in told}

    def follow(self, language: str) -> None:
        """Start the consumer."""
        with self.shown_file(language).open("wb") as file:
            self._start(language, "rankings", stdout=file.fileno())

    def shown(self, language: str) -> list[str]:
        """What the consumer has shown by now, in whole lines; fails if it has ended."""
        assert all(process.poll() is None for process in self._running), self.log(language, "rankings").read_text()
        return self.shown_file(language).read_text().split("\n")[:-1]

    def stop(self) -> None:
        """Kill the consumers."""
        for process in self._running:
            process.kill()
            process.wait()

    def shown_file(self, language: str) -> Path:
        return self._folder / f"{language}.shown"

    def log(self, language: str, program: str) -> Path:
        return self._folder / f"{language}-{program}.log"

    def _start(
        self, language: str, program: str, *, stdout: int, stdin: int = subprocess.DEVNULL
    ) -> "subprocess.Popen[bytes]":
        name = _PROGRAMS[language][program]
        source = (SOURCES / name).read_text()
        for generic, own in (
            ('"clicks"', f'"{self._topics.clicks}"'),
            ('"rankings"', f'"{self._topics.rankings}"'),
            ('"shop-rankings"', f'"{self._topics.rankings}-{language}"'),
        ):
            source = source.replace(generic, own)
        folder = self._folder / language
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(source)
        if language == "javascript" and not (folder / "node_modules").exists():
            (folder / "node_modules").symlink_to(_node_modules())
        with self.log(language, program).open("wb") as log:
            process = subprocess.Popen(
                [*_interpreter(language), name],
                cwd=folder, env=self._environment, stdin=stdin, stdout=stdout, stderr=log,
            )  # fmt: skip
        if program == "rankings":
            self._running.append(process)
        return process


def _interpreter(language: str) -> list[str]:
    match language:
        case "python":
            return [sys.executable]
        case "java":  # one tier of compilation and one thread to collect: it starts sooner
            return [str(find_java()), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", f"{resolve_jars()}/*"]
        case _:
            return ["node"]


def _node_modules() -> Path:
    """What package-lock.json names, fetched once a machine."""
    lock = (SOURCES / "package-lock.json").read_bytes()
    target = cache_folder().parent / "clients" / hashlib.sha256(lock).hexdigest()[:12]
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(SOURCES / name, folder)
            done = subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE,
            )  # fmt: skip
            assert done.returncode == 0, f"npm cannot fetch kafkajs: {done.stderr}"
            try:
                Path(folder, "node_modules").rename(target)
            except OSError:
                assert target.is_dir()  # another process was faster
    return target
