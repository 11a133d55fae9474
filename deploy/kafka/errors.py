"""What can go wrong with the local Kafka, and the two ways out when this machine cannot run one."""

WAYS_OUT = (
    "Either install Java 17 or newer and Maven (Debian, Ubuntu: apt-get install openjdk-17-jre-headless maven; "
    "macOS: brew install openjdk maven), or run `docker compose up` and set KAFKA_BOOTSTRAP_SERVERS to a broker "
    "(for the one of docker-compose.yml: KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9092)."
)


class LocalKafkaError(Exception):
    """The local Kafka could not be resolved, started, stopped or used as asked. The message names cause and action."""
