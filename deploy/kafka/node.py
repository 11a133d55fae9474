"""One broker: its folders, its settings and its process."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from deploy.kafka.errors import LocalKafkaError
from deploy.kafka.properties import HOST, NodePorts, to_text
from deploy.kafka.storage import java_command

GUARD = Path(__file__).with_name("guard.py")
LOG4J = Path(__file__).with_name("log4j2.properties")
_ERROR = re.compile(r" (ERROR|FATAL) |^(Caused by|Exception|Error|\[.*error)|^[\w.$]+(Exception|Error)\b")


@dataclass
class Node:
    """A broker's process and where its things are."""

    id: int
    ports: NodePorts
    settings: dict[str, str]
    data: Path  # formatted storage
    logs: Path  # folder: broker-<id>.log is the broker's own log, broker-<id>.out what the JVM printed
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"{HOST}:{self.ports.client}"

    @property
    def log_file(self) -> Path:
        return self.logs / f"broker-{self.id}.log"

    @property
    def out_file(self) -> Path:
        return self.logs / f"broker-{self.id}.out"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def spawn(self, java: Path, jars: Path, heap_mb: int, *, optimise: bool) -> None:
        """Start the process; health is the cluster's to judge."""
        if self.running:
            raise LocalKafkaError(f"broker {self.id} is running already; stop it first")
        config = self.data.with_name(self.data.name + ".properties")
        config.write_text(to_text(self.settings))
        options = [f"-Dlog4j2.configurationFile={LOG4J.as_uri()}", f"-Dnextclick.log={self.log_file}"]
        options.append(f"-Djava.io.tmpdir={self.data.parent}")  # native libraries, which a killed JVM leaves behind
        machine = java_command(java, jars, heap_mb=heap_mb, options=options, optimise=optimise)
        broker = [*machine, "kafka.Kafka", str(config)]
        guard = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid())]
        with self.out_file.open("ab") as out:
            # A session of its own: Ctrl-C in the terminal is ours to handle, in our order.
            self._process = subprocess.Popen(
                [*guard, *broker], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def check_alive(self) -> None:
        """Raise LocalKafkaError, with the end of its log, when the process ended without being told to."""
        if self._process is not None and self._process.poll() is not None:
            raise LocalKafkaError(
                f"broker {self.id} ended with exit code {self._process.returncode}; see {self.log_file} and "
                f"{self.out_file}\n{last_errors(self.log_file, self.out_file)}"
            )

    def terminate(self) -> None:
        """Ask the broker to shut down cleanly; `wait` sees to the rest."""
        if self._process is not None and self._process.poll() is None:
            # The guard leads the group, and until it is reaped its id cannot be anybody else's.
            os.killpg(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone, its port and its file locks with it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGUSR1)  # the guard kills, and ends after what it guards
        self.wait(None)

    def wait(self, timeout: float | None) -> None:
        """Wait for the end of a process that was told to end; SIGKILL after `timeout` seconds."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGUSR1)
            self._process.wait()
        self._process = None


def last_errors(*files: Path, lines: int = 12) -> str:
    """The last lines that tell of an error; of files without any, the last lines."""
    told = []
    for file in files:
        text = file.read_text(errors="replace").splitlines() if file.exists() else []
        errors = [line for line in text if _ERROR.search(line)]
        told += (errors or text)[-lines:]
    return "".join(f"  {line}\n" for line in told)
