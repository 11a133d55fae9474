"""One broker for all processes of a test run: an idle one takes a twentieth of a core."""

import fcntl
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from deploy.kafka import LocalKafka
from deploy.kafka.node import last_errors


class Broker(Protocol):
    """What is asked of a LocalKafka."""

    @property
    def bootstrap_servers(self) -> str: ...
    def start(self) -> object: ...
    def stop(self) -> None: ...


class SharedBroker:
    """The broker of the run whose processes share `folder`; each process has one object of this class.

    Who asks first starts it and owns it: it ends when that process does. Files in the folder say the rest:

    - `kafka.address`: where it is, as long as there is one;
    - `kafka.start`: locked by who looks for it, or starts it, for as long as that takes;
    - `kafka.users`: locked by all who use it, together; its owner locks it alone before it stops the broker, and so
      waits for the others. Who comes meanwhile waits for the owner, and then finds no address.

    The system takes its locks from a process that dies. Its broker dies too, and who misses that starts another on the
    same port, for the others know no other address.
    """

    def __init__(self, folder: Path, new: Callable[[Path, Sequence[int] | None], Broker] | None = None) -> None:
        self.logs = folder / "kafka-logs"
        self._new = new or (lambda logs, ports: LocalKafka(log_dir=logs, ports=ports))
        self._address = folder / "kafka.address"
        self._start = (folder / "kafka.start").open("w")
        self._users = (folder / "kafka.users").open("w")
        self._own: list[Broker] = []

    def join(self) -> str:
        """Use it until `leave`; returns its address. Raises LocalKafkaError when it cannot be started."""
        with self._looking():
            fcntl.flock(self._users, fcntl.LOCK_SH)
            return self._found() or self._started()

    def replaced(self) -> str | None:
        """What became of a broker that was gone, once another one without its topics is there; None if it is not gone.

        One of those who miss it is told. Raises LocalKafkaError when another one cannot be started.
        """
        if self._found():
            return None
        with self._looking():
            if self._found():
                return None
            logs = [self.logs / f"broker-0.{kind}" for kind in ("log", "out")]
            told = f"the Kafka that the tests share was gone; see {logs[0]} and {logs[1]}\n{last_errors(*logs)}"
            self._started()
            return told

    def leave(self) -> None:
        """Use it no more. Its owner waits until nobody else uses it, and stops it."""
        try:
            if self._own:
                fcntl.flock(self._users, fcntl.LOCK_EX)
        finally:
            for broker in self._own:
                broker.stop()
            if self._own:
                self._address.unlink(missing_ok=True)
            # Closing it would not do where a child process that was forked has it open.
            fcntl.flock(self._users, fcntl.LOCK_UN)
            self._users.close()
            self._start.close()

    @contextmanager
    def _looking(self) -> Iterator[None]:
        fcntl.flock(self._start, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._start, fcntl.LOCK_UN)

    def _known(self) -> str:
        return self._address.read_text() if self._address.exists() else ""

    def _found(self) -> str:
        """Its address if it is there and lives, else nothing."""
        known = self._known()
        return known if known and answers(known) else ""

    def _started(self) -> str:
        known = self._known()
        broker = self._new(self.logs, [int(known.rpartition(":")[2])] if known else None)
        broker.start()
        self._own.append(broker)
        self._address.write_text(broker.bootstrap_servers)
        return broker.bootstrap_servers


def answers(address: str) -> bool:
    """Whether a broker listens there."""
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True
