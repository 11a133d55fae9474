"""`stream-app api` as a process, and what tests ask it."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from deploy.kafka.ports import free_port
from tests.patience import PATIENCE

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class ApiProcess:
    """One `stream-app api`."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path
    headers: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **options: Any) -> requests.Response:
        """GET a path, with the headers that every request of this test has."""
        options["headers"] = self.headers | options.pop("headers", {})
        return requests.get(self.url + path, timeout=PATIENCE, **options)

    def post(self, path: str, body: object, **options: Any) -> requests.Response:
        """POST JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        options["headers"] = {"Content-Type": "application/json"} | self.headers | options.pop("headers", {})
        return requests.post(self.url + path, data=data, timeout=PATIENCE, **options)

    def output(self) -> str:
        """What it logged."""
        return self.log.read_text()

    def is_ready(self, part: str = "status") -> bool:
        """Whether it is ready, or a part of it is fine; fails if it has ended."""
        assert self.process.poll() is None, self.output()[-3000:]
        try:
            return self.get("/readyz").json()[part] in ("ready", "ok")
        except requests.ConnectionError:
            return False

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.wait()


def wait_until(
    condition: Callable[[], bool], what: str, *, seen: Callable[[], object] = lambda: "", seconds: float = PATIENCE
) -> None:
    """Poll; AssertionError with what is seen when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}; {seen()}"
        time.sleep(0.05)


def start_api(
    environment: Mapping[str, str],
    root: Path,
    name: str = "api",
    *,
    token: str | None = None,
    part: str = "status",
    **extra: str,
) -> ApiProcess:
    """Start one whose data folder is named `name`, and wait until it is ready, or a part of it is fine."""
    port, log = free_port(), root / f"{name}-{time.monotonic_ns()}.log"
    options = ["--data-dir", str(root / name), "--port", str(port), "--log-format", "json"]
    given = {**environment, **extra, **({} if token is None else {"NEXTCLICK_API__TOKEN": token})}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "stream_app", "api", *options],
            cwd=REPOSITORY, env=given, stdout=output, stderr=output,
        )  # fmt: skip
    api = ApiProcess(process, port, log, {} if token is None else {"Authorization": f"Bearer {token}"})
    wait_until(lambda: api.is_ready(part), f"{name}: {part} ready", seen=api.output)
    return api


@contextmanager
def running_api(environment: Mapping[str, str], root: Path, name: str = "api", **extra: Any) -> Iterator[ApiProcess]:
    """One that is started so, and is killed at the end if it has not ended."""
    api = start_api(environment, root, name, **extra)
    try:
        yield api
    finally:
        if api.process.poll() is None:
            api.kill()


def events(api: ApiProcess, path: str, **options: Any) -> Generator[dict[str, str], None, None]:
    """Server-sent events as they come, until the server ends the stream; comments are left out."""
    with api.get(path, stream=True, **options) as answer:
        assert answer.status_code == 200, answer.text
        event: dict[str, str] = {}
        for line in answer.iter_lines(chunk_size=1):
            field, _, value = line.decode().partition(": ")
            if field:
                event[field] = value
            elif event:
                yield event
                event = {}
