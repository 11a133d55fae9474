"""Bills of material and the audit: what the locks hold, and what is said where nobody can be asked."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from deploy.supply import audit
from deploy.supply.locks import SHIPPED, Locked, locked
from deploy.supply.sbom import OVERVIEW, UNKNOWN, write

NOTHING_TO_LICENSE = {"cuda-toolkit"}
"""Installs others and holds nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sbom")
    write(folder)
    return folder


@pytest.mark.parametrize("lock", SHIPPED)
def test_a_bill_holds_what_is_locked(folder: Path, lock: str) -> None:
    text = (folder / f"nextclick-{lock}.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = {part["purl"]: part for part in json.loads(text)["components"]}
    assert {purl for purl in parts if purl.startswith("pkg:pypi/")} == {
        f"pkg:pypi/{package.name}@{package.version}" for package in locked(lock)
    }
    assert [purl for purl in parts if purl.startswith("pkg:npm/uplot@1.")] == [
        purl for purl in parts if not purl.startswith("pkg:pypi/")
    ]
    assert any("uplot" in purl for purl in parts) == (lock == "api")
    assert {part["name"] for part in parts.values() if "licenses" not in part} <= NOTHING_TO_LICENSE


def test_nothing_that_is_shipped_is_under_the_gpl(folder: Path) -> None:
    rows = re.findall(r"^\| (.*?) \| (\S+) \S+ \| [\w, ]+ \|$", (folder / OVERVIEW).read_text(), re.MULTILINE)
    assert len(rows) > 50
    assert [row for row in rows if re.search(r"GPL|GNU|Affero", row[0])] == []
    assert {name for licence, name in rows if licence == UNKNOWN} <= NOTHING_TO_LICENSE


def test_a_package_of_another_system_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text(
        "# by uv\nNumpy==2.4.6 \\\n    --hash=sha256:ab \\\n    --hash=sha256:cd\n    # via nextclick\n"
        "colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:ef\n"
    )
    assert locked("some", tmp_path) == [Locked("numpy", "2.4.6")]


# -- the audit ---------------------------------------------------------------------------------------------------------


BAD = {"name": "jinja2", "version": "2.10", "vulns": [{"id": "CVE-2019-10906", "fix_versions": ["2.10.1"]}]}
GOOD = {"name": "idna", "version": "3.20", "vulns": []}
SKIPPED = {"name": "jinja2", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("canary", "of_locks", "code", "told"),
    [
        ([SKIPPED], [GOOD], 0, "DID NOT RUN: neither PyPI nor OSV"),  # a mirror that knows no vulnerabilities
        (None, [GOOD], 0, "DID NOT RUN: neither PyPI nor OSV"),  # no network
        ([{**BAD, "vulns": []}], [BAD], 0, "DID NOT RUN: neither PyPI nor OSV"),
        ([BAD], [GOOD], 0, "dev.txt: 0 packages with known vulnerabilities, by pypi"),
        ([BAD], [GOOD, BAD], 1, "stream.txt: jinja2 2.10: CVE-2019-10906; fixed in 2.10.1"),
        ([BAD], [GOOD, SKIPPED], 0, "api.txt: pypi does not know jinja2"),
        ([BAD], None, 0, "DID NOT RUN for stream.txt, api.txt, trainer.txt, dev.txt, uv.txt: pypi does"),
    ],
)
def test_the_audit_says_what_it_knows(
    canary: list[Any] | None,
    of_locks: list[Any] | None,
    code: int,
    told: str,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a service to ask: what pip-audit prints."""

    def pip_audit(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        found = of_locks if "requirements/" in command[command.index("--requirement") + 1] else canary
        return subprocess.CompletedProcess(command, 1, "" if found is None else json.dumps({"dependencies": found}), "")

    monkeypatch.setattr(subprocess, "run", pip_audit)
    assert audit.main() == code
    assert told in "".join(capsys.readouterr())
