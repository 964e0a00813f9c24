"""The OpenAPI document of the HTTP API, in version 3.1: what the routes declare, the headers of every answer, and the
events of a stream, which routes cannot declare."""

from __future__ import annotations

from typing import Any, cast

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from tandem_workers.requests.api_schema import ErrorBody
from tandem_workers.requests.edit_check import EditCheck
from tandem_workers.requests.stream_schema import EditStreamEvent, ImageStreamEvent

SCHEMAS, HEADERS = "#/components/schemas", "#/components/headers"
EVENTS, EDIT_EVENTS = "ImageStreamEvent", "EditStreamEvent"
ALWAYS = (400, 405, 408, 413, 500, 503)  # statuses that any request may get
DESCRIPTIONS = {
    400: "an invalid value; the message names field, expected and actual value",
    401: "an API key is needed",
    404: "not found",
    405: "method not allowed; Allow names those that are",
    408: "the body did not come in time",
    413: "the body is too large",
    429: "too many images in flight; Retry-After says when to retry",
    500: "an error of the server",
    503: "loading, draining, overloaded, or too slow; Retry-After says when to retry",
}
SENT_HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "X-Request-ID": (
        {"type": "string"},
        "name of the request in the server's log: the one that it came with, or a new one",
    ),
    "X-Content-Type-Options": ({"type": "string", "const": "nosniff"}, "the answer is what its Content-Type says"),
    "Cache-Control": ({"type": "string", "const": "no-store"}, "a stream is not to be kept"),
    "Retry-After": ({"type": "integer", "minimum": 1}, "seconds to wait before the request is sent again"),
    "WWW-Authenticate": ({"type": "string", "const": "Bearer"}, "how to send the API key"),
    "Allow": ({"type": "string"}, "methods of this path, separated by commas"),
}
ON_EVERY_ANSWER = ("X-Request-ID", "X-Content-Type-Options")
ON_STATUS = {401: ("WWW-Authenticate",), 405: ("Allow",), 429: ("Retry-After",), 503: ("Retry-After",)}


def stream_of(events: str) -> dict[str, Any]:
    """A 200 that is a stream of the events of that name. OpenAPI 3.1 has no word for the items of a stream."""
    return {
        "description": f"server-sent events: `event:` has the `type`, `data:` the JSON of one {events}",
        "content": {
            "text/event-stream": {
                "schema": {
                    "type": "string",
                    "contentMediaType": "text/event-stream",
                    "contentSchema": {"type": "array", "items": {"$ref": f"{SCHEMAS}/{events}"}},
                }
            }
        },
        "headers": {"Cache-Control": {"$ref": f"{HEADERS}/Cache-Control"}},
    }


def form_of(check: EditCheck, streams: bool = False) -> dict[str, Any]:
    """The declaration of a form, which routes cannot have: its fields and files."""
    schema = check.model.model_json_schema()
    files = {name: {"type": "string", "format": "binary", "description": text} for name, text in check.files.items()}
    schema["properties"] = files | schema["properties"]
    schema["required"] = ["image", *schema.get("required", [])]
    true = {"type": "boolean", "const": True, "default": True, "description": "always true here"}
    schema["properties"]["stream"] = true if streams else schema["properties"]["stream"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route."""
    return {
        status: {"model": ErrorBody, "description": DESCRIPTIONS[status]} for status in sorted({*statuses, *ALWAYS})
    }


def operation_id(route: APIRoute) -> str:
    """The name of the function: generated clients have a function of this name."""
    return route.name


def complete(app: FastAPI) -> None:
    """Complete the document that FastAPI makes of the routes. Call it once, when all routes are there."""
    document = app.openapi()
    for path in document["paths"].values():
        for operation in path.values():
            answers = operation["responses"]
            answers.pop("422", None)  # FastAPI's own; this server answers 400 to a wrong value
            for status, answer in answers.items():
                answer.setdefault("headers", {}).update(headers_of(int(status)))
    components = document["components"]
    components["headers"] = {
        name: {"description": description, "required": True, "schema": schema}
        for name, (schema, description) in SENT_HEADERS.items()
    }
    schemas = components["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for name, kind in ((EVENTS, ImageStreamEvent), (EDIT_EVENTS, EditStreamEvent)):
        events = TypeAdapter[Any](cast("Any", kind)).json_schema(
            mode="serialization", ref_template=f"{SCHEMAS}/{{model}}"
        )
        schemas |= events.pop("$defs")
        schemas[name] = {"title": name, "description": "the data of one server-sent event"} | events


def headers_of(status: int) -> dict[str, Any]:
    return {name: {"$ref": f"{HEADERS}/{name}"} for name in (*ON_EVERY_ANSWER, *ON_STATUS.get(status, ()))}
