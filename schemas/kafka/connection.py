"""How to reach Kafka, and what the topics are called: the settings that both commands share."""

import re
import ssl
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

from schemas.kafka.bootstrap_servers import plain_servers
from schemas.plain_url import PlainUrl

_DAY_MS: Final = 86_400_000
_CA_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Red Hat, Fedora
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # macOS
)

_TOPICS: Final = (
    "clicks", "rankings", "rejected", "models", "items", "rules", "splits", "rankings_shadow", "scores",
)  # fmt: skip

_PREFIX: Final = re.compile(r"^[A-Za-z0-9._-]{0,100}$")
TopicName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,249}$")]


def system_authorities() -> str | None:
    """The system's file of CA certificates: OpenSSL's own (SSL_CERT_FILE included), or where known systems have it."""
    of_systems = (file for file in _CA_FILES if Path(file).is_file())
    return ssl.get_default_verify_paths().cafile or next(of_systems, None)


class Section(BaseModel):
    """A table of the configuration: frozen, and unknown keys are errors.

    Attributes:
        whole: whether the table has no other keys; those of a part are another command's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)
    whole: ClassVar[bool] = True


class KafkaConnection(Section):
    """[kafka]: the connection, used by every Kafka client of a process."""

    bootstrap_servers: str = Field(
        default="localhost:9092",
        min_length=1,
        description="brokers as host:port, separated by commas; the port defaults to 9092.",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    oauth_token_endpoint: PlainUrl | None = Field(default=None, description="OIDC token URL for OAUTHBEARER.")
    oauth_client_id: str | None = None
    oauth_client_secret: SecretStr | None = None
    oauth_scope: str | None = None
    oauth_ca_location: str | None = Field(
        default=None, description="CA certificates (PEM) for an https token endpoint; by default the system's."
    )
    ssl_ca_location: str | None = Field(default=None, description="CA certificates (PEM); by default the system's.")
    ssl_certificate_location: str | None = Field(default=None, description="This client's certificate (PEM), for mTLS.")
    ssl_key_location: str | None = Field(default=None, description="This client's private key (PEM), for mTLS.")
    ssl_key_password: SecretStr | None = None
    ssl_check_hostname: bool = True
    client_rack: str | None = Field(
        default=None,
        min_length=1,
        max_length=250,
        description="Rack or availability zone of this process, as the brokers' broker.rack names it: records are then "
        "fetched from the nearest replica, if the brokers allow that (replica.selector.class).",
    )

    @property
    def uses_tls(self) -> bool:
        return self.security_protocol in ("SSL", "SASL_SSL")

    @property
    def uses_sasl(self) -> bool:
        return self.security_protocol in ("SASL_PLAINTEXT", "SASL_SSL")

    @model_validator(mode="before")
    @classmethod
    def _in_one_form(cls, values: Any) -> Any:
        """Both clients get the same list: one takes a listener's prefix and a last comma, the other dies of them."""
        servers = values.get("bootstrap_servers") if isinstance(values, dict) else None
        if not isinstance(servers, str):
            return values
        protocol = values.get("security_protocol", cls.model_fields["security_protocol"].default)
        try:
            return {**values, "bootstrap_servers": plain_servers(servers, str(protocol))}
        except ValueError as error:
            raise ValueError(f"bootstrap_servers: {error}") from error

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for problem in (*self._sasl_problems(), *self._tls_problems()):
            raise ValueError(problem)
        return self

    def _sasl_problems(self) -> list[str]:
        given = self._given(
            "sasl_mechanism", "sasl_username", "sasl_password", "oauth_token_endpoint", "oauth_client_id",
            "oauth_client_secret", "oauth_scope", "oauth_ca_location",
        )  # fmt: skip
        if not self.uses_sasl:
            if not given:
                return []
            return [
                f"{_names(given)} without SASL: set security_protocol to SASL_SSL (or SASL_PLAINTEXT), or remove them"
            ]
        if self.sasl_mechanism is None:
            return [f"security_protocol {self.security_protocol} needs sasl_mechanism"]
        oauth = self.sasl_mechanism == "OAUTHBEARER"
        needed = (
            ("oauth_token_endpoint", "oauth_client_id", "oauth_client_secret")
            if oauth
            else ("sasl_username", "sasl_password")
        )
        missing = [name for name in needed if name not in given]
        foreign = [name for name in given if name.startswith("sasl_" if oauth else "oauth_")]
        foreign = [name for name in foreign if name != "sasl_mechanism"]
        problems = [f"sasl_mechanism {self.sasl_mechanism} needs {_names(missing)}"] if missing else []
        if foreign:
            problems.append(f"{_names(foreign)} has no meaning with sasl_mechanism {self.sasl_mechanism}: remove it")
        return problems

    def _tls_problems(self) -> list[str]:
        given = self._given("ssl_ca_location", "ssl_certificate_location", "ssl_key_location", "ssl_key_password")
        if given and not self.uses_tls:
            return [f"{_names(given)} without TLS: set security_protocol to SSL or SASL_SSL, or remove it"]
        if ("ssl_certificate_location" in given) != ("ssl_key_location" in given):
            return ["ssl_certificate_location and ssl_key_location (mTLS) go together: set both or neither"]
        if "ssl_key_password" in given and "ssl_key_location" not in given:
            return ["ssl_key_password without ssl_key_location"]
        return []

    def _given(self, *names: str) -> list[str]:
        return [name for name in names if getattr(self, name) is not None]

    @property
    def token_authorities(self) -> str | None:
        """The file of CA certificates that an https token endpoint is verified with; None without such an endpoint.

        Named to both clients: librdkafka's wheel looks for the file of the system that it was built on, Red Hat's. None
        as well where the system has no file that we know: then each client looks where it will.
        """
        if self.sasl_mechanism != "OAUTHBEARER" or not (self.oauth_token_endpoint or "").startswith("https:"):
            return None
        return self.oauth_ca_location or system_authorities()

    def librdkafka(self) -> dict[str, str | bool]:
        """The connection as librdkafka's configuration, for confluent-kafka's producer, consumer and admin client."""
        config: dict[str, str | bool] = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            # librdkafka waits up to 10 s before it looks again whether a broker is back.
            "reconnect.backoff.max.ms": "1000",
        }
        optional: dict[str, str | SecretStr | None] = {
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": self.sasl_password,
            "ssl.ca.location": self.ssl_ca_location,
            "ssl.certificate.location": self.ssl_certificate_location,
            "ssl.key.location": self.ssl_key_location,
            "ssl.key.password": self.ssl_key_password,
            "client.rack": self.client_rack,
        }
        if self.sasl_mechanism == "OAUTHBEARER":
            config["sasl.oauthbearer.method"] = "oidc"
            optional |= {
                "sasl.oauthbearer.token.endpoint.url": self.oauth_token_endpoint,
                "sasl.oauthbearer.client.id": self.oauth_client_id,
                "sasl.oauthbearer.client.secret": self.oauth_client_secret,
                "sasl.oauthbearer.scope": self.oauth_scope,
                "https.ca.location": self.token_authorities,
            }
        for name, value in optional.items():
            if value is not None:
                config[name] = value.get_secret_value() if isinstance(value, SecretStr) else value
        if self.uses_tls:
            config["ssl.endpoint.identification.algorithm"] = "https" if self.ssl_check_hostname else "none"
        return config

    def plain_consumer(self, group: str, client_id: str | None = None, *, to_the_end: bool = False) -> dict[str, Any]:
        """The same for a consumer that joins no group and commits nothing: its partitions are assigned by hand.

        librdkafka wants a `group` all the same, and asks for its coordinator, so there must be a right to describe it.
        The brokers' logs know the consumer by `client_id`, or else by the group. `to_the_end` is for whoever takes the
        end that a fetch tells for the end of all there is: that of a near replica may lie before records of the leader.
        """
        return {
            **self.librdkafka(),
            **({"client.rack": ""} if to_the_end else {}),
            "client.id": client_id or group,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
        }


class TopicSettings(Section):
    """[topics]: names, partitions and retention. `stream-app topics` creates them so; nothing alters them later.

    The names have the prefix already, however an instance is made.
    """

    prefix: str = Field(
        default="",
        pattern=_PREFIX.pattern,
        description="Put before the names of all topics, consumer groups and transactional ids, so that several "
        'deployments can share a Kafka; for example "shop-a.".',
    )
    clicks: TopicName = "clicks"
    rankings: TopicName = "rankings"
    rejected: TopicName = "clicks.rejected"
    models: TopicName = "models"
    items: TopicName = Field(default="items", description="Read by workers with worker.items.")
    rules: TopicName = Field(default="rules", description="Read by workers with worker.rules.")
    splits: TopicName = Field(default="splits", description="Read by workers with worker.splits.")
    rankings_shadow: TopicName = Field(
        default="rankings.shadow", description="Rankings of shadows; written by workers with worker.splits."
    )
    scores: TopicName = "scores"
    partitions: int = Field(
        default=8,
        ge=1,
        le=10_000,
        description="Number of partitions of the clicks, rankings, rejected, scores and changelog topics.",
    )
    replication: int = Field(default=1, ge=1, le=32, description="Replicas of each partition; use 3 in production.")
    clicks_retention_ms: int = Field(
        default=7 * _DAY_MS,
        ge=60_000,
        description="How long clicks are kept: the trainer must collect, and a worker catch up, within this time.",
    )
    rankings_retention_ms: int = Field(default=_DAY_MS, ge=60_000)
    rejected_retention_ms: int = Field(default=14 * _DAY_MS, ge=60_000)
    scores_retention_ms: int = Field(
        default=30 * _DAY_MS, ge=60_000, description="How long the scores of a window are kept."
    )

    @model_validator(mode="before")
    @classmethod
    def _with_prefix(cls, values: Any) -> Any:
        prefix = values.get("prefix") if isinstance(values, dict) else None
        if not isinstance(prefix, str) or not _PREFIX.match(prefix):
            return values  # there is none, or it is refused
        names = {name: values.get(name, cls.model_fields[name].default) for name in _TOPICS}
        return values | {name: f"{prefix}{topic}" for name, topic in names.items() if isinstance(topic, str)}

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [getattr(self, name) for name in _TOPICS]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two topics have the name {name!r}")
            if name in (".", ".."):
                raise ValueError(f"{name!r} cannot name a topic")
        return self


def _names(fields: list[str]) -> str:
    return ", ".join(fields)
