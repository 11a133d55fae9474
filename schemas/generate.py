"""The documents in schemas/: a JSON Schema of each message and of the manifest, and one AsyncAPI 3 document, in json;
clicks and rankings in avro and protobuf as well.

They are generated from the code and checked in, so that producers and consumers in other languages can use them.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas.bundle.manifest import Manifest
from schemas.formats.codec import schema_text
from schemas.formats.json_schema import dedented, json_schema
from schemas.kafka.connection import TopicSettings
from schemas.kafka.topics import TopicSpec, topic_table
from schemas.messages import examples
from schemas.messages.announcement import ModelAnnouncement
from schemas.messages.click import Click
from schemas.messages.forget import Forget
from schemas.messages.headers import TRACE, Headers, ranking_headers, rejected_headers
from schemas.messages.item import Item
from schemas.messages.ranking import Ranking
from schemas.messages.rejected import RejectedClick
from schemas.messages.rule import Rule
from schemas.messages.score import Score
from schemas.messages.split import Split

FOLDER: Final = Path(__file__).parent
ASYNCAPI: Final = "json/asyncapi.json"
CONTRACT_VERSION: Final = "1.2.0"
"""Of the messages, not of the program: raise the first number when a consumer or a producer must change."""

_HOUR_MS: Final = 3_600_000

_SCHEMAS: Final[Mapping[str, Any]] = {
    "click.schema.json": Click,
    "forget.schema.json": Forget,
    "ranking.schema.json": Ranking,
    "rejected-click.schema.json": RejectedClick,
    "model-announcement.schema.json": ModelAnnouncement,
    "item.schema.json": Item,
    "rule.schema.json": Rule,
    "split.schema.json": Split,
    "score.schema.json": Score,
    "manifest.schema.json": Manifest,
}


def _headers(headers: Headers, passed_on: Iterable[str] = ()) -> dict[str, Any]:
    """A schema of these headers, and of those that a click may bring."""
    names = [*(name for name, _ in headers), *passed_on]
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}}


# topic -> (message type, its example, who receives it, who sends it)
_MESSAGES: Final[Mapping[str, tuple[type, msgspec.Struct, str, str]]] = {
    "clicks": (Click, examples.CLICK, "The worker, and the trainer's collector.", "The shop, and `stream-app forget`."),
    "rankings": (Ranking, examples.RANKING, "The shop.", "The worker."),
    "rejected": (RejectedClick, examples.REJECTED_CLICK, "Whoever repairs producers.", "The worker."),
    "models": (ModelAnnouncement, examples.MODEL_ANNOUNCEMENT, "Every worker.", "The trainer."),
    "items": (Item, examples.ITEM, "Every worker with `worker.items`.", "The shop."),
    "rules": (Rule, examples.RULE, "Every worker with `worker.rules`.", "The shop."),
    "rankings_shadow": (Ranking, examples.RANKING, "The scorer with `--shadows`.", "Workers with `worker.splits`."),
    "splits": (Split, examples.SPLIT, "Every worker with `worker.splits`.", "`trainer split`."),
    "scores": (Score, examples.SCORE, "Whoever watches how good the models are; the guard.", "The scorer."),
}

# topic -> what stands among its messages: (message type, its example)
_AMONG: Final[Mapping[str, tuple[type, msgspec.Struct]]] = {"clicks": (Forget, examples.FORGET)}

_HEADERS: Final[Mapping[Any, Any]] = {
    Ranking: _headers(ranking_headers("v1"), passed_on=TRACE),
    RejectedClick: _headers(rejected_headers(examples.REJECTED_CLICK)),
}


# Those of the topics whose format is a setting (docs/schema-registry.md).
_FORMATS: Final[Mapping[str, tuple[type[msgspec.Struct], str]]] = {
    "avro/click.avsc": (Click, "avro"),
    "avro/ranking.avsc": (Ranking, "avro"),
    "protobuf/click.proto": (Click, "protobuf"),
    "protobuf/ranking.proto": (Ranking, "protobuf"),
}


def documents() -> dict[str, str]:
    """Every generated file: path -> text."""
    schemas = {f"json/{name}": json_schema(kind) for name, kind in _SCHEMAS.items()}
    generated = {path: _text(schema) for path, schema in schemas.items()}
    generated[ASYNCAPI] = _text(asyncapi())
    return generated | {path: schema_text(kind, format_) for path, (kind, format_) in _FORMATS.items()}


def write(folder: Path = FOLDER) -> list[Path]:
    """Write every document; returns those that changed."""
    changed = []
    for name, text in documents().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def stale(folder: Path = FOLDER) -> list[str]:
    """Paths of the documents that are missing, differ from the code, or belong to no message."""
    wanted = documents()
    files = [file for pattern in ("json/*.json", "avro/*", "protobuf/*") for file in folder.glob(pattern)]
    there = {file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in files}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3 document of all topics, as a deployment with every feature has them."""
    topics = TopicSettings()
    table = topic_table(topics, "nextclick", session_ttl_ms=_HOUR_MS, items=True, rules=True, splits=True)
    specs = {spec.name: spec for spec in table}
    messages = {
        name: [(kind, example), *([_AMONG[name]] if name in _AMONG else [])]
        for name, (kind, example, _, _) in _MESSAGES.items()
    }
    kinds = [kind for of_topic in messages.values() for kind, _ in of_topic]
    _, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "nextclick",
            "version": CONTRACT_VERSION,
            "description": "Clicks in, rankings out, models announced. Topic names are the defaults of [topics].",
        },
        "defaultContentType": "application/json",
        "channels": {
            name: _channel(specs[getattr(topics, name)], [kind for kind, _ in of_topic])
            for name, of_topic in messages.items()
        },
        "operations": {
            f"{action}-{name}": {
                "action": action,
                "channel": {"$ref": f"#/channels/{name}"},
                "summary": who,
                "messages": [{"$ref": f"#/channels/{name}/messages/{kind.__name__}"} for kind, _ in messages[name]],
            }
            for name, (_, _, receiver, sender) in _MESSAGES.items()
            for action, who in (("receive", receiver), ("send", sender))
        },
        "components": {
            "schemas": components,
            "messages": {
                kind.__name__: _message(kind, example, specs[getattr(topics, name)])
                for name, of_topic in messages.items()
                for kind, example in of_topic
            },
        },
    }


def _channel(spec: TopicSpec, kinds: Iterable[type]) -> dict[str, Any]:
    configuration: dict[str, Any] = {"cleanup.policy": spec.config["cleanup.policy"].split(",")}
    if "retention.ms" in spec.config:
        configuration["retention.ms"] = int(spec.config["retention.ms"])
    return {
        "address": spec.name,
        "description": spec.description,
        "messages": {kind.__name__: {"$ref": f"#/components/messages/{kind.__name__}"} for kind in kinds},
        "bindings": {
            "kafka": {
                "topic": spec.name,
                "partitions": spec.partitions,
                "replicas": spec.replication,
                "topicConfiguration": configuration,
                "bindingVersion": "0.5.0",
            }
        },
    }


def _message(kind: type, example: msgspec.Struct, spec: TopicSpec) -> dict[str, Any]:
    headers = {"headers": _HEADERS[kind]} if kind in _HEADERS else {}
    return {
        "name": kind.__name__,
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
        **headers,
        "bindings": {
            "kafka": {"key": {"type": "string", "description": f"{spec.key}."}, "bindingVersion": "0.5.0"},
        },
        "examples": [{"payload": json.loads(msgspec.json.encode(example))}],
    }


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(dedented(document), indent=2, ensure_ascii=False) + "\n"
