"""`python -m deploy.supply.audit`: ask pip-audit whether a locked package has a known vulnerability.

Exit code 1 if one has. Where no database of vulnerabilities answers nothing is known, and it says that the audit did
not run, with exit code 0: the checks run without a network, too. pip-audit alone would say that there are none where
PyPI is a mirror that does not know of vulnerabilities.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.supply.locks import REQUIREMENTS

LOCKS: Final = ("stream", "api", "trainer", "dev", "uv")
KNOWN_BAD: Final = "jinja2==2.10"
"""Has had vulnerabilities since 2019: a service that does not know of them knows nothing of others either."""
SERVICES: Final = ("pypi", "osv")
_TIMEOUT_SECONDS: Final = 10
_LONGEST_SECONDS: Final = 120


@dataclass(frozen=True)
class Vulnerable:
    """A package and what is known of it."""

    package: str
    version: str
    ids: tuple[str, ...]
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        mended = f"; fixed in {', '.join(self.fixed_in)}" if self.fixed_in else ""
        return f"{self.package} {self.version}: {', '.join(self.ids)}{mended}"


@dataclass(frozen=True)
class Audit:
    """What a service says of a lock.

    Attributes:
        unknown: the packages that it does not know.
    """

    vulnerable: tuple[Vulnerable, ...]
    unknown: tuple[str, ...]


def audit(lock: Path, service: str) -> Audit | None:
    """What this service says of a file of pinned requirements; None where it does not answer."""
    command = [
        sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--disable-pip", "--no-deps",
        "--vulnerability-service", service, "--timeout", str(_TIMEOUT_SECONDS),
        "--format", "json", "--progress-spinner", "off",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LONGEST_SECONDS)
        told = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return None  # pip-audit ends without a report where its service does not answer
    return Audit(
        vulnerable=tuple(_vulnerable(one) for one in told if one.get("vulns")),
        unknown=tuple(one["name"] for one in told if "skip_reason" in one),
    )


def _vulnerable(told: dict[str, Any]) -> Vulnerable:
    ids = tuple(sorted(one["id"] for one in told["vulns"]))
    fixed = tuple(sorted({version for one in told["vulns"] for version in one["fix_versions"]}))
    return Vulnerable(told["name"], told["version"], ids, fixed)


def answering_service() -> str | None:
    """The first service that knows of the vulnerabilities of `KNOWN_BAD`."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder, "requirements.txt")
        lock.write_text(f"{KNOWN_BAD}\n")
        for service in SERVICES:
            found = audit(lock, service)
            if found is not None and found.vulnerable:
                return service
    return None


def main() -> int:
    """Audit every lock; returns the exit code."""
    print(f"audit: asking whether {' or '.join(SERVICES)} tells of vulnerabilities", file=sys.stderr, flush=True)
    service = answering_service()
    if service is None:
        print("audit: DID NOT RUN: neither PyPI nor OSV tells of vulnerabilities here", file=sys.stderr)
        return 0
    code = 0
    for number, name in enumerate(LOCKS):
        found = audit(REQUIREMENTS / f"{name}.txt", service)
        if found is None:  # whoever has fallen silent would be waited for with each of the others, too
            left = ", ".join(f"{one}.txt" for one in LOCKS[number:])
            print(f"audit: DID NOT RUN for {left}: {service} does not answer", file=sys.stderr)
            break
        for one in found.vulnerable:
            print(f"audit: {name}.txt: {one}", file=sys.stderr)
        if found.unknown:
            print(f"audit: {name}.txt: {service} does not know {', '.join(found.unknown)}", file=sys.stderr)
        print(f"audit: {name}.txt: {len(found.vulnerable)} packages with known vulnerabilities, by {service}")
        code = 1 if found.vulnerable else code
    return code


if __name__ == "__main__":
    sys.exit(main())
