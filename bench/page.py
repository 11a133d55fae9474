"""How soon does the page show what a click changes? From a click on an offered item until the new ranking is painted.

In headless Chromium, one click after the other, with a worker, the API and a broker behind it. Needs Chromium.

    python -m bench page
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
from playwright.sync_api import sync_playwright

from bench.api import running_api
from bench.bundles import bundle
from bench.clicks import item_ids
from bench.deployment import Deployment
from bench.errors import BenchmarkError
from bench.report import Report, console
from deploy.kafka.cluster import LocalKafka

CLICKS: Final = 100
WARM_UP: Final = 10
ITEMS: Final = 5_000

_CLICK: Final = """
() => new Promise((resolve, reject) => {
  const answer = document.getElementById("answer");
  const began = performance.now();
  const painted = () => setTimeout(() => resolve(performance.now() - began));  // a frame's paint comes before it
  new MutationObserver((_, observer) => {
    observer.disconnect();
    requestAnimationFrame(painted);
  }).observe(answer, { attributes: true, attributeFilter: ["data-of"] });
  setTimeout(() => reject(new Error("no ranking within 30 s")), 30_000);
  document.querySelector("#ranking .offer").click();
})
"""
"""Clicks the first item of the ranking; milliseconds until the next ranking can be seen."""


def main() -> None:
    """A hundred clicks."""
    measure(CLICKS).show("A click on the page, until its ranking is painted")


def measure(clicks: int) -> Report:
    """One session's clicks. Raises BenchmarkError where there is no Chromium."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        raise BenchmarkError("needs Chromium (`apt-get install chromium`, or its path in CHROMIUM)")
    with LocalKafka() as kafka, tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        folder = Path(name)
        with Deployment(kafka.bootstrap_servers, folder) as deployment:
            deployment.announce(bundle(folder, ITEMS))
            worker = deployment.start_worker()
            deployment.wait_for(lambda: "tables recovered" in worker.log.read_text(), "a worker that serves")
            with running_api(deployment, folder) as (_, port):
                painted = _clicked(chromium, f"http://127.0.0.1:{port}/#shop", WARM_UP + clicks)[WARM_UP:]
    p50, p95 = np.percentile(painted, [50, 95]).tolist()
    row = {"clicks": clicks, "p50_ms": p50, "p95_ms": p95, "max_ms": max(painted)}
    return Report("page", [row])


def _clicked(chromium: str, url: str, clicks: int) -> list[float]:
    """Milliseconds of each click."""
    with sync_playwright() as playwright, console.status(f"{clicks} clicks in Chromium"):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url)
        page.get_by_label("Any item, by its id").fill(item_ids(ITEMS)[0])
        page.get_by_role("button", name="Click it").click()
        page.locator("#ranking .offer").first.wait_for()
        painted = [float(page.evaluate(_CLICK)) for _ in range(clicks)]
        browser.close()
        return painted
