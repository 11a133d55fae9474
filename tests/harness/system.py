"""The system under attack: broker, topics, models and workers, each started as its users do, and what is done to them.

Everything that is done goes into the history.
"""

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import rocksdict
from confluent_kafka import ConsumerGroupState, KafkaException
from confluent_kafka.admin import AdminClient
from kafka import KafkaProducer
from numpy.typing import NDArray

from bench.random_model import random_bundle
from deploy.kafka import LocalKafka
from deploy.kafka.ports import free_port
from schemas.messages.split import Split, Variant, encode_split
from tests.contract.tiny_model import TinyModel, TinyNone, TinyWindow
from tests.faults.proxy import ALL, Gate, Proxy
from tests.harness.clients import (
    Receiver,
    Record,
    Sender,
    committed,
    configure,
    delete_group,
    delete_records,
    end_offsets,
    read_all,
    shop,
)
from tests.harness.history import History, as_text
from tests.harness.oracle import decode_row
from tests.harness.verdict import CHANGELOG
from tests.patience import PATIENCE
from tests.torn_log import tear

REPOSITORY: Final = Path(__file__).resolve().parents[2]
PARTITIONS: Final = 4
WORKER: Final = ("worker",)
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
_EXPIRED: Final = "clicks were lost: "
"""So a worker begins to tell of clicks that retention removed before it read them."""


@dataclass(frozen=True)
class _Gru(TinyModel):
    """Weights that are no amplifier: a difference in rounding must not grow from click to click."""

    def weights(self, *shape: int, salt: int) -> NDArray[np.float32]:
        return super().weights(*shape, salt=salt) * np.float32(0.3 if salt >= 10 else 1)


@dataclass(frozen=True)
class _Popular(TinyNone):
    """Ranks the first items first, which the shop sells most: better than all others by far."""

    def weights(self, *shape: int, salt: int) -> NDArray[np.float32]:
        return np.broadcast_to(1 / np.arange(1, shape[-1] + 1), shape).astype(np.float32)


_MANY: Final = (*KNOWN, *(f"other-{n}" for n in range(100_000)))
"""A model of so many is slow to load and to rank."""
KINDS: Final[dict[str, Callable[[int], TinyModel]]] = {
    "gru": lambda seed: _Gru(items=KNOWN, layers=2, hidden_size=12, k=25, recent_size=8, seed=seed),
    "window": lambda seed: TinyWindow(items=KNOWN, hidden_size=8, k=25, window=12, seed=seed),
    "counts": lambda seed: TinyNone(items=KNOWN[:200], k=25, seed=seed),
    "large": lambda seed: _Gru(items=_MANY, layers=2, hidden_size=64, k=25, recent_size=8, seed=seed),
    "popular": lambda seed: _Popular(items=KNOWN, k=25, seed=seed),
}


TRAINED: Final = "trained"
"""The kind of model that the trainer exports: it can leave items out. Its weights are random as well."""


class Broker:
    """Kafka of one broker or of three, which workers reach through a proxy before each if they are told to."""

    def __init__(self, folder: Path, brokers: int = 1, *, keep: bool = False) -> None:
        self._stack = ExitStack()
        self.size = brokers
        ports = [(free_port(), free_port()) for _ in range(brokers)]
        self.kafka = self._stack.enter_context(
            LocalKafka(
                brokers,
                data_dir=folder / "kafka" if keep else None,
                log_dir=folder / "kafka-logs",
                proxied=ports,
                overrides={"message.max.bytes": str(16 * 2**20)},
            )
        )
        self.direct = self.kafka.bootstrap_servers
        self.proxied = ",".join(f"127.0.0.1:{proxy}" for _, proxy in ports)
        self.links = [Proxy("127.0.0.1", proxy, listener) for listener, proxy in ports]
        for link in self.links:
            self._stack.callback(link.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def children_named(name: str) -> list[int]:
    """Processes below this one with that name."""
    parents, named = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            head, tail = (folder / "stat").read_text().rsplit(")", 1)
        except OSError:
            continue
        pid = int(folder.name)
        parents[pid] = int(tail.split()[1])
        if head.split("(", 1)[1] == name:
            named.append(pid)

    def is_ours(pid: int) -> bool:
        while pid in parents:
            if pid == os.getpid():
                return True
            pid = parents[pid]
        return False

    return sorted(filter(is_ours, named))


def limit_files(pid: int, most: int = resource.RLIM_INFINITY) -> None:
    """Let no file of a process grow beyond so many bytes, as where the disk is full."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def _take_turns(pid: int, command: str) -> None:
    """Let a process of that command, which gives way to all others, run as they do, where its user may have it so.

    On a busy machine it would get no time at all, and there would be nothing to judge.
    """
    with suppress(OSError):  # it has just ended, or its user may not
        if command not in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
            return
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - their numbers alone
            os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, int(thread), 0)


def _shares(percent: int) -> list[tuple[str, int]]:
    """Of the split that gives the alias `b` so much."""
    return [("champion", 100 - percent), ("b", percent)] if percent else []


@dataclass
class Worker:
    """The process of a worker, or of another part, and what it was started with."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    settings: dict[str, str]
    command: tuple[str, ...]
    root: Path
    """Where its code is: of this version, or of another one."""


@dataclass
class System:
    """One deployment: topics of its own, models, and workers by name."""

    broker: Broker
    folder: Path
    name: str
    rng: random.Random
    history: History
    kind: str = "gru"
    default_limits: bool = False
    """Whether workers have the time limits that they have by default, and not shorter ones."""
    workers: dict[str, Worker] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    senders: list[Sender] = field(default_factory=list)
    models: list[Path] = field(default_factory=list)
    at_rest: list[Callable[[], None]] = field(default_factory=list)
    """Called when all workers have stopped; compares what other parts came to."""
    closing: ExitStack = field(default_factory=ExitStack)
    _unsure: dict[int, int] = field(default_factory=dict)
    """Partitions whose worker may be replaced while it lives, and the first click that was not acknowledged before."""
    _begins: dict[str, dict[int, int]] = field(default_factory=dict)
    """By topic, where its partitions begin, if that has moved: the history has what was before."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clicks, self.rankings = f"{self.name}-clicks", f"{self.name}-rankings"
        self.changelog = f"{self.name}-sessions-changelog"
        self._note_settings()
        self._create_topics()
        self.receiver = Receiver(self.broker.direct, self.rankings, self.history)
        self.announce(self.bundle(self.kind))

    def _create_topics(self) -> None:
        command = [sys.executable, "-m", "stream_app", "topics"]
        subprocess.run(command, cwd=REPOSITORY, env=self.environment(), check=True, stdout=subprocess.DEVNULL)

    def _note_settings(self) -> None:
        self.history.note("setting", name="in_flight", value=CHUNK_CLICKS * CHUNKS_IN_FLIGHT)
        self.history.note("setting", name="clock", value=time.time())
        for path in self.models:
            self.history.note("model", version=path.name, path=str(path))

    def turn_page(self, path: Path) -> None:
        """Write another history from now on, of clicks of other sessions."""
        self.history.turn(path)
        self._note_settings()

    # -- models -------------------------------------------------------------------------------------------------------

    def bundle(self, kind: str, *, format_1: bool = False) -> Path:
        """A new model of a kind, not announced yet; in the format of today, or in the one before."""
        parent, version, seed = self.folder / "registry", f"v{len(self.models)}", len(self.models)
        if kind == TRAINED:
            path = random_bundle(parent, version, KNOWN, units=12, seed=seed)
        elif format_1:
            path = KINDS[kind](seed).write_format_1(parent, version)
        else:
            path = KINDS[kind](seed).write(parent, version)
        self.models.append(path)
        self.history.note("model", version=path.name, path=str(path))
        return path

    def announce(self, path: Path, *, alias: str = "champion", uri: str | None = None) -> None:
        """As `trainer promote` does it; `uri` is where workers get it from, if not from its folder."""
        told = {
            "alias": alias,
            "version": path.name,
            "uri": uri or str(path),
            "manifest_sha256": hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest(),
            "announced_at": int(time.time() * 1000),
            "why": "the harness",
        }
        self._put("models", {alias: json.dumps(told).encode()})
        self.did("announced", version=path.name)

    # -- workers ------------------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """What every process of the deployment is told."""
        topics = ["clicks", "rankings", "rejected", "models", "items", "rules", "scores"]
        if "NEXTCLICK_WORKER__SPLITS" in self.settings:
            topics += ["splits", "rankings_shadow"]  # of which the version before does not know
        named = {f"NEXTCLICK_TOPICS__{topic.upper()}": f"{self.name}-{topic.replace('_', '-')}" for topic in topics}
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NEXTCLICK_", "KAFKA_"))},
            **named,
            "NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS": self.broker.direct,
            "NEXTCLICK_TOPICS__PARTITIONS": str(PARTITIONS),
            "NEXTCLICK_TOPICS__REPLICATION": str(self.broker.size),
            "NEXTCLICK_WORKER__APP_ID": self.name,
            **({} if self.default_limits else {"NEXTCLICK_WORKER__SESSION_TIMEOUT": str(SESSION_TIMEOUT)}),
            "NEXTCLICK_WORKER__CHUNK_CLICKS": str(CHUNK_CLICKS),
            "NEXTCLICK_WORKER__CHUNKS_IN_FLIGHT": str(CHUNKS_IN_FLIGHT),
            "NEXTCLICK_WORKER__LOG_FORMAT": "json",
            **self.settings,
        }

    def start(
        self,
        name: str = "a",
        *,
        command: Sequence[str] = WORKER,
        proxied: bool = False,
        stop_at: str | None = None,
        root: Path = REPOSITORY,
        **settings: str,
    ) -> None:
        """Start a worker, or another part; one of the same name finds its data folder.

        `root` is where its code is, `settings` are of [worker].
        """
        told = {f"NEXTCLICK_WORKER__{key.upper()}": value for key, value in settings.items()}
        if proxied:
            told["NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS"] = self.broker.proxied
        if stop_at is not None:
            told |= {"HARNESS_STOP_AT": stop_at, "HARNESS_STOP_AFTER": str(self.rng.randrange(1, 4))}
        self._spawn(name, told, tuple(command), root)
        self.did("started", worker=name, healed=True, **({} if stop_at is None else {"stop_at": stop_at}))

    def _spawn(self, name: str, settings: dict[str, str], command: tuple[str, ...], root: Path) -> None:
        port, log = free_port(), self.folder / f"worker-{name}.log"
        program = "stream_app"
        if "HARNESS_STOP_AT" in settings:
            program = "tests.harness.stopping_worker"
        elif "HARNESS_CLOCK" in self.settings:
            program = "tests.harness.jumping_worker"
        listens = "--port" if command[0] == "api" else "--web-port"
        options = [*command, "--data-dir", str(self.data(name)), listens, str(port)]
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", program, *options],
                cwd=root,
                env=self.environment() | settings,
                stdout=output,
                stderr=output,
            )
        self.workers[name] = Worker(process, port, log, settings, command, root)

    def data(self, name: str) -> Path:
        """A worker's data folder."""
        return self.folder / f"data-{name}"

    def ready(self, name: str = "a") -> bool:
        """Whether a worker, or another part, serves."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.workers[name].port}/readyz", timeout=2):
                return True
        except OSError:
            return False

    def start_ready(self, name: str = "a", **told: Any) -> None:
        """Start a worker and wait until it serves."""
        self.start(name, **told)
        self.wait(lambda: self.ready(name), f"worker {name} serves")

    def kill(self, name: str = "a") -> None:
        """SIGKILL."""
        worker = self.workers.pop(name)
        self.did("killed", worker=name, unclean=int(worker.command == WORKER))
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

    def logged(self, name: str, event: str, version: str) -> bool:
        """Whether a worker has logged an event that names a version."""
        told = [f'"event": "{event}'.encode(), f'"version": "{version}"'.encode()]
        lines = (self.folder / f"worker-{name}.log").read_bytes().splitlines()
        return any(all(one in line for one in told) for line in lines)

    def serves(self, path: Path, name: str = "a") -> None:
        """Wait until a worker has a bundle in service."""
        self.wait(lambda: self.logged(name, "model in service", path.name), f"worker {name} serves {path.name}")

    def freeze(self, name: str = "a", *, expelled: bool = True) -> None:
        """SIGSTOP."""
        if expelled:
            self._may_be_replaced(name)
        self.did("frozen", worker=name, unclean=int(expelled))
        self.workers[name].process.send_signal(signal.SIGSTOP)
        self._reads_no_more()  # what comes from now on, it does not know of

    def thaw(self, name: str = "a") -> None:
        """SIGCONT."""
        self.did("thawed", worker=name, healed=True)
        self.workers[name].process.send_signal(signal.SIGCONT)

    # -- the link and the broker --------------------------------------------------------------------------------------

    def cut(self, gates: Iterable[Gate] = ALL, *, brokers: Iterable[int] | None = None, expelled: bool = True) -> None:
        """Hold what proxied workers and the brokers, or some of them, send each other."""
        gates = tuple(gates)
        cut = tuple(range(self.broker.size) if brokers is None else brokers)
        if expelled:
            self._may_be_replaced(*self._proxied())
        self.did("cut", gates=gates, brokers=cut, unclean=int(expelled))
        for one in cut:
            self.broker.links[one].hold(gates)

    def slow(self, seconds: float) -> None:
        """Each request and each answer takes so much longer; 0 ends it."""
        self.did("slowed" if seconds else "as fast as ever", seconds=seconds, healed=not seconds)
        for link in self.broker.links:
            link.delay = seconds

    def heal(self) -> None:
        """What was held goes on."""
        self.did("healed", healed=True)
        for link in self.broker.links:
            link.heal()
        self._reads_no_more()

    def _of_the_group(self) -> list[str]:
        return [name for name, worker in self.workers.items() if worker.command == WORKER]

    def _proxied(self) -> list[str]:
        proxied = ("NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS", self.broker.proxied)
        return [name for name, worker in self.workers.items() if proxied in worker.settings.items()]

    def _may_be_replaced(self, *names: str) -> None:
        """From now on others may get the partitions of these workers, which live."""
        acknowledged = committed(self.broker.direct, self.name, self.clicks)
        for partition in set().union(*map(self.partitions, names)):
            self._unsure.setdefault(partition, acknowledged[partition][0])

    def _reads_no_more(self) -> None:
        """Whoever may have been replaced has nothing in flight but what the topic has by now."""
        ends = end_offsets(self.broker.direct, self.clicks) if self._unsure else {}
        for partition, first in self._unsure.items():
            self.history.note("in_flight", partition=partition, first=first, below=ends[partition])
        self._unsure.clear()

    def partitions(self, worker: str) -> set[int]:
        """Of the clicks, those that Kafka has given to a worker; all of them where it does not say."""
        own = json.loads((self.data(worker) / "member.json").read_bytes())["id"]
        try:
            group = self._group()
        except KafkaException:  # its coordinator has just moved
            return set(range(PARTITIONS))
        if group.state != ConsumerGroupState.STABLE:
            return set(range(PARTITIONS))
        return {
            one.partition
            for member in group.members
            if member.group_instance_id == own
            for one in member.assignment.topic_partitions
            if one.topic == self.clicks
        }

    def _group(self) -> Any:
        admin = AdminClient({"bootstrap.servers": self.broker.direct})
        return admin.describe_consumer_groups([self.name], request_timeout=PATIENCE)[self.name].result()

    def coordinator(self) -> int:
        """The broker that keeps the workers' group."""
        return int(self._group().coordinator.id)

    def broker_down(self, broker: int = 0, *, kill: bool) -> None:
        """SIGKILL or SIGTERM to a broker; workers that wait too long end by themselves."""
        if not self._unsure:  # else it may be gone already
            self._may_be_replaced(*self._of_the_group())
        self.did("broker killed" if kill else "broker stopped", broker=broker)
        (self.broker.kafka.kill_broker if kill else self.broker.kafka.stop_broker)(broker)

    def broker_disk_full(self, most: int) -> None:
        """No file of the only broker may grow beyond so many bytes; it may end by that."""
        self._may_be_replaced(*self._of_the_group())
        self.did("broker's disk full")
        own = str(self.broker.kafka.data_dir)
        [broker] = [pid for pid in children_named("java") if own in Path(f"/proc/{pid}/cmdline").read_text()]
        limit_files(broker, most)

    def broker_up(self, broker: int = 0) -> None:
        """Start it again."""
        self.broker.kafka.start_broker(broker)
        self.did("broker started", broker=broker, healed=True)
        self._reads_no_more()

    # -- what topics and the group lose -------------------------------------------------------------------------------

    def expire_clicks(self, *, keep: int) -> None:
        """Delete all clicks but the last few of each partition, as retention does; the history has them."""
        acknowledged = committed(self.broker.direct, self.name, self.clicks)
        self.did("clicks expired")
        for one in self._expire(self.clicks, keep):
            self._note_click(one)
        for partition, below in self._begins[self.clicks].items():
            self.history.note("expired", partition=partition, first=acknowledged[partition][0], below=below)

    def expire_rows(self) -> None:
        """Delete all there is in the changelog; the history has it."""
        self.did("changelog emptied")
        for one in self._expire(self.changelog, 0):
            self._note_row(one)

    def _expire(self, topic: str, keep: int) -> list[Any]:
        begins, ends = self._begins.get(topic, {}), end_offsets(self.broker.direct, topic)
        below = {partition: max(begins.get(partition, 0), end - keep) for partition, end in ends.items()}
        gone = [one for one in read_all(self.broker.direct, topic, begins or None) if one.offset < below[one.partition]]
        delete_records(self.broker.direct, topic, below)
        self._begins[topic] = below
        return gone

    def note_begin_anew(self) -> None:
        """No row is left anywhere, and no worker runs: what comes next is the first click of its session."""
        for partition, (offset, _) in committed(self.broker.direct, self.name, self.clicks).items():
            self.history.note("anew", partition=partition, offset=offset)

    def lose_clicks(self, *, keep: float) -> None:
        """The only broker is killed, and comes back with so much of each partition of the clicks alone: 0.5 is half.

        Nobody sends meanwhile, and all is acknowledged: so it is known what was made of what is lost.
        """
        self.receiver.catch_up()
        self.broker_down(kill=True)
        for partition in range(PARTITIONS):
            tear(self.broker.kafka.data_dir, self.clicks, partition, keep=keep)
        self.broker_up()
        changelog = list(read_all(self.broker.direct, self.changelog))
        for partition, end in end_offsets(self.broker.direct, self.clicks).items():
            lost, newest = [], dict[str, Any]()
            for one in changelog:
                if one.partition != partition:
                    continue
                key, row = one.key.decode(), as_text(one.value)
                if row is None:
                    newest.pop(key, None)
                    continue
                offset = decode_row(one.value).offset
                if key not in newest or newest[key][0] <= offset:
                    newest[key] = offset, row
                if offset >= end:
                    lost.append((key, row))
            rows = {key: row for key, (offset, row) in newest.items() if offset >= end}
            self.history.note("lost", partition=partition, offset=end, rows=lost, newest=rows)
        self.did("clicks lost", healed=True)

    def forget_group(self) -> None:
        """Kafka forgets what the group has acknowledged."""
        self.did("offsets deleted")
        delete_group(self.broker.direct, self.name)

    # -- the clock ----------------------------------------------------------------------------------------------------

    def use_fake_clock(self) -> None:
        """What is started from now on has a wall clock that `jump` sets."""
        self._set_clock(0)
        self.settings |= {"HARNESS_CLOCK": str(self._clock)}

    def jump(self, seconds: int) -> None:
        """Let that clock be so far ahead of the true one, or behind it."""
        self.did("clock set", ahead=seconds)
        self._set_clock(seconds)

    def _set_clock(self, seconds: int) -> None:
        new = self._clock.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._clock)

    @property
    def _clock(self) -> Path:
        return self.folder / "clock"

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

    def use_items_and_rules(self) -> None:
        """Workers started from now on use both; every item may be shown."""
        self.settings |= {"NEXTCLICK_WORKER__ITEMS": "true", "NEXTCLICK_WORKER__RULES": "true"}
        self._create_topics()
        self.publish("items", {item: {"item_id": item} for item in ITEMS})

    def use_splits(self) -> None:
        """Workers started from now on follow splits."""
        self.settings |= {"NEXTCLICK_WORKER__SPLITS": "true"}
        self._create_topics()

    def split(self, percent: int, *, shadow: bool = True) -> None:
        """Give the model of the alias `b` so many percent of the sessions, and `c` all as a shadow; 0 ends both."""
        self.did("split" if percent else "split ended")
        self.note_split(percent)
        variants = tuple(Variant(alias, share) for alias, share in _shares(percent))
        split = Split(app_id=self.name, variants=variants, shadow=("c",) if shadow and variants else ())
        self._put("splits", {self.name: encode_split(split) if percent else None})

    def note_split(self, percent: int) -> None:
        """From now on this is the split."""
        self.history.note("split", shares=_shares(percent))

    def publish(self, topic: str, records: Mapping[str, Mapping[str, object] | None]) -> None:
        """Items or rules by their ids; None takes one back."""
        self.did(f"{topic} published", count=len(records))
        self._put(topic, {key: None if value is None else json.dumps(value).encode() for key, value in records.items()})

    def _put(self, topic: str, records: Mapping[str, bytes | None]) -> None:
        producer = KafkaProducer(bootstrap_servers=self.broker.direct, acks="all")
        name = f"{self.name}-{topic}"
        for sending in [producer.send(name, key=key.encode(), value=value) for key, value in records.items()]:
            sending.get(timeout=PATIENCE)
        producer.close()

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
                self.did("gave up", worker=name, unclean=int(worker.command == WORKER))
                self._spawn(name, worker.settings, worker.command, worker.root)
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

    def shadows_rank(self, count: int) -> None:
        """Until so many more rankings of shadows are out, which have processor time for them from now on."""

        def records() -> int:
            return sum(end_offsets(self.broker.direct, f"{self.name}-rankings-shadow").values())

        def are_out() -> bool:
            for pid in children_named(Path(sys.executable).name):
                _take_turns(pid, "shadows")
            return records() >= goal

        goal = records() + count
        self.wait(are_out, f"{count} more rankings of shadows")

    # -- the end ------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Send no more, wait until all is acknowledged, and stop all workers: last one that had all partitions."""
        for sender in self.senders:
            sender.stop()
        names = self._of_the_group()
        if not names:
            names = ["a"]
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
        for compare in self.at_rest:
            compare()

    def abandon(self) -> None:
        """Kill what still runs."""
        for worker in self.workers.values():
            worker.process.kill()
            worker.process.wait()
        self.closing.close()
        for link in self.broker.links:
            link.delay = 0.0
            link.heal()

    def look(
        self, clicks: dict[int, int] | None = None, changelog: dict[int, int] | None = None, *, stores: bool = True
    ) -> None:
        """Write what is there at the end into the history: clicks, rejected clicks, the changelog, every RocksDB.

        From these offsets on, if they are named.
        """
        note, bootstrap = self.history.note, self.broker.direct
        for one in read_all(bootstrap, self.clicks, self._begins.get(self.clicks, clicks)):
            self._note_click(one)
        for one in read_all(bootstrap, f"{self.name}-rejected"):
            source = json.loads(one.value)["source"]
            note("rejected", partition=source["partition"], offset=source["offset"])
        for one in read_all(bootstrap, self.changelog, self._begins.get(self.changelog, changelog)):
            self._note_row(one)
        for topic in ("items", "rules") if "NEXTCLICK_WORKER__ITEMS" in self.settings else ():
            for one in read_all(bootstrap, f"{self.name}-{topic}"):
                note("catalogue", topic=topic, offset=one.offset, key=one.key.decode(), value=as_text(one.value))
        for one in (
            read_all(bootstrap, f"{self.name}-rankings-shadow") if "NEXTCLICK_WORKER__SPLITS" in self.settings else ()
        ):
            ranking = json.loads(one.value)
            source = ranking["source"]
            note("shadow", partition=source["partition"], offset=source["offset"], ranking=ranking)
        for partition, (offset, end) in committed(bootstrap, self.name, self.clicks).items():
            note("committed", partition=partition, offset=offset, end=end)
        for folder in sorted(self.folder.glob("data-*")) if stores else ():
            for path in sorted(folder.glob("v1/tables/sessions-*.db")):
                self._look_into(path, folder.name.removeprefix("data-"), clicks or {})
        for worker in self.folder.glob("worker-*.log"):
            for line in worker.read_text().splitlines():
                if _EXPIRED in line:
                    told = json.loads(line)
                    note("told", partition=told["partition"], expired=told["offsets"])
        note("end")

    def _note_click(self, one: Any) -> None:
        told = {"partition": one.partition, "offset": one.offset}
        self.history.note("click", key=as_text(one.key), value=as_text(one.value), **told)

    def _note_row(self, one: Any) -> None:
        told = {"partition": one.partition, "offset": one.offset}
        self.history.note("row", where=CHANGELOG, key=one.key.decode(), row=as_text(one.value), **told)

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
