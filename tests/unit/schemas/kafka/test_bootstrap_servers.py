"""One form of the list of brokers, which both Kafka clients take, or one line before either is started."""

import pytest
from aiokafka.conn import collect_hosts
from confluent_kafka import Producer
from faust.transport.drivers.aiokafka import server_list
from yarl import URL

from schemas.config.settings import load_settings
from schemas.errors import SettingsError
from schemas.kafka.bootstrap_servers import plain_servers
from stream_app.settings import StreamSettings
from trainer.service.settings import TrainerRoot

GIVEN = {
    "broker:9092": ["broker:9092"],
    "broker": ["broker:9092"],
    " a.example:1 , b_2.example:65535,": ["a.example:1", "b_2.example:65535"],
    ",,a:1,": ["a:1"],
    "PLAINTEXT://a:1,plaintext://b:2": ["a:1", "b:2"],
    "[::1]:9093,[2001:db8::7]": ["[::1]:9093", "[2001:db8::7]:9092"],
    "PLAINTEXT://[0:0:0:0:0:0:0:1]:9093": ["[::1]:9093"],
    "10.0.0.1:9092": ["10.0.0.1:9092"],
}


@pytest.mark.parametrize("text", GIVEN)
def test_both_clients_get_the_same_list(text: str) -> None:
    environ = {"NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS": text}
    kafka = load_settings(StreamSettings, config=None, environ=environ).kafka
    assert kafka == load_settings(TrainerRoot, config=None, environ=environ).kafka
    assert kafka.bootstrap_servers.split(",") == GIVEN[text]
    Producer(kafka.librdkafka() | {"log_level": 0})
    urls = [URL(f"kafka://{server}") for server in kafka.bootstrap_servers.split(",")]
    assert server_list(urls, 1) == GIVEN[text]
    hosts = [(f"[{host}]" if ":" in host else host, port) for host, port, _ in collect_hosts(GIVEN[text])]
    assert sorted(f"{host}:{port}" for host, port in hosts) == sorted(GIVEN[text])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (" , ", "names no broker"),
        ("a:1 b:2", "'a:1 b:2' is no broker; write host:port, several by commas"),
        ("a:1;b:2", "is no broker"),
        ("::1", r"an IPv6 address as \[::1\]:9092"),
        ("[::g]:1", "has no IPv6 address in its brackets"),
        ("a:0", "a port that is not between 1 and 65535"),
        ("a:65536", "a port that is not between 1 and 65535"),
        ("a:port", "is no broker"),
        ("SASL_SSL://a:1", "the prefix of a listener, SASL_SSL://, and security_protocol is PLAINTEXT"),
        ("http://a:1", "the prefix of a listener, HTTP://"),
        ("PLAINTEXT://", "is no broker"),
    ],
)
@pytest.mark.parametrize("program", [StreamSettings, TrainerRoot])
def test_what_is_no_list_is_refused_in_one_line(
    program: type[StreamSettings | TrainerRoot], text: str, told: str
) -> None:
    with pytest.raises(SettingsError, match=f"bootstrap_servers: .*{told}") as caught:
        load_settings(program, config=None, environ={"NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS": text})
    assert "\n" not in str(caught.value)


def test_a_prefix_says_what_security_protocol_says() -> None:
    assert plain_servers("SASL_SSL://a:1", "SASL_SSL") == "a:1"
    with pytest.raises(ValueError, match=r"PLAINTEXT://, and security_protocol is SSL"):
        plain_servers("PLAINTEXT://a:1", "SSL")
