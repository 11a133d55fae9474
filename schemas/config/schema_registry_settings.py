"""The format of clicks and rankings, and the schema registry that they need unless that is plain JSON."""

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from schemas.config.duration import Duration
from schemas.kafka.connection import Section, system_authorities
from schemas.masking import masked

Format = Literal["json", "avro", "protobuf", "json-schema"]


class SchemaRegistrySettings(Section):
    """[schema_registry]: for all processes of a deployment, and the same for all."""

    url: str | None = Field(
        default=None, description="A registry with Confluent's API; several, of one cluster, separated by commas."
    )
    clicks: Format = Field(
        default="json",
        description="What our own commands and the API write as clicks; other than `json`, all of them are read.",
    )
    rankings: Format = Field(
        default="json", description="What workers write as rankings; other than `json`, all of them are read."
    )
    register_schemas: bool = Field(
        default=True, description="Whether we register the schemas that we write by; else they must be there."
    )
    username: str | None = Field(default=None, description="For HTTP Basic; in Confluent Cloud the API key.")
    password: SecretStr | None = Field(default=None, description="For HTTP Basic; in Confluent Cloud the API secret.")
    ssl_ca_location: str | None = Field(default=None, description="CA certificates (PEM); by default the system's.")
    ssl_certificate_location: str | None = Field(default=None, description="This client's certificate (PEM), for mTLS.")
    ssl_key_location: str | None = Field(default=None, description="This client's private key (PEM), for mTLS.")
    timeout: Duration = Field(
        default=240.0,
        gt=0,
        le=240,  # Kafka takes a consumer for dead that asks for nothing for 300 s
        description="How long a process waits for an unavailable registry before it exits.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.url is not None and masked(self.url) != self.url:
            raise ValueError("url holds a login, which logs would show: set username and password")
        formats = {name: getattr(self, name) for name in ("clicks", "rankings") if getattr(self, name) != "json"}
        if self.url is None and formats:
            name, wanted = next(iter(formats.items()))
            raise ValueError(f"{name} = {wanted!r} needs url: the schema registry")
        if self.url is not None and not formats:
            raise ValueError("url without a format: set clicks or rankings to avro, protobuf or json-schema")
        parts = [urlsplit(url.strip()) for url in (self.url or "").split(",") if url]
        if any(part.scheme not in ("http", "https") or not part.hostname for part in parts):
            raise ValueError("url must be http://host:port or https://host:port")
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password go together: set both or neither")
        if (self.ssl_certificate_location is None) != (self.ssl_key_location is None):
            raise ValueError("ssl_certificate_location and ssl_key_location (mTLS) go together: set both or neither")
        return self

    def client(self) -> dict[str, str]:
        """The connection as confluent-kafka's client of registries takes it."""
        config = {
            "url": self.url,
            "ssl.ca.location": self.ssl_ca_location or system_authorities(),
            "ssl.certificate.location": self.ssl_certificate_location,
            "ssl.key.location": self.ssl_key_location,
        }
        if self.username is not None and self.password is not None:
            config["basic.auth.user.info"] = f"{self.username}:{self.password.get_secret_value()}"
        return {name: value for name, value in config.items() if value is not None}
