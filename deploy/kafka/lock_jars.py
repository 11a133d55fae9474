"""`python -m deploy.kafka.lock_jars`: write jars.lock from pom.xml, after a change of versions there. Needs Maven.

Another pom.xml, such as bench/peers/pom.xml, is named by an argument; its jars.lock lies beside it.
"""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy.kafka.jars import LOCK

POM = Path(__file__).with_name("pom.xml")
_HEADER = "# Written by `python -m deploy.kafka.lock_jars` from pom.xml: group:artifact:version and the jar's SHA-256."


def main(pom: Path = POM) -> None:
    """Let Maven fetch what a pom.xml needs at run time, and note it down beside it."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["mvn", "--batch-mode", "--quiet", "--strict-checksums", "--file", str(pom),
             "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}",
             "-Dmdep.useRepositoryLayout=true"],
            check=True,
        )  # fmt: skip
        lines = []
        for jar in sorted(Path(folder).rglob("*.jar")):
            *group, artifact, version, _ = jar.relative_to(folder).parts
            digest = hashlib.sha256(jar.read_bytes()).hexdigest()
            lines.append(f"{'.'.join(group)}:{artifact}:{version} {digest}")
    pom.with_name(LOCK.name).write_text("\n".join([_HEADER, *lines]) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
