"""Secrets are in nothing that a command prints, logs or answers: planted in every setting that can hold one.

How processes behave that do start: tests/integration/test_security.py.
"""

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
import typer
from pydantic import SecretStr

import stream_app.__main__ as stream_program
import trainer.__main__ as trainer_program
import trainer.commands.settings as trainer_settings
from schemas.config.settings import RootSettings, load_settings
from schemas.config.settings_keys import alternatives, field_type, keys, variable_of
from schemas.errors import SettingsError
from schemas.kafka import admin
from schemas.masking import MASK, masked
from stream_app.kafka import plain_consumer
from stream_app.serve import following, shadow_process
from stream_app.settings import StreamSettings
from stream_app.tools import replay
from trainer.service import collect, compacted, outage
from trainer.service.settings import TrainerRoot

SECRET = "Tr0ub4dor-planted"
URL = f"ftp://robot:{SECRET}@127.0.0.1:1/registry"
NOBODY = "127.0.0.1:1"

ROOTS: tuple[type[RootSettings], ...] = (StreamSettings, TrainerRoot)
SECRETS = sorted(
    {key for root in ROOTS for key in keys(root, ()) if SecretStr in alternatives(field_type(root, key))}
)  # fmt: skip
URLS = [
    ("kafka", "oauth_token_endpoint"),
    ("schema_registry", "url"),
    ("trainer", "registry"),
    ("worker", "bundle_locations"),
]
GIVEN = {
    "kafka.sasl_password": f"x{SECRET}",
    "kafka.oauth_client_secret": f"x{SECRET}",
    "kafka.ssl_key_password": f"x{SECRET}",
    "schema_registry.password": f"x{SECRET}",
    "api.token": SECRET,
    "api.store_url": f"redis://:{SECRET}@{NOBODY}/0",
}
"""A usable value of each."""


def test_every_secret_is_planted() -> None:
    assert [".".join(key) for key in SECRETS] == sorted(GIVEN)


def tells_nothing(text: str) -> bool:
    """Lines may be wrapped anywhere."""
    return SECRET not in "".join(text.split())


# -- settings ---------------------------------------------------------------------------------------------------------

MISTAKES: Mapping[str, Callable[[str], str]] = {
    "of another type": lambda text: f'["{text}"]',
    "a table": lambda text: f'{{ value = "{text}" }}',
    "no end": lambda text: f'"{text}',
    "no quotes": lambda text: text,
    "an escape": lambda text: f'"{text}\\q"',
    "twice": lambda text: f'"{text}"\nsasl_password = "{text}"\nsasl_password = "{text}"',
    "a neighbour that does not exist": lambda text: f'"{text}"\nneighbour = "{text}"',
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("key", SECRETS, ids=".".join)
def test_a_file_that_is_refused_is_not_repeated(key: tuple[str, str], mistake: str, tmp_path: Path) -> None:
    file = tmp_path / "nextclick.toml"
    file.write_text(f"[{key[0]}]\n{key[1]} = {MISTAKES[mistake](GIVEN['.'.join(key)])}\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(StreamSettings, config=file, environ={})
    assert tells_nothing(str(caught.value))


def test_passwords_without_what_belongs_to_them_are_not_repeated() -> None:
    for key in SECRETS:
        environ = {variable_of(key): GIVEN[".".join(key)], "NEXTCLICK_WORKER__PUBLISHED": "none"}
        with pytest.raises(SettingsError) as caught:
            load_settings(StreamSettings, config=None, environ=environ)
        assert tells_nothing(str(caught.value))


@pytest.mark.parametrize(
    "url",
    [URL, f"ftp://robot:{SECRET}/9@h/x", f"https://{SECRET}@h", f"http://:{SECRET}@h", f"s3://b?token={SECRET}"],
)
@pytest.mark.parametrize("key", URLS, ids=".".join)
def test_a_url_with_a_login_is_refused_where_it_would_be_shown(key: tuple[str, str], url: str) -> None:
    root = TrainerRoot if key[0] == "trainer" else StreamSettings
    value = json.dumps([url]) if key[1] == "bundle_locations" else url
    with pytest.raises(SettingsError, match="holds a login") as caught:
        load_settings(root, config=None, environ={variable_of(key): value})
    assert tells_nothing(str(caught.value))


@pytest.mark.parametrize("servers", [f"SASL_SSL://robot:{SECRET}@h:1", f"robot:{SECRET}@h:1", f"h:1,{SECRET}@h"])
def test_a_broker_with_a_login_is_not_repeated(servers: str) -> None:
    with pytest.raises(SettingsError, match="has a login") as caught:
        load_settings(StreamSettings, config=None, environ={"KAFKA_BOOTSTRAP_SERVERS": servers})
    assert tells_nothing(str(caught.value))


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/models@2", "https://host:8080/models@2", "/srv/models", "registry", "gs://b/a%40b", "memory://x"],
)
def test_a_url_without_a_login_is_taken_as_it_is(url: str) -> None:
    settings = load_settings(TrainerRoot, config=None, environ={"NEXTCLICK_TRAINER__REGISTRY": url})
    assert settings.trainer.registry == url == masked(url)


# -- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A command line, and what each command is called with."""

    module: Any
    name: str
    arguments: Mapping[str, Sequence[str]]
    """Of the commands that read settings with secrets."""
    others: frozenset[str] = frozenset()

    def commands(self) -> set[str]:
        group: Any = typer.main.get_command(self.module.app)
        return set(group.commands)

    def run(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
        """As the console command does, exit included."""
        monkeypatch.setattr(sys, "argv", [self.name, *arguments])
        with pytest.raises(SystemExit):
            self.module.main()


STREAM = Program(
    stream_program,
    "stream-app",
    {
        "worker": [],
        "shadows": [],
        "topics": [],
        "replay": ["clicks.csv"],
        "items": ["items.jsonl"],
        "rules": ["rules.jsonl"],
        "watch": [],
        "rejected": [],
        "inspect": ["s-1"],
        "explain": ["s-1"],
        "replay-session": ["s-1"],
        "forget": ["s-1"],
        "score": [],
        "scores": [],
        "api": [],
        "sink": [],
        "settings": [],
    },
)
TRAINER = Program(
    trainer_program,
    "trainer",
    {
        "collect": ["--once"],
        "run": ["--once"],
        "refresh": [],
        "guard": ["--once"],
        "models": [],
        "promote": ["v1"],
        "rollback": [],
        "sign": ["v1"],
        "split": ["champion=100"],
        "shadow": ["champion"],
        "settings": [],
    },
    frozenset({"fit", "evaluate", "tune", "ablate", "presets", "reproduce"}),
)
COMMANDS = [(program, name) for program in (STREAM, TRAINER) for name in program.arguments]


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder whose settings file has the secrets that are valid together, of a Kafka where nobody listens."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clicks.csv").write_text("session_id,item_id,timestamp\na,b,1700000000000\n")
    (tmp_path / "items.jsonl").write_text('{"item_id": "a"}\n')
    (tmp_path / "rules.jsonl").write_text('{"rule_id": "a", "action": "exclude", "match": {"items": ["a"]}}\n')
    (tmp_path / "nextclick.toml").write_text(
        f"""
        [kafka]
        bootstrap_servers = "{NOBODY}"
        security_protocol = "SASL_PLAINTEXT"
        sasl_mechanism = "PLAIN"
        sasl_username = "robot"
        sasl_password = "{GIVEN["kafka.sasl_password"]}"
        [api]
        port = 0
        token = "{SECRET}"
        store_url = "{GIVEN["api.store_url"]}"
        [worker]
        log_level = "debug"
        [trainer]
        log_level = "debug"
        max_failures = 1
        """
    )
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    functions: Any = {"timeout": [admin.ensure_topics, admin.check_topics], "patience": [outage.waiting_out]}
    for argument, those in functions.items():
        for function in those:
            monkeypatch.setitem(function.__kwdefaults__, argument, 0.2)
    for module, name in (
        (plain_consumer, "_ANSWER_SECONDS"),
        (replay, "_ANSWER_SECONDS"),
        (collect, "_TIMEOUT_SECONDS"),
        (compacted, "_TIMEOUT_SECONDS"),
        (following, "_METADATA_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.2)
    monkeypatch.setattr(shadow_process, "give_way", lambda: None)  # or all later tests of this process would
    started: list[following.TopicFollower] = []
    start = following.TopicFollower.start

    def start_and_note(follower: following.TopicFollower) -> None:
        started.append(follower)
        start(follower)

    monkeypatch.setattr(following.TopicFollower, "start", start_and_note)
    yield
    for follower in started:
        follower.stop()  # the shadows end with their process
    structlog.reset_defaults()


def test_every_command_is_run() -> None:
    for program in (STREAM, TRAINER):
        assert program.commands() == program.arguments.keys() | program.others


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a process's end closes its sockets
@pytest.mark.parametrize(("program", "command"), COMMANDS, ids=[name for _, name in COMMANDS])
def test_a_command_that_reaches_nobody_tells_no_secret(
    program: Program, command: str, planted: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gc.freeze()  # what hundreds of tests left behind is not looked through after each command
    program.run(monkeypatch, command, *program.arguments[command])
    gc.collect()  # here, where the warning is expected, and not in some other test
    told = capfd.readouterr()
    assert tells_nothing(told.out + told.err)
    assert told.out or told.err
    assert os.sched_getscheduler(0) == os.SCHED_OTHER, "all later tests of this process would get what others leave"


@pytest.mark.parametrize(("program", "module"), [(STREAM, stream_program), (TRAINER, trainer_settings)])
def test_an_error_that_nobody_expected_is_printed_without_logins(
    program: Program, module: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(f"cannot reach {URL}")

    monkeypatch.setattr(module, "settings_of", fail)
    program.run(monkeypatch, "settings")
    told = capfd.readouterr().err
    assert told.startswith("Traceback (most recent call last):")
    assert told.endswith(f"RuntimeError: cannot reach ftp://{MASK}@127.0.0.1:1/registry\n")
    assert tells_nothing(told)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"no {URL} there", f"no ftp://{MASK}@127.0.0.1:1/registry there"),
        (f"'redis://:{SECRET}/#@store:6379/0'", f"'redis://{MASK}@store:6379/0'"),
        (f"https://b/k?X-Amz-Signature={SECRET}&part=1", f"https://b/k?X-Amz-Signature={MASK}&part=1"),
        ("at http://127.0.0.1:6068/v1@2 and s3://b/m@1", "at http://127.0.0.1:6068/v1@2 and s3://b/m@1"),
        ("a@b.example: no URL", "a@b.example: no URL"),
    ],
)
def test_what_is_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert str(SettingsError(text)) == shown
    assert masked(shown) == shown
