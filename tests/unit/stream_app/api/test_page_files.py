"""The page's files: all of them are shipped, refer to each other alone, and come with the headers that hold this."""

import re
import tomllib
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route

from stream_app.api.page_routes import FOLDER, PageEndpoints
from tests.conftest import REPOSITORY
from tests.unit.stream_app.api.test_endpoints import ask

SHIPPED = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["stream_app"]
FILES = [path for path in FOLDER.rglob("*") if path.is_file()]
OWN = [path for path in FILES if "vendor" not in path.parts]


def routes() -> list[Route]:
    nothing: Any = None
    return PageEndpoints(
        traffic=nothing,
        shelf=nothing,
        backlog=nothing,
        serving=lambda: None,
        readiness=dict,
        image_origins=("https://i",),
        slowly=nothing,
    ).routes()


def test_every_file_is_in_the_package() -> None:
    shipped = {path for pattern in SHIPPED for path in (REPOSITORY / "stream_app").glob(pattern)}
    assert set(FILES) <= shipped


def test_the_vendored_library_has_its_licence() -> None:
    assert "MIT License" in (FOLDER / "vendor" / "uplot" / "LICENSE").read_text()


def test_what_the_files_refer_to_is_there_and_nowhere_else() -> None:
    for path in OWN:
        text = path.read_text()
        urls = set(re.findall(r"[a-z]+://[^\s\"'`]+", text)) - {"http://www.w3.org/2000/svg"}
        assert urls == set(), path.name
        found = re.findall(r'from "(\./[^"]+)"|(?:src|href)="([^"#]+)"', text)
        for name in filter(None, (one or other for one, other in found)):
            assert (FOLDER / name).is_file() or name == "openapi.json", f"{path.name}: {name}"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\b|style=\"| on[a-z]+=\"", text), path.name


async def test_files_are_served_with_what_holds_a_browser_to_this() -> None:
    app = Starlette(routes=routes())
    page = await ask(app, "/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.body == (await ask(app, "/index.html")).body == (FOLDER / "index.html").read_bytes()
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: https://i;")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert (await ask(app, "/main.js")).headers["content-type"].startswith("text/javascript")
    assert (await ask(app, "/../page_routes.py")).status == 404
    for tag, status in ((page.headers["etag"], 304), ('"of another version"', 200)):
        assert (await ask(app, "/", headers=[(b"if-none-match", tag.encode())])).status == status
