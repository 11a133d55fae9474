"""The commands that the demo runs: each a process of its own, as in production, with its log in a file."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.kafka.node import GUARD

_STOP_SECONDS = 45.0


class CommandFailedError(RuntimeError):
    """A command of the demo ended with an error; the message holds the end of its log."""


@dataclass
class Commands:
    """Runs `stream-app` and `trainer` with one environment; stops whatever is left."""

    environment: Mapping[str, str]
    logs: Path
    _running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def run(self, *command: str, **more: str) -> str:
        """Run a command to its end, with `more` in its environment; returns what it printed.

        Raises CommandFailedError.
        """
        log = self.logs / f"{'-'.join(command[:2])}.log"
        with log.open("ab") as errors:
            done = subprocess.run(
                _argv(command), env=self._environ() | more, stdout=subprocess.PIPE, stderr=errors, check=False
            )
        if done.returncode != 0:
            raise CommandFailedError(_failure(command, done.returncode, log))
        return done.stdout.decode()

    def run_json(self, *command: str) -> Any:
        """Run a command that prints JSON."""
        return json.loads(self.run(*command))

    def start(self, *command: str, niceness: int = 0, **more: str) -> None:
        """Start a command that goes on, with a lower priority the higher `niceness` is, and `more` as for `run`."""
        log = self.logs / f"{'-'.join(command[:2])}.log"
        with log.open("ab") as output:
            # A group of its own: Ctrl-C is the demo's, which stops what it started in the right order. The guard is for
            # a demo that is killed: nothing of it goes on.
            guard = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid())]
            self._running[" ".join(command[:2])] = subprocess.Popen(
                [*guard, "nice", "-n", str(niceness), *_argv(command)],
                env=self._environ() | more,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise CommandFailedError if a started command has ended by itself."""
        for name, process in list(self._running.items()):  # another thread may stop one
            if (code := process.poll()) is not None:
                log = self.logs / f"{name.replace(' ', '-')}.log"
                raise CommandFailedError(_failure((name,), code, log))

    def runs(self, name: str) -> bool:
        """Whether a command that was started has not been stopped."""
        return name in self._running

    def stop(self, name: str) -> int:
        """SIGTERM a command, by its first two words, and wait; returns its exit code."""
        process = self._running.pop(name)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # the guard leads the group, and ignores it
        try:
            return process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGUSR1)  # the guard kills, and ends after what it guards
            return process.wait()

    def stop_all(self) -> None:
        """Stop what still runs."""
        for name in reversed(list(self._running)):
            self.stop(name)

    def _environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("NEXTCLICK_")}
        return kept | dict(self.environment)


def _argv(command: Sequence[str]) -> list[str]:
    module = {"stream-app": "stream_app", "trainer": "trainer"}[command[0]]
    return [sys.executable, "-P", "-m", module, *command[1:]]


def _failure(command: Sequence[str], code: int, log: Path) -> str:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return f"`{' '.join(command)}` ended with exit code {code}; the end of {log}:\n{tail}"
