"""server.properties of one node of a local cluster. Pure: ports and folders in, settings out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"


@dataclass(frozen=True)
class NodePorts:
    """The listeners of a node, which is broker and controller in one process.

    Attributes:
        proxied: a second listener for clients, and the port that it is advertised with: that of a proxy before it.
    """

    client: int
    controller: int
    proxied: tuple[int, int] | None = None


def node_properties(
    node: int, ports: Sequence[NodePorts], data: Path, overrides: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Settings of node `node` of a cluster with `ports[i]` as the ports of node i; `overrides` win."""
    own = ports[node]
    replication = min(3, len(ports))
    in_sync = max(1, replication - 1)  # of three, one may be down and acks=all still writes
    listeners, advertised, protocols = [f"PLAINTEXT://{HOST}:{own.client}"], [f"PLAINTEXT://{HOST}:{own.client}"], ""
    if own.proxied is not None:
        listener, proxy = own.proxied
        listeners.append(f"PROXIED://{HOST}:{listener}")
        advertised.append(f"PROXIED://{HOST}:{proxy}")
        protocols = ",PROXIED:PLAINTEXT"
    settings = {
        "process.roles": "broker,controller",
        "node.id": str(node),
        # Clients that name a rack (client.rack) fetch from the broker there.
        "broker.rack": f"rack-{node}",
        "replica.selector.class": "org.apache.kafka.common.replica.RackAwareReplicaSelector",
        # Voters by address in the settings, not in the metadata log: a data folder can come back on other ports.
        "controller.quorum.voters": ",".join(f"{i}@{HOST}:{p.controller}" for i, p in enumerate(ports)),
        "listeners": ",".join([*listeners, f"CONTROLLER://{HOST}:{own.controller}"]),
        "advertised.listeners": ",".join(advertised),
        "listener.security.protocol.map": f"PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(data),
        # A misspelt topic must fail a test, not make a topic.
        "auto.create.topics.enable": "false",
        "default.replication.factor": str(replication),
        "min.insync.replicas": str(in_sync),
        "offsets.topic.replication.factor": str(replication),
        "offsets.topic.num.partitions": "8",
        "transaction.state.log.replication.factor": str(replication),
        "transaction.state.log.min.isr": str(in_sync),
        "transaction.state.log.num.partitions": "8",
        "share.coordinator.state.topic.replication.factor": str(replication),
        "share.coordinator.state.topic.min.isr": str(in_sync),
        "share.coordinator.state.topic.num.partitions": "8",
        # A consumer group starts at once, and may find a killed member out soon.
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        # A killed broker is found out after the session timeout (9 s by default), and may register anew only then.
        "broker.heartbeat.interval.ms": "500",
        "broker.session.timeout.ms": "3000",
        # Retention and compaction are seen to work within a test.
        "log.retention.check.interval.ms": "1000",
        "log.initial.task.delay.ms": "1000",
        "log.cleaner.enable": "true",
        "log.cleaner.backoff.ms": "1000",
        "log.cleaner.dedupe.buffer.size": str(16 * 2**20),  # 128 MiB by default, of a small heap
    }
    return settings | dict(overrides or {})


def to_text(settings: Mapping[str, str]) -> str:
    """Settings in Java's .properties syntax: a backslash begins an escape there, and a line ends a value."""
    for key, value in settings.items():
        if "\n" in key + value or "\r" in key + value:
            raise ValueError(f"Kafka setting {key!r} holds a line break: {value!r}")
    return "".join(f"{key}={value.replace(chr(92), chr(92) * 2)}\n" for key, value in settings.items())
