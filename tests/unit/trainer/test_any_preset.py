"""Whatever a preset file holds, it is a preset, or refused in a message: no traceback."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.toml_values import values
from trainer.errors import PresetError
from trainer.models.registry import FAMILIES, settings_class
from trainer.models.settings import TrainingSettings
from trainer.presets import Split, load_preset, preset_text

PLACES = ["title", "data", "data.core", "data.test_days", "data.protocol", "settings", "published", "differs", "x"]


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """The file of a family's defaults, with other values in some places, perhaps damaged."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    keys = [*PLACES, *(f"settings.{name}" for name in settings_class(family).model_fields)]
    lines = preset_text("a", "b", TrainingSettings.parse({"family": family}), data=Split()).splitlines()
    table, kept = "", []
    others = draw(st.dictionaries(st.sampled_from(keys), values, max_size=3))
    for line in lines:
        table = f"{line[1:-1]}." if line.startswith("[") else table
        if table + line.partition(" = ")[0] not in others:
            kept.append(line)
    text = "\n".join([*(f"{key} = {value}" for key, value in others.items()), *kept]).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)):
        return text
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.binary(max_size=4)) + text[at + draw(st.integers(0, 4)) :]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preset") / "mine.toml"


@given(content=files())
def test_any_file_is_read_or_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        preset = load_preset(str(file))
    except PresetError as error:
        str(error).encode()  # can be printed
        return
    preset.published_for(preset.training)
