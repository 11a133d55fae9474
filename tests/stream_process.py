"""A process of `stream-app` with pages of health and metrics, as tests start, look at and end it."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from deploy.kafka.ports import free_port
from tests.conftest import REPOSITORY
from tests.forked_worker import ForkedWorker
from tests.patience import PATIENCE


@dataclass
class StreamProcess:
    """One `stream-app worker`, or another command."""

    process: "subprocess.Popen[bytes] | ForkedWorker"
    log: Path
    data_dir: Path
    web_port: int

    @classmethod
    def start(cls, *command: str, log: Path, data_dir: Path, environment: Mapping[str, str]) -> Self:
        """Start it with a port of its own."""
        port = free_port()
        options = ["--data-dir", str(data_dir), "--web-port", str(port)]
        if command == ("worker",):
            return cls(ForkedWorker(options, environment, log), log, data_dir, port)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "stream_app", *command, *options],
                cwd=REPOSITORY,
                env=environment,
                stdout=output,
                stderr=output,
            )
        return cls(process, log, data_dir, port)

    def kill(self) -> None:
        """As a crash would: no chance to clean up."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def ready(self) -> dict[str, str] | None:
        """The readiness page; None while nothing listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.web_port}/readyz", timeout=2) as answer:
                page: dict[str, str] = json.load(answer)
        except urllib.error.HTTPError as error:
            page = json.load(error)
        except OSError:
            return None
        return page

    def is_ready(self) -> bool:
        """Whether it serves."""
        return (self.ready() or {}).get("status") == "ready"

    def metrics(self) -> str:
        """The page that Prometheus reads. Of a process that has ended, AssertionError says what it logged last."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.web_port}/metrics", timeout=30) as answer:
                return str(answer.read().decode())
        except OSError as error:
            try:
                code = self.process.wait(1)  # a port closes a moment before its process is gone
            except subprocess.TimeoutExpired:
                raise error from None
            raise AssertionError(f"exit code {code}:\n{self.output()[-3000:]}") from error

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; see :meth:`metrics`."""
        lines = self.metrics().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def output(self) -> str:
        """What it logged."""
        return self.log.read_text()
