"""Headers of answers: each status has those that the OpenAPI document declares for it, from whatever layer it comes."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from starlette.testclient import TestClient

from support.fake_engine import MODEL, PATH, STREAM_PATH, FakeEngine, client, make_gateway
from tandem_workers.endpoint.api import create_api
from tandem_workers.endpoint.keys import digest
from tandem_workers.endpoint.middleware import MAX_BODY_BYTES
from tandem_workers.requests.api_errors import ApiError

KEY = "a-key-of-some-length"
BODY = {"prompt": "ant"}
SERVERS: dict[str, tuple[FakeEngine, dict[str, Any]]] = {
    "plain": (FakeEngine(), {}),
    "elsewhere": (FakeEngine(), {"allowed_hosts": ("a.example",)}),
    "keyed": (FakeEngine(), {"key_digests": (digest(KEY),)}),
    "full": (FakeEngine(), {"max_images": 1}),
    "faulty": (FakeEngine(RuntimeError("a fault")), {"origins": ("https://a.example",)}),
    "losing": (FakeEngine(ApiError(503, "lost"), lost="a drafter"), {}),
}


@cache
def server(name: str) -> TestClient:
    """Building one takes longer than asking it."""
    engine, settings = SERVERS[name]
    return client(make_gateway(engine, **settings))


CASES = [
    *((200, "plain", "POST", path, {"json": BODY}) for path in (PATH, STREAM_PATH)),
    (200, "plain", "POST", PATH, {"json": BODY | {"stream": True}}),
    *((200, "plain", "GET", path, {}) for path in ("/v1/models", "/healthz", "/openapi.json", "/")),
    (200, "elsewhere", "GET", "/healthz", {}),
    (400, "plain", "POST", STREAM_PATH, {"json": {}}),
    (400, "elsewhere", "GET", "/", {}),
    (401, "keyed", "POST", STREAM_PATH, {"json": BODY}),
    *((404, "plain", "GET", path, {}) for path in ("/v1/models/other", "/page/nothing", "/nothing")),
    (413, "plain", "POST", PATH, {"content": b"x" * (MAX_BODY_BYTES + 1)}),
    *((429, "full", "POST", path, {"json": BODY | {"n": 2}}) for path in (PATH, STREAM_PATH)),
    (500, "faulty", "POST", PATH, {"json": BODY}),
    (503, "losing", "POST", PATH, {"json": BODY}),
    (503, "losing", "GET", "/readyz", {}),
]


def check(answer: Any, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"])
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(("status", "name", "method", "path", "asked"), CASES)
def test_each_answer_has_the_headers_of_its_status(status, name, method, path, asked):
    check(server(name).request(method, path, **asked), status)


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        *((path, "GET", {"POST"}) for path in (PATH, STREAM_PATH)),
        *((path, "PUT", {"GET"}) for path in ("/v1/models", f"/v1/models/{MODEL}", "/v1/classes")),
        *((path, "POST", {"GET", "HEAD"}) for path in ("/healthz", "/readyz", "/", "/openapi.json", "/page/app.js")),
    ],
)
def test_another_method_is_a_405_that_names_all_that_are_right(path, method, allowed):
    answer = server("plain").request(method, path)
    check(answer, 405)
    assert set(answer.headers["allow"].split(", ")) == allowed
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    for right in allowed:
        assert server("plain").request(right, path).status_code != 405


@pytest.mark.parametrize("sent", ["r1", "!" * 128])
def test_a_request_keeps_the_name_that_it_came_with(sent):
    for path in ("/healthz", "/nothing"):
        answer = server("plain").get(path, headers={"X-Request-ID": sent})
        assert answer.headers.get_list("x-request-id") == [sent]


@pytest.mark.parametrize("sent", [b"", b"x" * 129, b"a b", b"\xff"])
def test_a_name_that_logs_cannot_show_is_replaced(sent):
    answer = server("plain").get("/healthz", headers=[(b"x-request-id", sent)])
    (name,) = answer.headers.get_list("x-request-id")
    assert re.fullmatch(r"[0-9a-f-]{36}", name)


def test_behind_a_proxy_that_names_requests_the_application_does_not():
    api = TestClient(create_api(make_gateway(FakeEngine()), proxied=True))
    assert "x-request-id" not in api.get("/healthz").headers


def test_pages_of_other_sites_can_read_why_the_server_failed():
    answer = server("faulty").post(PATH, json=BODY, headers={"origin": "https://a.example"})
    assert answer.status_code == 500
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
