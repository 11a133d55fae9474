"""`python -m deploy.strimzi`: print the manifests."""

import os
from pathlib import Path
from typing import Annotated

import typer
import yaml

from deploy.strimzi.manifests import Authentication, manifests
from schemas.config.settings import given, load_settings
from schemas.errors import SettingsError
from stream_app.settings import StreamSettings


def run(
    *,
    cluster: Annotated[str, typer.Option(help="Name of the Kafka resource whose operators act on these.")] = "kafka",
    authentication: Annotated[Authentication, typer.Option(help="How the users log in.")] = "scram-sha-512",
    config: Annotated[Path | None, typer.Option(help="The settings file, as the workers' own.")] = None,
) -> None:
    """Print KafkaTopic and KafkaUser resources for Strimzi, made from the settings."""
    try:
        settings = load_settings(StreamSettings, config=config, environ=os.environ)
        # Alone: the trainer's settings need its packages.
        collect_group = given("trainer.collect_group", config=config, environ=os.environ) or ""
    except SettingsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    found = manifests(settings, cluster=cluster, authentication=authentication, collect_group=collect_group)
    typer.echo(yaml.safe_dump_all(found, sort_keys=False), nl=False)


if __name__ == "__main__":
    typer.run(run)
