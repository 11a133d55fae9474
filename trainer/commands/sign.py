"""``trainer sign``: vouch for published versions with the key of this deployment."""

from typing import Annotated

import typer
from rich.console import Console

from schemas.errors import SettingsError
from trainer.commands.settings import Config, logged_settings_of


def sign(
    versions: Annotated[list[str], typer.Argument(help="As `trainer models` lists them.")], config: Config = None
) -> None:
    """Verify published versions and sign them with trainer.signing_key, in place of the signatures that they have."""
    from trainer.service.assembly import registry_of, signing_key_of

    root = logged_settings_of(config)
    key = signing_key_of(root)
    if key is None:
        raise SettingsError("trainer.signing_key is not set: name the file of the private key")
    registry = registry_of(root)
    for version in versions:
        with Console(stderr=True).status("verifying the bundle"):
            registry.sign(version, key)
        typer.echo(f"signed {version}")
