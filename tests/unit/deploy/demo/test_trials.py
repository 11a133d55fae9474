"""The demo's canary and bad model: the story goes on by what the guard announces, and waits for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from deploy.demo import trials
from deploy.demo.trials import Trials
from schemas.messages import examples
from schemas.messages.announcement import ModelAnnouncement


class Shop:
    """What the reader has seen, the commands that were run, and what was said."""

    def __init__(self) -> None:
        self.announced: dict[str, ModelAnnouncement] = {}
        self.recent: list[Any] = [replace(examples.RANKING, model_version="v1")]
        self.commands: list[str] = []
        self.said: list[str] = []

    def announce(self, alias: str, version: str, why: str = "", evidence: Any = None) -> None:
        made = replace(examples.MODEL_ANNOUNCEMENT, alias=alias, version=version, why=why, evidence=evidence)
        self.announced[alias] = made

    def rank(self, version: str, variant: str | None = None) -> None:
        self.recent.append(replace(examples.RANKING, model_version=version, variant=variant))

    def run(self, *words: str) -> str:
        if words == ("fails",):
            raise RuntimeError("the command failed")
        self.commands.append(" ".join(words))
        return ""

    def stop(self, name: str) -> int:
        self.commands.append(f"stop {name}")
        return 0


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr(trials, "publish_shuffled", lambda _, good: f"{good}-shuffled")
    return Shop()


@pytest.fixture
def told(shop: Shop) -> Iterator[Trials]:
    commands: Any = shop
    with Trials(commands, Path(), 20.0, shop.said.append) as told:
        yield told


def go_on(told: Trials, shop: Any) -> str | None:
    """What it waits for, once the commands of this step have run."""
    for _ in range(4):
        told.update(shop)
        told._pool.submit(lambda: None).result()
    return told.waits_for


def test_a_canary_is_promoted_and_a_bad_model_rolled_back(shop: Shop, told: Trials) -> None:
    shop.announce("champion", "v1")
    assert go_on(told, shop) == "a challenger"
    shop.announce("challenger", "v1")  # a trainer begins with what there is
    assert go_on(told, shop) == "a challenger"
    shop.announce("challenger", "v2")
    assert go_on(told, shop) == "the guard to promote the canary"
    assert shop.commands == ["stop trainer run", "trainer split champion=80 challenger=20"]
    shop.rank("v2", "challenger")
    evidence = {"champion": {"recall": 0.3}, "compared_with": {"recall": 0.5}}
    shop.announce("champion", "v2", "promoted by the guard: better", evidence)
    assert go_on(told, shop) == "the end of the split"
    assert told.canary is not None
    assert (told.canary["version"], told.canary["challenger"]) == ("v2", {"recall": 0.5})
    shop.rank("v2")
    assert go_on(told, shop) == "the guard to roll the bad model back"
    assert shop.commands[2:] == ["trainer promote v2-shuffled"]
    assert told.rolled_back is None


def test_it_ends_when_the_good_model_ranks_again(shop: Shop, told: Trials) -> None:
    shop.announce("champion", "v2", evidence={"champion": {}, "compared_with": {}})
    shop.announce("challenger", "v3")
    assert go_on(told, shop) is not None
    shop.announce("champion", "v2-shuffled")
    assert go_on(told, shop) == "the guard to roll the bad model back"
    shop.rank("v2-shuffled")
    shop.announce("champion", "v2", "rolled back from v2-shuffled: the guard: worse")
    assert go_on(told, shop) is not None
    shop.rank("v2")
    assert go_on(told, shop) is None
    assert told.rolled_back is not None
    assert told.rolled_back["version"] == "v2-shuffled"
    assert "rolled back from v2-shuffled: the guard: worse" in shop.said


def test_a_command_that_fails_ends_the_demo(shop: Shop, told: Trials) -> None:
    with pytest.raises(RuntimeError, match="the command failed"):
        list(told._beside("fails"))
