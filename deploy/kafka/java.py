"""The machine's Java: found, and new enough for the broker."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from deploy.kafka.errors import WAYS_OUT, LocalKafkaError

MINIMUM_JAVA = 17  # Kafka 4 brokers are compiled for it


def find_java(environ: Mapping[str, str] = os.environ) -> Path:
    """The `java` of JAVA_HOME, or else of PATH. Raises LocalKafkaError when there is none, or an older one."""
    home = environ.get("JAVA_HOME")
    found = str(Path(home, "bin", "java")) if home else shutil.which("java", path=environ.get("PATH", ""))
    if found is None:
        raise LocalKafkaError(f"Java was not found on PATH. {WAYS_OUT}")
    version = java_version(Path(found))
    if version < MINIMUM_JAVA:
        raise LocalKafkaError(f"{found} is Java {version}; Kafka needs Java {MINIMUM_JAVA} or newer. {WAYS_OUT}")
    return Path(found)


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
