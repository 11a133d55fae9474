"""The system under attack: broker, topics, models and workers, each started as its users do, and what is done to them.

Everything that is done goes into the history.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import rocksdict
from kafka import KafkaProducer
from numpy.typing import NDArray

from deploy.kafka import LocalKafka
from deploy.kafka.ports import free_port
from tests.contract.tiny_model import TinyModel, TinyNone, TinyWindow
from tests.faults.proxy import ALL, Gate, Proxy
from tests.harness.clients import Receiver, Record, Sender, committed, configure, read_all, shop
from tests.harness.history import History, as_text
from tests.harness.oracle import decode_row
from tests.harness.verdict import CHANGELOG
from tests.patience import PATIENCE

REPOSITORY: Final = Path(__file__).resolve().parents[2]
PARTITIONS: Final = 4
CHUNK_CLICKS: Final = 128
CHUNKS_IN_FLIGHT: Final = 8
SESSION_TIMEOUT: Final = 6.0
EXPELLED_SECONDS: Final = 60.0
"""A member that misses a rebalance for so long is expelled, however fresh its heartbeats are."""
ITEMS: Final = tuple(f"{'item-' if n % 3 else '10'}{n}" for n in range(400))
KNOWN: Final = tuple(item for n, item in enumerate(ITEMS) if n % 10)
"""A tenth of the items is unknown to every model."""
_LOOK_SECONDS: Final = 0.25
_GIVES_UP: Final = (1, 70)
_TTL_SECONDS: Final = 365 * 86_400
_OFFSET_KEY: Final = b"__faust\0offset__\xff"


@dataclass(frozen=True)
class _Gru(TinyModel):
    """Weights that are no amplifier: a difference in rounding must not grow from click to click."""

    def weights(self, *shape: int, salt: int) -> NDArray[np.float32]:
        return super().weights(*shape, salt=salt) * np.float32(0.3 if salt >= 10 else 1)


KINDS: Final[dict[str, Callable[[int], TinyModel]]] = {
    "gru": lambda seed: _Gru(items=KNOWN, layers=2, hidden_size=12, k=25, recent_size=8, seed=seed),
    "window": lambda seed: TinyWindow(items=KNOWN, hidden_size=8, k=25, window=12, seed=seed),
    "counts": lambda seed: TinyNone(items=KNOWN[:200], k=25, seed=seed),
}


class Broker:
    """Kafka of one broker, which workers reach through a proxy if they are told to; or of three, without."""

    def __init__(self, folder: Path, brokers: int = 1, *, keep: bool = False) -> None:
        self._stack = ExitStack()
        listener, proxy = free_port(), free_port()
        self.kafka = self._stack.enter_context(
            LocalKafka(
                brokers,
                data_dir=folder / "kafka" if keep else None,
                log_dir=folder / "kafka-logs",
                proxied=(listener, proxy) if brokers == 1 else None,
                overrides={"message.max.bytes": str(16 * 2**20)},
            )
        )
        self.direct = self.kafka.bootstrap_servers
        self.proxied = f"127.0.0.1:{proxy}"
        self.link = Proxy("127.0.0.1", proxy, listener) if brokers == 1 else None
        if self.link is not None:
            self._stack.callback(self.link.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


@dataclass
class Worker:
    """A worker's process and what it was started with."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    settings: dict[str, str]


@dataclass
class System:
    """One deployment: topics of its own, models, and workers by name."""

    broker: Broker
    folder: Path
    name: str
    rng: random.Random
    history: History
    kind: str = "gru"
    workers: dict[str, Worker] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    senders: list[Sender] = field(default_factory=list)
    models: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clicks, self.rankings = f"{self.name}-clicks", f"{self.name}-rankings"
        self.changelog = f"{self.name}-sessions-changelog"
        self._note_settings()
        command = [sys.executable, "-m", "stream_app", "topics"]
        subprocess.run(command, cwd=REPOSITORY, env=self._environment(), check=True, stdout=subprocess.DEVNULL)
        self.receiver = Receiver(self.broker.direct, self.rankings, self.history)
        self.announce(self.bundle(self.kind))

    def _note_settings(self) -> None:
        self.history.note("setting", name="in_flight", value=CHUNK_CLICKS * CHUNKS_IN_FLIGHT)
        for path in self.models:
            self.history.note("model", version=path.name, path=str(path))

    def turn_page(self, path: Path) -> None:
        """Write another history from now on, of clicks of other sessions."""
        self.history.turn(path)
        self._note_settings()

    # -- models -------------------------------------------------------------------------------------------------------

    def bundle(self, kind: str) -> Path:
        """A new model of a kind, not announced yet."""
        path = KINDS[kind](len(self.models)).write(self.folder / "registry", f"v{len(self.models)}")
        self.models.append(path)
        self.history.note("model", version=path.name, path=str(path))
        return path

    def announce(self, path: Path, *, alias: str = "champion") -> None:
        """As `trainer promote` does it."""
        told = {
            "alias": alias,
            "version": path.name,
            "uri": str(path),
            "manifest_sha256": hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest(),
            "announced_at": int(time.time() * 1000),
            "why": "the harness",
        }
        producer = KafkaProducer(bootstrap_servers=self.broker.direct, acks="all")
        producer.send(f"{self.name}-models", key=alias.encode(), value=json.dumps(told).encode()).get(timeout=PATIENCE)
        producer.close()
        self.did("announced", version=path.name)

    # -- workers ------------------------------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        topics = ("clicks", "rankings", "rejected", "models", "items", "rules", "splits", "rankings_shadow", "scores")
        named = {f"NEXTCLICK_TOPICS__{topic.upper()}": f"{self.name}-{topic.replace('_', '-')}" for topic in topics}
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NEXTCLICK_", "KAFKA_"))},
            **named,
            "NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS": self.broker.direct,
            "NEXTCLICK_TOPICS__PARTITIONS": str(PARTITIONS),
            "NEXTCLICK_WORKER__APP_ID": self.name,
            "NEXTCLICK_WORKER__SESSION_TIMEOUT": str(SESSION_TIMEOUT),
            "NEXTCLICK_WORKER__CHUNK_CLICKS": str(CHUNK_CLICKS),
            "NEXTCLICK_WORKER__CHUNKS_IN_FLIGHT": str(CHUNKS_IN_FLIGHT),
            "NEXTCLICK_WORKER__LOG_FORMAT": "json",
            **self.settings,
        }

    def start(self, name: str = "a", *, proxied: bool = False, stop_at: str | None = None, **settings: str) -> None:
        """Start a worker; one of the same name finds its data folder. `settings`: of [worker], by name."""
        told = {f"NEXTCLICK_WORKER__{key.upper()}": value for key, value in settings.items()}
        if proxied:
            told["NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS"] = self.broker.proxied
        if stop_at is not None:
            told |= {"HARNESS_STOP_AT": stop_at, "HARNESS_STOP_AFTER": str(self.rng.randrange(1, 4))}
        self._spawn(name, told)
        self.did("started", worker=name, healed=True, **({} if stop_at is None else {"stop_at": stop_at}))

    def _spawn(self, name: str, settings: dict[str, str]) -> None:
        port, log = free_port(), self.folder / f"worker-{name}.log"
        program = "tests.harness.stopping_worker" if "HARNESS_STOP_AT" in settings else "stream_app"
        options = ["worker", "--data-dir", str(self.data(name)), "--web-port", str(port)]
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", program, *options],
                cwd=REPOSITORY,
                env=self._environment() | settings,
                stdout=output,
                stderr=output,
            )
        self.workers[name] = Worker(process, port, log, settings)

    def data(self, name: str) -> Path:
        """A worker's data folder."""
        return self.folder / f"data-{name}"

    def ready(self, name: str = "a") -> bool:
        """Whether a worker serves."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.workers[name].port}/readyz", timeout=2) as answer:
                return bool(json.load(answer)["status"] == "ready")
        except OSError:
            return False

    def start_ready(self, name: str = "a", **told: Any) -> None:
        """Start a worker and wait until it serves."""
        self.start(name, **told)
        self.wait(lambda: self.ready(name), f"worker {name} serves")

    def kill(self, name: str = "a") -> None:
        """SIGKILL."""
        self.did("killed", worker=name, unclean=1)
        worker = self.workers.pop(name)
        worker.process.kill()
        worker.process.wait()

    def died(self, name: str = "a") -> None:
        """Wait until a worker has killed itself."""
        worker = self.workers[name]
        self.wait(lambda: worker.process.poll() is not None, f"worker {name} gets to its step", tend=False)
        assert worker.process.returncode == -signal.SIGKILL, f"it exited {worker.process.returncode}, see {worker.log}"
        self.workers.pop(name)
        self.did("killed", worker=name, unclean=1)

    def stop(self, name: str = "a") -> None:
        """SIGTERM; it has to end well."""
        self.did("stopped", worker=name)
        worker = self.workers.pop(name)
        worker.process.terminate()
        code = worker.process.wait(PATIENCE)
        assert code == 0, f"worker {name} exited {code}, see {worker.log}"

    def freeze(self, name: str = "a", *, expelled: bool = True) -> None:
        """SIGSTOP."""
        self.did("frozen", worker=name, expelled=expelled, unclean=int(expelled))
        self.workers[name].process.send_signal(signal.SIGSTOP)

    def thaw(self, name: str = "a") -> None:
        """SIGCONT."""
        self.did("thawed", worker=name, healed=True)
        self.workers[name].process.send_signal(signal.SIGCONT)

    # -- the link and the broker --------------------------------------------------------------------------------------

    def cut(self, gates: Iterable[Gate] = ALL, *, expelled: bool = True) -> None:
        """Hold what proxied workers and the broker send each other."""
        assert self.broker.link is not None
        gates = tuple(gates)
        self.did("cut", gates=gates, expelled=expelled, unclean=int(expelled))
        self.broker.link.hold(gates)

    def slow(self, seconds: float) -> None:
        """Each request and each answer takes so much longer; 0 ends it."""
        assert self.broker.link is not None
        self.did("slowed" if seconds else "as fast as ever", seconds=seconds, healed=not seconds)
        self.broker.link.delay = seconds

    def heal(self) -> None:
        """What was held goes on."""
        assert self.broker.link is not None
        self.did("healed", healed=True)
        self.broker.link.heal()

    def broker_down(self, broker: int = 0, *, kill: bool) -> None:
        """SIGKILL or SIGTERM to a broker; workers that wait too long end by themselves."""
        self.did("broker killed" if kill else "broker stopped", broker=broker, expelled=True)
        (self.broker.kafka.kill_broker if kill else self.broker.kafka.stop_broker)(broker)

    def broker_up(self, broker: int = 0) -> None:
        """Start it again."""
        self.broker.kafka.start_broker(broker)
        self.did("broker started", broker=broker, healed=True)

    # -- clicks -------------------------------------------------------------------------------------------------------

    def load(self, records: Iterable[Record], *, per_second: float, **told: Any) -> Sender:
        """Send clicks from now on."""
        sender = Sender(self.broker.direct, self.clicks, records, self.history, per_second=per_second, **told)
        self.senders.append(sender)
        return sender

    def configure(self, topic: str, name: str, value: object) -> None:
        """Set a topic's setting; None takes it back."""
        self.did(
            "configured", topic=topic, setting=name, value=value, healed=value is None, unclean=int(value is not None)
        )
        configure(self.broker.direct, topic, name, None if value is None else str(value))

    # -- waiting ------------------------------------------------------------------------------------------------------

    def did(self, action: str, **told: Any) -> None:
        """Note what the nemesis does, before it does what makes things worse and after what makes them better."""
        self.history.note("nemesis", action=action, **told)

    def tend(self) -> None:
        """Start workers anew that gave up, as whoever runs them does."""
        for name, worker in list(self.workers.items()):
            code = worker.process.poll()
            if code is not None:
                assert code in _GIVES_UP, f"worker {name} exited {code}, see {worker.log}"
                self.did("gave up", worker=name, unclean=1)
                self._spawn(name, worker.settings)
                self.did("started", worker=name, healed=True)

    def wait(self, until: Callable[[], bool], what: str, *, tend: bool = True) -> None:
        """Until it is true."""
        deadline = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < deadline, f"never: {what}; see {self.folder}"
            if tend:
                self.tend()
            time.sleep(_LOOK_SECONDS)

    def sleep(self, seconds: float) -> None:
        """Let things happen."""
        until = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() >= until, "the time passes")

    def lag(self) -> int:
        """Clicks that are not acknowledged."""
        found = committed(self.broker.direct, self.name, self.clicks).values()
        return sum(end - offset for offset, end in found)

    def clicks_pass(self, count: int) -> None:
        """Until so many more rankings are out."""
        goal = self.receiver.count + count
        self.wait(lambda: self.receiver.count >= goal, f"{count} more rankings")

    # -- the end ------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Send no more, wait until all is acknowledged, and stop all workers: last one that had all partitions."""
        for sender in self.senders:
            sender.stop()
        names = list(self.workers) or ["a"]
        if not self.workers:
            self.start_ready("a")
        self.wait(lambda: self.lag() == 0, "all clicks are acknowledged")
        for name in names[1:]:
            self.stop(name)
        # Whoever acknowledges the last clicks of every partition has every partition.
        tail = self.load(shop(self.rng, ITEMS, name="last"), per_second=500)
        self.sleep(1)
        tail.stop()
        self.wait(lambda: self.lag() == 0, "the last clicks are acknowledged")
        self.stop(names[0])
        self.receiver.stop()
        self.history.note("setting", name="holder", value=names[0])

    def abandon(self) -> None:
        """Kill what still runs."""
        for worker in self.workers.values():
            worker.process.kill()
            worker.process.wait()
        if self.broker.link is not None:
            self.broker.link.delay = 0.0
            self.broker.link.heal()

    def look(
        self, clicks: dict[int, int] | None = None, changelog: dict[int, int] | None = None, *, stores: bool = True
    ) -> None:
        """Write what is there at the end into the history: clicks, rejected clicks, the changelog, every RocksDB.

        From these offsets on, if they are named.
        """
        note, bootstrap = self.history.note, self.broker.direct
        for one in read_all(bootstrap, self.clicks, clicks):
            note("click", partition=one.partition, offset=one.offset, key=as_text(one.key), value=as_text(one.value))
        for one in read_all(bootstrap, f"{self.name}-rejected"):
            source = json.loads(one.value)["source"]
            note("rejected", partition=source["partition"], offset=source["offset"])
        for one in read_all(bootstrap, self.changelog, changelog):
            told = {
                "partition": one.partition,
                "offset": one.offset,
                "key": one.key.decode(),
                "row": as_text(one.value),
            }
            note("row", where=CHANGELOG, **told)
        for partition, (offset, end) in committed(bootstrap, self.name, self.clicks).items():
            note("committed", partition=partition, offset=offset, end=end)
        for folder in sorted(self.folder.glob("data-*")) if stores else ():
            for path in sorted(folder.glob("v1/tables/sessions-*.db")):
                self._look_into(path, folder.name.removeprefix("data-"), clicks or {})
        note("end")

    def _look_into(self, path: Path, worker: str, clicks: dict[int, int]) -> None:
        partition = int(path.stem.removeprefix("sessions-"))
        options = rocksdict.Options(raw_mode=True)
        access = rocksdict.AccessType.with_ttl(_TTL_SECONDS)
        db = rocksdict.Rdict(str(path), options, column_families={"default": options}, access_type=access)
        for key, row in db.items():
            if key == _OFFSET_KEY:
                self.history.note("covered", where=worker, partition=partition, offset=int(row))
            elif decode_row(row).offset >= clicks.get(partition, 0):
                told = {"partition": partition, "offset": -1, "key": key.decode(), "row": as_text(row)}
                self.history.note("row", where=worker, **told)
        db.close()
