"""docker-compose.yml and the Dockerfiles as tests read them: no Docker engine is needed to hold them to the code."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

REPOSITORY: Final = Path(__file__).resolve().parents[1]
COMPOSE_FILE: Final = REPOSITORY / "docker-compose.yml"
DOCKERFILES: Final = sorted((REPOSITORY / "deploy" / "docker").glob("*.Dockerfile"))

_VARIABLE: Final = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, continuation lines joined."""

    word: str
    rest: str

    @property
    def words(self) -> list[str]:
        """The exec form's words, else the line's; options such as --from=build left out."""
        text = re.sub(r"^(--\S+\s+)*", "", self.rest)
        return [str(word) for word in json.loads(text)] if text.startswith("[") else text.split()


@dataclass(frozen=True)
class Stage:
    """A stage of a Dockerfile, from its FROM on."""

    image: str
    name: str | None
    instructions: tuple[Instruction, ...]

    def all(self, word: str) -> list[Instruction]:
        return [one for one in self.instructions if one.word == word]

    def last(self, word: str) -> Instruction:
        found = self.all(word)
        assert found, f"no {word} in the stage from {self.image}"
        return found[-1]

    def environment(self) -> dict[str, str]:
        """What ENV sets; no value of ours has spaces or quotes."""
        return dict(pair.split("=", 1) for one in self.all("ENV") for pair in one.words)

    def health_check(self) -> list[str]:
        """The words of the HEALTHCHECK's command."""
        return Instruction("CMD", self.last("HEALTHCHECK").rest.split("CMD", 1)[1].strip()).words


def stages(dockerfile: Path) -> list[Stage]:
    """The stages of a Dockerfile, the one that is shipped last; arguments in FROM and COPY have their defaults."""
    defaults: dict[str, str] = {}
    found: list[tuple[str, str | None, list[Instruction]]] = []
    for one in _instructions(dockerfile.read_text()):
        if one.word == "ARG" and "=" in one.rest:
            name, default = one.rest.split("=", 1)
            defaults[name] = default
        if one.word == "FROM":
            image, _, name = one.rest.partition(" AS ")
            found.append((interpolate(image, defaults), name or None, []))
        elif found:
            rest = interpolate(one.rest, defaults) if one.word == "COPY" else one.rest
            found[-1][2].append(Instruction(one.word, rest))
    return [Stage(image, name, tuple(instructions)) for image, name, instructions in found]


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield Instruction(word.upper(), re.sub(r"\s+", " ", rest))


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """`${NAME}` and `${NAME:-default}` replaced."""
    return _VARIABLE.sub(lambda match: values.get(match[1]) or match[2] or "", text)


@cache
def compose() -> dict[str, Any]:
    """docker-compose.yml with its anchors and merges resolved, variables as they stand."""
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())
    return loaded


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def dockerfile_of(service: Mapping[str, Any]) -> Path | None:
    """The Dockerfile that a service's image is built from; None for an image that is pulled."""
    build = service.get("build")
    return REPOSITORY / build["context"] / build["dockerfile"] if build else None


def environment_of(service: Mapping[str, Any], shell: Mapping[str, str]) -> dict[str, str]:
    """What a container of a service finds in its environment, the image's ENV included.

    A variable that compose passes on without a value is there, empty when `shell` has none: Docker would leave it out,
    but so its name is checked.
    """
    dockerfile = dockerfile_of(service)
    environment = stages(dockerfile)[-1].environment() if dockerfile else {}
    for name, value in service["environment"].items():
        environment[name] = shell.get(name, "") if value is None else interpolate(str(value), shell)
    return environment


def command_of(service: Mapping[str, Any]) -> list[str]:
    """Program and arguments of a service that is built here."""
    dockerfile = dockerfile_of(service)
    assert dockerfile is not None
    image = stages(dockerfile)[-1]
    entrypoint = service.get("entrypoint", image.last("ENTRYPOINT").words)
    return [*entrypoint, *service.get("command", image.last("CMD").words)]
