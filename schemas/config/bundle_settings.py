"""Whose models are used: the setting that workers and trainer share."""

from pathlib import Path

from pydantic import Field

from schemas.kafka.connection import Section


class BundleSettings(Section):
    """[bundles]: which bundles are opened, by everything that opens announced or published ones."""

    trusted_keys: tuple[Path, ...] = Field(
        default=(),
        description="Files with Ed25519 public keys (PEM). If set, a bundle must be signed by one of them.",
    )
