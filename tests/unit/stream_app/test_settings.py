"""What the worker's settings refuse before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.config.settings import RootSettings, load_settings
from schemas.errors import SettingsError
from schemas.messages.click import ClickLimits, ClickRejectedError, decode_click
from stream_app.settings import StreamSettings, WorkerSettings
from trainer.service.settings import TrainerRoot


def load(environ: dict[str, str], **overrides: Any) -> StreamSettings:
    return load_settings(StreamSettings, config=None, environ=environ, overrides=overrides)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no nextclick.toml lies."""
    monkeypatch.chdir(tmp_path)


def test_the_defaults_are_a_worker_for_this_machine_alone() -> None:
    settings = load({})
    assert settings.worker.web_host == "127.0.0.1"
    assert (settings.clicks.idle_gap, settings.worker.recent_items, settings.worker.published) == (1800, 30, 20)
    assert settings.clicks.limits == ClickLimits()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load({}).worker.web_port = 1  # type: ignore[misc]


def test_the_environment_sets_and_the_command_line_wins() -> None:
    settings = load(
        {"NEXTCLICK_WORKER__WEB_PORT": "7000", "NEXTCLICK_CLICKS__IDLE_GAP": "1m"}, **{"worker.web_port": 0}
    )
    assert (settings.worker.web_port, settings.clicks.idle_gap) == (0, 60)


def test_a_typing_error_refuses_to_start() -> None:
    with pytest.raises(SettingsError, match=r"NEXTCLICK_CLICKS__IDLE_GAPS.*did you mean.*IDLE_GAP"):
        load({"NEXTCLICK_CLICKS__IDLE_GAPS": "60"})


def test_the_trainers_settings_in_the_same_file_are_its_own(tmp_path: Path) -> None:
    file = tmp_path / "deployment.toml"
    file.write_text("[trainer]\nepochs = 3\n[worker]\napp_id = 'shop'\n")
    assert load_settings(StreamSettings, config=file, environ={}).worker.app_id == "shop"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("app_id", "a/b"),
        ("app_id", ""),
        ("model_alias", ""),
        ("published", 0),
        ("bundle_timeout", 86_401),  # a number of any size is no limit that a system takes
        ("recent_items", 0),
        ("recent_items", 256),  # the row's format counts them in one byte
        ("max_per_category", -1),
        ("max_per_category", 3),  # without worker.items
        ("mmr_lambda", 1.1),
        ("session_ttl", 1799),  # below the idle gap
        ("chunk_clicks", 0),
        ("chunks_in_flight", 0),
        ("linger", -0.1),
        ("compression", "brotli"),
        ("group_instance_id", ""),
        ("group_instance_id", "shop/worker-0"),
        ("session_timeout", 5),  # below what Kafka takes by default
        ("stall_timeout", 15),  # not above session_timeout
        ("model_threads", 0),
        ("web_port", 65_536),
        ("log_format", "xml"),
        ("log_level", "trace"),
    ],
)
def test_refused(key: str, value: object) -> None:
    with pytest.raises(SettingsError):
        load({}, **{f"worker.{key}": value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("idle_gap", 0), ("max_future", -1), ("max_bytes", 63), ("min_timestamp", -1), ("min_timestamp", 10**15)],
)
@pytest.mark.parametrize("program", [StreamSettings, TrainerRoot])
def test_both_programs_refuse_the_same_rules_of_clicks(program: type[RootSettings], key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"clicks\.{key}"):
        load_settings(program, config=None, environ={}, overrides={f"clicks.{key}": value})


@pytest.mark.parametrize("program", [StreamSettings, TrainerRoot])
def test_both_programs_take_the_oldest_click_from_the_settings(program: type[RootSettings]) -> None:
    settings: Any = load_settings(program, config=None, environ={}, overrides={"clicks.min_timestamp": 1_000})
    limits: ClickLimits = settings.clicks.limits
    assert decode_click(b"s", b'{"session_id":"s","item_id":"a","timestamp":1000}', now_ms=2_000, limits=limits)
    with pytest.raises(ClickRejectedError, match="timestamp"):
        decode_click(b"s", b'{"session_id":"s","item_id":"a","timestamp":999}', now_ms=2_000, limits=limits)


@pytest.mark.parametrize("table", ["worker", "trainer"])
@pytest.mark.parametrize(("name", "now"), [("idle_gap",) * 2, ("max_future",) * 2, ("max_click_bytes", "max_bytes")])
def test_rules_of_clicks_in_a_programs_own_table_are_told_where_they_belong(
    tmp_path: Path, table: str, name: str, now: str
) -> None:
    program: type[RootSettings] = StreamSettings if table == "worker" else TrainerRoot
    file = tmp_path / "deployment.toml"
    file.write_text(f"[{table}]\n{name} = 60\n")
    with pytest.raises(SettingsError, match=rf"{table}\.{name} .*no such setting; did you mean clicks\.{now}\?"):
        load_settings(program, config=file, environ={})
    variable, there = f"NEXTCLICK_{table}__{name}".upper(), f"NEXTCLICK_CLICKS__{now}".upper()
    with pytest.raises(SettingsError, match=rf"{variable}: no such setting; did you mean {there}\?"):
        load_settings(program, config=None, environ={variable: "60"})


def test_mmr_needs_as_many_candidates_as_are_published() -> None:
    assert not load({}, **{"worker.mmr_candidates": 10}).worker.diversifies
    with pytest.raises(SettingsError, match="mmr_candidates 10 is below published 20"):
        load({}, **{"worker.mmr_candidates": 10, "worker.mmr_lambda": 0.5})


def test_rows_must_outlive_the_idle_gap() -> None:
    with pytest.raises(SettingsError, match="rows of open sessions would be lost"):
        load({}, **{"worker.session_ttl": 60.0})


def test_every_setting_is_described() -> None:
    assert [name for name, info in WorkerSettings.model_fields.items() if not info.description] == []
