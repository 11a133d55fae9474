"""The Dockerfiles: pinned, small, without root, and in step with requirements and imports."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

from tests.container_files import DOCKERFILES, REPOSITORY, Stage, stages

PACKAGES: Final = frozenset({"schemas", "stream_app", "trainer", "deploy", "bench", "tests"})
REQUIREMENTS: Final = {"worker": "stream", "trainer": "trainer"}

every_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)


def pins(file: Path) -> dict[str, str]:
    """Name -> version of a locked requirements file."""
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", file.read_text(), flags=re.MULTILINE))


def hashes(file: Path, package: str) -> set[str]:
    block = re.search(rf"^{package}==.*?(?=^\S|\Z)", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert block, f"{package} is not in {file}"
    return set(re.findall(r"--hash=(\S+)", block[0]))


def copied(stage: Stage) -> list[str]:
    """What a stage takes from the repository."""
    return [source for one in stage.all("COPY") if "--from=" not in one.rest for source in one.words[:-1]]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out of the build: the last pattern to match it or its folder wins."""
    out = False
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        expression = re.escape(pattern.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{expression}(/.*)?", path):
            out = not pattern.startswith("!")
    return out


def test_there_is_one_for_the_worker_and_one_for_the_trainer() -> None:
    assert [path.stem for path in DOCKERFILES] == ["trainer", "worker"]


@every_dockerfile
def test_base_images_are_pinned_to_a_patch_release(dockerfile: Path) -> None:
    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    low, high = re.findall(r"3\.(\d+)", wanted)
    for stage in stages(dockerfile):
        match = re.fullmatch(r"python:3\.(\d+)\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", stage.image)
        assert match, stage.image
        assert int(low) <= int(match[1]) < int(high)


@every_dockerfile
def test_what_is_shipped_is_small_and_without_root(dockerfile: Path) -> None:
    *_, build, image = stages(dockerfile)
    assert build.name == "build"
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.last("USER").rest)
    words = [one.word for one in image.instructions]
    assert words.index("USER") > max(at for at, word in enumerate(words) if word in ("COPY", "RUN"))
    assert not any("pip" in one.rest or "apt-get" in one.rest for one in image.all("RUN"))
    assert next(one.rest for one in image.all("COPY")).startswith("--from=build /opt/nextclick ")
    assert image.last("STOPSIGNAL").rest == "SIGTERM"
    assert image.environment()["PYTHONDONTWRITEBYTECODE"] == "1"
    for stage in (build, image):
        assert not stage.all("ADD")


@every_dockerfile
def test_whatever_is_installed_has_a_hash_or_is_ours(dockerfile: Path) -> None:
    build = stages(dockerfile)[0]
    installs = [
        part for one in build.all("RUN") for part in re.split(r"&&", one.rest) if re.search(r"pip .*install", part)
    ]
    assert len(installs) == 3
    for install in installs:
        assert ("--require-hashes" in install and "--only-binary :all:" in install) or "--no-index" in install
    from_requirements = [name for name in copied(build) if name.startswith("requirements/")]
    assert from_requirements == [f"requirements/{REQUIREMENTS[dockerfile.stem]}.txt"]


@every_dockerfile
def test_what_is_copied_is_there_and_not_ignored(dockerfile: Path) -> None:
    for stage in stages(dockerfile):
        for source in copied(stage):
            path = REPOSITORY / source
            assert path.exists(), source
            files = [path] if path.is_file() else [*path.rglob("*.py"), *path.rglob("*.json")]
            for file in files:
                assert not ignored(str(file.relative_to(REPOSITORY))), file


@every_dockerfile
def test_our_packages_in_an_image_import_only_each_other(dockerfile: Path) -> None:
    inside = set(copied(stages(dockerfile)[0])) & PACKAGES
    assert "schemas" in inside
    for package in inside:
        for file in (REPOSITORY / package).rglob("*.py"):
            imported = set()
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module.split(".")[0])
            assert imported & PACKAGES <= inside, file


@pytest.mark.parametrize(
    "path",
    [
        ".env", ".git/config", ".venv/bin/python", "nextclick.toml", "data/clicks.tsv.gz", "tests/conftest.py",
        "deploy/demo/shop.py", "requirements/uv.in", "schemas/__pycache__/click.cpython-311.pyc", "README.md",
    ],
)  # fmt: skip
def test_nothing_else_enters_a_build(path: str) -> None:
    assert ignored(path)


def test_the_worker_has_no_torch() -> None:
    heavy = ("torch", "nvidia", "triton", "pyarrow", "scipy")
    locked = {extra: pins(REPOSITORY / "requirements" / f"{extra}.txt") for extra in ("stream", "api", "trainer")}
    assert not [name for name in locked["stream"] | locked["api"] if name.startswith(heavy)]
    assert {"torch", "pyarrow", "scipy"} <= set(locked["trainer"])


@pytest.mark.parametrize("extra", ["stream", "api", "trainer"])
def test_requirements_hold_what_the_project_declares(extra: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"][extra]]
    names = {re.split(r"[<>=;\[ ]", one, maxsplit=1)[0] for one in declared}
    assert len(names) == len(declared)
    assert names <= set(pins(REPOSITORY / "requirements" / f"{extra}.txt"))


def test_the_build_uses_the_locked_setuptools() -> None:
    build, dev = REPOSITORY / "deploy" / "docker" / "build.txt", REPOSITORY / "requirements" / "dev.txt"
    assert pins(build) == {"setuptools": pins(dev)["setuptools"]}
    assert hashes(build, "setuptools") == hashes(dev, "setuptools") != set()
