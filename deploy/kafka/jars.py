"""The broker's jars: resolved by Maven from pom.xml once a machine, into a cache outside the work tree."""

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from deploy.kafka.errors import WAYS_OUT, LocalKafkaError

POM = Path(__file__).with_name("pom.xml")
MAVEN_TIMEOUT_S = 900.0
MAVEN_ATTEMPTS = 3

log = logging.getLogger(__name__)


def kafka_version(pom: Path = POM) -> str:
    """The Apache Kafka version that the pom pins, such as `4.3.1`."""
    version = ET.parse(pom).findtext("./{*}properties/{*}kafka.version")
    if not version:
        raise LocalKafkaError(f"{pom} has no property kafka.version")
    return version


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """`nextclick/kafka` in XDG_CACHE_HOME, or else in ~/.cache."""
    xdg = environ.get("XDG_CACHE_HOME")
    # The XDG specification has relative paths ignored.
    base = Path(xdg) if xdg and Path(xdg).is_absolute() else Path.home() / ".cache"
    return base / "nextclick" / "kafka"


def resolve_jars(pom: Path = POM, environ: Mapping[str, str] = os.environ) -> Path:
    """Folder with every jar of the pom and nothing else; Maven runs only when the cache has none for this very pom.

    The folder's name holds a hash of the pom, and it appears under that name by one rename when it is complete: a
    reader never sees half of it. A lock makes a second process wait for the first instead of downloading as well.

    Raises LocalKafkaError when Maven is missing or fails.
    """
    key = hashlib.sha256(pom.read_bytes()).hexdigest()[:12]
    jars = cache_folder(environ) / f"{kafka_version(pom)}-{key}"
    if jars.is_dir():
        return jars
    jars.parent.mkdir(parents=True, exist_ok=True)
    with jars.with_name(jars.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not jars.is_dir():
            with tempfile.TemporaryDirectory(prefix=jars.name + ".", dir=jars.parent) as unfinished:
                complete = Path(unfinished, "jars")
                _copy_with_maven(pom, complete, environ)
                complete.rename(jars)
    return jars


def _copy_with_maven(pom: Path, into: Path, environ: Mapping[str, str]) -> None:
    maven = shutil.which("mvn", path=environ.get("PATH", ""))
    if maven is None:
        raise LocalKafkaError(f"Maven, which fetches the Kafka broker, was not found on PATH. {WAYS_OUT}")
    command = [maven, "--batch-mode", "--quiet", "--strict-checksums", "--file", str(pom)]
    command += ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={into}"]
    # Maven 3.8 and older fetch through wagon, newer ones through the resolver's own transport.
    command += ["-Dmaven.wagon.http.retryHandler.count=5", "-Daether.connector.http.retryHandler.count=5"]
    log.info("fetching Apache Kafka %s with Maven, once on this machine (45 MB)", kafka_version(pom))
    output = ""
    for _attempt in range(MAVEN_ATTEMPTS):
        # A copy that broke off leaves what it has in Maven's own repository, so the next attempt goes on from there.
        try:
            run = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=dict(environ),
                timeout=MAVEN_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LocalKafkaError(
                f"Maven was not done after {MAVEN_TIMEOUT_S:.0f} s: {' '.join(command)}. Check the network and Maven's "
                f"settings.xml (mirror, proxy), then run it again."
            ) from error
        output = run.stdout.strip()
        if run.returncode == 0 and any(into.glob("*.jar")):
            return
        log.warning("Maven failed with exit code %d", run.returncode)
    raise LocalKafkaError(
        f"Maven could not fetch Apache Kafka {kafka_version(pom)}: {' '.join(command)}\n{output[-2000:]}\n"
        f"Check the network and Maven's settings.xml (mirror, proxy). {WAYS_OUT}"
    )
