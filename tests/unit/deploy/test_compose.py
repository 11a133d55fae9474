"""docker-compose.yml against its schema, against the code that it starts, and against what it promises."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

from deploy.kafka.jars import kafka_version
from schemas.config.settings import load_settings
from schemas.errors import SettingsError
from stream_app.serve import worker
from stream_app.settings import StreamSettings
from tests.command_lines import PROGRAMS, is_command
from tests.container_files import (
    COMPOSE_FILE,
    DOCKERFILES,
    REPOSITORY,
    command_of,
    compose,
    dockerfile_of,
    environment_of,
    services,
    stages,
)
from trainer.service.settings import TrainerRoot

SERVICES: Final = sorted(services())
OURS: Final = [name for name in SERVICES if dockerfile_of(services()[name])]
ONE_SHOT: Final = "topics"
SHELL: Final[dict[str, str]] = {}
WITH_TOKEN: Final = {"NEXTCLICK_API__TOKEN": "secret"}
"""Without one the API does not start."""


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+)s", duration)
    assert match, f"{duration}: write seconds"
    return float(match[1])


def mount(service: dict[str, Any], target: str) -> tuple[str | None, bool]:
    """Source (None when anonymous) and read-only of what is mounted at `target`."""
    for volume in service["volumes"]:
        if isinstance(volume, str):
            source, at, *options = volume.split(":")
            if at == target:
                return source, options == ["ro"]
        elif volume["target"] == target:
            return volume.get("source"), volume.get("read_only", False)
    raise AssertionError(f"nothing is mounted at {target}")


def test_compose_file_fits_the_compose_specification() -> None:
    # Found without importing the package: its data file is all that is wanted.
    spec = importlib.util.find_spec("check_jsonschema")
    assert spec is not None
    assert spec.origin is not None
    schema_file = Path(spec.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(schema_file.read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(compose())] == []
    assert list(validator.iter_errors(compose() | {"services": {"worker": {"imgae": "misspelt"}}}))


def test_kafka_is_the_version_that_the_tests_run() -> None:
    documented = [match for page in REPOSITORY.glob("docs/*.md") for match in image_versions(page.read_text())]
    assert {*image_versions(COMPOSE_FILE.read_text()), *documented} == {kafka_version()}


def image_versions(text: str) -> list[str]:
    return re.findall(r"apache/kafka:([\w.-]+)", text)


@pytest.mark.parametrize("name", OURS)
def test_every_command_exists(name: str) -> None:
    assert is_command(command_of(services()[name])) is None


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_every_command_of_the_images_exists(dockerfile: Path) -> None:
    image = stages(dockerfile)[-1]
    entrypoint = image.last("ENTRYPOINT").words
    assert is_command([*entrypoint, *image.last("CMD").words]) is None
    check = image.health_check()
    if check[0] in PROGRAMS:
        assert is_command(check) is None


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert "No such command" in (is_command(["stream-app", "wrong"]) or "")
    assert "No such option" in (is_command(["stream-app", "worker", "--wrong", "1"]) or "")
    assert "No such command" in (is_command(["trainer", "wrong"]) or "")


@pytest.mark.parametrize("name", OURS)
def test_settings_are_accepted_by_both_programs(name: str) -> None:
    environ = environment_of(services()[name], WITH_TOKEN)
    stream = load_settings(StreamSettings, config=None, environ=environ)
    trainer = load_settings(TrainerRoot, config=None, environ=environ)
    inside = services()["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"INTERNAL://{stream.kafka.bootstrap_servers}" in inside.split(",")
    assert stream.kafka == trainer.kafka
    assert stream.topics == trainer.topics


def test_variables_of_the_shell_reach_every_service_that_they_concern() -> None:
    shell = WITH_TOKEN | {
        "NEXTCLICK_TOPICS__PARTITIONS": "3",
        "NEXTCLICK_CLICKS__IDLE_GAP": "600",
        "NEXTCLICK_CLICKS__ADVANCE_ON": '["view", "cart"]',
    }
    for name in OURS:
        environ = environment_of(services()[name], shell)
        assert load_settings(StreamSettings, config=None, environ=environ).topics.partitions == 3
    started = load_settings(StreamSettings, config=None, environ=environment_of(services()["worker"], shell))
    trained = load_settings(TrainerRoot, config=None, environ=environment_of(services()["trainer"], shell))
    scored = load_settings(StreamSettings, config=None, environ=environment_of(services()["score"], shell))
    assert started.clicks == scored.clicks == trained.clicks
    assert (trained.clicks.idle_gap, trained.clicks.moving) == (600, frozenset({"view", "cart"}))
    created = load_settings(StreamSettings, config=None, environ=environment_of(services()[ONE_SHOT], shell))
    assert created == started, "the topics are made for other settings than the worker's"


def test_grafana_asks_nothing_of_the_internet() -> None:
    environ = services()["grafana"]["environment"]
    asks = ("REPORTING_ENABLED", "CHECK_FOR_UPDATES", "CHECK_FOR_PLUGIN_UPDATES")
    assert [environ[f"GF_ANALYTICS_{name}"] for name in asks] == ["false"] * 3
    assert environ["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"


def test_state_outlives_the_container_and_every_worker_has_its_own() -> None:
    environ = environment_of(services()["worker"], SHELL)
    settings = load_settings(StreamSettings, config=None, environ=environ).worker
    assert mount(services()["worker"], str(settings.data_dir)) == (None, False)
    assert mount(services()["kafka"], services()["kafka"]["environment"]["KAFKA_LOG_DIRS"]) == ("kafka-data", False)


def test_trainer_keeps_its_log_and_publishes_where_the_workers_read() -> None:
    settings = load_settings(TrainerRoot, config=None, environ=environment_of(services()["trainer"], SHELL)).trainer
    assert mount(services()["trainer"], str(settings.log_dir.parent)) == ("trainer-data", False)
    assert settings.work_dir.parent == settings.log_dir.parent
    assert mount(services()["trainer"], settings.registry) == ("registry", False)
    assert mount(services()["worker"], settings.registry) == ("registry", True)


def test_scorer_keeps_its_state_and_is_checked_where_it_listens() -> None:
    service = services()["score"]
    settings = load_settings(StreamSettings, config=None, environ=environment_of(service, SHELL)).scores
    assert mount(service, str(settings.data_dir)) == (None, False)
    assert service["ports"] == [f"127.0.0.1::{settings.web_port}"]
    dockerfile = dockerfile_of(service)
    assert dockerfile is not None
    assert f"http://127.0.0.1:{settings.web_port}/livez" in stages(dockerfile)[-1].health_check()


@pytest.mark.parametrize(("name", "section"), [("api", "api"), ("sink", "sink")])
def test_api_and_sink_start_when_asked_and_are_checked_where_they_listen(name: str, section: str) -> None:
    service = services()[name]
    assert service["profiles"] == [name]
    environ = environment_of(service, {"NEXTCLICK_API__TOKEN": "t"})
    settings = load_settings(StreamSettings, config=None, environ=environ)
    own = getattr(settings, section)
    assert mount(service, str(own.data_dir)) == (None, False)
    host, port = (own.host, own.port) if name == "api" else (own.web_host, own.web_port)
    assert host == "0.0.0.0"
    assert service["ports"][0].endswith(f":{port}")
    dockerfile = dockerfile_of(service)
    assert dockerfile is not None
    assert f"http://127.0.0.1:{port}/livez" in stages(dockerfile)[-1].health_check()
    if name == "api":
        assert seconds(service["stop_grace_period"]) > own.stop_timeout
        with pytest.raises(SettingsError, match="set token or token_file"):
            load_settings(StreamSettings, config=None, environ=environment_of(service, SHELL))


def test_guard_writes_to_the_registry_of_the_trainer() -> None:
    trainer, guard = (
        load_settings(TrainerRoot, config=None, environ=environment_of(services()[name], SHELL)).trainer
        for name in ("trainer", "guard")
    )
    assert (guard.registry, guard.model_alias) == (trainer.registry, trainer.model_alias)
    assert mount(services()["guard"], guard.registry) == ("registry", False)


def test_worker_can_be_scaled() -> None:
    service = services()["worker"]
    assert "container_name" not in service
    settings = load_settings(StreamSettings, config=None, environ=environment_of(service, SHELL)).worker
    assert service["ports"] == [f"127.0.0.1::{settings.web_port}"], "a fixed port of the host has room for one worker"
    assert settings.web_host == "0.0.0.0"


def test_worker_has_the_time_that_it_may_take_to_stop() -> None:
    # Draining, and after it the wait for what is on its way to Kafka.
    assert seconds(services()["worker"]["stop_grace_period"]) > 2 * worker._STOP_SECONDS


def test_this_machine_reaches_kafka_by_the_address_that_kafka_tells() -> None:
    kafka = services()["kafka"]
    assert "HOST://localhost:9092" in kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert kafka["ports"] == ["127.0.0.1:9092:9092"]
    assert StreamSettings().kafka.bootstrap_servers == "localhost:9092"


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_on_loopback(name: str) -> None:
    for port in services()[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_containers_are_hardened(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    user, group = service["user"].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert any(at.split(":")[0] == "/tmp" for at in service["tmpfs"])
    assert service["deploy"]["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_checked_and_restarted_except_the_one_shot(name: str) -> None:
    service = services()[name]
    dockerfile = dockerfile_of(service)
    if name == ONE_SHOT:
        assert service["restart"] == "no"
        assert service["healthcheck"] == {"disable": True}, "the worker's image has a check that it cannot pass"
        return
    assert service["restart"] == "unless-stopped"
    if dockerfile is None:
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    else:
        assert "healthcheck" not in service, "the image has it: one place to change"
        assert stages(dockerfile)[-1].health_check()


def test_services_wait_for_what_they_need() -> None:
    for name, service in services().items():
        for needed, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if needed == ONE_SHOT else "service_healthy"
            assert how == {"condition": expected}, f"{name} on {needed}"
    assert set(services()[ONE_SHOT]["depends_on"]) == {"kafka"}
    assert set(services()["worker"]["depends_on"]) == set(services()["trainer"]["depends_on"]) == {ONE_SHOT}


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    image = services()[name]["image"]
    repository, tag = image.split(":")
    assert "." not in repository.split("/")[0], f"{image} names a registry"
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)
    if name in OURS:
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
        assert tag == project["version"]


def test_services_of_one_image_build_it_alike() -> None:
    builds: dict[str, Any] = {}
    for service in services().values():
        if "build" in service:
            assert builds.setdefault(service["image"], service["build"]) == service["build"]
            assert services()["worker"]["user"] == services()["trainer"]["user"], "they share the registry's files"


def test_named_volumes_are_declared_and_used() -> None:
    used = set()
    for service in services().values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0] if isinstance(volume, str) else volume.get("source")
            if source and source.startswith("."):
                assert (REPOSITORY / source).is_file()
            elif source:
                used.add(source)
    assert used == set(compose()["volumes"])


def test_commands_of_the_page_exist() -> None:
    page = (REPOSITORY / "docs" / "docker.md").read_text()
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)).replace("\\\n", " ")
    ours = [
        match[1].split("#")[0].split()
        for line in blocks.splitlines()
        if (match := re.match(r"(?:docker compose exec \S+ )?((?:stream-app|trainer) .*)", line))
    ]
    assert len(ours) == 4
    assert [problem for words in ours if (problem := is_command(words))] == []
    named = [
        words for line in blocks.splitlines() if (words := line.split("#")[0].split())[:2] == ["docker", "compose"]
    ]
    for verb in ("logs", "exec", "stop", "start"):
        for words in named:
            if words[2] == verb:
                given = [word for word in words[3:] if not word.startswith("-")]
                assert set(given[:1] if verb == "exec" else given) <= set(SERVICES), words
    passed_on = set(re.findall(r"`(NEXTCLICK_\w+)`", page))
    known = {name for service in services().values() for name in service.get("environment", ())}
    assert passed_on <= known
