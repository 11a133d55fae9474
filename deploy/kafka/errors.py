"""What can go wrong with the local Kafka, and the ways out when this machine cannot run one."""

WAYS_OUT = (
    "Either install a Java (`pip install 'nextclick[kafka]'` brings one along; else 17 or newer: Debian and Ubuntu "
    "have openjdk-17-jre-headless, Homebrew openjdk), or run `docker compose up` and set KAFKA_BOOTSTRAP_SERVERS to a "
    "broker (for the one of docker-compose.yml: KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9092)."
)


class LocalKafkaError(Exception):
    """The local Kafka could not be fetched, started, stopped or used as asked. The message names cause and action."""
