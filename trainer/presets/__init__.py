"""Settings worth a name: one TOML file each, with what is published about them.

A file says where its figures are from, how the sessions were made of the log, the training settings, and the published
results to compare with. ``trainer tune`` writes its result in the same form.

There are two kinds. A preset of settings has all that a paper tells of its training, and its figures are of exactly
these. A preset of data has a log as several papers prepare it, and figures of several models, which are compared with
ours of the same family, however it was trained; ``differs`` says what else is not the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.config.toml import parse_toml
from trainer.errors import PresetError, TrainingSettingsError
from trainer.models.settings import TrainingSettings, assignments_of, flattened


class Split(BaseModel):
    """How sessions are made of the log and which are the test, as :class:`trainer.data.options.DataOptions`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    collapse_repeats: bool = False
    core: int = Field(1, ge=1)
    test_days: float | None = Field(None, gt=0)
    train_share: float = Field(1.0, gt=0, le=1)
    protocol: Literal["every-prefix", "transformers4rec"] = "every-prefix"


class Published(BaseModel):
    """Results by k. ``settings`` are those of the preset's that were others.

    With ``model``, the name that the figures have in their source, they are for every training of ours with these
    ``settings``, whatever the others; without, for the preset's settings with these changes and no others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    settings: dict[str, Any] = {}
    source: str | None = None
    differs: str | None = None
    recall: dict[int, float] = {}
    mrr: dict[int, float] = {}
    ndcg: dict[int, float] = {}


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    source: str
    data: Split = Split()
    settings: dict[str, Any]
    published: tuple[Published, ...] = ()
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preset:
    """A preset by its name; ``settings`` as the file has them, :attr:`training` with the defaults filled in."""

    name: str
    title: str
    source: str
    data: Split
    settings: Mapping[str, Any]
    published: tuple[Published, ...]
    differs: tuple[str, ...] = ()
    """What is not as in the source, whatever the model."""

    @cached_property
    def training(self) -> TrainingSettings:
        return self.with_changes(())

    def with_changes(self, assignments: Iterable[str]) -> TrainingSettings:
        """The settings, changed by texts of the form ``name=value``. Raises :class:`TrainingSettingsError`."""
        return TrainingSettings.parse({**self.settings, **assignments_of(assignments)})

    def published_for(self, settings: TrainingSettings) -> Published | None:
        """The results of these settings, whatever the seed and the engine; None where there are none."""
        return next((one for one in self.published if self._is_of(one, settings)), None)

    def _is_of(self, published: Published, settings: TrainingSettings) -> bool:
        theirs, ours = self._settings_of(published), settings.model_dump()
        if theirs.family != settings.family:
            return False
        if published.model is not None:
            asked = theirs.model_dump()
            return all(ours[name] == asked[name] for name in published.settings)
        free = {name: value for name, value in ours.items() if name in ("seed", "engine")}
        return theirs.model_copy(update=free) == settings

    def _settings_of(self, published: Published) -> TrainingSettings:
        return TrainingSettings.parse({**self.settings, **published.settings})

    def name_of(self, published: Published) -> str:
        """What a row of figures is of, for people: the model, or the units of the preset's own."""
        if published.model is not None:
            return published.model
        units = self._settings_of(published).model_dump().get("hidden_size")
        return "" if units is None else f"{units} units"


def preset_names() -> tuple[str, ...]:
    """The presets that come with the trainer, in the order of their names."""
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml")))


def load_preset(name: str) -> Preset:
    """A preset by its name, or from a file that ends with ``.toml``. Raises :class:`PresetError`."""
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PresetError(f"{name}: cannot be read: {error}") from error
        return _parse(Path(name).stem, text, name)
    if name not in preset_names():
        raise PresetError(f"no preset '{name}'; there are {', '.join(preset_names())}, and files that end with .toml")
    return _parse(name, resources.files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8"), name)


def chosen_settings(preset: str | None, assignments: Iterable[str] | None) -> TrainingSettings:
    """Of a preset, with these changes; without one, the changes on the defaults.

    Raises :class:`PresetError` and :class:`TrainingSettingsError`.
    """
    if preset is None:
        return TrainingSettings.from_assignments(assignments or [])
    return load_preset(preset).with_changes(assignments or [])


def _parse(name: str, text: str, where: str) -> Preset:
    try:
        tables = parse_toml(text)
    except ValueError as error:
        raise PresetError(f"{where}: not TOML: {error}") from error
    try:
        file = _File.model_validate(tables)
        preset = Preset(name, file.title, file.source, file.data, file.settings, file.published, file.differs)
        for changes in ({}, *(published.settings for published in file.published)):
            TrainingSettings.parse({**file.settings, **changes})
    except TrainingSettingsError as error:
        raise PresetError(f"{where}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise PresetError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return preset


def preset_text(
    title: str, source: str, settings: TrainingSettings, *, data: Split, comments: Iterable[str] = ()
) -> str:
    """A preset as the text of its file."""
    # model_dump has every setting: the file stays what it is when a default changes.
    lines = [f"# {line}" for line in comments]
    lines += [f"title = {_toml(title)}", f"source = {_toml(source)}"]
    for table, values in (("data", data.model_dump(exclude_defaults=True)), ("settings", settings.model_dump())):
        lines += ["", f"[{table}]", *(f"{name} = {_toml(value)}" for name, value in flattened(values).items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            return f'"{escaped}"'
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case _:
            raise TypeError(f"no TOML for {value!r}")
