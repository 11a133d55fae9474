"""Topics of a cluster against the topic table: create what is missing, refuse what would lose or misplace data.

Nothing here alters a topic that exists: more partitions would send a session's later clicks elsewhere than its earlier
ones, and a changed policy may be the operator's own decision.
"""

import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from schemas.errors import TopicError
from schemas.kafka.connection import KafkaConnection
from schemas.kafka.topics import TopicSpec

_AFTER: Final = re.compile(r" \(after \d+ms.*?\)")
"""How long it took: it makes the same reason look new each time."""
DEFAULT_TIMEOUT: Final = 30.0
"""Seconds that a cluster may take to answer."""
_POLL_SECONDS: Final = 0.1
_CRITICAL: Final = 2  # librdkafka's log level


@dataclass(frozen=True, slots=True)
class FoundTopic:
    """A topic as the cluster has it."""

    partitions: int
    replication: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TopicDifference:
    """An existing topic that is not as the table has it."""

    topic: str
    setting: str
    """`partitions`, `replication`, or a name of Kafka's topic configuration."""
    expected: str
    found: str
    fatal: bool
    """Whether a worker refuses to start with it."""
    action: str
    """What the operator can do."""

    def __str__(self) -> str:
        return f"topic {self.topic}: {self.setting} is {self.found}, expected {self.expected}; {self.action}"


@dataclass(frozen=True, slots=True)
class TopicReport:
    """What `ensure_topics` did and met."""

    created: tuple[str, ...]
    present: tuple[str, ...]
    differs: tuple[TopicDifference, ...]


def ensure_topics(
    connection: KafkaConnection, specs: Sequence[TopicSpec], *, timeout: float = DEFAULT_TIMEOUT
) -> TopicReport:
    """Create the topics that are missing and compare the others. `timeout` in seconds, for each exchange.

    A changelog is created with as many partitions as its clicks topic really has. Raises TopicError when the cluster
    cannot be reached or refuses to create one.
    """
    cluster = _Cluster(connection, timeout)
    names = [spec.name for spec in specs]
    created = cluster.create(missing_topics(specs, cluster.describe(names)))
    present = tuple(name for name in names if name not in created)
    found = cluster.await_topics(names)
    return TopicReport(created, present, tuple(differences(specs, found)))


def check_topics(
    connection: KafkaConnection, specs: Sequence[TopicSpec], *, timeout: float = DEFAULT_TIMEOUT
) -> tuple[TopicDifference, ...]:
    """Raise TopicError unless a worker may start: all topics are there, partitions and cleanup policies fit.

    Returns the differences that are harmless, for the log.
    """
    found = _Cluster(connection, timeout).describe([spec.name for spec in specs])
    missing = [spec.name for spec in specs if spec.name not in found]
    if missing:
        raise TopicError(
            f"missing on {connection.bootstrap_servers}: {', '.join(missing)}; create them with `stream-app topics`"
        )
    differing = differences(specs, found)
    fatal = [difference for difference in differing if difference.fatal]
    if fatal:
        raise TopicError("\n".join(str(difference) for difference in fatal))
    return tuple(differing)


def missing_topics(specs: Iterable[TopicSpec], found: Mapping[str, FoundTopic]) -> list[tuple[TopicSpec, int]]:
    """The topics to create, each with its number of partitions."""
    return [(spec, _partitions(spec, found)) for spec in specs if spec.name not in found]


def differences(specs: Iterable[TopicSpec], found: Mapping[str, FoundTopic]) -> list[TopicDifference]:
    """How the topics that exist differ from the table."""
    return [
        difference
        for spec in specs
        if spec.name in found
        for difference in _differences(spec, found[spec.name], _partitions(spec, found))
    ]


def _partitions(spec: TopicSpec, found: Mapping[str, FoundTopic]) -> int:
    model = found.get(spec.partitions_of) if spec.partitions_of else None
    return model.partitions if model else spec.partitions


def _differences(spec: TopicSpec, found: FoundTopic, partitions: int) -> Iterable[TopicDifference]:
    if found.partitions != partitions:
        fatal = spec.partitions_of is not None
        action = (
            f"a session's row must lie in the partition of its clicks ({spec.partitions_of}): stop the workers, delete "
            f"{spec.name} and run `stream-app topics`; open sessions start anew"
            if fatal
            else "harmless; set topics.partitions to what is there to silence this"
        )
        yield TopicDifference(spec.name, "partitions", str(partitions), str(found.partitions), fatal, action)
    if found.replication != spec.replication:
        action = "harmless for a test; in production reassign its replicas, or correct topics.replication"
        yield TopicDifference(
            spec.name, "replication", str(spec.replication), str(found.replication), fatal=False, action=action
        )
    for name, expected in spec.config.items():
        value = found.config.get(name, "not told")
        if _parts(value) == _parts(expected):
            continue
        fatal = not spec.required.get(name, frozenset()) <= _parts(value)
        command = f"kafka-configs --bootstrap-server ... --alter --topic {spec.name}"
        action = f"correct it with `{command} --add-config '{name}=[{expected}]'`"
        yield TopicDifference(spec.name, name, expected, value, fatal, action)


def _parts(value: str) -> frozenset[str]:
    return frozenset(part.strip() for part in value.split(","))


class _Cluster:
    """The boundary to Kafka's admin API."""

    def __init__(self, connection: KafkaConnection, timeout: float) -> None:
        self._servers = connection.bootstrap_servers
        self._timeout = timeout
        self._background_errors: list[str] = []
        config = {
            **connection.librdkafka(),
            # An exchange that fails says only that it timed out; why (a refused connection or login) comes here.
            "error_cb": lambda error: self._background_errors.append(_AFTER.sub("", error.str())),
            "log_level": _CRITICAL,
        }
        try:
            self._admin = AdminClient(config)
        except KafkaException as error:
            raise TopicError(f"the settings in [kafka] are not usable: {_reason(error)}") from error

    def describe(self, names: Collection[str]) -> dict[str, FoundTopic]:
        """Those of the topics that exist."""
        try:
            metadata = self._admin.list_topics(timeout=self._timeout).topics
            there = [name for name in names if name in metadata and metadata[name].partitions]
            if not there:
                return {}
            resources = [ConfigResource(ResourceType.TOPIC, name) for name in there]
            futures = self._admin.describe_configs(resources, request_timeout=self._timeout)
            config = {resource.name: future.result(2 * self._timeout) for resource, future in futures.items()}
        except (KafkaException, TimeoutError) as error:
            raise TopicError(
                f"Kafka at {self._servers} does not answer: {self._why(error)}; is it running, and are the settings in "
                "[kafka] (security, credentials) right?"
            ) from error
        return {name: _found(metadata[name].partitions, config[name]) for name in there}

    def create(self, wanted: list[tuple[TopicSpec, int]]) -> tuple[str, ...]:
        """Names of the topics that were created here; another process may be faster."""
        if not wanted:
            return ()
        new = [
            NewTopic(
                spec.name, num_partitions=partitions, replication_factor=spec.replication, config=dict(spec.config)
            )
            for spec, partitions in wanted
        ]
        created = []
        futures = self._admin.create_topics(new, operation_timeout=self._timeout, request_timeout=self._timeout)
        for name, future in futures.items():
            try:
                future.result(2 * self._timeout)
            except (KafkaException, TimeoutError) as error:
                if isinstance(error, KafkaException) and error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                    continue
                raise TopicError(f"topic {name} cannot be created: {self._why(error)}") from error
            created.append(name)
        return tuple(created)

    def await_topics(self, names: Collection[str]) -> dict[str, FoundTopic]:
        """All the topics; one just created may take a moment to be known to every broker."""
        deadline = time.monotonic() + self._timeout
        while True:
            found = self.describe(names)
            unseen = [name for name in names if name not in found]
            if not unseen:
                return found
            if time.monotonic() > deadline:
                raise TopicError(
                    f"created, but not visible after {self._timeout:g} s: {', '.join(unseen)}; run the step again"
                )
            time.sleep(_POLL_SECONDS)

    def _why(self, error: Exception) -> str:
        self._admin.poll(0)  # calls error_cb with what has come up
        return "; ".join(dict.fromkeys([_reason(error), *self._background_errors]))


def _found(partitions: Mapping[int, Any], config: Mapping[str, Any]) -> FoundTopic:
    return FoundTopic(
        partitions=len(partitions),
        replication=min(len(partition.replicas) for partition in partitions.values()),
        config={name: entry.value for name, entry in config.items() if entry.value is not None},
    )


def _reason(error: Exception) -> str:
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        return str(error.args[0].str())
    return str(error) or type(error).__name__
