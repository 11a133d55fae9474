"""`stream-app api` with a real worker on a real Kafka."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import requests

from deploy.demo.oracle import read_topic
from deploy.kafka.ports import free_port
from schemas.messages import examples
from schemas.messages.click import Click
from schemas.messages.score import encode_score, score_key
from tests.conftest import REPOSITORY, KafkaUnderTest
from tests.doc_pages import blocks
from tests.faults.deployment import NEVER_TAKEN_FOR_DEAD, Deployment
from tests.integration.api import ApiProcess, events, running_api, start_api, wait_until
from tests.retention import expire
from tests.told_spans import Collector, collecting

ITEMS = tuple(f"item-{n}" for n in range(40))


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Whom all processes here tell spans."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def deployment(
    kafka: KafkaUnderTest, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A worker that serves."""
    root = tmp_path_factory.mktemp("api")
    extra = NEVER_TAKEN_FOR_DEAD | collector.environment()
    deployment = Deployment(kafka.bootstrap_servers, f"api-{time.time_ns()}", root, ITEMS, extra=extra)
    deployment.announce(deployment.bundle("v1"))
    deployment.start_ready()
    yield deployment
    deployment.stop_all()


@pytest.fixture(scope="module")
def api(deployment: Deployment) -> Iterator[ApiProcess]:
    """One without tokens."""
    with running_api(deployment.environment(), deployment.root) as api:
        yield api


def click(session_id: str, item: int = 1, **more: object) -> dict[str, Any]:
    return {"session_id": session_id, "item_id": ITEMS[item], "timestamp": time.time_ns() // 1_000_000, **more}


def ranking(api: ApiProcess, session_id: str) -> dict[str, Any] | None:
    answer = api.get(f"/v1/sessions/{session_id}/ranking")
    assert answer.status_code in (200, 404), answer.text
    found: dict[str, Any] = answer.json()
    return found if answer.status_code == 200 else None


def is_problem(answer: requests.Response, status: int, kind: str) -> bool:
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    body = answer.json()
    assert body["status"] == answer.status_code
    return (answer.status_code, body["type"]) == (status, f"urn:nextclick:problem:{kind}")


# -- clicks and rankings ----------------------------------------------------------------------------------------------


def test_a_click_is_produced_and_its_ranking_found(api: ApiProcess, deployment: Deployment) -> None:
    assert ranking(api, "once") is None
    answer = api.post("/v1/clicks", click("once", 3, event_id="e-1", extra="kept"))
    assert answer.status_code == 202
    source = answer.json()["source"]
    wait_until(lambda: ranking(api, "once") is not None, "a ranking", seen=api.output)
    found = ranking(api, "once")
    assert found is not None
    assert (found["source"], found["event_id"], found["item_id"]) == (source, "e-1", ITEMS[3])
    assert source["topic"] == deployment.topics.clicks
    assert len(found["items"]) == 20


def test_a_click_that_waits_is_answered_with_its_own_ranking(api: ApiProcess) -> None:
    answers = [api.post("/v1/clicks?wait=10s", click("waits", n)) for n in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert [answer.json()["item_id"] for answer in answers] == list(ITEMS[:5])
    assert ranking(api, "waits") == answers[-1].json()


def test_clicks_of_one_session_at_once_get_each_its_own(api: ApiProcess) -> None:
    found: dict[int, Any] = {}

    def send(n: int) -> None:
        found[n] = api.post("/v1/clicks?wait=10s", click("at once", n)).json()

    threads = [threading.Thread(target=send, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: answer["item_id"] for n, answer in found.items()} == dict(enumerate(ITEMS[:8]))
    assert len({answer["source"]["offset"] for answer in found.values()}) == 8


def test_a_click_whose_ranking_comes_too_late_is_accepted(api: ApiProcess, deployment: Deployment) -> None:
    worker = deployment.workers[0]
    worker.process.send_signal(signal.SIGSTOP)
    try:
        answer = api.post("/v1/clicks?wait=20ms", click("late"))
    finally:
        worker.process.send_signal(signal.SIGCONT)
    assert answer.status_code == 202
    wait_until(lambda: ranking(api, "late") is not None, "its ranking", seen=api.output)


@pytest.mark.parametrize("session_id", ["a/b", "ä ?#%", "..", "r/ranking"])
def test_a_session_id_may_be_any_text(api: ApiProcess, session_id: str) -> None:
    assert api.post("/v1/clicks?wait=10s", click(session_id)).status_code == 200
    # By hand: the client library would take the dots out of the path.
    with closing(http.client.HTTPConnection("127.0.0.1", api.port, timeout=60)) as connection:
        connection.request("GET", f"/v1/sessions/{quote(session_id, safe='')}/ranking")
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["session_id"]) == (200, session_id)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"[1", 400, "not-json"),
        (b"\xff", 400, "not-json"),
        (b"[]", 422, "wrong-type"),
        (b'{"session_id": "s", "action": "forget"}', 422, "wrong-type"),
        (b'{"session_id": "", "item_id": "i", "timestamp": 1767225600000}', 422, "bad-id"),
        (b'{"session_id": "s", "item_id": "i", "timestamp": 1767225600}', 422, "bad-timestamp"),
        (b'{"session_id": "s", "item_id": "i", "timestamp": 17672256000000}', 422, "future-timestamp"),
        (b'{"session_id": "' + b"s" * 20_000, 413, "too-large"),
    ],
)
def test_what_is_no_click_is_refused_as_a_worker_would(
    api: ApiProcess, deployment: Deployment, body: bytes, status: int, reason: str
) -> None:
    before = deployment.records(deployment.topics.clicks)
    answer = api.post("/v1/clicks", body)
    assert is_problem(answer, status, "too-large" if status == 413 else "no-click")
    assert answer.json()["reason"] == reason
    assert deployment.records(deployment.topics.clicks) == before


def test_other_errors_are_problems_too(api: ApiProcess) -> None:
    assert is_problem(api.get("/v1/nothing"), 404, "not-found")
    assert is_problem(api.get("/v1/sessions/nobody/ranking"), 404, "no-ranking")
    assert is_problem(api.get("/v1/clicks"), 405, "method-not-allowed")
    assert is_problem(
        api.post("/v1/clicks", click("s"), headers={"Content-Type": "text/plain"}), 415, "unsupported-media-type"
    )
    assert is_problem(api.post("/v1/clicks?wait=soon", click("s")), 422, "wrong-parameter")
    assert is_problem(api.get("/v1/models", headers={"Host": "evil.example"}), 403, "forbidden")


def test_one_trace_from_a_request_to_the_ranking_of_its_click(
    api: ApiProcess, deployment: Deployment, collector: Collector
) -> None:
    trace, asked = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{asked}-01", "tracestate": "shop=1"}
    assert api.post("/v1/clicks?wait=10s", click("untraced")).status_code == 200
    assert api.post("/v1/clicks?wait=10s", click("traced"), headers=headers).status_code == 200
    topics = deployment.topics
    chain = ["POST /v1/clicks", f"send {topics.clicks}", f"process {topics.clicks}", f"send {topics.rankings}"]
    wait_until(lambda: collector.of(trace).keys() == {*chain, "compute"}, "all spans", seen=lambda: collector.spans)
    spans = collector.of(trace)
    assert [spans[name].parent for name in chain] == [asked, *(spans[name].id for name in chain[:-1])]
    assert [spans[name].service for name in chain] == ["nextclick-api"] * 2 + ["nextclick-worker"] * 2
    assert {span.trace for span in collector.spans} == {trace}
    rankings = {one.key(): one for one in read_topic(deployment.connection.librdkafka(), topics.rankings)}
    assert rankings[b"traced"].headers() == [
        ("traceparent", f"00-{trace}-{spans[chain[-1]].id}-01".encode()),
        ("tracestate", b"shop=1"),
    ]


# -- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_tells_the_latest_ranking_and_each_new_one(api: ApiProcess) -> None:
    first = api.post("/v1/clicks?wait=10s", click("streamed", 1)).json()
    stream = events(api, "/v1/sessions/streamed/stream")
    told = next(stream)
    assert (told["event"], json.loads(told["data"])) == ("ranking", first)
    assert told["id"] == f"{first['source']['partition']}-{first['source']['offset']}"
    later = [api.post("/v1/clicks?wait=10s", click("streamed", n)).json() for n in (2, 3)]
    assert [json.loads(next(stream)["data"]) for _ in later] == later
    stream.close()
    again = events(api, "/v1/sessions/streamed/stream", headers={"Last-Event-ID": told["id"]})
    assert json.loads(next(again)["data"]) == later[-1]


def test_a_forgotten_session_vanishes(api: ApiProcess, deployment: Deployment) -> None:
    api.post("/v1/clicks?wait=10s", click("private", 1))
    stream = events(api, "/v1/sessions/private/stream")
    assert next(stream)["event"] == "ranking"
    deployment.send_raw(b"private", json.dumps({"session_id": "private", "action": "forget"}).encode())
    deployment.flush()
    assert next(stream)["event"] == "forgotten"
    assert ranking(api, "private") is None
    assert api.post("/v1/clicks?wait=10s", click("private", 2)).status_code == 200
    assert json.loads(next(stream)["data"])["item_id"] == ITEMS[2]


# -- explain, models, scores ------------------------------------------------------------------------------------------


def test_explain_tells_what_the_command_tells(api: ApiProcess, deployment: Deployment) -> None:
    found = api.post("/v1/clicks?wait=10s", click("explained", 5)).json()
    deployment.wait_until_acknowledged()  # the row is in the changelog
    whole = api.get("/v1/sessions/explained/explain")
    assert whole.status_code == 200, whole.text
    assert [item["item_id"] for item in whole.json()["items"]] == [item["item_id"] for item in found["items"]]
    item = found["items"][0]["item_id"]
    told = api.get("/v1/sessions/explained/explain", params={"item": item}).json()
    (one,) = told["items"]
    assert (one["item_id"], one["place"], list(one["recent"])) == (item, 1, [ITEMS[5]])
    assert is_problem(api.get("/v1/sessions/explained/explain?item=nothing"), 404, "nothing-to-explain")
    assert is_problem(api.get("/v1/sessions/nobody/explain"), 404, "nothing-to-explain")


def test_models_are_those_announced(api: ApiProcess) -> None:
    told = api.get("/v1/models").json()
    assert (told["alias"], told["serving"]["version"]) == ("champion", "v1")
    assert [one["version"] for one in told["announcements"]] == ["v1"]


def test_scores_are_summed_up_as_asked(api: ApiProcess, deployment: Deployment) -> None:
    for partition, market in ((0, None), (1, "de")):
        score = msgspec.structs.replace(examples.SCORE, partition=partition, market=market)
        deployment.put(deployment.topics.scores, score_key(score).decode(), encode_score(score))
    wait_until(lambda: sum(line["predictions"] for line in api.get("/v1/scores").json()) == 800, "both scores")
    (line,) = api.get("/v1/scores").json()
    assert (line["model_version"], line["recall"]) == (examples.SCORE.model_version, 204 / 400)
    by_market = api.get("/v1/scores?by=market&last=6h").json()
    assert {(line["market"], line["predictions"]) for line in by_market} == {("", 400), ("de", 400)}
    assert is_problem(api.get("/v1/scores?by=colour"), 422, "wrong-parameter")
    assert is_problem(api.get("/v1/scores?by=type&by=reason"), 422, "wrong-parameter")
    for last in ("week", "9" * 400):
        assert is_problem(api.get(f"/v1/scores?last={last}"), 422, "wrong-parameter")


# -- its own life -----------------------------------------------------------------------------------------------------


def test_killed_at_any_time_it_goes_on_from_what_it_stored(deployment: Deployment) -> None:
    sessions = [f"kept-{n}" for n in range(40)]
    api = start_api(deployment.environment(), deployment.root, "killed")
    for n in range(3):
        deployment.send(
            Click(session, ITEMS[(n + at) % 40], time.time_ns() // 1_000_000) for at, session in enumerate(sessions)
        )
        api.kill()
        api = start_api(deployment.environment(), deployment.root, "killed")
    deployment.wait_until_acknowledged()
    newest = {session: ITEMS[(2 + at) % 40] for at, session in enumerate(sessions)}

    def found() -> dict[str, str]:
        return {session: (ranking(api, session) or {"item_id": ""})["item_id"] for session in sessions}

    wait_until(lambda: found() == newest, "the newest rankings", seen=found)
    assert api.stop() == 0

    # It is away for longer than the topic keeps rankings: those are lost, what it has stored is not.
    deployment.send(Click(session, ITEMS[0], time.time_ns() // 1_000_000) for session in sessions)
    deployment.wait_until_acknowledged()
    expire(deployment.connection.librdkafka(), deployment.topics.rankings)
    api = start_api(deployment.environment(), deployment.root, "killed")
    assert found() == newest
    assert "nextclick_api_expired_total 40.0" in api.get("/metrics").text
    assert api.output().count("rankings were lost") == 4  # once for each partition
    assert api.stop() == 0


def test_without_the_registry_of_clicks_it_answers_lookups_and_says_why_it_takes_none(
    api: ApiProcess, deployment: Deployment, tmp_path: Path
) -> None:
    known = api.post("/v1/clicks?wait=10s", click("known")).json()
    nobody = f"127.0.0.1:{free_port()}"
    registry = {
        "NEXTCLICK_SCHEMA_REGISTRY__URL": f"http://{nobody}",
        "NEXTCLICK_SCHEMA_REGISTRY__CLICKS": "json-schema",
    }
    with running_api(deployment.environment(), tmp_path, "waits", part="topics", **registry) as waits:
        assert ranking(waits, "known") == known
        told, refused = waits.get("/readyz"), waits.post("/v1/clicks", click("known"))
        assert (told.status_code, told.json()["status"]) == (503, "not ready")
        assert told.json()["schema registry"].startswith("waiting for the schema registry")
        assert is_problem(refused, 503, "not-ready")
        assert nobody not in told.text + refused.text
        wait_until(lambda: nobody in waits.output(), "its log says what it waits for")
        assert waits.stop() == 0


def test_told_to_stop_it_answers_what_waits_and_ends_streams(deployment: Deployment) -> None:
    api = start_api(deployment.environment(), deployment.root, "stopped")
    worker = deployment.workers[0]
    ended = threading.Event()

    def read() -> None:
        for _ in events(api, "/v1/sessions/quiet/stream"):
            pass
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    answers: list[int] = []
    worker.process.send_signal(signal.SIGSTOP)  # no ranking will come
    try:
        waiting = threading.Thread(
            target=lambda: answers.append(api.post("/v1/clicks?wait=10s", click("waiting")).status_code)
        )
        waiting.start()
        wait_until(lambda: "nextclick_api_open 2.0" in api.get("/metrics").text, "both open")
        assert api.stop() == 0
        waiting.join()
    finally:
        worker.process.send_signal(signal.SIGCONT)
    assert answers == [202]
    assert ended.wait(60)


def test_two_processes_share_neither_a_folder_nor_a_port(api: ApiProcess, deployment: Deployment) -> None:
    root, taken = deployment.root, str(api.port)
    for folder, port, problem in (
        ("api", "0", "api.data_dir of its own"),
        ("other", taken, f"127.0.0.1:{taken} (api.host"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "stream_app", "api", "--data-dir", str(root / folder), "--port", port],
            cwd=REPOSITORY, env=deployment.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert problem in done.stderr


# -- who may ask ------------------------------------------------------------------------------------------------------


def test_tokens_origins_and_rates(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("# of the shop\nfirst-token\n\nsecond-token\n")
    guarded = {
        "NEXTCLICK_API__TOKEN_FILE": str(tmp_path / "tokens"),
        "NEXTCLICK_API__CORS_ORIGINS": '["https://shop.example"]',
        "NEXTCLICK_API__RATE_LIMIT": "20",
    }
    with running_api(deployment.environment(), deployment.root, "guarded", **guarded) as api:
        refused = api.get("/v1/models", headers={"Origin": "https://shop.example"})
        assert is_problem(refused, 401, "unauthorized")
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert refused.headers["Access-Control-Allow-Origin"] == "https://shop.example"
        for wrong in ("Bearer third", "Basic first-token", "Bearer", "first-token"):
            assert api.get("/v1/models", headers={"Authorization": wrong}).status_code == 401
        for token in ("first-token", "second-token"):
            assert api.get("/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert api.get("/livez").status_code == 200
        asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
        allowed = requests.options(f"{api.url}/v1/clicks", headers=asked, timeout=60)
        assert (allowed.status_code, "POST" in allowed.headers["Access-Control-Allow-Methods"]) == (200, True)
        other = requests.options(f"{api.url}/v1/clicks", headers=asked | {"Origin": "https://evil.example"}, timeout=60)
        assert "Access-Control-Allow-Origin" not in other.headers
        session = requests.Session()
        session.headers["Authorization"] = "Bearer first-token"
        answers = [session.get(f"{api.url}/v1/models", timeout=60) for _ in range(60)]
        limited = [answer for answer in answers if answer.status_code == 429]
        assert limited
        assert is_problem(limited[0], 429, "too-many-requests")
        assert int(limited[0].headers["Retry-After"]) >= 1
        assert api.get("/v1/models", headers={"Authorization": "Bearer second-token"}).status_code == 200


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"NEXTCLICK_API__HOST": "0.0.0.0"}, "set token or token_file, or host = 127.0.0.1"),
        ({"NEXTCLICK_API__TOKEN_FILE": "/nowhere"}, "api.token_file /nowhere"),
        ({"NEXTCLICK_API__CORS_ORIGINS": '["shop.example/"]'}, "is no origin"),
        ({"NEXTCLICK_API__STORE_URL": "http://:secret@h"}, "begins with none of redis://"),
        (
            {"NEXTCLICK_TELEMETRY__TRACES": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
    ],
)
def test_settings_that_are_not_safe_are_refused(settings: dict[str, str], problem: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stream_app", "api", "--data-dir", str(tmp_path)],
        cwd=REPOSITORY, env=settings | {"PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert problem in " ".join(done.stderr.split())
    assert "secret" not in done.stderr


# -- the OpenAPI document ---------------------------------------------------------------------------------------------


def test_no_request_makes_an_error_of_the_server(deployment: Deployment, tmp_path: Path) -> None:
    """By the API's own document: what it says of parameters, answers, types and methods is true, too."""
    # No stream: it has no end to wait for. Not that what fits the schema is accepted: a click of 1970 fits.
    options = "--checks all --exclude-checks positive_data_acceptance --exclude-path-regex /stream$ --no-shrink"
    bounds = "--max-time 15 --max-examples 100 --generation-deterministic --warnings off --no-color"
    with running_api(deployment.environment(), tmp_path, "fuzzed", NEXTCLICK_API__MAX_WAIT="0.02") as api:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{api.url}/openapi.json"]
        done = subprocess.run(
            [*command, *options.split(), *bounds.split()],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        assert 'status="500"' not in api.get("/metrics").text
        tested = [float(line.split()[-1]) for line in api.get("/metrics").text.splitlines() if 'route="click"' in line]
        assert sum(tested) > 20


# -- the page ---------------------------------------------------------------------------------------------------------


def test_every_command_of_the_page(api: ApiProcess, tmp_path: Path) -> None:
    api.post("/v1/clicks?wait=10s", click("s-4711", 1))
    commands = [block for block in blocks(REPOSITORY / "docs" / "api.md", "sh") if block.startswith("curl")]
    told = [shell(command.replace(":6068", f":{api.port}"), tmp_path) for command in commands]
    clicked, looked_up, described, streamed = told
    assert json.loads(clicked)["item_id"] == "camera-7"
    assert json.loads(looked_up) == json.loads(clicked)
    assert "/v1/clicks" in json.loads(described)["paths"]
    assert clicked in streamed


def shell(command: str, folder: Path) -> str:
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout
