"""`python -m deploy.kafka.lock_jars`: write jars.lock from pom.xml, after a change of versions there. Needs Maven."""

import hashlib
import subprocess
import tempfile
from pathlib import Path

from deploy.kafka.jars import LOCK

POM = Path(__file__).with_name("pom.xml")
_HEADER = "# Written by `python -m deploy.kafka.lock_jars` from pom.xml: group:artifact:version and the jar's SHA-256."


def main() -> None:
    """Let Maven fetch what pom.xml needs at run time, and note it down."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["mvn", "--batch-mode", "--quiet", "--strict-checksums", "--file", str(POM),
             "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}",
             "-Dmdep.useRepositoryLayout=true"],
            check=True,
        )  # fmt: skip
        lines = []
        for jar in sorted(Path(folder).rglob("*.jar")):
            *group, artifact, version, _ = jar.relative_to(folder).parts
            digest = hashlib.sha256(jar.read_bytes()).hexdigest()
            lines.append(f"{'.'.join(group)}:{artifact}:{version} {digest}")
    LOCK.write_text("\n".join([_HEADER, *lines]) + "\n")


if __name__ == "__main__":
    main()
