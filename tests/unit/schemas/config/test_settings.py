"""One file and the environment become one frozen configuration, or an error that says what to change."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field, SecretStr, ValidationError

from schemas.config.settings import (
    KafkaConnection,
    RootSettings,
    Section,
    SettingInForce,
    TopicSettings,
    describe,
    describe_json,
    load_settings,
)
from schemas.errors import SettingsError


class Web(Section):
    port: int = Field(default=6066, ge=1, le=65535)


class Worker(Section):
    log_format: Literal["human", "json"] = "human"
    idle_gap_minutes: float = 30
    token: SecretStr | None = None
    batch_sizes: tuple[int, ...] = (1, 16)
    web: Web = Web()


class Part(Section):
    """What another command has to know of the worker's table."""

    whole: ClassVar[bool] = False

    log_format: Literal["human", "json"] = "human"


class Root(RootSettings):
    kafka: KafkaConnection = KafkaConnection()
    topics: TopicSettings = TopicSettings()
    worker: Worker = Worker()


def load(
    config: Path | None = None, environ: dict[str, str] | None = None, overrides: dict[str, Any] | None = None
) -> Root:
    return load_settings(Root, config=config, environ=environ or {}, overrides=overrides)


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "deployment.toml"
    path.write_text(
        """
        [kafka]
        bootstrap_servers = "file:9092"
        [topics]
        partitions = 4
        [worker]
        log_format = "json"
        batch_sizes = [2, 4]
        [worker.web]
        port = 8080
        [trainer]
        anything = { the = "other command's" }
        """
    )
    return path


pytestmark = pytest.mark.usefixtures("in_empty_folder")


def test_defaults() -> None:
    settings = load()
    assert settings.kafka.bootstrap_servers == "localhost:9092"
    assert (settings.topics.partitions, settings.worker.web.port) == (8, 6066)
    with pytest.raises(ValidationError, match="frozen"):
        settings.worker.web.port = 1  # type: ignore[misc]


def test_a_file_sets_and_the_other_commands_table_is_passed_over(file: Path) -> None:
    settings = load(file)
    assert settings.kafka.bootstrap_servers == "file:9092"
    assert settings.worker == Worker(log_format="json", batch_sizes=(2, 4), web=Web(port=8080))


def test_precedence(file: Path) -> None:
    environ = {"KAFKA_BOOTSTRAP_SERVERS": "fallback:9092"}
    assert load(None, environ).kafka.bootstrap_servers == "fallback:9092"
    assert load(file, environ).kafka.bootstrap_servers == "file:9092"
    environ["NEXTCLICK_KAFKA__BOOTSTRAP_SERVERS"] = "environment:9092"
    assert load(file, environ).kafka.bootstrap_servers == "environment:9092"
    overrides = {"kafka.bootstrap_servers": "flag:9092", "worker.log_format": None}
    settings = load(file, environ, overrides)
    assert settings.kafka.bootstrap_servers == "flag:9092"
    assert settings.worker.log_format == "json"  # None: the flag was not given


def test_where_the_file_is_looked_for(file: Path, in_empty_folder: Path) -> None:
    (in_empty_folder / "nextclick.toml").write_text("[topics]\npartitions = 2")
    assert load().topics.partitions == 2
    assert load(None, {"NEXTCLICK_CONFIG": str(file)}).topics.partitions == 4
    other = in_empty_folder / "other.toml"
    other.write_text("[topics]\npartitions = 6")
    assert load(other, {"NEXTCLICK_CONFIG": str(file)}).topics.partitions == 6


def test_the_environment_speaks_every_type() -> None:
    settings = load(
        None,
        {
            "NEXTCLICK_WORKER__IDLE_GAP_MINUTES": "12.5",
            "NEXTCLICK_WORKER__WEB__PORT": "9000",
            "NEXTCLICK_WORKER__BATCH_SIZES": "[3, 5]",
            "NEXTCLICK_WORKER__TOKEN": "123",
            "NEXTCLICK_KAFKA__SSL_CHECK_HOSTNAME": "false",
            "NEXTCLICK_TOPICS__CLICKS": "",  # as compose passes on what is not set
            "NEXTCLICK_TRAINER__WHATEVER": "the other command's",
            "PATH": "/bin",
        },
    )
    assert settings.worker.idle_gap_minutes == 12.5
    assert settings.worker.web.port == 9000
    assert settings.worker.batch_sizes == (3, 5)
    assert settings.worker.token is not None
    assert settings.worker.token.get_secret_value() == "123"
    assert not settings.kafka.ssl_check_hostname
    assert settings.topics.clicks == "clicks"


@pytest.mark.parametrize(
    ("toml", "environ", "message"),
    [
        ("[kafak]\na = 1", {}, r"kafak \(file .*bad.toml\): no such setting; did you mean kafka\?"),
        ("[worker]\nlog_fromat = 'json'", {}, r"worker\.log_fromat .*did you mean log_format\?"),
        ("[worker.web]\nhost = 'x'", {}, r"worker\.web\.host .*no such setting; known are port"),
        ("worker = 5", {}, r"worker \(file .*\): must be a table, \[worker\]"),
        ("[worker]\nweb = 5", {}, r"worker\.web \(file .*\): must be a table, \[worker\.web\]"),
        ("[worker", {}, "bad.toml: not TOML"),
        (f"[trainer.training]\nfamily = [0x{'f' * 5000}]", {}, "bad.toml: not TOML: an integer of more than 64 bits"),
        ("", {"NEXTCLICK_WORKER__LOG_FROMAT": "json"}, "did you mean NEXTCLICK_WORKER__LOG_FORMAT"),
        ("", {"NEXTCLICK_WORKER_LOG_FORMAT": "json"}, "did you mean NEXTCLICK_WORKER__LOG_FORMAT"),
        ("", {"NEXTCLICK_WORKER": "x"}, "environment NEXTCLICK_WORKER: no such setting"),
        ("", {"nextclick_worker__log_format": "json"}, "environment nextclick_worker__log_format: no such setting"),
        (
            "",
            {"NEXTCLICK_WORKER__WEB__PORT": "99999"},
            r"worker\.web\.port \(environment NEXTCLICK_WORKER__WEB__PORT\) is '99999': Input should be less",
        ),
        ("[topics]\npartitions = 0", {}, r"topics\.partitions \(file .*\) is 0: Input should be greater"),
        ("[topics]\nclicks = 'a b'", {}, r"topics\.clicks \(file .*\) is 'a b': String should match pattern"),
        ("[topics]\nclicks = 'models'", {}, r"\[topics\] \(file .*\): two topics have the name 'models'"),
        ("", {"NEXTCLICK_WORKER__BATCH_SIZES": "1,2"}, "BATCH_SIZES: must be JSON"),
        ("", {"NEXTCLICK_WORKER__BATCH_SIZES": '["a"]'}, r"worker\.batch_sizes \(environment .*valid integer"),
    ],
)
def test_refuses(tmp_path: Path, toml: str, environ: dict[str, str], message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(toml)
    with pytest.raises(SettingsError, match=message):
        load(path, environ)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[worker]\nfirst = 1\n[topics]\nsecond = 2")
    with pytest.raises(SettingsError, match=r"(?s)3 settings refused:.*worker\.first.*topics\.second.*__THIRD"):
        load(path, {"NEXTCLICK_KAFKA__THIRD": "3"})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: cannot be read .*name another with --config"):
        load(tmp_path / "none.toml")


def test_a_flag_that_is_no_setting_is_a_mistake_of_ours() -> None:
    with pytest.raises(SettingsError, match=r"worker\.log_fromat: no such setting; did you mean worker\.log_format"):
        load(overrides={"worker.log_fromat": "json"})


class Needs(RootSettings):
    class Worker(Section):
        state_folder: Path

    worker: Worker


def test_what_is_missing_says_how_to_set_it() -> None:
    with pytest.raises(SettingsError, match=r"worker\.state_folder: not set; set NEXTCLICK_WORKER__STATE_FOLDER, or"):
        load_settings(Needs, config=None, environ={"NEXTCLICK_WORKER__STATE_FOLDER": ""}, overrides={})


SECRET = "hunter2-and-more"


@pytest.mark.parametrize(
    "environ",
    [
        {"NEXTCLICK_KAFKA__SASL_PASSWORD": SECRET},
        {"NEXTCLICK_KAFKA__SASL_PASSWORD": SECRET, "NEXTCLICK_KAFKA__SECURITY_PROTOCOL": "SASL_SSL"},
        {"NEXTCLICK_KAFKA__SASL_PASSWORD": SECRET, "NEXTCLICK_KAFKA__SECURITY_PROTOCOL": "wrong"},
        {"NEXTCLICK_KAFKA__SASL_PASWORD": SECRET},
    ],
)
def test_secrets_are_in_no_error(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, environ)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error!s} {error!r}"
        error = error.__cause__


def test_a_secret_of_the_wrong_type_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f"[worker]\ntoken = ['{SECRET}']")
    with pytest.raises(SettingsError, match=r"worker\.token \(file .*\): ") as caught:
        load(path)
    assert SECRET not in str(caught.value)


def test_what_is_in_force_is_shown_with_its_origin(file: Path) -> None:
    environ = {
        "NEXTCLICK_WORKER__TOKEN": SECRET,
        "NEXTCLICK_TOPICS__PARTITIONS": "3",
        "KAFKA_BOOTSTRAP_SERVERS": "overruled:9092",
    }
    settings = load(file, environ, {"worker.web.port": 1234})
    shown = {one.key: one for one in describe(settings)}
    assert shown["worker.token"] == SettingInForce("worker.token", "********", "environment NEXTCLICK_WORKER__TOKEN")
    assert shown["topics.partitions"].value == 3
    assert shown["topics.partitions"].origin == "environment NEXTCLICK_TOPICS__PARTITIONS"
    assert shown["kafka.bootstrap_servers"].origin == f"file {file}"
    assert shown["worker.web.port"] == SettingInForce("worker.web.port", 1234, "command line")
    assert shown["topics.models"] == SettingInForce("topics.models", "models", "default")
    assert shown["kafka.sasl_password"].value is None
    as_json = json.loads(describe_json(settings))
    assert {one["key"] for one in as_json} == shown.keys()
    assert SECRET not in describe_json(settings) + repr(settings) + str(settings)


def test_of_a_table_that_is_read_in_part_the_rest_is_another_commands(file: Path) -> None:
    class PartRoot(RootSettings):
        kafka: KafkaConnection = KafkaConnection()
        topics: TopicSettings = TopicSettings()
        worker: Part = Part()

    environ = {"NEXTCLICK_WORKER__TOKEN": "x", "NEXTCLICK_WORKER__LOG_FORMAT": "json"}
    assert load_settings(PartRoot, config=file, environ=environ).worker.log_format == "json"
    with pytest.raises(SettingsError, match="NEXTCLICK_WORKER__LOG_FORMAT"):
        load_settings(PartRoot, config=file, environ={"NEXTCLICK_WORKER__LOG_FORMAT": "xml"})
