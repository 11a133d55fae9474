"""The health check of the worker's image, run as the image runs it, against the worker's own web server."""

import asyncio
import sys
from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from stream_app.serve.web import Web
from tests.container_files import REPOSITORY, stages

SCRIPT = REPOSITORY / "deploy" / "docker" / "healthcheck.py"


def health_check(port: int, page: str | None = None) -> list[str]:
    """The HEALTHCHECK of the image with the paths and the port of this machine."""
    python, flag, script, url = stages(REPOSITORY / "deploy" / "docker" / "worker.Dockerfile")[-1].health_check()
    assert (python, flag, script.rsplit("/", 1)[1]) == ("python", "-I", SCRIPT.name)
    assert url == "http://127.0.0.1:6066/livez"
    url = url.replace(":6066/", f":{port}/").replace("/livez", page or "/livez")
    return [sys.executable, flag, str(SCRIPT), url]


async def run(command: list[str], environ: Mapping[str, str] | None = None) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environ
    )
    _, said = await process.communicate()
    return process.returncode, said.decode()


async def test_a_living_worker_is_healthy_before_it_is_ready() -> None:
    web = Web(
        "0.0.0.0",
        0,
        registry=CollectorRegistry(),
        readiness=lambda: {"model": "no model is announced"},
        refresh=lambda: None,
    )
    await web.start()
    try:
        assert await run(health_check(web.port)) == (0, "")
        # A proxy for the world outside must not be asked for a page of the container itself.
        proxied = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        assert await run(health_check(web.port), proxied) == (0, "")
        code, said = await run(health_check(web.port, "/readyz"))
        assert code == 1
        assert "answers 503" in said
        assert "no model is announced" in said
    finally:
        await web.stop()
    code, said = await run(health_check(web.port))
    assert code == 1
    assert "does not answer" in said


async def test_wrong_use_is_told() -> None:
    code, said = await run([sys.executable, "-I", str(SCRIPT)])
    assert (code, said) == (1, "usage: healthcheck.py URL\n")
