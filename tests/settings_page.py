"""The tables of docs/settings.md, from the settings themselves.

    python -m tests.settings_page

writes them into the page, between its markers; `tests/unit/test_docs.py` fails while they differ.
"""

import re
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from schemas.config.settings import (
    BundleSettings,
    ClickSettings,
    KafkaConnection,
    SchemaRegistrySettings,
    TopicSettings,
)
from schemas.config.settings_keys import alternatives, section_of
from stream_app.api_settings import ApiSettings, SinkSettings
from stream_app.settings import ScoreSettings, WorkerSettings
from stream_app.telemetry import TelemetrySettings
from trainer.models.counting import CountingSettings
from trainer.models.mixed import MixedSettings, mixed_settings
from trainer.models.registry import FAMILIES, settings_class
from trainer.models.settings import Gru4RecSettings, TrainingSettings, WindowSettings
from trainer.service.settings import GuardSettings, TrainerSettings

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
SECTIONS: Final[dict[str, BaseModel]] = {
    "kafka": KafkaConnection(),
    "topics": TopicSettings(),
    "clicks": ClickSettings(),
    "schema_registry": SchemaRegistrySettings(),
    "bundles": BundleSettings(),
    "worker": WorkerSettings(),
    "scores": ScoreSettings(),
    "api": ApiSettings(),
    "sink": SinkSettings(),
    "telemetry": TelemetrySettings(),
    "trainer": TrainerSettings(),
    "trainer.training": TrainerSettings().training,
    "guard": GuardSettings(),
}

# For settings whose model says nothing, their names and choices being enough for whoever reads the code.
_MEANINGS: Final = {
    "kafka.security_protocol": "Whether to use TLS and a login.",
    "kafka.sasl_mechanism": "How to log in.",
    "kafka.sasl_username": "User name for PLAIN and SCRAM.",
    "kafka.sasl_password": "Password for PLAIN and SCRAM.",
    "kafka.oauth_client_id": "Client id for OAUTHBEARER.",
    "kafka.oauth_client_secret": "Client secret for OAUTHBEARER.",
    "kafka.oauth_scope": "Scope for OAUTHBEARER, if the endpoint requires one.",
    "kafka.ssl_key_password": "Password of the private key, if it is encrypted.",
    "kafka.ssl_check_hostname": "Whether the broker's certificate must match its host name.",
    "topics.clicks": "Name of the topic.",
    "topics.rankings": "Name of the topic.",
    "topics.rejected": "Name of the topic.",
    "topics.models": "Name of the topic.",
    "topics.scores": "Name of the topic.",
    "topics.rankings_retention_ms": "How long rankings are kept.",
    "topics.rejected_retention_ms": "How long rejected records are kept.",
    "trainer.training.family": "Kind of model; the settings of the others, and of several as one, are below.",
    "trainer.training.learning_rate": "Learning rate.",
    "trainer.training.batch_size": "Clicks of a training step.",
    "trainer.training.loss": "Loss function.",
    "trainer.training.embedding": "Whether input and output share their item rows.",
    "trainer.training.hidden_size": "GRU units per layer.",
    "trainer.training.layers": "GRU layers.",
    "trainer.training.epochs": "Passes over the sessions (without a warm start).",
    "trainer.training.seed": "Random seed; same seed, data and one thread give the same model.",
}


def table(section: str) -> str:
    """The settings of a section as a table in Markdown. Raises KeyError for one without a meaning."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    defaults = SECTIONS[section]
    inherited = {name for base in type(defaults).__mro__[1:] for name in getattr(base, "model_fields", ())}
    for name, info in sorted(type(defaults).model_fields.items(), key=lambda field: field[0] in inherited):
        if section_of(info.annotation) is not None:
            continue
        meaning = info.description or _MEANINGS[f"{section}.{name}"]
        meaning = _with_choices(meaning, list(FAMILIES) if name == "family" else _choices(info.annotation))
        default = _default(getattr(defaults, name))
        if section == "trainer.training" and (alone := _default(Gru4RecSettings.model_fields[name].default)) != default:
            default += f"; in `trainer fit` {alone}"
        rows.append(f"| `{name}` | {default} | {meaning} |")
    return "\n".join(rows)


def families() -> str:
    """What the families beside the default one are told otherwise than it, or besides."""
    kinds = {family: settings_class(family) for family in FAMILIES}
    parts = []
    for group, about in ((WindowSettings, "look at a session's last clicks at once"), (CountingSettings, "count")):
        members = {family: kind for family, kind in kinds.items() if issubclass(kind, group)}
        lacking = [f"`{name}`" for name in Gru4RecSettings.model_fields if name not in group.model_fields]
        parts += [
            f"{', '.join(f'`{family}`' for family in members)} {about}. They have the settings above but for "
            f"{', '.join(lacking)}; and others, or of another default:",
            "\n".join(
                [
                    "| family | setting | default | meaning |",
                    "|---|---|---|---|",
                    *_other_than("all of these", group, Gru4RecSettings),
                    *(row for family, kind in members.items() for row in _other_than(f"`{family}`", kind, group)),
                ]
            ),
        ]
    return "\n\n".join(parts)


def several() -> str:
    """What several families as one model are told for all of them, and in each one's table besides its own settings."""
    kind = mixed_settings({"gru4rec": Gru4RecSettings})
    weight = section_of(kind.model_fields["gru4rec"].annotation)
    assert weight is not None
    shared = [f"`{name}`" for name in TrainingSettings.model_fields]
    return "\n\n".join(
        [
            f"{', '.join(shared)} and `window` are set for all, everything else in the table of a family.",
            "\n".join(
                [
                    "| setting | default | meaning |",
                    "|---|---|---|",
                    *(
                        f"| `{name}` | {_default(info.default)} | {_with_choices(info.description or '', [])} |"
                        for name, info in (
                            ("window", MixedSettings.model_fields["window"]),
                            ("FAMILY.weight", weight.model_fields["weight"]),
                        )
                    ),
                ]
            ),
        ]
    )


def _other_than(label: str, kind: type[TrainingSettings], base: type[TrainingSettings]) -> list[str]:
    rows = []
    for name, info in kind.model_fields.items():
        known = base.model_fields.get(name)
        if name == "family" or (known and (known.default, known.description) == (info.default, info.description)):
            continue
        meaning = _with_choices(info.description or _MEANINGS[f"trainer.training.{name}"], _choices(info.annotation))
        rows.append(f"| {label} | `{name}` | {_default(info.default)} | {meaning} |")
    return rows


def _with_choices(meaning: str, choices: list[str]) -> str:
    if choices:
        meaning = f"{meaning.removesuffix('.')}. One of {', '.join(f'`{choice}`' for choice in choices)}."
    return f"{meaning[0].upper()}{meaning[1:]}"


def filled(page: str) -> str:
    """The page with every table as the code has it."""
    others = {"families": families, "several families": several}
    for section in (*SECTIONS, *others):
        begin, end = f"<!-- settings of {section} -->\n\n", "\n\n<!-- end -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        assert len(pattern.findall(page)) == 1, f"{PAGE.name} must have one place for the settings of {section}"
        before, after = pattern.split(page)
        page = before + begin + (others[section]() if section in others else table(section)) + end + after
    return page


def _choices(annotation: Any) -> list[str]:
    return [
        choice for one in alternatives(annotation) for choice in getattr(one, "__args__", ()) if isinstance(choice, str)
    ]


def _default(value: Any) -> str:
    match value:
        case None | "":
            return "not set"
        case bool():
            return f"`{str(value).lower()}`"
        case float():
            return f"`{value:.15g}`"
        case tuple():
            return "`[" + ", ".join(f'"{one}"' for one in value) + "]`"
        case _:
            return f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
