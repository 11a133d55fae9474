"""`stream-app worker` forked from an interpreter that has its imports already, which are half of what a start takes.

The process is one like any other from there on: with its own environment, output and end, which is `os._exit` in either
case. Those that pages show (README, demo, quickstart) are started as they are written there.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing import connection
from pathlib import Path
from typing import Final

_REPOSITORY: Final = Path(__file__).resolve().parents[1]
_FORKED: Final = multiprocessing.get_context("forkserver")
# Whatever else the process of the tests has imported, the threads of its clients among it, is not in there.
_FORKED.set_forkserver_preload(["stream_app.serve.worker", "typer", "rich.table", __name__])
_ONE_LOOKS: Final = threading.Lock()
"""The code of an end can be read once, by whoever looks: a start looks at all of them, too."""


class ForkedWorker:
    """A running worker; the part of subprocess.Popen that tests need."""

    def __init__(self, options: list[str], environment: Mapping[str, str], log: Path) -> None:
        log.write_bytes(b"")  # whoever reads it at once finds it
        # A daemon: should the tests not end it, their own end does.
        self._process = _FORKED.Process(target=_work, args=(options, dict(environment), log), daemon=True)
        with _ONE_LOOKS:
            self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; minus the signal of one that was killed, and None as long as it runs."""
        with _ONE_LOOKS:
            return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        connection.wait([self._process.sentinel], timeout)
        if (code := self.returncode) is None:
            raise subprocess.TimeoutExpired("stream-app worker", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _work(options: list[str], environment: Mapping[str, str], log: Path) -> None:
    """In the new process, which has nothing of its own yet."""
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(_REPOSITORY)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["stream-app", "worker", *options]
    from stream_app.__main__ import main  # now: it looks at environment and output as it is imported

    main()
