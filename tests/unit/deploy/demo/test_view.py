"""The demo's page as a picture."""

import xml.etree.ElementTree as ET
from pathlib import Path

from deploy.demo.view import Page, View


def test_a_picture_shows_the_page_and_fetches_nothing(tmp_path: Path) -> None:
    page = Page(phase="clicks come", clicks=1234, latency_ms=(7.0, 31.0))
    view = View(page)
    page.events.append("  12.0 s  a model came into service")
    view.save(tmp_path / "pictures" / "demo.svg")
    svg = (tmp_path / "pictures" / "demo.svg").read_text()
    said = "".join(ET.fromstring(svg).itertext()).replace("\xa0", " ")
    for part in ("clicks come", "1,234", "31 ms", "online Recall@20", "what they will want next", "came into service"):
        assert part in said
    assert "url(http" not in svg
