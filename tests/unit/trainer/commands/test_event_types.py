"""Views, carts and purchases as a user of `trainer` meets them, and the commands of docs/event-types.md."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tests.doc_pages import REPOSITORY, commands
from trainer.__main__ import app

PAGE = REPOSITORY / "docs" / "event-types.md"
NOW = 1_700_000_000_000
SMALL = [f"--set={s}" for s in ("hidden_size=8", "n_sample=10", "epochs=1", "batch_size=16", "memory=none")]
OF_RETAILROCKET = {"view": "view", "cart": "addtocart", "purchase": "transaction"}


def events(sessions: int = 300, items: int = 40) -> list[tuple[int, int, str, int]]:
    """Session, item, type and time: now and then a viewed item goes into the cart, and some of these are bought."""
    rng = np.random.default_rng(1)
    found = []
    for session in range(sessions):
        time, item = NOW + 60_000 * session, int(rng.integers(items))
        for _ in range(int(rng.integers(3, 7))):
            found.append((session, item, "view", time := time + 1000))
            if rng.random() < 0.3:
                found.append((session, item, "cart", time := time + 1000))
                if rng.random() < 0.5:
                    found.append((session, item, "purchase", time := time + 1000))
            item = (item + 1 + int(rng.random() < 0.2)) % items
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With clicks.csv of our own form, and events.csv of RetailRocket's."""
    ours = [f"s{session},i{item},{time},{kind}" for session, item, kind, time in events()]
    (tmp_path / "clicks.csv").write_text("\n".join(["session_id,item_id,timestamp,type", *ours]) + "\n")
    theirs = [f"{time},{session},{OF_RETAILROCKET[kind]},{item}," for session, item, kind, time in events()]
    (tmp_path / "events.csv").write_text("\n".join(["timestamp,visitorid,event,itemid,transactionid", *theirs]) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_the_commands_of_the_page_run(folder: Path) -> None:
    found = [command.words for command in commands(PAGE) if command.words[0] == "trainer"]
    assert [words[1] for words in found] == ["fit", "fit", "evaluate"]
    for words in found:
        result = run(*words[1:], *(SMALL if words[1] == "fit" else ()))
        assert result.exit_code == 0, result.output
        assert "by type of the click that is predicted" in result.output
    report = json.loads((folder / "report.json").read_text())
    by_type = report["by_type"]
    assert by_type.keys() == {"view", "cart", "purchase"}
    assert sum(of["predictions"] for of in by_type.values()) == report["predictions"]
    mean = sum(of["predictions"] * of["recall"]["20"] for of in by_type.values()) / report["predictions"]
    assert mean == pytest.approx(report["recall"]["20"])
    assert report["settings"]["target_weights"] == "cart=2,purchase=5"
    judged = json.loads((folder / "evaluated.json").read_text())["models"]
    assert all(of["by_type"].keys() == {"view", "cart", "purchase"} for of in judged.values())


def test_public_logs_are_read_as_before_unless_types_are_named(folder: Path) -> None:
    views = sum(kind == "view" for _, _, kind, _ in events())
    for types, clicks in ((None, views), ("view", views), ("all", len(events()))):
        named = ["--types", types] if types else []
        result = run(
            "fit", "--train", "events.csv", "--out", f"out-{types}", "--json", "--no-baselines", *named, *SMALL
        )
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["data"]["train"]["clicks"] + report["data"]["test"]["clicks"] == clicks
        assert ("by_type" in report) == (types == "all")


def test_few_predictions_of_a_type_are_told(folder: Path) -> None:
    result = run("evaluate", "--train", "clicks.csv", "--baselines", "s-pop", "--resamples", "100")
    assert result.exit_code == 0, result.output
    assert "of the predictions are of the type purchase: its figures may be off by 0." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--set=target_weights=wishlist=2",),
            "target_weights names wishlist, and the sessions have clicks of the types",
        ),
        (("--set=target_weights=purchase=2", "--types", "view"), "target_weights names purchase, and the sessions"),
        (
            ("--set=target_weights=view=0", "--types", "view"),
            "nothing to predict: target_weights gives 0 to every type",
        ),
        (("--set=family=pop", "--set=target_weights=purchase=2"), "family=pop counts all clicks alike"),
        (("--types", ","), "name one at least"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    settings = () if "--set=family=pop" in arguments else SMALL
    result = run("fit", "--train", "clicks.csv", "--out", "out", *settings, *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (folder / "out").exists()
