"""README.md and docs/ as tests read them: code blocks, shell commands, inline code, links, tables."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]
README: Final = REPOSITORY / "README.md"
PAGES: Final = [README, REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").glob("**/*.md"))]

_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED: Final = re.compile(r"(?:^\n)((?:^ {4}\S.*\n)+)", re.MULTILINE)
_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
_SHELLS: Final = ("sh", "bash", "console", "")
_BETWEEN: Final = {"&&", "||", "|", ";", "&"}
_REDIRECTIONS: Final = {">", ">>", "<", "2>"}
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True)
class Command:
    """One command of a page: the variables set before it, its words, and the line as it stands."""

    assignments: tuple[str, ...]
    words: tuple[str, ...]
    line: str


def blocks(page: Path | str, *languages: str) -> list[str]:
    """The fenced blocks of these languages, of a page or a part of its text; "" are those without one."""
    text = page if isinstance(page, str) else page.read_text()
    return [body for language, body in _FENCE.findall(text) if language in languages]


def section(page: Path, heading: str) -> str:
    """The text between a heading of the second level and the next one."""
    _, found, rest = page.read_text().partition(f"\n## {heading}\n")
    assert found, f"{page.name} has no section {heading}"
    return rest.partition("\n## ")[0]


def block_languages(page: Path) -> set[str]:
    """Every language that a page's blocks name."""
    return {language for language, _ in _FENCE.findall(page.read_text())}


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def lines(block: str) -> list[str]:
    """The lines of a shell block that say something, continuations joined; comments at their ends stay."""
    joined = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in joined if line and not line.startswith("#")]


def commands(page: Path) -> list[Command]:
    """Every command of a page's shell blocks and indented blocks."""
    found = [line for block in blocks(page, *_SHELLS) for line in lines(block)]
    found += [line for block in _INDENTED.findall(prose(page)) for line in lines(block)]
    return [command for line in found for command in parse(line)]


def parse(line: str) -> Iterator[Command]:
    """The commands of one line: parted by pipes and the like, without redirections and comments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    part: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if skip:
            skip = False
        elif word in _REDIRECTIONS:
            skip = True
        elif word not in _BETWEEN:
            part.append(word)
        elif part:
            names = [index for index, one in enumerate(part) if not _ASSIGNMENT.match(one)]
            first = names[0] if names else len(part)
            yield Command(tuple(part[:first]), tuple(part[first:]), line)
            part = []


def code_spans(page: Path) -> list[str]:
    """Inline code outside of blocks, on one line each."""
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose(page))]


def links(page: Path) -> list[str]:
    """Targets of the links of a page."""
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors that a code host gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def table(page: Path, header: str) -> list[list[str]]:
    """The rows of the one table whose first line is `header`, as cells."""
    found = page.read_text().split(f"{header}\n")[1:]
    assert len(found) == 1, f"{page.name} has {len(found)} tables {header}"
    rows = re.match(r"\|[-|]+\|\n((?:\|.*\n)+)", found[0])
    assert rows, f"{page.name}: no rows under {header}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]
