"""A real Redis or Valkey for a test, of the distribution's packages."""

import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from deploy.kafka.ports import free_port
from tests.integration.api import wait_until

SERVER = shutil.which("valkey-server") or shutil.which("redis-server")


@dataclass
class RedisServer:
    """A real server that keeps nothing on disk."""

    folder: Path
    port: int = field(default_factory=free_port)
    password: str = ""

    def start(self) -> None:
        assert SERVER is not None
        options = [
            "--requirepass",
            self.password,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        with (self.folder / "redis.log").open("ab") as output:
            self.process = subprocess.Popen([SERVER, *options, "--dir", str(self.folder)], stdout=output, stderr=output)
        self.client = redis.Redis(port=self.port, password=self.password or None)
        wait_until(self.answers, "a Redis that answers")

    def answers(self) -> bool:
        with suppress(redis.ConnectionError):
            return bool(self.client.ping())
        return False

    def stop(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()

    @property
    def url(self) -> str:
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def rankings(self, prefix: str = "nextclick:") -> dict[str, bytes]:
        """Session -> JSON."""
        client: Any = self.client
        keys = list(client.scan_iter(f"{prefix}ranking:*", count=1000))
        return {key.decode().removeprefix(f"{prefix}ranking:"): client.hget(key, "ranking") for key in keys}
