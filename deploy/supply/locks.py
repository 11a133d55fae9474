"""The locked requirements of this repository."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS: Final = Path(__file__).resolve().parents[2] / "requirements"
SHIPPED: Final = ("stream", "api", "trainer")
"""The locks of what runs in production: worker, API and sink, trainer."""


@dataclass(frozen=True, order=True)
class Locked:
    """A package of a lock file."""

    name: str
    version: str


def locked(lock: str, folder: Path = REQUIREMENTS) -> list[Locked]:
    """The packages of `requirements/<lock>.txt` that this Python and system install."""
    return list(_packages((folder / f"{lock}.txt").read_text()))


def _packages(text: str) -> Iterator[Locked]:
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        wanted = Requirement(line.split(" --hash=")[0])
        if wanted.marker is None or wanted.marker.evaluate():
            [pin] = wanted.specifier
            yield Locked(canonicalize_name(wanted.name), pin.version)
