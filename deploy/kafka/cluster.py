"""LocalKafka: a real Apache Kafka of one or three brokers on this machine, without Docker."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import IO, Self

from deploy.kafka.errors import LocalKafkaError
from deploy.kafka.folders import LOGS, lock_folder, new_temporary_folder, remove_folder, remove_leftovers
from deploy.kafka.health import wait_until_healthy
from deploy.kafka.jars import kafka_version, resolve_jars
from deploy.kafka.java import find_java
from deploy.kafka.node import Node
from deploy.kafka.ports import free_ports, hold
from deploy.kafka.properties import NodePorts, node_properties
from deploy.kafka.storage import cluster_id_of, format_storage, new_cluster_id

log = logging.getLogger(__name__)


class LocalKafka:
    """A KRaft cluster whose every node is broker and controller. A context manager; or `start` and `stop`.

    brokers     1, or 3 with replication 3 and two replicas in sync for acks=all
    data_dir    kept between runs when named (and never formatted twice), else temporary
    log_dir     where the brokers' logs go; else in `logs` of the data folder. A temporary one is removed at the
                end, but kept when the start failed or the `with` block ended by an exception
    ports       one client port a broker; else free ones
    overrides   Kafka settings that win over those of `node_properties`, the same for every broker
    proxied     a second listener for each broker, and the port that it is advertised with, where a proxy is to listen
    optimise    for a long run: Java's optimising compiler, which first costs more than it saves
    """

    def __init__(
        self,
        brokers: int = 1,
        *,
        data_dir: Path | None = None,
        log_dir: Path | None = None,
        ports: Sequence[int] | None = None,
        overrides: Mapping[str, str] | None = None,
        proxied: Sequence[tuple[int, int]] | None = None,
        heap_mb: int = 512,
        optimise: bool = False,
        start_timeout: float = 90.0,
        stop_timeout: float = 20.0,
    ) -> None:
        if brokers not in (1, 3):
            raise LocalKafkaError(f"a local cluster has 1 or 3 brokers, not {brokers}")
        if ports is not None and len(set(ports)) != brokers:
            raise LocalKafkaError(f"{brokers} brokers need as many different ports, not {list(ports)}")
        if proxied is not None and len(proxied) != brokers:
            raise LocalKafkaError(f"{brokers} brokers need as many listeners for proxies, not {len(proxied)}")
        self._brokers = brokers
        self._named_data_dir = data_dir
        self._named_log_dir = log_dir
        self._ports = ports
        self._overrides = dict(overrides or {})
        self._proxied = proxied
        self._heap_mb = heap_mb
        self._optimise = optimise
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._folder: Path | None = None
        self._lock: IO[str] | None = None
        self._nodes: list[Node] = []

    @property
    def bootstrap_servers(self) -> str:
        """Addresses of all brokers, running or not."""
        return ",".join(node.address for node in self._started())

    @property
    def data_dir(self) -> Path:
        """The folder that holds every broker's data."""
        return self._started()[0].data.parent

    @property
    def log_dir(self) -> Path:
        """The folder with broker-<i>.log and broker-<i>.out."""
        return self._started()[0].logs

    @property
    def running_brokers(self) -> frozenset[int]:
        """Ids of the brokers whose process lives."""
        return frozenset(node.id for node in self._nodes if node.running)

    def start(self) -> Self:
        """Resolve, format what is not formatted, start every broker and return when the cluster is healthy.

        Raises LocalKafkaError, with nothing left running.
        """
        if self._nodes:
            raise LocalKafkaError("this LocalKafka is started already")
        began = monotonic()
        self._java, self._jars = find_java(), resolve_jars()
        try:
            self._nodes = self._lay_out()
            self._format()
            for node in self._nodes:
                node.spawn(self._java, self._jars, self._heap_mb, optimise=self._optimise)
            self.wait_until_healthy()
        except BaseException:
            self._end(keep_logs=True)
            raise
        log.info("Kafka %s at %s, up in %.1f s", kafka_version(), self.bootstrap_servers, monotonic() - began)
        return self

    def stop(self) -> None:
        """Stop every broker (SIGTERM, and SIGKILL after `stop_timeout`) and remove what is temporary."""
        self._end(keep_logs=False)

    def stop_broker(self, broker: int) -> None:
        """Shut one broker down cleanly (SIGTERM, and SIGKILL after `stop_timeout`). Its data and port stay its own."""
        node = self._node(broker)
        node.terminate()
        node.wait(self._stop_timeout)

    def kill_broker(self, broker: int) -> None:
        """SIGKILL one broker. Its data and port stay its own."""
        self._node(broker).kill()

    def start_broker(self, broker: int, *, wait: bool = True) -> None:
        """Start a broker that was stopped or killed and, unless told otherwise, wait until the cluster is healthy.

        After two of three were stopped, start the first with `wait=False`: alone it cannot be healthy.
        """
        self._node(broker).spawn(self._java, self._jars, self._heap_mb, optimise=self._optimise)
        if wait:
            self.wait_until_healthy()

    def wait_until_healthy(self) -> None:
        """Return when all running brokers are registered, every partition has a leader and their replicas are in sync.

        Raises LocalKafkaError when a broker died or `start_timeout` passed; the message says where the logs are.
        """
        running = self.running_brokers
        addresses = ",".join(node.address for node in self._started())
        try:
            wait_until_healthy(addresses, running, timeout=self._start_timeout, check_alive=self.check_alive)
        except LocalKafkaError as error:
            raise LocalKafkaError(f"{error}\nThe brokers' logs are in {self.log_dir}.") from error

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error's message names log files: they must be there when somebody reads it.
        self._end(keep_logs=kind is not None and issubclass(kind, Exception))

    def check_alive(self) -> None:
        """Raise LocalKafkaError, with the end of its log, when a broker ended that nobody stopped or killed."""
        for node in self._nodes:
            node.check_alive()

    def _started(self) -> list[Node]:
        if not self._nodes:
            raise LocalKafkaError("this LocalKafka is not started; use it in a `with`, or call start()")
        return self._nodes

    def _node(self, broker: int) -> Node:
        nodes = self._started()
        if not 0 <= broker < len(nodes):
            raise LocalKafkaError(f"there is no broker {broker}; they are {[node.id for node in nodes]}")
        return nodes[broker]

    def _lay_out(self) -> list[Node]:
        if self._named_data_dir is None:
            remove_leftovers()
            self._folder = new_temporary_folder()
        else:
            self._folder = self._named_data_dir.absolute()
            self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(self._folder)
        if self._brokers == 1 and (self._folder / "broker-1").exists():
            raise LocalKafkaError(f"{self._folder} holds a cluster of 3 brokers; ask for 3, or name another folder")
        logs = (self._named_log_dir or self._folder / LOGS).absolute()
        logs.mkdir(parents=True, exist_ok=True)
        ports = self._choose_ports()
        data = [self._folder / f"broker-{i}" for i in range(self._brokers)]
        return [Node(i, ports[i], node_properties(i, ports, d, self._overrides), d, logs) for i, d in enumerate(data)]

    def _choose_ports(self) -> list[NodePorts]:
        client = [hold(port) for port in self._ports or [0] * self._brokers]
        controller = free_ports(self._brokers)
        proxied: Sequence[tuple[int, int] | None] = self._proxied or [None] * self._brokers
        return [NodePorts(*ports) for ports in zip(client, controller, proxied, strict=True)]

    def _format(self) -> None:
        found = {node.id: cluster_id_of(node.data) for node in self._nodes}
        known = sorted({cluster_id for cluster_id in found.values() if cluster_id is not None})
        if len(known) > 1:
            raise LocalKafkaError(f"{self.data_dir} mixes brokers of the clusters {known}; name another folder")
        cluster_id = known[0] if known else new_cluster_id()
        new = [node for node in self._nodes if found[node.id] is None]
        with ThreadPoolExecutor(max_workers=len(self._nodes)) as pool:
            list(
                pool.map(lambda node: format_storage(self._java, self._jars, node.settings, node.data, cluster_id), new)
            )

    def _end(self, *, keep_logs: bool) -> None:
        for node in self._nodes:
            node.terminate()
        deadline = monotonic() + self._stop_timeout
        for node in self._nodes:
            node.wait(max(0.0, deadline - monotonic()))
        self._nodes = []
        if self._folder is not None and self._named_data_dir is None:
            remove_folder(self._folder, keep_logs=keep_logs)
        self._folder = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
