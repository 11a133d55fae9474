"""The connection: which settings fit together, and what librdkafka is given."""

from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from pydantic import SecretStr, ValidationError

from schemas.kafka import connection as kafka_settings
from schemas.kafka.connection import KafkaConnection

SASL = {"security_protocol": "SASL_SSL", "sasl_username": "u", "sasl_password": "p"}
OAUTH = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "OAUTHBEARER",
    "oauth_token_endpoint": "https://idp.example/token",
    "oauth_client_id": "worker",
    "oauth_client_secret": "s",
}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"bootstrap.servers": "localhost:9092", "security.protocol": "PLAINTEXT"}),
        (
            {"client_rack": "zone-b"},
            {"bootstrap.servers": "localhost:9092", "security.protocol": "PLAINTEXT", "client.rack": "zone-b"},
        ),
        (
            SASL | {"sasl_mechanism": "SCRAM-SHA-512"},
            {
                "bootstrap.servers": "localhost:9092",
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.username": "u",
                "sasl.password": "p",
                "ssl.endpoint.identification.algorithm": "https",
            },
        ),
        (
            OAUTH | {"oauth_scope": "kafka", "oauth_ca_location": __file__, "ssl_check_hostname": False},
            {
                "bootstrap.servers": "localhost:9092",
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "OAUTHBEARER",
                "sasl.oauthbearer.method": "oidc",
                "sasl.oauthbearer.token.endpoint.url": "https://idp.example/token",
                "sasl.oauthbearer.client.id": "worker",
                "sasl.oauthbearer.client.secret": "s",
                "sasl.oauthbearer.scope": "kafka",
                "https.ca.location": __file__,
                "ssl.endpoint.identification.algorithm": "none",
            },
        ),
    ],
)
def test_librdkafka_is_given(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    config = KafkaConnection(**settings).librdkafka()
    assert config == expected | {"reconnect.backoff.max.ms": "1000"}
    # librdkafka knows every name, and these values, without a broker.
    Producer({**config, "log_level": 0})


def test_the_authorities_of_a_token_endpoint_are_those_named_or_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, of_openssl, of_debian = (tmp_path / name for name in ("named.pem", "openssl.pem", "debian.crt"))
    monkeypatch.setattr(kafka_settings, "_CA_FILES", ("/not/there", str(of_debian)))
    monkeypatch.setenv("SSL_CERT_FILE", str(of_openssl))
    connection = KafkaConnection(**OAUTH)
    assert connection.token_authorities is None
    assert "https.ca.location" not in connection.librdkafka()
    of_debian.touch()
    assert connection.token_authorities == connection.librdkafka()["https.ca.location"] == str(of_debian)
    of_openssl.touch()
    assert connection.token_authorities == str(of_openssl)
    assert connection.model_copy(update={"oauth_ca_location": str(named)}).token_authorities == str(named)
    plain = connection.model_copy(update={"oauth_token_endpoint": "http://idp.example/token"})
    assert plain.token_authorities is None
    assert KafkaConnection(**SASL, sasl_mechanism="PLAIN").token_authorities is None


def test_mutual_tls_is_passed_through() -> None:
    config = KafkaConnection(
        security_protocol="SSL",
        ssl_ca_location="ca.pem",
        ssl_certificate_location="client.pem",
        ssl_key_location="client.key",
        ssl_key_password=SecretStr("k"),
    ).librdkafka()
    assert config["ssl.ca.location"] == "ca.pem"
    assert config["ssl.certificate.location"] == "client.pem"
    assert config["ssl.key.location"] == "client.key"
    assert config["ssl.key.password"] == "k"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"sasl_username": "u"}, "sasl_username without SASL"),
        ({"oauth_client_id": "u"}, "oauth_client_id without SASL"),
        (SASL, "SASL_SSL needs sasl_mechanism"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN"}, "needs sasl_username, sasl_password"),
        (SASL | {"sasl_mechanism": "OAUTHBEARER"}, "needs oauth_token_endpoint, oauth_client_id, oauth_client_secret"),
        (OAUTH | {"sasl_username": "u"}, "sasl_username has no meaning with sasl_mechanism OAUTHBEARER"),
        (SASL | {"sasl_mechanism": "PLAIN", "oauth_scope": "s"}, "oauth_scope has no meaning"),
        ({"ssl_ca_location": "ca.pem"}, "ssl_ca_location without TLS"),
        ({"security_protocol": "SSL", "ssl_certificate_location": "c.pem"}, "go together"),
        ({"security_protocol": "SSL", "ssl_key_location": "c.key"}, "go together"),
        ({"security_protocol": "SSL", "ssl_key_password": "k"}, "ssl_key_password without ssl_key_location"),
        ({"security_protocol": "TLS"}, "Input should be 'PLAINTEXT'"),
        ({"bootstrap_servers": ""}, "names no broker"),
    ],
)
def test_what_does_not_fit_together_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        KafkaConnection(**settings)


def test_whoever_takes_the_end_of_a_fetch_for_the_end_of_all_reads_from_the_leaders() -> None:
    near = KafkaConnection(client_rack="zone-b")
    assert near.plain_consumer("tool")["client.rack"] == "zone-b"
    to_the_end = near.plain_consumer("tool", to_the_end=True)
    assert to_the_end["client.rack"] == ""
    Consumer({**to_the_end, "log_level": 0}).close()  # librdkafka takes that for none
