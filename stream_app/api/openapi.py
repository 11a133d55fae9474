"""The OpenAPI document: the endpoints of `stream_app/api/routes.py`, the messages by the structs that hold them."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from schemas.messages import examples
from schemas.messages.click import MAX_ID_BYTES, Click
from schemas.messages.ranking import Ranking
from stream_app.api.backlog import Waiting
from stream_app.api.overview import Alarm, AlarmName, Overview
from stream_app.api.problems import MEDIA_TYPE, ProblemDetails
from stream_app.api.routes import EVENT_STREAM, JSON, Accepted, AnnouncedModel, Models
from stream_app.api.shelf import ShownItem
from stream_app.api.traffic import Recent, Series
from stream_app.tools.explain import Explanation
from stream_app.tools.scores import GROUPS, OF_PREDICTIONS

_DURATION: Final = r"^[0-9]{1,6}(\.[0-9]{1,6})?(ms|s|m|h|d)?$"
_RANKING: Final = msgspec.to_builtins(examples.RANKING)
_SESSION: Final = examples.RANKING.session_id


class ScoreLine(msgspec.Struct, omit_defaults=True):
    """Sums of a model, and of what `by` names. `from` and `to`: ms since the epoch."""

    model_version: str
    predictions: int
    hits: int
    recall: float
    mrr: float
    begin: int = msgspec.field(name="from")
    end: int = msgspec.field(name="to")
    rankings: int | msgspec.UnsetType = msgspec.UNSET
    variant: str | msgspec.UnsetType = msgspec.UNSET
    market: str | msgspec.UnsetType = msgspec.UNSET
    window: str | msgspec.UnsetType = msgspec.UNSET
    type: str | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET


class Health(msgspec.Struct):
    """`status`, and what it depends on by name: ok, or what is wrong."""

    status: str


_STRUCTS: Final = (
    Click,
    Ranking,
    Accepted,
    Explanation,
    Models,
    list[ScoreLine],
    Overview,
    list[ShownItem],
    Health,
    ProblemDetails,
)
_SCORE: Final = ScoreLine("20260101T000000Z-1f0c", 400, 204, 0.51, 0.2269, 1_767_225_600_000, 1_767_225_900_000, 500)
_MODEL: Final = AnnouncedModel.of(examples.MODEL_ANNOUNCEMENT)
_PROBLEM: Final = ProblemDetails("urn:nextclick:problem:no-click", "No click", 422, "item_id is empty", reason="bad-id")


def document(*, version: str, with_tokens: bool) -> bytes:
    """The document, as it is served."""
    schemas, components = msgspec.json.schema_components(_STRUCTS, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(map(str, _STRUCTS), schemas, strict=True))
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "nextclick",
            "version": version,
            "description": "The items that the visitor of a session will most likely click next.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(by_type),
        "components": {"schemas": components},
    }
    if with_tokens:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in found["paths"].items():
            if path.startswith(("/v1/", "/metrics")):
                for operation in operations.values():
                    operation["security"] = [{"token": []}]
                    operation["responses"]["401"] = _problem(by_type, "No token, or one that is not known.")
    return msgspec.json.encode(found)


# Long: one entry per endpoint.
def _paths(schemas: Mapping[str, Any]) -> dict[str, Any]:
    def answer(description: str, struct: Any, example: object, media: str = JSON) -> dict[str, Any]:
        content = {"schema": schemas[str(struct)], "example": msgspec.to_builtins(example)}
        return {"description": description, "content": {media: content}}

    def problems(**descriptions: str) -> dict[str, Any]:
        told = {"_429": "Too many requests (`api.rate_limit`).", **descriptions}
        return {status.removeprefix("_"): _problem(schemas, text) for status, text in told.items()}

    not_ready = "Rankings have not been read to their end yet, or the store does not answer."
    ranking = answer("The ranking.", Ranking, examples.RANKING)
    health = answer("Ready.", Health, {"status": "ready", "topics": "ok"})
    return {
        "/v1/sessions/{session_id}/ranking": {
            "get": {
                "operationId": "ranking",
                "summary": "The latest ranking of a session.",
                "parameters": [_session_id()],
                "responses": {
                    "200": ranking,
                    **problems(_404="The session has no ranking.", _503=not_ready),
                },
            }
        },
        "/v1/sessions/{session_id}/stream": {
            "get": {
                "operationId": "stream",
                "summary": "The latest ranking of a session and each new one, as server-sent events.",
                "description": "Events: `ranking`, with the ranking as data and its click's place as id; `forgotten`.",
                "parameters": [_session_id()],
                "responses": {
                    "200": {
                        "description": "Events, until one side ends it.",
                        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
                    },
                    **problems(_503=f"{not_ready} Or too many streams are open."),
                },
            }
        },
        "/v1/sessions/{session_id}/explain": {
            "get": {
                "operationId": "explain",
                "summary": "What adds up to the places of a session's ranking.",
                "parameters": [
                    _session_id(),
                    _query(
                        "item", {"type": "string"}, "One item, and what each of the session's items adds to it.", "b-1"
                    ),
                ],
                "responses": {
                    "200": answer("The explanation.", Explanation, _EXPLANATION),
                    **problems(_404="No such session, or nothing to explain.", _503="Kafka does not answer."),
                },
            }
        },
        "/v1/clicks": {
            "post": {
                "operationId": "click",
                "summary": "Put a click on its topic; with `wait`, answer with its ranking.",
                "parameters": [
                    _query(
                        "wait",
                        {"type": "string", "pattern": _DURATION},
                        "How long to wait for the ranking, at most `api.max_wait`.",
                        "200ms",
                    )
                ],
                "requestBody": {
                    "required": True,
                    "content": {JSON: {"schema": schemas[str(Click)], "example": msgspec.to_builtins(examples.CLICK)}},
                },
                "responses": {
                    "200": {**ranking, "description": "The click is on its topic, and this is its ranking."},
                    "202": answer("The click is on its topic.", Accepted, {"source": _RANKING["source"]}),
                    **problems(
                        _400="The body is not JSON.",
                        _413="The body is too large.",
                        _415="The body has another type than JSON.",
                        _422="The body is no click, or `wait` no duration.",
                        _503="Kafka did not confirm the click, a schema registry is away, or too many requests wait.",
                    ),
                },
            }
        },
        "/v1/models": {
            "get": {
                "operationId": "models",
                "summary": "Which models were announced, and which one serves.",
                "responses": {
                    "200": answer(
                        "The models.",
                        Models,
                        Models("champion", _MODEL, [_MODEL]),
                    ),
                    **problems(_503=not_ready),
                },
            }
        },
        "/v1/scores": {
            "get": {
                "operationId": "scores",
                "summary": "How good the models have been online, by the clicks of the last day.",
                "parameters": [
                    _query(
                        "by",
                        {
                            "type": "array",
                            "items": {"enum": list(GROUPS)},
                            "not": {"allOf": [{"contains": {"const": name}} for name in OF_PREDICTIONS]},
                        },
                        "Split by these; `type` and `reason` exclude each other.",
                        ["market", "window"],
                    ),
                    _query("last", {"type": "string", "pattern": _DURATION}, "Of the newest clicks only.", "6h"),
                ],
                "responses": {
                    "200": answer("One line for each group.", list[ScoreLine], [_SCORE]),
                    **problems(_422="A parameter has no such value.", _503=not_ready),
                },
            }
        },
        "/v1/overview": {
            "get": {
                "operationId": "overview",
                "summary": "Clicks, latency, backlog, rejections and alarms of the last ten minutes.",
                "responses": {"200": answer("The overview.", Overview, _OVERVIEW), **problems()},
            }
        },
        "/v1/items": {
            "get": {
                "operationId": "items",
                "summary": "Items to click on, for the page; at most 200, of the first 20,000 in the topic.",
                "parameters": [
                    _query("q", {"type": "string", "maxLength": 256}, "In the id, title or a category.", "camera"),
                    _query(
                        "id", {"type": "array", "items": {"type": "string"}, "maxItems": 200}, "These alone.", ["b-1"]
                    ),
                ],
                "responses": {
                    "200": answer("The items.", list[ShownItem], [ShownItem("b-1", title="A book", price="12.50 €")]),
                    **problems(_422="Too many ids, or a text that is too long."),
                },
            }
        },
        "/healthz": {
            "get": {
                "operationId": "healthz",
                "summary": "Whether lookups are answered, and clicks taken.",
                "responses": {
                    "200": health,
                    **problems(),
                    "503": {**health, "description": "Not ready."},
                },
            }
        },
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "For Prometheus.",
                "responses": {
                    "200": {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
                    **problems(),
                },
            }
        },
    }


def _problem(schemas: Mapping[str, Any], description: str) -> dict[str, Any]:
    content = {"schema": schemas[str(ProblemDetails)], "example": msgspec.to_builtins(_PROBLEM)}
    return {"description": description, "content": {MEDIA_TYPE: content}}


def _session_id() -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES}
    return {"name": "session_id", "in": "path", "required": True, "schema": schema, "example": _SESSION}


def _query(name: str, schema: dict[str, Any], description: str, example: object) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description, "example": example}


_OVERVIEW: Final = Overview(
    now=1_767_225_600_000,
    recent=Recent(950.0, 8.0, 21.0),
    series=Series(1_767_225_596_000, 2_000, [940.0, 960.0], [8.0, 8.0], [20.0, 22.0]),
    models={"20260101T000000Z-1f0c": 1.0},
    reasons={"model": 0.98, "unknown-item": 0.02},
    rejected={"bad-id": 3},
    backlog=[Waiting(0, 12)],
    backlog_problem=None,
    alarms=[Alarm(AlarmName.REJECTED, "600 of 50,600 records were rejected")],
)
_EXPLANATION: Final = {
    "session_id": _SESSION,
    "model_version": "20260101T000000Z-1f0c",
    "clicks": 3,
    "replayed": False,
    "items": [
        {
            "item_id": "memory-card-2",
            "place": 1,
            "score": 7.25,
            "network": 5.5,
            "terms": {"repeat": {"adds": 1.75, "place_without": 2}},
            "recent": {"camera-7": {"adds": 2.5, "place_without": 9}},
            "clicks": 512,
            "popularity_place": 40,
        }
    ],
}
