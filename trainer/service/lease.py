"""One trainer for each alias of a registry: the file `_lease/<alias>.json`, which its holder rewrites every so often.

It survives a kill, and it lies where the registry lies, an object store too. fsspec cannot compare and swap, so the
last to write has the lease, and its holder looks again before each thing that it would publish, announce or remove.
Clocks of two machines are never compared: a lease is alive while its content changes, watched by one's own clock.
Only of a holder on the same machine is more known: whether its process is still there.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final, Self

import msgspec
import structlog

from trainer.errors import LeaseError, RegistryError, StopRequested
from trainer.service.store import Store

log = structlog.get_logger(__name__)

LEASE_SECONDS: Final = 60.0
"""A lease that does not change for so long is its holder's no more. It is rewritten four times within that."""
_POLL_SECONDS: Final = 1.0
_SETTLE_SECONDS: Final = 0.5
"""Between writing a lease and reading it back: another one that saw no lease either may be writing."""


class _Held(msgspec.Struct, frozen=True):
    """The file's content."""

    writer: str  # the click log's name: a restarted trainer knows its own lease by it
    process: str
    host: str
    pid: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
    since: Annotated[int, msgspec.Meta(ge=0, lt=1 << 47)]  # milliseconds since the epoch, for people
    renewed: int  # how often
    home: str = ""  # where the pid counts; empty where that is not known


class Lease:
    """Holds the lease of an alias inside a `with`: the trainer's, or with `guards` the guard's.

    Raises LeaseError when another one has it, and RegistryError.
    """

    def __init__(
        self,
        store: Store,
        alias: str,
        writer: str,
        *,
        guards: bool = False,
        seconds: float = LEASE_SECONDS,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._path = f"_lease/{alias}{'.guard' if guards else ''}.json"
        self._does = f"{'guard watches' if guards else 'trainer publishes'} the alias {alias}"
        self._seconds = seconds
        self._stopping = stopping
        now_ms = time.time_ns() // 1_000_000
        self._own = _Held(writer, uuid.uuid4().hex, socket.gethostname(), os.getpid(), now_ms, 0, _home())
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._lost: BaseException | None = None
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)

    def __enter__(self) -> Self:
        before = self._store.read(self._path)
        held = _decode(before)
        own = held is not None and held.writer == self._own.writer
        if before is not None and not own:
            if held is not None and self._has_ended(held):
                log.warning("took over the lease of a process of this machine that has ended", **_who(before))
            else:
                self._outwait(before)
        self._write()
        if not own:
            time.sleep(_SETTLE_SECONDS)
        self.check()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        try:
            if self._is_own(self._store.read(self._path)):
                self._store.remove(self._path)
        except RegistryError as problem:  # it runs out by itself
            log.warning("the registry's lease cannot be given back", error=str(problem))

    def check(self) -> None:
        """Look whether the lease is still ours. Raises LeaseError when it is not, and RegistryError."""
        self.raise_if_lost()
        with self._lock:
            self._renew()

    def raise_if_lost(self) -> None:
        """The same without a look: what the renewing thread has found."""
        if self._lost is not None:
            raise self._lost

    def _outwait(self, before: bytes) -> None:
        """Watch another's lease until it has run out. Raises LeaseError as soon as it changes."""
        log.warning(
            "this registry's lease is held: waiting whether its holder is alive and renews it",
            seconds=self._seconds,
            **_who(before),
        )
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline:
            if self._stopping():
                raise StopRequested
            time.sleep(min(_POLL_SECONDS, self._seconds / 8))
            now = self._store.read(self._path)
            if now is None:
                return
            if now != before:
                raise self._refusal(now)
        log.warning("took over a lease that was not renewed", **_who(before))

    def _has_ended(self, held: _Held) -> bool:
        """Whether a holder ran where this process runs, and is gone. A number that was given anew counts as alive."""
        if not held.home or held.home != self._own.home:
            return False
        try:
            os.kill(held.pid, 0)  # sends nothing
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's
            pass
        return False

    def _keep_renewing(self) -> None:
        while not self._ended.wait(self._seconds / 4):
            try:
                with self._lock:
                    self._renew()
            except LeaseError as error:
                self._lost = error
                return
            except RegistryError as error:  # a store that is away comes back, or `check` tells
                log.warning("the registry's lease cannot be renewed; trying again", error=str(error))
            except Exception as error:  # noqa: BLE001 - the thread's edge: the main thread raises it
                self._lost = error
                return

    def _renew(self) -> None:
        now = self._store.read(self._path)
        if now is not None and not self._is_own(now):
            raise self._refusal(now)
        self._write()

    def _write(self) -> None:
        self._own = msgspec.structs.replace(self._own, renewed=self._own.renewed + 1)
        self._store.write(self._path, msgspec.json.encode(self._own) + b"\n")

    def _is_own(self, data: bytes | None) -> bool:
        held = _decode(data)
        return held is not None and held.process == self._own.process

    def _refusal(self, data: bytes) -> LeaseError:
        who = ", ".join(f"{name} {value}" for name, value in _who(data).items())
        return LeaseError(
            f"{self._store.url}: another {self._does} here ({who}): stop it, or give this one another trainer.registry "
            "or trainer.model_alias"
        )


def _home() -> str:
    """The boot of this machine, and the PID namespace: containers of one machine number their processes apart."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux, or a sandbox without it
        return ""


def _decode(data: bytes | None) -> _Held | None:
    try:
        return msgspec.json.decode(data or b"", type=_Held)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _who(data: bytes) -> dict[str, str | int]:
    held = _decode(data)
    if held is None:
        return {"host": "unknown"}
    since = datetime.fromtimestamp(held.since / 1000, UTC)
    return {"host": held.host, "process": held.pid, "since": f"{since:%Y-%m-%dT%H:%M:%SZ}"}
