"""What a door takes and answers, as an OpenAPI document."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

_REFS: Final = "#/components/schemas/{model}"
"""Names of ours have a dot, so that no type of the user's has one of them."""
_REFUSED: Final = {
    "400": "No JSON, no id, or an id that cannot be one",
    "401": "No token or signature, or a wrong one",
    "413": "Too large",
    "415": "Not JSON in UTF-8",
    "422": "An event does not fit; nothing is stored",
    "429": "Too many events of this caller: come back",
    "503": "It cannot be stored now: send it again with the same id",
}
_ASKED_IN_VAIN: Final = {"400": _REFUSED["400"], "401": _REFUSED["401"], "404": "No result by now", "503": "Come back"}


def document(
    adapter: TypeAdapter[Any], *, id_header: str | None, bearer: bool, signature: str | None, open: bool, results: bool
) -> dict[str, Any]:
    """The document, in version 3.1, whose schemas are JSON Schema as pydantic makes it.

    Args:
        adapter: Of the events.
        id_header: The header with the event's id; `None` if the id is a field of the event.
        bearer: Whether bearer tokens let in.
        signature: The header with a webhook's signature, if those let in.
        open: Whether everybody is let in.
        results: Whether the server is told what events come to.
    """
    event, schemas = _schema(adapter)
    schemas |= {"ingress.Accepted": _ACCEPTED, "ingress.Problem": _PROBLEM}
    one, batch = {"$ref": "#/components/schemas/ingress.Event"}, {"$ref": "#/components/schemas/ingress.Accepted"}
    wait = _parameter("wait", "query", "How long the result is waited for, such as `5s` or `500ms`")
    named = [_parameter(id_header, "header", "The id of the event, the same if it is sent again", needed=True)]
    schemes: dict[str, Any] = {"bearer": {"type": "http", "scheme": "bearer"}} if bearer else {}
    signs = {"signature": {"type": "apiKey", "in": "header", "name": signature}} if signature else {}
    told = {"200": _answer("What the event came to", _result(schemas))} if results else {}
    taken = _answer("It is stored", {"oneOf": [batch, {"$ref": "#/components/schemas/ingress.AcceptedBatch"}]})
    schemas["ingress.Event"] = event
    schemas["ingress.AcceptedBatch"] = {
        "type": "object",
        "properties": {"accepted": {"type": "array", "items": batch}},
        "required": ["accepted"],
    }
    paths: dict[str, Any] = {
        "/events": {
            "post": {
                "summary": "Takes an event, or a batch of them",
                "parameters": (named if id_header else []) + ([wait] if results else []),
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": {"oneOf": [one, {"type": "array", "items": one}]}},
                        "application/x-ndjson": {"schema": {"type": "string", "description": "An event a line"}},
                    },
                },
                "responses": told | {"202": taken} | _problems(_REFUSED),
                "security": _security(schemes | signs, open=open),
            }
        }
    }
    if results:
        paths["/events/{id}"] = {
            "get": {
                "summary": "Tells what an event came to",
                "parameters": [_parameter("id", "path", "The id of the event", needed=True), wait],
                "responses": told | _problems(_ASKED_IN_VAIN),
                "security": _security(schemes, open=open),
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "beam-agents ingress", "version": version("beam-agents")},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": schemes | signs},
    }


_ACCEPTED: Final = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("id", "key", "location")},
    "required": ["id", "key", "location"],
}
_PROBLEM: Final = {
    "type": "object",
    "description": "Problem details, by RFC 9457",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["type", "title", "status", "detail"],
}


def _schema(adapter: TypeAdapter[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The events' schema, and those that it refers to. What has none may be anything here; pydantic judges it."""
    try:
        schema = adapter.json_schema(ref_template=_REFS)
    except PydanticInvalidForJsonSchema as error:
        return {"description": f"Not described: {error.message}"}, {}
    return schema, schema.pop("$defs", {})


def _result(schemas: dict[str, Any]) -> dict[str, Any]:
    schemas["ingress.Result"] = {
        "type": "object",
        "properties": {"id": {"type": "string"}, "status": {"enum": ["decided", "failed"]}, "result": {}},
        "required": ["id", "status", "result"],
    }
    return {"$ref": "#/components/schemas/ingress.Result"}


def _parameter(name: str | None, where: str, description: str, *, needed: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": needed,
        "description": description,
        "schema": {"type": "string"},
    }


def _answer(description: str, schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _problems(told: dict[str, str]) -> dict[str, Any]:
    problem = {"$ref": "#/components/schemas/ingress.Problem"}
    return {status: _answer(why, problem, "application/problem+json") for status, why in told.items()}


def _security(schemes: dict[str, Any], *, open: bool) -> list[dict[str, list[str]]]:
    ways: list[dict[str, list[str]]] = [{name: []} for name in schemes]
    return [*ways, {}] if open else ways
