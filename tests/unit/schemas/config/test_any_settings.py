"""Whatever a settings file or the environment holds, the settings are valid, or refused in a message: no traceback.

`make fuzz TEST=tests/unit/schemas/config/test_any_settings.py` tries more.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config.settings import RootSettings, describe_json, load_settings
from schemas.config.settings_keys import dotted_keys, variable_of
from schemas.errors import SettingsError
from stream_app.settings import StreamSettings
from tests.unit.toml_values import texts, values
from trainer.commands.settings import settings_of
from trainer.errors import TrainerError
from trainer.service.guarding import rules_of
from trainer.service.settings import TrainerRoot

KEYS = {"stream-app": dotted_keys(StreamSettings), "trainer": dotted_keys(TrainerRoot)}
NAMES = sorted(KEYS)


@st.composite
def files(draw: st.DrawFn, name: str) -> bytes:
    """A file with some of the keys, perhaps damaged."""
    chosen = draw(st.dictionaries(st.sampled_from([*KEYS[name], "worker", "kafka.x"]), values, max_size=5))
    text = "\n".join(f"{key} = {value}" for key, value in chosen.items()).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)):
        return text
    at = draw(st.integers(0, len(text)))
    return (
        text[:at] + draw(st.binary(max_size=4) | st.just(b"a = " + b"[" * 5000)) + text[at + draw(st.integers(0, 4)) :]
    )


def stream_app(file: Path) -> StreamSettings:
    return load_settings(StreamSettings, config=file, environ=os.environ)


def use_of_stream_app(settings: StreamSettings) -> None:
    """As the processes do at their start."""
    settings.topic_specs()
    settings.kafka.librdkafka()
    assert int(settings.worker.delivery_timeout * 1000) > 0
    assert settings.clicks.limits.max_bytes > 0


def use_of_trainer(settings: TrainerRoot) -> None:
    """The same."""
    settings.kafka.librdkafka()
    rules_of(settings.guard)
    assert round(settings.trainer.window * 1000) >= 0


LOADED: dict[str, Callable[[Path], Any]] = {"stream-app": stream_app, "trainer": settings_of}
USED: dict[str, Callable[[Any], None]] = {"stream-app": use_of_stream_app, "trainer": use_of_trainer}


def check(name: str, file: Path) -> None:
    try:
        settings: RootSettings = LOADED[name](file)
    except (SettingsError, TrainerError) as error:
        str(error).encode()  # can be printed
        return
    json.loads(describe_json(settings))
    USED[name](settings)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings") / "nextclick.toml"


@pytest.fixture(autouse=True)
def no_environment() -> Iterator[None]:
    """The settings of the machine that runs the test have no say."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("NEXTCLICK_", "KAFKA_"))]:
            patch.delenv(name)
        yield


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_any_file_is_read_or_refused(name: str, file: Path, data: st.DataObject) -> None:
    file.write_bytes(data.draw(files(name)))
    check(name, file)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_any_environment_is_read_or_refused(name: str, file: Path, data: st.DataObject) -> None:
    file.write_bytes(b"")
    variables = [variable_of(tuple(key.split("."))) for key in KEYS[name]]
    given = data.draw(st.dictionaries(st.sampled_from([*variables, "NEXTCLICK_X"]), texts, max_size=5))
    with pytest.MonkeyPatch.context() as patch:
        for variable, text in given.items():
            try:
                patch.setenv(variable, text)
            except (ValueError, UnicodeEncodeError):
                return  # no environment can hold it
        check(name, file)
