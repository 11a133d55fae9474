"""The documents in schemas/ are what the code says, golden messages fit them, the AsyncAPI document hangs together."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from schemas.__main__ import main
from schemas.generate import ASYNCAPI, FOLDER, asyncapi, documents, stale, write
from tests.contract.tiny_model import TinyModel

GOLDEN = Path(__file__).parent / "golden"
MESSAGES = ("click", "forget", "ranking", "rejected-click", "model-announcement", "item", "rule", "split")


def schema(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"json/{name}.schema.json").read_text())
    return loaded


def message(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return loaded


def test_the_files_are_what_the_code_says() -> None:
    assert stale() == [], "run `make generate` and look at the difference"


def test_what_is_stale_is_found_and_written_anew(tmp_path: Path) -> None:
    write(tmp_path)
    assert stale(tmp_path) == []
    (tmp_path / "json/click.schema.json").write_text("{}")
    (tmp_path / "json/gone.schema.json").write_text("{}")
    (tmp_path / "protobuf/click.proto").write_text("")
    (tmp_path / ASYNCAPI).unlink()
    changed = [ASYNCAPI, "json/click.schema.json", "protobuf/click.proto"]
    assert stale(tmp_path) == sorted([*changed, "json/gone.schema.json"])
    assert sorted(path.relative_to(tmp_path).as_posix() for path in write(tmp_path)) == changed


def test_the_command_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", [name for name in documents() if name.endswith(".schema.json")])
def test_each_is_a_json_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(documents()[name]))


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_messages_fit(name: str) -> None:
    jsonschema.validate(message(name), schema(name), cls=jsonschema.Draft202012Validator)


def test_a_manifest_fits(tmp_path: Path) -> None:
    manifest = json.loads((TinyModel().write(tmp_path) / "manifest.json").read_text())
    jsonschema.validate(manifest, schema("manifest"), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("click", {"session_id": ""}),
        ("click", {"item_id": "i" * 257}),
        ("click", {"timestamp": "now"}),
        ("click", {"timestamp": -1}),
        ("click", {"timestamp": 1.5}),
        ("click", {"event_id": ""}),
        ("forget", {"action": "remember"}),
        ("ranking", {"reason": "guess"}),
        ("ranking", {"items": [{"item_id": "a"}]}),
        ("ranking", {"source": None}),
        ("rejected-click", {"reason": "dislike"}),
        ("model-announcement", {"version": "../x"}),
        ("item", {"available": "yes"}),
        ("item", {"price": 3}),
        ("item", {"markets": [""]}),
        ("rule", {"action": "hide"}),
        ("rule", {"boost": 1e9}),
        ("rule", {"match": {"item": ["camera-7"]}}),
        ("rule", {"begin": 1}),
        ("split", {"variants": [{"alias": "a", "share": 0}]}),
        ("split", {"variants": [{"alias": "../a", "share": 100}]}),
        ("model-announcement", {"manifest_sha256": "abc"}),
    ],
)
def test_what_the_code_refuses_does_not_fit(name: str, changed: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(message(name) | changed, schema(name), cls=jsonschema.Draft202012Validator)


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, inner in node.items():
            if key == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


def resolve(document: dict[str, Any], reference: str) -> dict[str, Any]:
    assert reference.startswith("#/"), reference
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part.replace("~1", "/").replace("~0", "~")]
    assert isinstance(node, dict)
    return node


def test_asyncapi_references_lead_somewhere() -> None:
    document = asyncapi()
    found = list(references(document))
    assert found
    for reference in found:
        assert resolve(document, reference)


def test_asyncapi_has_what_the_specification_requires() -> None:
    # https://www.asyncapi.com/docs/reference/specification/v3.0.0
    document = asyncapi()
    assert document["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= document["info"].keys()
    assert {channel["address"] for channel in document["channels"].values()} == {
        "clicks", "rankings", "clicks.rejected", "models", "items", "rules", "splits", "rankings.shadow", "scores",
    }  # fmt: skip
    assert len(document["operations"]) == 2 * len(document["channels"])
    for operation in document["operations"].values():
        assert operation["action"] in ("send", "receive")
        channel = operation["channel"]["$ref"]
        # An operation's messages must be references into its own channel.
        for one in operation["messages"]:
            assert one["$ref"].startswith(f"{channel}/messages/")


def test_asyncapi_has_every_message_that_has_a_schema() -> None:
    schemas = {json.loads(text)["$ref"] for name, text in documents().items() if name.endswith(".schema.json")}
    named = {reference.rpartition("/")[2] for reference in schemas}
    document = asyncapi()
    assert document["components"]["messages"].keys() == named - {"Manifest"}
    of_channels = {name for channel in document["channels"].values() for name in channel["messages"]}
    assert of_channels == document["components"]["messages"].keys()


def test_asyncapi_examples_fit_their_schemas() -> None:
    document = asyncapi()
    for one in document["components"]["messages"].values():
        rooted = {"$ref": one["payload"]["$ref"], "components": document["components"]}
        for example in one["examples"]:
            jsonschema.validate(example["payload"], rooted, cls=jsonschema.Draft202012Validator)
