"""A real Apache Kafka on this machine, without Docker: `with LocalKafka() as kafka: kafka.bootstrap_servers`."""

from deploy.kafka.cluster import LocalKafka
from deploy.kafka.errors import LocalKafkaError

__all__ = ["LocalKafka", "LocalKafkaError"]
