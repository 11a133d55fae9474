"""What the parts beside the workers must have come to, once all is at rest: each compared with the topics."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import redis

from deploy.kafka.ports import free_port
from schemas.messages.ranking import decode_ranking
from schemas.messages.score import decode_score
from tests.harness.clients import read_all
from tests.harness.system import System
from tests.patience import PATIENCE
from tests.recount import counted, recount

SCORE: Final = ("score",)
API: Final = ("api",)
SCORE_SETTINGS: Final = {
    "NEXTCLICK_SCORES__WINDOW": "10s",
    "NEXTCLICK_SCORES__INTERVAL": "0.1",
    "NEXTCLICK_SCORES__SESSION_TIMEOUT": "6",
    "NEXTCLICK_SCORES__LOG_FORMAT": "json",
}
_IDLE_GAP_MS: Final = 30 * 60 * 1000
_ASKED: Final = 200
"""Sessions of which the API is asked for the latest ranking."""
_NOBODY: Final = "nobody"
"""A session that has no ranking."""
_MISSING: Final = "nothing"


def compare(system: System, name: str, expected: Any, found: Callable[[], Any]) -> None:
    """Write into the history whether a part comes to what is expected."""
    deadline = time.monotonic() + PATIENCE / 10
    while (last := found()) != expected and time.monotonic() < deadline:
        system.tend()
        time.sleep(0.5)
    # What is None is there: it is not what a missing key is.
    pairs = {key: (last.get(key, _MISSING), expected.get(key, _MISSING)) for key in expected.keys() | last.keys()}
    differ = sorted(key for key, (one, other) in pairs.items() if one != other)
    told = [f"{key}: {pairs[key][0]} in place of {pairs[key][1]}" for key in differ[:5]]
    system.history.note("part", name=name, compared=len(expected), wrong=len(differ), told=told)


def scores_equal_a_recount(system: System) -> None:
    """Each ranking of the topic counts once."""
    bootstrap = system.broker.direct
    rankings = [decode_ranking(one.value) for one in read_all(bootstrap, system.rankings)]
    expected = recount(rankings, k=20, window_ms=10_000, idle_gap_ms=_IDLE_GAP_MS)

    def found() -> Any:
        newest = {one.key: one.value for one in read_all(bootstrap, f"{system.name}-scores")}
        return counted(map(decode_score, newest.values()))

    compare(system, "scores", _by_text(expected), lambda: _by_text(found()))


def _by_text(counts: dict[Any, Any]) -> dict[str, Any]:
    return {str(window): tally for window, tally in counts.items()}


class Store:
    """A Redis of a system, which keeps nothing on disk; it ends with `close`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._client: Any = redis.Redis(port=self._port)
        self.start()

    def start(self) -> None:
        """Start an empty one."""
        server = shutil.which("redis-server") or shutil.which("valkey-server")
        assert server is not None, "no redis-server: install it from the distribution"
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with (self._folder / "redis.log").open("ab") as output:
            self._process = subprocess.Popen(
                [server, *options, "--dir", str(self._folder)], stdout=output, stderr=output
            )

    def close(self) -> None:
        """SIGKILL: all that it had is gone."""
        self._process.kill()
        self._process.wait()

    def rankings(self) -> dict[str, bytes]:
        """Session -> JSON."""
        keys = list(self._client.scan_iter("nextclick:ranking:*", count=1000))
        return {key.decode().removeprefix("nextclick:ranking:"): self._client.hget(key, "ranking") for key in keys}


def latest(system: System) -> dict[str, bytes]:
    """What the topic of rankings comes to, one record after the other: session -> JSON."""
    offsets: dict[str, int] = {}
    found: dict[str, bytes] = {}
    for one in read_all(system.broker.direct, system.rankings):
        session, offset = one.key.decode(), json.loads(one.value)["source"]["offset"]
        if offset > offsets.get(session, -1):
            offsets[session], found[session] = offset, one.value
    return found


def api_answers(port: int, sessions: list[str]) -> dict[str, bytes]:
    """The latest rankings of sessions, by the API; where it gives none, the status, or why it does not answer."""
    url = f"http://127.0.0.1:{port}/v1/sessions"
    answers = {}
    for session in sessions:
        try:
            with urllib.request.urlopen(f"{url}/{session}/ranking", timeout=PATIENCE) as answer:
                answers[session] = answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                answers[session] = str(refused.code).encode()
        except OSError as error:  # it is being started anew
            answers[session] = str(error).encode()
    return answers


def store_equals_the_topic(system: System, store: Store) -> None:
    """Redis has the latest ranking of each session, and the API gives it."""
    expected = latest(system)
    compare(system, "store", expected, store.rankings)
    api_equals_the_topic(system)


def api_equals_the_topic(system: System) -> None:
    """The API gives the latest ranking of each session that is asked for, and none of one that has none."""
    expected = latest(system)
    asked = {session: expected[session] for session in system.rng.sample(sorted(expected), min(_ASKED, len(expected)))}
    if asked:
        asked[_NOBODY] = b"404"
    compare(system, "API", asked, lambda: api_answers(system.workers["api"].port, list(asked)))
