"""The demo's live clicks, with a worker and a Kafka that are none."""

from types import SimpleNamespace
from typing import Any, Self

import msgspec
import pytest

from deploy.demo import story
from deploy.demo.progress import Plan
from deploy.demo.sources import shop
from deploy.demo.story import Demo
from deploy.demo.tempo import Tempo
from schemas.messages.click import Click
from schemas.messages.score import Totals

SWAPPED_AFTER = 150


class Reader:
    """Ranks every click at once, the first with one model and the others with a new one."""

    def __init__(self, *_: object, **__: object) -> None:
        self.models = {"old": Totals()}
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def clicked(self, _: Click) -> None:
        self.count += 1
        if self.count > SWAPPED_AFTER:
            self.models.setdefault("new", Totals()).predictions += 1

    @property
    def scored(self) -> int:
        return self.count

    def check(self) -> None:
        pass

    finish = check


@pytest.fixture
def sent() -> list[Click]:
    return []


@pytest.fixture
def demo(sent: list[Click], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(story, "RankingsReader", Reader)
    plan = Plan(live=0.1, patience=300.0, predictions=100)
    demo: Any = Demo(shop(clicks_per_second=2000, seed=7), plan)
    demo._kafka, demo._topics, demo._registry = {}, {"clicks": "clicks", "rankings": "rankings"}, None
    demo._trained_in = 1.0
    demo._stock = SimpleNamespace(offer=lambda _: None, update=lambda *_: None)
    demo._commands = SimpleNamespace(check=lambda: None, runs=lambda _: True, stop=lambda _: 0)
    demo._producer = SimpleNamespace(
        produce=lambda _topic, value, key: sent.append(msgspec.json.decode(value, type=Click)),
        poll=lambda _: 0,
        flush=lambda _: 0,
    )
    return demo


def test_clicks_come_until_the_new_model_has_made_its_predictions(demo: Any, sent: list[Click]) -> None:
    demo._serve()
    assert demo._reader.models["new"].predictions >= 100
    assert len(sent) == demo._reader.count == demo._page.clicks >= SWAPPED_AFTER + 100
    assert demo._page.outlook == ""


def test_each_click_says_when_it_was_sent_however_slow_the_shops_time_goes(
    demo: Any, sent: list[Click], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Tempo):
        def adapt(self, sent: int, ranked: int) -> None:
            self.speed = max(0.3, self.speed * 0.98)

    monkeypatch.setattr(story, "Tempo", Slow)
    before = story._now_ms()
    demo._serve()
    times = [click.timestamp for click in sent]
    assert times == sorted(times)
    assert before <= times[0]
    assert times[-1] <= story._now_ms()
