"""A real schema registry for a test: Apicurio Registry in memory, with Confluent's API."""

import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.kafka.java import find_java
from deploy.kafka.ports import free_port
from tests.conftest import REPOSITORY
from tests.patience import PATIENCE

FOLDER = REPOSITORY / ".kit" / "apicurio"
"""Where `make registry` puts it."""


@dataclass
class Registry:
    """One that may not have been started yet."""

    port: int
    log: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """Of Confluent's API."""
        return f"http://127.0.0.1:{self.port}/apis/ccompat/v7"

    def start(self) -> None:
        """Return when it answers."""
        [jar] = FOLDER.glob("*-runner.jar")
        options = ["-Xmx384m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dquarkus.http.host=127.0.0.1"]
        command = [str(find_java()), *options, f"-Dquarkus.http.port={self.port}", "-jar", str(jar)]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=FOLDER, stdout=output, stderr=output)
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        """As a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def apicurio(folder: Path) -> Iterator[Registry]:
    """One that is not started yet, and is stopped at the end. Skips where it was not fetched."""
    if not FOLDER.is_dir():
        pytest.skip("needs Apicurio Registry, which `make registry` fetches")
    registry = Registry(free_port(), folder / "apicurio.log")
    try:
        yield registry
    finally:
        registry.stop()
