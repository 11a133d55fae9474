"""The pictures of docs/: drawn from the results, which are the figures of the pages."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import pictures
from schemas.config.settings import TopicSettings
from tests.doc_pages import REPOSITORY, links, table

DOCS = REPOSITORY / "docs"
PAGES = {"architecture": "architecture", "latency": "performance", "quality": "evaluation", "families": "families"}
LOGS = ("RSC15, first 100k clicks, last day", "Serenade's example, last 5 days")
every_picture = pytest.mark.parametrize("name", PAGES)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    pictures.main(folder)
    return folder


def words(picture: Path) -> list[str]:
    return [text for one in ElementTree.parse(picture).iter() if (text := (one.text or "").strip())]


def places(picture: Path) -> list[float]:
    """Every number of what is drawn, but where the letters are."""
    shapes = re.sub(r"<text[^>]*>.*?</text>", "", picture.read_text())
    return [float(number) for number in re.findall(r"(?<![\w#.-])-?\d+(?:\.\d+)?(?![\w.])", shapes)]


@every_picture
def test_the_pictures_are_those_of_the_results(drawn: Path, name: str) -> None:
    kept, anew = pictures.PICTURES / f"{name}.svg", drawn / f"{name}.svg"
    assert words(kept) == words(anew), "run `make pictures` and look at the difference"
    # Not the bytes: another release of Matplotlib lays text out a little differently.
    assert places(kept) == pytest.approx(places(anew), abs=0.5), "run `make pictures` and look at the difference"


@every_picture
def test_the_same_results_make_the_same_bytes(drawn: Path, tmp_path: Path, name: str) -> None:
    pictures.main(tmp_path)
    assert (tmp_path / f"{name}.svg").read_bytes() == (drawn / f"{name}.svg").read_bytes()


@every_picture
def test_each_is_small_and_on_its_page(name: str) -> None:
    assert (pictures.PICTURES / f"{name}.svg").stat().st_size < 60_000
    assert f"pictures/{name}.svg" in links(DOCS / f"{PAGES[name]}.md")


def test_the_architecture_has_every_topic(drawn: Path) -> None:
    topics = TopicSettings()
    named = {topics.clicks, topics.rankings, topics.models, topics.rejected}
    assert named <= set(words(drawn / "architecture.svg"))


def test_the_pages_print_the_latency_that_was_measured() -> None:
    rows = table(DOCS / "performance.md", "| items | clicks/s | p50 | p90 | p99 | p99.9 | CPU time per click |")
    for row, found in zip(result("latency")["rows"], rows, strict=True):
        assert found[:2] == [f"{row['items']:,}", f"{row['rate']:,}" + ", with a swap" * ("swap_p99_ms" in row)]
        kept = [row[f"{name}_ms"] for name in ("p50", "p90", "p99", "p99.9")]
        for cell, value in zip(found[2:], [*kept, row["cpu_us_per_click"] / 1000], strict=True):
            assert is_rounded(cell.removesuffix(" ms"), value)


def test_the_pages_print_the_quality_that_was_measured() -> None:
    page, ahead = DOCS / "evaluation.md", "the model is ahead by"
    rows = table(page, f"| baseline | {LOGS[0]} | {ahead} | {LOGS[1]} | {ahead} |")
    told = {
        (log, row[0].replace("`", "")): row[column] for row in rows for log, column in zip(LOGS, (1, 3), strict=True)
    }
    ours = re.search(r"seed 1:\s([.\d]+ / [.\d]+) on RSC15.* and\s([.\d]+ / [.\d]+) on", page.read_text())
    assert ours
    told |= {(log, "nextclick"): cell for log, cell in zip(LOGS, ours.groups(), strict=True)}
    kept = {(row["log"], row["model"]): (row["recall@20"], row["mrr@20"]) for row in result("quality")["rows"]}
    assert {key for key, cell in told.items() if cell} == set(kept)
    for key, values in kept.items():
        assert all(is_rounded(cell, value) for cell, value in zip(told[key].split(" / "), values, strict=True)), key


def result(name: str) -> Any:
    return json.loads((pictures.RESULTS / f"{name}.json").read_text())


def is_rounded(cell: str, value: float) -> bool:
    """Is the cell this value, to as many places as it shows?"""
    return float(cell) == round(value, len(cell.partition(".")[2]))


@pytest.mark.parametrize("name", ["latency", "quality"])
def test_a_result_tells_where_it_is_from(name: str) -> None:
    kept = result(name)
    assert kept["bench"] == name
    assert all(kept[key] for key in ("machine", "date", "commit", "command"))
