"""Is the cluster healthy? Asked of the cluster itself, through the client that everybody uses."""

import time
from collections.abc import Callable, Set

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ClusterMetadata, ConfigResource, ResourceType

from deploy.kafka.errors import LocalKafkaError

ASK_TIMEOUT_S = 1.0
ASK_AGAIN_S = 0.05


def trouble(metadata: ClusterMetadata, running: Set[int]) -> str | None:
    """What keeps a cluster with these running brokers from being healthy; None when nothing does.

    Healthy: every running broker is registered, and every partition with a replica on one of them has a leader and
    has all its running replicas in sync.
    """
    absent = running - metadata.brokers.keys()
    if absent:
        return f"brokers {sorted(absent)} are not registered yet"
    for topic in metadata.topics.values():
        for partition in topic.partitions.values():
            here = running & set(partition.replicas)
            if here and partition.leader not in running:
                return f"{topic.topic}[{partition.id}] has no leader"
            if here - set(partition.isrs):
                return f"{topic.topic}[{partition.id}] waits for replicas {sorted(here - set(partition.isrs))}"
    return None


def wait_until_healthy(
    bootstrap_servers: str, running: Set[int], *, timeout: float, check_alive: Callable[[], None]
) -> None:
    """Return as soon as the cluster is healthy. `check_alive` raises when a process died, which ends the waiting.

    Raises LocalKafkaError with the last trouble seen when `timeout` seconds were not enough.
    """
    deadline = time.monotonic() + timeout
    # Refused connections are expected here: quiet, and tried again soon.
    quick = {"reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100, "socket.timeout.ms": 5_000, "log_level": 0}
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, **quick, "error_cb": _ignore})
    while True:
        check_alive()
        try:
            found = trouble(admin.list_topics(timeout=ASK_TIMEOUT_S), running)
            if found is None:
                _ask_each(admin, running)
                found = trouble(admin.list_topics(timeout=ASK_TIMEOUT_S), running)
        except KafkaException as error:
            found = str(error)
        if found is None:
            return
        if time.monotonic() > deadline:
            raise LocalKafkaError(f"Kafka at {bootstrap_servers} is not healthy after {timeout:.0f} s: {found}")
        time.sleep(ASK_AGAIN_S)


def _ask_each(admin: AdminClient, running: Set[int]) -> None:
    """Have every broker answer a request of its own; raises KafkaException when one does not.

    The metadata alone would not do: for its session timeout a killed broker stays registered and in sync. A broker
    answers requests only after it registered anew, and by then the controller has taken it out of the replicas in sync:
    metadata that is asked for after these answers tells the truth. (The client must know a broker's address from
    metadata before; waiting for a broker does not make it ask.)
    """
    each = [ConfigResource(ResourceType.BROKER, str(broker)) for broker in sorted(running)]
    asked = [admin.describe_configs([broker], request_timeout=ASK_TIMEOUT_S)[broker] for broker in each]
    for answer in asked:
        answer.result()


def _ignore(_error: object) -> None:
    """librdkafka tells each refused connection here, else on standard error; list_topics raises what matters."""
