"""`python -m deploy.supply.sbom FOLDER`: bills of material (CycloneDX) from the locks, and an overview of the licences.

Licences are told by what is installed here, which is what `requirements/dev.txt` locks: it holds every other lock.
"""

import re
import sys
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from deploy.supply.locks import SHIPPED, Locked, locked

OVERVIEW: Final = "licences.md"
UNKNOWN: Final = "not stated"
_VENDORED: Final = Path(__file__).resolve().parents[2] / "stream_app" / "api" / "page" / "vendor"
_LONGEST_NAME: Final = 60
"""Some packages have the whole text of their licence where its name should be."""


def licence_of(package: Locked) -> str:
    """The licence as the installed package states it: an SPDX expression, or its name. Raises SystemExit for a package
    that is not installed in the locked version."""
    try:
        told = metadata.metadata(package.name)
    except metadata.PackageNotFoundError:
        told = None
    if told is None or told["Version"] != package.version:
        sys.exit(f"{package.name} {package.version} is locked and not installed here: run `make .venv/.installed`")
    if expression := told["License-Expression"]:
        return str(expression)
    classifiers = [one for one in told.get_all("Classifier") or () if one.startswith("License :: ")]
    names = [one.rsplit(" :: ", 1)[1] for one in classifiers if one.count(" :: ") > 1 or "OSI Approved" not in one]
    if names:
        return ", ".join(sorted(names))
    name = str(told["License"] or "").strip()
    return name if 0 < len(name) <= _LONGEST_NAME else UNKNOWN


def bill_of(lock: str) -> Bom:
    """The bill of what `requirements/<lock>.txt` installs, and of what we ship of others."""
    licences, bill = LicenseFactory(), Bom()
    root = Component(
        name="nextclick",
        version=metadata.version("nextclick"),
        type=ComponentType.APPLICATION,
        licenses=[licences.make_from_string("Apache-2.0")],
        bom_ref=f"nextclick-{lock}",
    )
    parts = [
        Component(
            name=package.name,
            version=package.version,
            type=ComponentType.LIBRARY,
            purl=PackageURL("pypi", name=package.name, version=package.version),
            licenses=[licences.make_from_string(licence)] if (licence := licence_of(package)) != UNKNOWN else [],
            bom_ref=f"{package.name}-{package.version}",
        )
        for package in locked(lock)
    ]
    if lock == "api":
        parts.append(_uplot(licences))
    bill.metadata.component = root
    bill.components.update(parts)
    bill.register_dependency(root, parts)
    return bill


def _uplot(licences: LicenseFactory) -> Component:
    """The chart library of the API's page."""
    head = (_VENDORED / "uplot" / "uPlot.esm.js").read_text()[:2000]
    found = re.search(r"\(v([\d.]+)\)", head)
    assert found is not None, "uPlot says its version at its beginning"
    return Component(
        name="uplot",
        version=found[1],
        type=ComponentType.LIBRARY,
        purl=PackageURL("npm", name="uplot", version=found[1]),
        licenses=[licences.make_from_string("MIT")],
        bom_ref=f"uplot-{found[1]}",
    )


def overview(bills: dict[str, Bom]) -> str:
    """Markdown: for each licence the packages that are under it, and what installs them."""
    used: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for lock, bill in bills.items():
        for part in bill.components:
            used[_shown(part), f"{part.name} {part.version}"].append(lock)
    rows = "\n".join(f"| {licence} | {name} | {', '.join(locks)} |" for (licence, name), locks in sorted(used.items()))
    return f"# Licences of what is installed\n\n| licence | package | installed by |\n|---|---|---|\n{rows}\n"


def _shown(part: Component) -> str:
    told = [one.value if hasattr(one, "value") else one.id or one.name for one in part.licenses]
    return ", ".join(map(str, told)) or UNKNOWN


def write(folder: Path) -> list[Path]:
    """A bill for each shipped lock, and the overview; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    bills = {lock: bill_of(lock) for lock in SHIPPED}
    files = [folder / f"nextclick-{lock}.cdx.json" for lock in bills]
    for file, bill in zip(files, bills.values(), strict=True):
        file.write_text(JsonV1Dot6(bill).output_as_string(indent=2) + "\n")
    (folder / OVERVIEW).write_text(overview(bills))
    return [*files, folder / OVERVIEW]


if __name__ == "__main__":
    for written in write(Path(sys.argv[1])):
        print(written)
