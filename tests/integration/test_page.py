"""The page of `stream-app api` in headless Chromium, with a real worker on a real Kafka behind it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
import PIL.Image
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from deploy.demo.shop import Shop, ShopSettings
from deploy.demo.shown_items import shown_items
from schemas.messages import examples
from schemas.messages.item import encode_item
from schemas.messages.score import encode_score, score_key
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.faults.deployment import NEVER_TAKEN_FOR_DEAD, Deployment
from tests.integration.api import ApiProcess, running_api, wait_until

CATALOGUE: Final = Shop(ShopSettings(departments=1, brands=1)).catalogue(0).names
"""Sixty items of six categories."""
PATIENCE_MS: Final = 60_000
DESKTOP: Final[ViewportSize] = {"width": 1280, "height": 900}
PHONE: Final[ViewportSize] = {"width": 375, "height": 812}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The distribution's Chromium: ours downloads none."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium (`apt-get install chromium`, or its path in CHROMIUM)")
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_MS)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def deployment(
    browser: Browser, kafka: KafkaUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A worker that serves, and a catalogue."""
    root = tmp_path_factory.mktemp("page")
    prefix = f"page-{time.time_ns()}"
    deployment = Deployment(kafka.bootstrap_servers, prefix, root, CATALOGUE, extra=dict(NEVER_TAKEN_FOR_DEAD))
    deployment.use_items_and_rules([])
    for item in shown_items(CATALOGUE):
        deployment.put(deployment.topics.items, item.item_id, encode_item(item))
    deployment.announce(deployment.bundle("v1"))
    deployment.start_ready()
    yield deployment
    deployment.stop_all()


@pytest.fixture(scope="module")
def api(deployment: Deployment) -> Iterator[ApiProcess]:
    with running_api(deployment.environment(), deployment.root) as api:
        yield api


@contextmanager
def opened(browser: Browser, api: ApiProcess, view: str, **options: Any) -> Iterator[Page]:
    """The page, as somebody who comes for the first time sees it. No error may be in the console at its end."""
    chosen: dict[str, Any] = {"viewport": DESKTOP, "base_url": api.url, **options}
    context = browser.new_context(**chosen)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"/#{view}")
    yield page
    context.close()
    assert errors == []


@pytest.fixture
def shop(browser: Browser, api: ApiProcess) -> Iterator[Page]:
    with opened(browser, api, "shop") as page:
        expect(page.locator(".tile").first).to_be_visible()
        yield page


@pytest.fixture
def dashboard(browser: Browser, api: ApiProcess) -> Iterator[Page]:
    with opened(browser, api, "dashboard") as page:
        yield page


def ranked(page: Page) -> list[str]:
    return [row.get_attribute("data-item") or "" for row in page.locator("#ranking li").all()]


def click(page: Page, item: str) -> list[str]:
    """Click a tile; returns the ranking that answers."""
    before = page.locator("#trail li").count()
    page.locator(f'#catalogue [data-item="{item}"] button').click()
    expect(page.locator("#trail li")).to_have_count(before + 1)
    expect(page.locator("#answer")).to_contain_text(" ms by ")
    return ranked(page)


# -- both views -------------------------------------------------------------------------------------------------------


def test_the_first_paint_needs_nothing_from_elsewhere(browser: Browser, api: ApiProcess) -> None:
    with opened(browser, api, "shop") as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        answer = page.goto("/")
        assert answer is not None
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;" in policy
        expect(page.get_by_role("heading", name="Dashboard")).to_be_visible()
        expect(page.locator("#state")).to_have_text("live")
        expect(page.locator("#model-now")).to_have_text(re.compile("v[12]"))
        expect(page.locator("#clicks-chart canvas")).to_be_visible()
        page.get_by_role("link", name="Try-it shop").click()
        expect(page.locator(".tile").first).to_be_visible()
        assert {urlsplit(url).netloc for url in asked} == {f"127.0.0.1:{api.port}"}
        assert page.context.cookies() == []


def test_axe_finds_nothing_serious_in_light_and_dark(browser: Browser, api: ApiProcess, deployment: Deployment) -> None:
    def look(page: Page) -> None:
        grounds: dict[Literal["light", "dark"], str] = {"light": "rgb(245, 246, 248)", "dark": "rgb(15, 19, 24)"}
        for scheme, ground in grounds.items():
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
            assert serious(page) == []

    with opened(browser, api, "shop") as page:
        click(page, CATALOGUE[3])
        look(page)
        deployment.wait_until_acknowledged()
        page.get_by_role("button", name="Why").first.click()
        expect(page.get_by_role("dialog").locator("table")).to_be_visible()
        look(page)
        page.keyboard.press("Escape")
        page.get_by_role("link", name="Dashboard").click()
        expect(page.locator("#backlog tbody tr").first).to_be_visible()
        look(page)


def serious(page: Page) -> list[str]:
    # Colours that fade in would be judged by what they are on their way.
    page.evaluate("Promise.all(document.getAnimations().map((animation) => animation.finished))")
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]


def test_it_folds_to_the_width_of_a_phone(browser: Browser, api: ApiProcess) -> None:
    with opened(browser, api, "shop", viewport=PHONE, has_touch=True, is_mobile=True) as page:
        click(page, CATALOGUE[5])
        for view in ("Dashboard", "Try-it shop"):
            page.get_by_role("link", name=view).click()
            expect(page.get_by_role("heading", name=view)).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_the_keyboard_is_enough(browser: Browser, api: ApiProcess, deployment: Deployment) -> None:
    def tab_to(page: Page, selector: str) -> None:
        for _ in range(200):
            page.keyboard.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"the tab key does not lead to {selector}")

    with opened(browser, api, "dashboard") as page:
        expect(page.locator("#state")).to_have_text("live")
        tab_to(page, 'nav a[href="#shop"]')
        page.keyboard.press("Enter")
        expect(page.locator(".tile").first).to_be_visible()
        tab_to(page, ".tile")
        page.keyboard.press("Enter")
        expect(page.locator("#answer")).to_contain_text(" ms by ")
        deployment.wait_until_acknowledged()
        tab_to(page, "#ranking .plain")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog").locator("table")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()
        assert page.evaluate("document.activeElement.matches('#ranking .plain')")  # where one was before
        tab_to(page, "#ranking .offer")
        page.evaluate("document.activeElement.dataset.before = ''")
        page.keyboard.press("Enter")
        expect(page.locator("#ranking .offer:focus:not([data-before])")).to_have_count(1)  # at the same place


# -- the shop ---------------------------------------------------------------------------------------------------------


def test_each_click_changes_the_ranking_and_is_told_why(shop: Page, deployment: Deployment) -> None:
    first = click(shop, CATALOGUE[0])
    assert len(first) == 20
    second = click(shop, CATALOGUE[25])
    assert len(second) == 20
    expect(shop.locator("#ranking .moved").filter(has_text=re.compile("▲|▼|new")).first).to_be_visible()
    assert second != first
    expect(shop.locator("#answer code")).to_have_text("v1")
    expect(shop.locator("#answer")).to_contain_text("from the clicks of this session")
    expect(shop.locator("#trail li")).to_have_text([titles()[CATALOGUE[0]], titles()[CATALOGUE[25]]])
    deployment.wait_until_acknowledged()
    shop.get_by_role("button", name=f"Why {titles()[second[0]]}?").click()
    dialog = shop.get_by_role("dialog")
    expect(dialog).to_contain_text("At place 1")
    expect(dialog.get_by_role("row").filter(has_text=f"Your click on {titles()[CATALOGUE[25]]}")).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    # A click on what is offered is a click like any other.
    shop.locator(f'#ranking [data-item="{second[0]}"] .offer').click()
    expect(shop.locator("#trail li")).to_have_count(3)
    # A reload keeps the session; the stream tells its latest ranking.
    shop.reload()
    expect(shop.locator("#trail li")).to_have_count(3)
    expect(shop.locator("#ranking li")).to_have_count(20)
    shop.get_by_role("button", name="Start a new one").click()
    expect(shop.locator("#trail li")).to_have_count(0)
    expect(shop.locator("#ranking li")).to_have_count(0)


def titles() -> dict[str, str]:
    return {item.item_id: item.attributes["title"] for item in shown_items(CATALOGUE)}


def test_an_item_that_is_sold_out_vanishes(shop: Page, deployment: Deployment) -> None:
    offered = [item for item in click(shop, CATALOGUE[10]) if item != CATALOGUE[10]]
    gone = offered[0]
    item = next(item for item in shown_items([gone]))
    try:
        deployment.put(deployment.topics.items, gone, encode_item(msgspec.structs.replace(item, available=False)))
        expect(shop.locator(f'#catalogue [data-item="{gone}"]')).to_have_count(0)
        expect(shop.locator(f'#ranking [data-item="{gone}"]')).to_have_class("gone")
        assert gone not in click(shop, CATALOGUE[10])
    finally:
        deployment.put(deployment.topics.items, gone, encode_item(item))


def test_what_is_sought_is_found(shop: Page) -> None:
    shop.get_by_label("Search").fill("TRIPOD")
    expect(shop.locator(".tile")).to_have_count(10)
    shop.get_by_label("Search").fill("nothing like it")
    expect(shop.get_by_text("Nothing found.")).to_be_visible()
    shop.get_by_label("Any item, by its id").fill("<b>unheard of</b>")
    shop.get_by_role("button", name="Click it").click()
    expect(shop.locator("#trail li")).to_have_text(["<b>unheard of</b>"])
    expect(shop.locator("#answer")).to_contain_text("the model knows no item of this session")


# -- the dashboard ----------------------------------------------------------------------------------------------------


def test_a_swap_shows(dashboard: Page, deployment: Deployment, api: ApiProcess) -> None:
    now, window = time.time_ns() // 1_000_000 // 10_000 * 10_000, 10_000
    for number, (version, at) in enumerate([("v1", now - 30_000), ("v1", now - 20_000), ("v2", now - 10_000)]):
        score = msgspec.structs.replace(
            examples.SCORE, model_version=version, window_start=at, window_ms=window, partition=number % 4
        )
        deployment.put(deployment.topics.scores, score_key(score).decode(), encode_score(score))
    in_service = dashboard.locator("#models tbody tr").filter(has_text="in service")
    expect(in_service).to_contain_text("v1")
    worker = deployment.workers[0]
    deployment.announce(deployment.bundle("v2"))
    deployment.wait_until_swapped(worker, 2)
    expect(in_service).to_contain_text("v2")
    expect(dashboard.locator("#model-now")).to_have_text("v2")
    sent = {"session_id": "swapped", "item_id": CATALOGUE[1], "timestamp": time.time_ns() // 1_000_000}
    assert api.post("/v1/clicks?wait=10s", sent).json()["model_version"] == "v2"
    row = dashboard.locator("#models tbody tr").filter(has_text="v2")
    expect(row.locator("td").nth(1)).not_to_have_text("0 %")  # of the clicks
    expect(row.locator("td").nth(3)).to_have_text("0.510")  # Recall
    told = r"Online Recall by model, newest values: v1 0\.510, v2 0\.510; dashed lines: .*v2 at \d\d:\d\d:\d\d"
    expect(dashboard.locator("#recall-chart")).to_have_attribute("aria-label", re.compile(told))  # as they were drawn


def test_what_goes_wrong_is_told(dashboard: Page, deployment: Deployment) -> None:
    for _ in range(5):
        deployment.send_raw(b"s", b"no JSON")
    deployment.flush()
    expect(dashboard.locator("#rejected")).to_contain_text("not-json")
    expect(dashboard.locator("#alarms")).to_contain_text("records were rejected")


def test_a_token_is_asked_for_once(browser: Browser, deployment: Deployment) -> None:
    environment = deployment.environment() | {"NEXTCLICK_API__TOKEN": "the-token"}
    with running_api(environment, deployment.root, "guarded", token="the-token") as api:
        page = browser.new_context(base_url=api.url).new_page()
        page.goto("/")
        page.get_by_label("Token").fill("another")
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_text("The server does not know this token.")).to_be_visible()
        page.get_by_label("Token").fill("the-token")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator("#state")).to_have_text("live")
        page.reload()
        expect(page.locator("#state")).to_have_text("live")
        page.context.close()


# -- its pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif("PICTURES" not in os.environ, reason="`make screenshots` takes them, from a demo of ten minutes")
@pytest.mark.timeout(1800)
def test_the_pictures_of_a_demo(browser: Browser, kafka: KafkaUnderTest, tmp_path: Path) -> None:
    folder = REPOSITORY / os.environ["PICTURES"]
    log = tmp_path / "demo.log"
    with log.open("wb") as output:
        demo = subprocess.Popen(
            [sys.executable, "-m", "deploy.demo", "--predictions", "1000000"],
            cwd=REPOSITORY,
            env=os.environ | {"KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers},
            stdout=output,
            stderr=output,
        )
    try:
        url = re.compile(r"look and click in a browser: (\S+)/\s")
        wait_until(lambda: bool(url.search(log.read_text())), "the page", seen=log.read_text, seconds=600)
        found = url.search(log.read_text())
        assert found is not None
        take_pictures(browser, found[1], folder)
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(120)


def take_pictures(browser: Browser, url: str, folder: Path) -> None:
    """Once all sessions have had a second model for a while."""
    context = browser.new_context(base_url=url, viewport=DESKTOP)
    page = context.new_page()
    page.goto("/#dashboard")
    in_service = page.locator("#model-now")
    expect(in_service).not_to_have_text("\N{EN DASH}", timeout=300_000)
    expect(in_service).not_to_have_text(in_service.inner_text(), timeout=900_000)
    time.sleep(30)
    save(page, folder / "page-dashboard.png")
    page.goto("/#shop")
    for item in ("camera", "memory card", "camera bag"):
        page.get_by_label("Search").fill(item)
        expect(page.locator(".tile").first).to_contain_text(item.capitalize())
        page.locator(".tile").first.click()
        expect(page.locator("#answer")).to_contain_text(" ms by ")
    page.get_by_label("Search").fill("")
    expect(page.locator(".tile")).to_have_count(60)
    save(page, folder / "page-shop.png")
    time.sleep(3)  # until its click is acknowledged
    page.get_by_role("button", name="Why").first.click()
    expect(page.get_by_role("dialog").locator("table")).to_be_visible(timeout=180_000)
    save(page, folder / "page-why.png")
    state = context.storage_state()
    session = page.evaluate("JSON.stringify(sessionStorage)")
    context.close()
    context = browser.new_context(
        base_url=url, viewport=PHONE, color_scheme="dark", is_mobile=True, has_touch=True, storage_state=state
    )
    page = context.new_page()
    page.goto("/openapi.json")
    page.evaluate(
        "(kept) => Object.entries(JSON.parse(kept)).forEach((one) => sessionStorage.setItem(...one))", session
    )
    page.goto("/#shop")
    expect(page.locator("#ranking li")).to_have_count(20)
    expect(page.locator(".tile").first).to_be_visible()
    save(page, folder / "page-phone.png")
    context.close()


def save(page: Page, path: Path) -> None:
    """In few colours: the repository keeps it."""
    page.wait_for_timeout(500)  # what fades in has done so
    page.screenshot(path=path)
    with PIL.Image.open(path) as picture:
        picture.convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=128).save(path, optimize=True)
    assert path.stat().st_size < 200_000
