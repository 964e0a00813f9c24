"""The OpenAPI document: valid, with every status, header and event that the server sends."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from support.fake_engine import ABOUT, PATH, SIZE, STREAM_PATH, FakeEngine, K, client, events_of, make_gateway
from tandem.errors import JobError
from tandem_workers.endpoint.keys import digest
from tandem_workers.requests.edit_schema import EDIT_STREAM, EDITS, VARIATIONS

ALWAYS = {"200", "400", "405", "408", "413", "500", "503"}
CARRIES = {"401": {"WWW-Authenticate"}, "405": {"Allow"}, "429": {"Retry-After"}, "503": {"Retry-After"}}


def document_of(**settings: Any) -> dict[str, Any]:
    return client(make_gateway(FakeEngine(), **settings)).get("/openapi.json").json()


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return document_of(max_n=7)


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By path; each path has one."""
    found = {}
    for path, methods in document["paths"].items():
        (found[path],) = methods.values()
    return found


@pytest.mark.parametrize("settings", [{}, {"key_digests": (digest("a-key-of-some-length"),)}])
def test_it_is_valid_openapi_3_1(settings):
    document = document_of(**settings)
    assert document["openapi"].startswith("3.1.")
    validate(document, cls=OpenAPIV31SpecValidator)
    assert "itemSchema" not in str(document)  # of OpenAPI 3.2
    assert "422" not in str(document) and "ValidationError" not in str(document)


def test_operations_have_the_names_that_functions_of_clients_have(document):
    assert {path: operation["operationId"] for path, operation in operations(document).items()} == {
        PATH: "create_image",
        STREAM_PATH: "stream_image",
        EDITS: "edit_image",
        EDIT_STREAM: "stream_edit",
        VARIATIONS: "vary_image",
        "/v1/models": "list_models",
        "/v1/models/{model_id}": "get_model",
        "/v1/classes": "list_classes",
        "/healthz": "check_health",
        "/readyz": "check_ready",
    }


def test_every_status_and_header_is_declared(document):
    declared = {path: set(operation["responses"]) for path, operation in operations(document).items()}
    assert declared == {
        PATH: ALWAYS | {"401", "429"},
        STREAM_PATH: ALWAYS | {"401", "429"},
        EDITS: ALWAYS | {"401", "429"},
        EDIT_STREAM: ALWAYS | {"401", "429"},
        VARIATIONS: ALWAYS | {"401", "429"},
        "/v1/models": ALWAYS | {"401"},
        "/v1/models/{model_id}": ALWAYS | {"401", "404"},
        "/v1/classes": ALWAYS | {"401"},
        "/healthz": ALWAYS,
        "/readyz": ALWAYS,
    }
    for path, operation in operations(document).items():
        for status, answer in operation["responses"].items():
            cache = {"Cache-Control"} if path in (STREAM_PATH, EDIT_STREAM) and status == "200" else set()
            expected = {"X-Request-ID", "X-Content-Type-Options"} | CARRIES.get(status, set()) | cache
            assert set(answer["headers"]) == expected, (path, status)
            assert set(answer["headers"]) <= set(document["components"]["headers"])


def test_the_limits_of_this_server_are_in_it(document):
    fields = document["components"]["schemas"]["ImageGenerationRequest"]["properties"]
    limits = {name: field["anyOf"][0] for name, field in fields.items() if "anyOf" in field}
    assert (limits["n"]["minimum"], limits["n"]["maximum"]) == (1, 7)
    assert (limits["draft_steps"]["minimum"], limits["draft_steps"]["maximum"]) == (0, K)
    assert limits["top_k"]["maximum"] == ABOUT.vocab_size
    assert limits["size"]["enum"] == ["auto", SIZE]


def test_an_operation_has_one_kind_of_answer(document):
    kinds = {path: set(operation["responses"]["200"]["content"]) for path, operation in operations(document).items()}
    assert kinds.pop(STREAM_PATH) == kinds.pop(EDIT_STREAM) == {"text/event-stream"}
    assert set(map(frozenset, kinds.values())) == {frozenset({"application/json"})}
    schemas = document["components"]["schemas"]
    streams = {name: schemas[f"Image{name}Request"]["properties"]["stream"] for name in ("Generation", "Stream")}
    assert [streams[name]["anyOf"][0]["const"] for name in streams] == [False, True]
    assert STREAM_PATH in streams["Generation"]["description"]


@pytest.mark.parametrize("fault", [None, JobError("pixels are not finite")])
def test_every_event_is_one_that_is_declared(document, fault):
    schema = {"$ref": "#/components/schemas/ImageStreamEvent", "components": document["components"]}
    validator = Draft202012Validator(schema)
    mapping = document["components"]["schemas"]["ImageStreamEvent"]["discriminator"]["mapping"]
    answer = client(make_gateway(FakeEngine(fault))).post(STREAM_PATH, json={"prompt": "ant", "partial_images": 1})
    events = events_of(answer.text)
    assert len(events) == 2
    for name, event in events:
        validator.validate(event)
        assert name == event["type"] and name in mapping
    assert events[-1][0] == ("error" if fault else "image_generation.completed")
    assert not validator.is_valid({**events[0][1], "type": "other"})


@pytest.mark.parametrize("stream", [{}, {"stream": True}, {"stream": None}])
def test_the_path_of_streams_always_streams(stream):
    engine = FakeEngine()
    body = {"prompt": "ant", "seed": 5, "preview_scales": [2]} | stream
    answer = client(make_gateway(engine)).post(STREAM_PATH, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [name for name, _ in events_of(answer.text)] == [
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert engine.asked[0].preview_scales == {2}


def test_what_is_wrong_with_a_request_is_told_there_as_well():
    api = client(make_gateway(FakeEngine()))
    for stream, expected in ((False, "true, as this path always streams"), (1, "a valid boolean")):
        error = api.post(STREAM_PATH, json={"prompt": "ant", "stream": stream}).json()["error"]
        assert error["message"] == f"stream: expected {expected}, got {stream}"
    error = api.post(STREAM_PATH, json={"prompt": "ant", "preview_scales": [1], "cfg": -1}).json()["error"]
    assert "cfg: expected" in error["message"] and "preview_scales" not in error["message"]


def test_requests_are_counted_by_the_path_that_they_came_to():
    counted = []
    gateway = make_gateway(FakeEngine())
    gateway.watcher.answered = lambda *seen: counted.append(seen)
    assert client(gateway).post(STREAM_PATH, json={"prompt": "ant"}).status_code == 200
    assert counted == [(STREAM_PATH, 200)]
