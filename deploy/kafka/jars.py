"""The broker's jars: those of `jars.lock`, fetched once a machine into a cache outside the work tree.

`jars.lock` names each jar and its SHA-256; `python -m deploy.kafka.lock_jars` writes it from pom.xml.
"""

import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.kafka.errors import WAYS_OUT, LocalKafkaError
from schemas.kafka.connection import system_authorities

LOCK: Final = Path(__file__).with_name("jars.lock")
REPOSITORY_VARIABLE: Final = "KAFKA_MAVEN_REPOSITORY"
"""Names another Maven repository than Maven Central, such as a company's mirror."""

_OF_KAFKA: Final = ("kafka_2.13", "kafka-clients")
_ATTEMPTS: Final = 3
_AT_ONCE: Final = 8
_TIMEOUT_SECONDS: Final = 60

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Jar:
    """A line of the lock: where a Maven repository has the jar, and what it must hold."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def name(self) -> str:
        """Its file."""
        return f"{self.artifact}-{self.version}.jar"


Fetch = Callable[[Jar, Path, Mapping[str, str]], Path]
"""Download a jar below a folder of its own, as the environment says; returns the file. May raise whatever it likes."""


def locked_jars(lock: Path = LOCK) -> list[Jar]:
    """Every jar of a lock file: a line `group:artifact:version sha256` each."""
    jars = []
    for line in lock.read_text().splitlines():
        if line and not line.startswith("#"):
            coordinates, sha256 = line.split()
            group, artifact, version = coordinates.split(":")
            jars.append(Jar(group, artifact, version, sha256))
    return jars


def kafka_version(lock: Path = LOCK) -> str:
    """The Apache Kafka version that the lock pins, such as `4.3.1`."""
    [version] = {jar.version for jar in locked_jars(lock) if jar.artifact in _OF_KAFKA}
    return version


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """`nextclick/kafka` in XDG_CACHE_HOME, or else in ~/.cache."""
    xdg = environ.get("XDG_CACHE_HOME")
    # The XDG specification has relative paths ignored.
    base = Path(xdg) if xdg and Path(xdg).is_absolute() else Path.home() / ".cache"
    return base / "nextclick" / "kafka"


def fetch_with_jgo(jar: Jar, folder: Path, environ: Mapping[str, str]) -> Path:
    """Download from Maven Central, or from the repository that KAFKA_MAVEN_REPOSITORY names."""
    from jgo.maven import MavenContext

    # Its library looks for certificates in a package of its own, which knows no company's; the system's file does.
    if (authorities := system_authorities()) is not None:
        os.environ.setdefault("REQUESTS_CA_BUNDLE", authorities)
    mirror = environ.get(REPOSITORY_VARIABLE)
    context = MavenContext(
        repo_cache=folder,
        local_repos=[],
        remote_repos={"mirror": mirror.rstrip("/")} if mirror else None,
        timeout=_TIMEOUT_SECONDS,
    )
    fetched: Path = context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve()
    return fetched


def resolve_jars(lock: Path = LOCK, environ: Mapping[str, str] = os.environ, fetch: Fetch = fetch_with_jgo) -> Path:
    """Folder with every jar of the lock and nothing else; fetched only when the cache has none for this very lock.

    The folder's name holds a hash of the lock, and it appears under that name by one rename when it is complete: a
    reader never sees half of it. A lock file makes a second process wait for the first instead of downloading as well.

    Raises LocalKafkaError when a jar cannot be fetched, or is not the one of the lock.
    """
    key = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    jars = cache_folder(environ) / f"{kafka_version(lock)}-{key}"
    if jars.is_dir():
        return jars
    jars.parent.mkdir(parents=True, exist_ok=True)
    with jars.with_name(jars.name + ".lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        if not jars.is_dir():
            log.info("fetching Apache Kafka %s, once on this machine (%s)", kafka_version(lock), lock)
            with tempfile.TemporaryDirectory(prefix=jars.name + ".", dir=jars.parent) as unfinished:
                complete = Path(unfinished, "jars")
                complete.mkdir()
                with ThreadPoolExecutor(_AT_ONCE) as pool:
                    list(pool.map(lambda jar: _fetch(jar, complete, environ, fetch), locked_jars(lock)))
                complete.rename(jars)
    return jars


def _fetch(jar: Jar, into: Path, environ: Mapping[str, str], fetch: Fetch) -> None:
    """Put a jar into a folder, if it is the one of the lock. Raises LocalKafkaError."""
    problem = ""
    for _ in range(_ATTEMPTS):
        with tempfile.TemporaryDirectory(dir=into.parent) as folder:
            try:
                fetched = fetch(jar, Path(folder), environ)
                digest = hashlib.sha256(fetched.read_bytes()).hexdigest()
            except Exception as error:  # noqa: BLE001 - the edge of a library that raises anything: told below
                problem = f"{type(error).__name__}: {error}"
                continue
            if digest == jar.sha256:
                fetched.rename(into / jar.name)
                return
            problem = f"its SHA-256 is {digest}, {LOCK.name} has {jar.sha256}"
    raise LocalKafkaError(
        f"{jar.group}:{jar.artifact}:{jar.version} could not be fetched: {problem}. Check the network and its proxy "
        f"(HTTPS_PROXY), or name a mirror of Maven Central by {REPOSITORY_VARIABLE}. {WAYS_OUT}"
    )
