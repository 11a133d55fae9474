"""Settings of `stream-app api` and `stream-app sink`."""

import ipaddress
import re
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from schemas.config.duration import Duration
from schemas.config.process_settings import LogSettings, MemberSettings, WebPort

_SCHEMES = ("redis://", "rediss://", "valkey://", "valkeys://", "unix://")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/;,'\"]+")
_TOKEN = re.compile(r"[!-~]+")


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class ApiSettings(LogSettings):
    """[api]: who may ask `stream-app api` for what."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; beyond this machine only with tokens.")
    port: int = Field(default=6068, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    token: SecretStr | None = Field(default=None, description="Clients must send it as `Authorization: Bearer TOKEN`.")
    token_file: Path | None = Field(
        default=None, description="File of further tokens, one per line; read once, at the start."
    )
    cors_origins: tuple[str, ...] = Field(
        default=(), description='Web pages that may call the API from a browser, such as "https://shop.example".'
    )
    image_origins: tuple[str, ...] = Field(
        default=(),
        description="Where the page may load images of items from, such as "
        '"https://images.example"; by default only images inside the records are shown.',
    )
    rate_limit: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="Requests per second that a client (a token, or an address) may make; 0 sets no limit.",
    )
    max_open: int = Field(
        default=1000, ge=1, le=100_000, description="Most requests that may wait or stream at the same time."
    )
    max_wait: Duration = Field(default=10.0, ge=0.001, le=300, description="Longest `wait` of a click.")
    request_timeout: Duration = Field(
        default=30.0, ge=0.1, le=600, description="A request that takes longer is answered with an error."
    )
    delivery_timeout: Duration = Field(
        default=10.0,
        ge=1,
        le=300,
        description="A click that Kafka has not confirmed in this time is answered with 503.",
    )
    stop_timeout: Duration = Field(
        default=10.0, ge=0, le=600, description="Time that running requests have after SIGTERM."
    )
    data_dir: Path = Field(
        default=Path("api-data"), description="Folder for the latest rankings: one per process, kept across restarts."
    )
    store_cache_mb: int = Field(default=64, ge=8, description="RocksDB's block cache, in MB.")
    store_url: SecretStr | None = Field(
        default=None,
        description="Redis or Valkey that `stream-app sink` fills, such as redis://host:6379/0, in place of data_dir.",
    )
    store_prefix: str = Field(
        default="nextclick:", max_length=100, description="Prefix of all keys in Redis or Valkey; one per deployment."
    )

    @field_validator("token")
    @classmethod
    def _is_a_token(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and not _TOKEN.fullmatch(token.get_secret_value()):
            raise ValueError("is empty, or holds a space or another character that no header may")
        return token

    @field_validator("store_url")
    @classmethod
    def _is_a_store(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None:
            return None
        text = url.get_secret_value()
        if not text.startswith(_SCHEMES):
            raise ValueError(f"begins with none of {', '.join(_SCHEMES)}")
        try:
            parts = urlsplit(text)
            is_address = parts.port != 0 and (parts.scheme == "unix" or bool(parts.hostname))
        except ValueError:  # which repeats parts of a password
            is_address = False
        if not is_address:
            raise ValueError(
                "has no host, or one or a port that cannot be read; in a password write / # ? as %2F %23 %3F"
            )
        return url

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if not is_loopback(self.host) and self.token is None and self.token_file is None:
            raise ValueError(
                f"host {self.host} is reached from other machines, and anyone there could read and click: set token or "
                "token_file, or host = 127.0.0.1"
            )
        for origin in (*self.cors_origins, *self.image_origins):
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin; write it as browsers do: https://shop.example, or with a port"
                )
        return self


class SinkSettings(MemberSettings):
    """[sink]: how `stream-app sink` copies the latest rankings to api.store_url."""

    data_dir: Path = Field(
        default=Path("sink-data"),
        description="Folder for the identity of this sink in its consumer group: one per sink.",
    )
    store_timeout: Duration = Field(
        default=300.0, ge=1, le=3600, description="How long the sink waits for an unavailable store before it exits."
    )
    web_port: WebPort = 6069
