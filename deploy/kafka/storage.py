"""Formatted storage: what `kafka-storage.sh format` does, once for each node, so that a data folder keeps its data."""

import base64
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from deploy.kafka.errors import LocalKafkaError
from deploy.kafka.properties import to_text

FORMAT_TIMEOUT_S = 120.0


def new_cluster_id() -> str:
    """16 random bytes in URL-safe base64, as Kafka writes them; never one that a command line takes for an option."""
    while True:
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not cluster_id.startswith("-"):
            return cluster_id


def cluster_id_of(data: Path) -> str | None:
    """The cluster id in a formatted folder's meta.properties; None when the folder is not formatted."""
    try:
        lines = (data / "meta.properties").read_text().splitlines()
    except FileNotFoundError:
        return None
    for line in lines:
        key, _, value = line.partition("=")
        if key == "cluster.id" and value:
            return value
    raise LocalKafkaError(f"{data / 'meta.properties'} names no cluster.id; remove {data} to begin anew")


def format_storage(java: Path, jars: Path, settings: dict[str, str], data: Path, cluster_id: str) -> None:
    """Format `data` for the node that `settings` describe. It appears by one rename, so it is never half formatted."""
    unfinished = data.with_name(data.name + ".unformatted")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    config = data.with_name(data.name + ".format.properties")
    config.write_text(to_text(settings | {"log.dirs": str(unfinished)}))
    command = [*java_command(java, jars, heap_mb=128), "kafka.tools.StorageTool", "format"]
    command += ["--cluster-id", cluster_id, "--config", str(config)]
    try:
        run = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=FORMAT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LocalKafkaError(
            f"formatting {data} took longer than {FORMAT_TIMEOUT_S:.0f} s; is the disk full?"
        ) from error
    if run.returncode != 0 or cluster_id_of(unfinished) is None:
        raise LocalKafkaError(
            f"formatting {data} failed with exit code {run.returncode}; the settings are of deploy/kafka/properties.py "
            f"and the `overrides`:\n{run.stdout.strip()[-2000:]}"
        )
    config.unlink()
    unfinished.rename(data)


def java_command(
    java: Path, jars: Path, *, heap_mb: int, options: Sequence[str] = (), optimise: bool = False
) -> list[str]:
    """The part of the command line up to the main class."""
    # The machine is shared with what is being tested, and a test is over before the optimising compiler has paid for
    # itself: with the first-level compiler alone, and one collector thread, a start took 2.5 s of CPU instead of 4.0,
    # and the first 1.6 million records no more CPU than without these options. It pays after some 20,000 requests:
    # one of a single record then takes 0.18 ms, 0.28 ms without it.
    quick = [] if optimise else ["-XX:TieredStopAtLevel=1"]
    jvm = [f"-Xmx{heap_mb}m", "-Xms64m", *quick, "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"]
    jvm.append("-Djava.awt.headless=true")
    return [str(java), *jvm, *options, "-cp", str(jars / "*")]
