"""Logins of every kind on a real Kafka, by docs/security.md's examples: a worker's two clients, and the trainer."""

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from pydantic import SecretStr

from deploy.demo.oracle import read_topic
from deploy.kafka.properties import HOST
from deploy.strimzi.rights import rights
from schemas.bundle.files import open_bundle
from schemas.config.settings import KafkaConnection, load_settings
from schemas.kafka import connection as kafka_settings
from schemas.messages.click import Click, encode_click
from stream_app.kafka.credentials import TokenError, faust_credentials
from stream_app.settings import StreamSettings
from tests.conftest import REPOSITORY
from tests.contract.tiny_model import TinyModel
from tests.faults.deployment import Deployment
from tests.integration.api import ApiProcess, running_api
from tests.integration.redis_server import SERVER, RedisServer
from tests.integration.security import (
    CLIENT_ID,
    CLIENT_SECRET,
    KEY_PASSWORD,
    LEAVER,
    PASSWORD,
    Authority,
    SecureKafka,
    TokenEndpoint,
    secure_kafka,
    token_endpoint,
)
from tests.patience import PATIENCE
from tests.stream_process import StreamProcess

pytestmark = pytest.mark.kafka
CLICKS = 40
TOKEN = "a-token-of-the-api"
STORE_PASSWORD = "a-password-of-the-store"
SECRETS = (PASSWORD, KEY_PASSWORD, CLIENT_SECRET, TOKEN, STORE_PASSWORD)
DOCUMENT = REPOSITORY / "docs" / "security.md"


@dataclass(frozen=True)
class Site:
    """What the examples of the document name, for real."""

    kafka: SecureKafka
    tokens: TokenEndpoint
    etc: Path
    """In place of /etc/nextclick."""

    def real(self, example: str, listener: str) -> str:
        """An example with this site's names."""
        address = self.kafka.addresses[listener]
        names = {"kafka.example:9093": address, "/etc/nextclick": str(self.etc)}
        for name, value in (names | {"https://login.example/token": self.tokens.url}).items():
            example = example.replace(name, value)
        return example


@dataclass(frozen=True)
class Example:
    """A section of the document and the listener that it is for."""

    heading: str
    listener: str
    secret: str

    def block(self, language: str) -> str:
        section = DOCUMENT.read_text().split(f"\n## {self.heading}\n")[1].split("\n## ")[0]
        (block,) = re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
        return str(block)

    def toml(self, site: Site) -> str:
        # JSON's quotes and escapes are TOML's as well.
        return site.real(self.block("toml"), self.listener).replace('"change-me"', json.dumps(self.secret))

    def environment(self, site: Site) -> dict[str, str]:
        """The variables that a shell has set after the example."""
        script = site.real(self.block("sh"), self.listener) + "\nenv -0"
        shell = subprocess.run(["bash", "-euc", script], check=True, capture_output=True, text=True, env={})
        variables = dict(one.split("=", 1) for one in shell.stdout.split("\0") if one)
        return {name: value for name, value in variables.items() if name.startswith("NEXTCLICK_")}


WORKER = {
    # The clients' own logs are in the output, too, and must not hold a password either.
    "NEXTCLICK_WORKER__LOG_LEVEL": "debug",
    "NEXTCLICK_WORKER__PUBLISHED": str(TinyModel().k),
}
PLAIN_TLS = Example("A user with a password, over TLS", "PASSWORD_TLS", PASSWORD)
SCRAM_TLS = Example("The same with SCRAM: the password itself never leaves the client", "PASSWORD_TLS", PASSWORD)
SCRAM = Example("SCRAM without TLS, inside a network that is trusted", "PASSWORD", PASSWORD)
MUTUAL_TLS = Example("A certificate of the client's own (mutual TLS)", "MUTUAL_TLS", KEY_PASSWORD)
TOKENS = Example("Tokens (OAUTHBEARER)", "TOKEN_TLS", CLIENT_SECRET)
EXAMPLES = {"plain": PLAIN_TLS, "scram-tls": SCRAM_TLS, "scram": SCRAM, "mutual-tls": MUTUAL_TLS, "tokens": TOKENS}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One broker with every listener, for all tests here, and the files that the document speaks of."""
    etc = tmp_path_factory.mktemp("etc")
    for name, secret in (("password", PASSWORD), ("key-password", KEY_PASSWORD), ("client-secret", CLIENT_SECRET)):
        (etc / name).write_text(secret + "\n")
    logs = tmp_path_factory.mktemp("kafka-logs")
    with secure_kafka(etc, logs) as kafka, token_endpoint(kafka.login) as tokens:
        site = Site(kafka, tokens, etc)
        permissions = Example("Who may read the secrets", "PLAINTEXT", "").block("sh")
        subprocess.run(["bash", "-euc", site.real(permissions, "PLAINTEXT")], check=True)
        yield site


class SecureDeployment(Deployment):
    """A deployment whose processes log in; the test itself goes in and out by the broker's plain listener."""

    def create_topics(self) -> None:
        """By the command, which logs in, too."""
        out, err = finished(self.begin(self.environment(), "stream_app", "topics", "--json"))
        specs = load_settings(StreamSettings, config=None, environ=self.environment()).topic_specs()
        assert len(json.loads(out)["created"]) == len(specs), err

    def begin(self, environment: Mapping[str, str], *arguments: str) -> "subprocess.Popen[str]":
        """Start a command in the deployment's folder."""
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env={**environment, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def announce_tiny_model(self) -> None:
        """The champion v1, which ranks the items of `TinyModel`."""
        path = TinyModel().write(self.root / "registry", "v1")
        self.models["v1"] = open_bundle(path)
        self.announce(path)


def finished(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Standard output and error of a process that ends well by itself; neither holds a secret."""
    out, err = process.communicate(timeout=PATIENCE)
    assert_tells_no_secret(out + err)
    assert process.returncode == 0, err
    return out, err


def assert_tells_no_secret(text: str, *more: str) -> None:
    for secret in (*SECRETS, *more):
        # As Python writes it and as JSON does: quotes may be escaped.
        for written in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1]):
            assert written not in text


# -- logins that are refused: begun first, because they are given half a minute, in which the others run --------------


@dataclass(frozen=True)
class Refusal:
    """An example with something wrong about it, and what must be told then."""

    example: Example
    changes: Mapping[str, str]
    reason: str

    def environment(self, site: Site) -> dict[str, str]:
        variables = self.example.environment(site) | {
            f"NEXTCLICK_KAFKA__{name}": value.replace("/etc/nextclick", str(site.etc))
            for name, value in self.changes.items()
        }
        own = {name: value for name, value in os.environ.items() if not name.startswith(("NEXTCLICK_", "KAFKA_"))}
        return own | variables | WORKER | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}


WRONG = "not-what-the-broker-expects"
NO_CERTIFICATE = {"SSL_CERTIFICATE_LOCATION": "", "SSL_KEY_LOCATION": "", "SSL_KEY_PASSWORD": ""}
REFUSALS = {
    "password": Refusal(SCRAM_TLS, {"SASL_PASSWORD": WRONG}, "invalid credentials"),
    "authority": Refusal(
        SCRAM_TLS, {"SSL_CA_LOCATION": "/etc/nextclick/stranger.pem"}, "certificate could not be verified"
    ),
    "no-certificate": Refusal(MUTUAL_TLS, NO_CERTIFICATE, "bad certificate|certificate required"),
    "client-secret": Refusal(TOKENS, {"OAUTH_CLIENT_SECRET": WRONG}, "invalid_client"),
}
COMMANDS = {
    "worker": ("stream_app", "worker", "--web-port", "0"),
    "collect": ("trainer", "collect", "--once"),
}


@dataclass(frozen=True)
class Attempt:
    """A command that is about to be refused."""

    process: "subprocess.Popen[bytes]"
    output: Path


@pytest.fixture(scope="module")
def attempts(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[tuple[str, str], Attempt]]:
    """Every command with every refusal, all at once."""
    Authority(site.etc, "stranger")
    started = {}
    for name, refusal in REFUSALS.items():
        environment = refusal.environment(site)
        for command, arguments in COMMANDS.items():
            folder = tmp_path_factory.mktemp("refused")
            with (folder / "output").open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", *arguments],
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            started[name, command] = Attempt(process, folder / "output")
    yield started
    for attempt in started.values():
        attempt.process.kill()
        attempt.process.wait()


# -- logins that are accepted -----------------------------------------------------------------------------------------


def log_in_everywhere(site: Site, name: str, folder: Path) -> None:
    """Topics and worker by the example's variables, the trainer by its file. A ranking takes both clients."""
    example = EXAMPLES[name]
    variables = example.environment(site) | WORKER
    deployment = SecureDeployment(
        site.kafka.addresses["PLAINTEXT"], f"accepted-{name}", folder, TinyModel().items, variables
    )
    by_file = {name: value for name, value in deployment.environment().items() if "_KAFKA__" not in name}
    (folder / "nextclick.toml").write_text(example.toml(site))
    try:
        deployment.announce_tiny_model()
        worker = deployment.start()
        deployment.send(Click(f"s{n % 7}", f"item-{n % 12}", 1_700_000_000_000 + n) for n in range(CLICKS))
        trainer = deployment.begin(by_file, "trainer", "collect", "--once", "--json")
        collected = json.loads(finished(trainer)[0])
        deployment.wait_until_acknowledged()
        assert worker.stop() == 0, worker.output()
    finally:
        deployment.stop_all()
    assert collected["clicks"] == CLICKS
    verdict = deployment.verdict()
    assert verdict.clicks == CLICKS
    verdict.assert_nothing_lost_nothing_wrong()
    assert "aiokafka" in worker.output()  # it was at debug level
    assert_tells_no_secret(worker.output(), *site.tokens.tokens)
    if example is TOKENS:
        agents = site.tokens.tokens.values()
        assert any("aiohttp" in agent for agent in agents)  # Faust's client
        assert any("aiohttp" not in agent for agent in agents)  # librdkafka


@pytest.fixture(scope="module")
def logins(
    site: Site, attempts: Mapping[tuple[str, str], Attempt], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[None]]]:
    """Every example, two at a time: each mostly waits for the start of a process."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {name: pool.submit(log_in_everywhere, site, name, tmp_path_factory.mktemp(name)) for name in EXAMPLES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_worker_and_the_trainer_log_in(logins: Mapping[str, Future[None]], name: str) -> None:
    logins[name].result()


def test_the_settings_in_force_are_shown_without_secrets(site: Site, tmp_path: Path) -> None:
    variables = MUTUAL_TLS.environment(site)
    ours = {name: value for name, value in os.environ.items() if not name.startswith("NEXTCLICK_")}
    for package in ("stream_app", "trainer"):
        process = subprocess.Popen(
            [sys.executable, "-m", package, "settings", "--json"],
            cwd=tmp_path,
            env=ours | variables | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        shown = {one["key"]: one["value"] for one in json.loads(finished(process)[0])}
        assert shown["kafka.ssl_key_password"] == "********"
        assert shown["kafka.ssl_key_location"] == variables["NEXTCLICK_KAFKA__SSL_KEY_LOCATION"]


# -- the two clients by themselves ------------------------------------------------------------------------------------


def connection_of(example: Example, site: Site, **changes: Any) -> KafkaConnection:
    settings = load_settings(
        StreamSettings,
        config=None,
        environ=example.environment(site),
        overrides={f"kafka.{name}": value for name, value in changes.items()},
    )
    return settings.kafka


def faust_client(connection: KafkaConnection) -> AIOKafkaClient:
    """aiokafka as Faust sets it up."""
    login = credentials_to_aiokafka_auth(faust_credentials(connection))
    return AIOKafkaClient(bootstrap_servers=connection.bootstrap_servers, **login)


@pytest.mark.parametrize("checked", [True, False])
async def test_a_broker_with_the_certificate_of_another(site: Site, checked: bool) -> None:
    """Both clients refuse it, unless told not to compare names. Who signed it is looked at all the same."""
    connection = connection_of(
        SCRAM_TLS, site, bootstrap_servers=site.kafka.addresses["OTHER_NAME"], ssl_check_hostname=checked
    )
    admin = AdminClient(connection.librdkafka() | {"log_level": 0})
    client = faust_client(connection)
    if checked:
        with pytest.raises(KafkaException, match="Broker transport failure"):
            admin.list_topics(timeout=3)
        with pytest.raises(KafkaConnectionError):
            await client.bootstrap()
        return
    assert admin.list_topics(timeout=PATIENCE).brokers
    await client.bootstrap()
    assert await client.ready(0)
    await client.close()


async def test_a_broker_is_tried_again_when_there_was_no_token_for_it(site: Site) -> None:
    """Anything but an error of the connection would end the client's own task, and the worker would wait for ever."""
    with token_endpoint(site.kafka.login) as tokens:
        tokens.lifetime = 0  # every connection asks for one
        client = faust_client(connection_of(TOKENS, site, oauth_token_endpoint=tokens.url))
        await client.bootstrap()
        tokens.refuses = True
        assert not await client.ready(0)
        tokens.refuses = False
        async with asyncio.timeout(PATIENCE):
            while not await client.ready(0):
                await asyncio.sleep(0.1)
        await client.close()


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_token_endpoint_is_verified_with_the_systems_authorities(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By both clients, wherever the system has them, and by no others. No broker is asked for it."""
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    monkeypatch.setenv("SSL_CERT_FILE", "/not/there")  # nor does OpenSSL know
    monkeypatch.setenv("SSL_CERT_DIR", "/not/there")
    of_system = str((authority if trusted else other).certificate)
    monkeypatch.setattr(kafka_settings, "_CA_FILES", ("/not/there", of_system))
    with token_endpoint(authority.issue("login", alternative=f"IP:{HOST}")) as tokens:
        connection = KafkaConnection(
            bootstrap_servers=f"{HOST}:1",
            security_protocol="SASL_SSL",
            sasl_mechanism="OAUTHBEARER",
            oauth_token_endpoint=tokens.url,
            oauth_client_id=CLIENT_ID,
            oauth_client_secret=SecretStr(CLIENT_SECRET),
        )
        told: list[str] = []
        admin = AdminClient(
            connection.librdkafka() | {"log_level": 0, "error_cb": lambda error: told.append(str(error))}
        )
        credentials = faust_credentials(connection)
        assert credentials is not None
        provider = credentials.oauth_cb
        if trusted:
            assert await provider.token() in tokens.tokens
            while len(tokens.tokens) < 2:
                admin.poll(0.1)
        else:
            with pytest.raises(TokenError, match="certificate verify failed"):
                await provider.token()
            while not any("OAUTHBEARER token: SSL certificate" in error for error in told):
                admin.poll(0.1)
            assert tokens.tokens == {}


def test_a_password_that_is_no_longer_good_ends_the_worker(site: Site, tmp_path: Path) -> None:
    """librdkafka has its connections already: it is Faust that is refused."""
    site.kafka.set_password(LEAVER, PASSWORD)
    variables = SCRAM_TLS.environment(site) | WORKER | {"NEXTCLICK_KAFKA__SASL_USERNAME": LEAVER}
    deployment = SecureDeployment(site.kafka.addresses["PLAINTEXT"], "leaver", tmp_path, TinyModel().items, variables)
    try:
        worker = deployment.start()
        deployment.wait(lambda: "no 'champion'" in str(worker.ready()), "a worker that waits for a model", PATIENCE)
        site.kafka.set_password(LEAVER, "another")
        deployment.announce_tiny_model()
        assert worker.process.wait(PATIENCE) == 1
    finally:
        deployment.stop_all()
    assert "SaslAuthenticationFailed" in worker.output()
    assert "the worker cannot go on" in worker.output()
    assert_tells_no_secret(worker.output())


# -- rights -----------------------------------------------------------------------------------------------------------


def test_each_process_does_its_work_with_its_own_rights_alone(site: Site, tmp_path: Path) -> None:
    """Those of docs/security.md, as `python -m deploy.strimzi` prints them."""

    def log_in_as(process: str) -> dict[str, str]:
        return {"NEXTCLICK_KAFKA__SASL_USERNAME": f"rights-{process}"}

    class Restricted(SecureDeployment):
        def create_topics(self) -> None:
            told = load_settings(StreamSettings, config=None, environ=self.environment())
            allowed = rights(told, collect_group="collect")
            for process, own in allowed.items():
                site.kafka.set_password(f"rights-{process}", PASSWORD)
                site.kafka.allow(f"rights-{process}", own)
            super().create_topics()

    variables = SCRAM.environment(site) | WORKER | log_in_as("topics")
    variables |= {
        "NEXTCLICK_TRAINER__REGISTRY": str(tmp_path / "registry"),
        "NEXTCLICK_TRAINER__COLLECT_GROUP": "collect",
        "NEXTCLICK_SCORES__WEB_PORT": "0",
        "NEXTCLICK_SCORES__INTERVAL": "0.1",
        "NEXTCLICK_WORKER__SPLITS": "true",
        "NEXTCLICK_API__TOKEN": TOKEN,
        "AWS_SECRET_ACCESS_KEY": STORE_PASSWORD,
        **{f"NEXTCLICK_{table}__LOG_LEVEL": "debug" for table in ("SCORES", "API", "SINK", "TRAINER")},
    }
    deployment = Restricted(site.kafka.addresses["PLAINTEXT"], "rights", tmp_path, TinyModel().items, variables)
    running = deployment.environment()
    scorer = deployment.begin(running | log_in_as("score"), "stream_app", "score")
    try:
        worker = deployment.start(**log_in_as("worker"))
        TinyModel().write(tmp_path / "registry", "v1")
        finished(deployment.begin(running | log_in_as("trainer"), "trainer", "promote", "v1"))
        login = connection_of(SCRAM, site, sasl_username="rights-shop").librdkafka()
        shop = Producer({**login, "partitioner": "murmur2_random"})
        for n in range(CLICKS):
            click = Click(f"s{n % 7}", f"item-{n % 12}", 1_700_000_000_000 + n)
            shop.produce(deployment.topics.clicks, encode_click(click), click.session_id.encode())
        assert shop.flush(PATIENCE) == 0
        collect = deployment.begin(running | log_in_as("trainer"), "trainer", "collect", "--once", "--json")
        assert json.loads(finished(collect)[0])["clicks"] == CLICKS
        reader = Consumer({**login, "group.id": "shop-page", "auto.offset.reset": "earliest"})
        reader.subscribe([deployment.topics.rankings])
        assert len(reader.consume(CLICKS, PATIENCE)) == CLICKS
        reader.close()
        deployment.wait(
            lambda: scorer.poll() is not None or deployment.records(deployment.topics.scores) > 0,
            "scores are published",
        )
        finished(deployment.begin(running | log_in_as("guard"), "trainer", "guard", "--once"))
        finished(deployment.begin(running | log_in_as("trainer"), "trainer", "split", "champion=100"))
        with running_api(running | log_in_as("api"), tmp_path, token=TOKEN) as api:
            session = "/v1/sessions/s1"
            assert api.get(f"{session}/ranking").json()["session_id"] == "s1"
            assert api.get(f"{session}/explain").status_code == 200, api.output()
            clicked = {"session_id": "s1", "item_id": "item-1", "timestamp": 1_700_000_000_000 + CLICKS}
            deployment.wait(
                lambda: api.post("/v1/clicks?wait=10s", clicked).json().get("variant") == "champion",
                "the split is known",
            )
            assert_shows_no_secret(api, worker)
        if SERVER is not None:
            sink_stores(deployment, running | log_in_as("sink"), tmp_path)
        shop.produce(deployment.topics.clicks, b"{}", b"s1")
        resend_repaired(deployment, running | log_in_as("rejected"))
        assert worker.stop() == 0, worker.output()
        assert_tells_no_secret(worker.output())
        scorer.terminate()
        finished(scorer)
    finally:
        scorer.kill()
        deployment.stop_all()
    assert_keeps_no_secret(deployment)
    assert refusal(shop, deployment.topics.models) == KafkaError.TOPIC_AUTHORIZATION_FAILED


def refusal(producer: Producer, topic: str) -> int | None:
    """The code that a record is refused with: when it is queued, if the broker's answer came before it, or later."""
    told: list[KafkaError | None] = []
    try:
        producer.produce(topic, b"{}", b"champion", on_delivery=lambda error, _: told.append(error))
    except KafkaException as error:
        return int(error.args[0].code())
    producer.flush(PATIENCE)
    [answer] = told
    return None if answer is None else answer.code()


def resend_repaired(deployment: SecureDeployment, environment: Mapping[str, str]) -> None:
    """The one that is rejected."""
    deployment.wait(lambda: deployment.records(deployment.topics.rejected) > 0, "a record is rejected")
    finished(deployment.begin(environment, "stream_app", "rejected", "--export", "repairs.jsonl"))
    file = deployment.root / "repairs.jsonl"
    click = {"session_id": "s1", "item_id": "item-1", "timestamp": 1_700_000_000_000}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"value": click}))
    sent, _ = finished(deployment.begin(environment, "stream_app", "rejected", "--send", "repairs.jsonl"))
    assert "1 sent again" in sent


def assert_shows_no_secret(api: ApiProcess, worker: StreamProcess) -> None:
    """In answers, refusals and errors; nor does the log."""
    for page in ("metrics", "readyz"):
        with urllib.request.urlopen(f"http://127.0.0.1:{worker.web_port}/{page}", timeout=PATIENCE) as answered:
            assert_tells_no_secret(answered.read().decode())
    paths = [
        "/metrics", "/openapi.json", "/readyz", "/v1/models", "/v1/scores", "/v1/overview", "/v1/items", "/nothing",
        "/v1/sessions/s1/ranking", "/v1/sessions/s1/explain", "/v1/sessions/nobody/explain", "/v1/scores?by=nothing",
    ]  # fmt: skip
    for token in (TOKEN, "another"):
        for path in paths:
            answer = api.get(path, headers={"Authorization": f"Bearer {token}"})
            assert_tells_no_secret(answer.text + str(answer.headers))
    assert_tells_no_secret(api.output())


def assert_keeps_no_secret(deployment: SecureDeployment) -> None:
    """On its topics and in its folder, those of the processes and the registry included."""
    topics = [getattr(deployment.topics, name) for name in ("rankings", "rejected", "models", "splits", "scores")]
    for topic in [*topics, deployment.changelog]:
        for record in read_topic(deployment.connection.librdkafka(), topic):
            assert_tells_no_secret(repr((record.key(), record.value(), record.headers())))
    for file in deployment.root.rglob("*"):
        if file.is_file():
            assert_tells_no_secret(file.read_bytes().decode("latin-1"))


def sink_stores(deployment: SecureDeployment, environment: Mapping[str, str], folder: Path) -> None:
    """All seven sessions."""
    store = RedisServer(folder, password=STORE_PASSWORD)
    store.start()
    own = {"NEXTCLICK_SINK__DATA_DIR": str(folder / "sink"), "NEXTCLICK_SINK__WEB_PORT": "0"}
    sink = deployment.begin({**environment, **own}, "stream_app", "sink", store.url)
    try:
        deployment.wait(lambda: sink.poll() is not None or len(store.rankings()) == 7, "rankings are stored")
        sink.terminate()
        assert "authorization failed" not in " ".join(finished(sink)).lower()
    finally:
        sink.kill()
        store.stop()


# -- what became of the refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_command_ends_and_says_so(
    attempts: Mapping[tuple[str, str], Attempt], name: str, command: str
) -> None:
    attempt = attempts[name, command]
    assert attempt.process.wait(PATIENCE) == 2
    output = " ".join(attempt.output.read_text().split())  # a terminal's width breaks lines anywhere
    assert_tells_no_secret(output, WRONG)
    assert "Traceback" not in output
    assert "are the settings in" in output
    assert re.search(REFUSALS[name].reason, output)
