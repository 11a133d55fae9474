"""The tables of docs/settings.md, from the settings themselves.

    python -m tests.settings_page

writes them into the page, between its markers; `tests/unit/test_docs.py` fails while they differ.
"""

import re
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from schemas.config.settings import ClickSettings, KafkaConnection, TopicSettings
from schemas.config.settings_keys import alternatives, section_of
from stream_app.settings import WorkerSettings
from trainer.models.settings import TrainingSettings
from trainer.service.settings import TrainerSettings

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
SECTIONS: Final[dict[str, BaseModel]] = {
    "kafka": KafkaConnection(),
    "topics": TopicSettings(),
    "clicks": ClickSettings(),
    "worker": WorkerSettings(),
    "trainer": TrainerSettings(),
    "trainer.training": TrainerSettings().training,
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
    "topics.rankings_retention_ms": "How long rankings are kept.",
    "topics.rejected_retention_ms": "How long rejected records are kept.",
    "worker.log_format": "Log format on standard error: readable, or one JSON object per line.",
    "worker.log_level": "Least severe level that is logged.",
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
    for name, info in type(defaults).model_fields.items():
        if section_of(info.annotation) is not None:
            continue
        meaning = info.description or _MEANINGS[f"{section}.{name}"]
        choices = _choices(info.annotation)
        if choices:
            meaning = f"{meaning.removesuffix('.')}. One of {', '.join(f'`{choice}`' for choice in choices)}."
        default = _default(getattr(defaults, name))
        if (
            section == "trainer.training"
            and (alone := _default(TrainingSettings.model_fields[name].default)) != default
        ):
            default += f"; in `trainer fit` {alone}"
        rows.append(f"| `{name}` | {default} | {meaning[0].upper()}{meaning[1:]} |")
    return "\n".join(rows)


def filled(page: str) -> str:
    """The page with every table as the code has it."""
    for section in SECTIONS:
        begin, end = f"<!-- settings of {section} -->\n\n", "\n\n<!-- end -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        assert len(pattern.findall(page)) == 1, f"{PAGE.name} must have one place for the settings of {section}"
        before, after = pattern.split(page)
        page = before + begin + table(section) + end + after
    return page


def _choices(annotation: Any) -> list[str]:
    return [
        choice for one in alternatives(annotation) for choice in getattr(one, "__args__", ()) if isinstance(choice, str)
    ]


def _default(value: Any) -> str:
    match value:
        case None:
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
