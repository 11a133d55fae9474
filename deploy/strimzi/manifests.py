"""KafkaTopic and KafkaUser resources from the topic table and the rights."""

import re
from collections.abc import Iterator
from typing import Any, Literal

from deploy.strimzi.rights import Right, rights
from schemas.kafka.topics import TopicSpec
from stream_app.settings import StreamSettings

Authentication = Literal["scram-sha-512", "tls"]
_API = "kafka.strimzi.io/v1"


def manifests(
    settings: StreamSettings, *, cluster: str, authentication: Authentication, collect_group: str = ""
) -> Iterator[dict[str, Any]]:
    """Every topic of a deployment, then a user for each process.

    Args:
        cluster: the name of the Kafka resource.
        collect_group: `trainer.collect_group`.
    """
    labels = {"strimzi.io/cluster": cluster}
    for spec in settings.topic_specs():
        yield _resource("KafkaTopic", spec.name, labels, _topic(spec))
    for process, own in rights(settings, collect_group=collect_group).items():
        acls = [_acl(right) for right in own]
        yield _resource(
            "KafkaUser",
            f"{settings.app_id}-{process}",
            labels,
            {"authentication": {"type": authentication}, "authorization": {"type": "simple", "acls": acls}},
        )


def _resource(kind: str, name: str, labels: dict[str, str], spec: dict[str, Any]) -> dict[str, Any]:
    # Kubernetes takes fewer names than Kafka.
    ours = re.sub(r"[^a-z0-9.-]", "-", name.lower()).strip(".-")
    return {"apiVersion": _API, "kind": kind, "metadata": {"name": ours, "labels": dict(labels)}, "spec": spec}


def _topic(spec: TopicSpec) -> dict[str, Any]:
    return {
        "topicName": spec.name,
        "partitions": spec.partitions,
        "replicas": spec.replication,
        "config": dict(spec.config),
    }


def _acl(right: Right) -> dict[str, Any]:
    resource = {
        "type": right.kind,
        "name": right.name,
        "patternType": "prefix" if right.is_prefix else "literal",
    }
    return {"resource": resource, "operations": list(right.operations)}
