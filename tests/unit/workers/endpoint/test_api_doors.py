"""Who may come in and what they find: keys, pages of other sites, the page, the OpenAPI document, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from support.fake_engine import MODEL, PATH, STREAM_PATH, FakeEngine, client, make_gateway
from tandem_workers.endpoint.keys import digest

KEY, OTHER_KEY = "a-key-of-some-length", "another-key-of-some-length"


def error_of(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.json()["error"]


GUARDED = [
    *(("POST", path) for path in (PATH, STREAM_PATH)),
    *(("GET", path) for path in ("/v1/models", f"/v1/models/{MODEL}", "/v1/classes")),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("header", [None, f"Bearer {KEY}x", f"Basic {KEY}", "Bearer"])
def test_without_a_known_key_the_api_is_closed(method, path, header):
    engine = FakeEngine()
    api = client(make_gateway(engine, key_digests=(digest(KEY), digest(OTHER_KEY))))
    headers = {"authorization": header} if header else {}
    for body in ({"prompt": "ant"}, {"prompt": 5}):  # what is wrong with a request is told to those with a key
        answer = api.request(method, path, headers=headers, json=body if method == "POST" else None)
        error = error_of(answer, 401)
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert KEY not in answer.text
    assert engine.asked == []


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_with_one_of_the_keys_it_is_open(method, path, key):
    api = client(make_gateway(FakeEngine(), key_digests=(digest(KEY), digest(OTHER_KEY))))
    body = {"prompt": "ant"} if method == "POST" else None
    assert api.request(method, path, headers={"authorization": f"Bearer {key}"}, json=body).status_code == 200


def test_health_the_page_and_the_openapi_document_ask_for_no_key():
    api = client(make_gateway(FakeEngine(), key_digests=(digest(KEY),)))
    for path in ("/healthz", "/readyz", "/", "/page/style.css", "/openapi.json"):
        assert api.get(path).status_code == 200, path
    document = api.get("/openapi.json").json()
    assert document["paths"][PATH]["post"]["security"]
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


SITE = {"origin": "https://a.example"}
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


def test_pages_of_other_sites_may_call_only_where_that_is_set():
    closed = client(make_gateway(FakeEngine()))
    assert not [name for name in closed.get("/v1/models", headers=SITE).headers if name.startswith("access-control")]
    assert closed.options(PATH, headers=SITE | PREFLIGHT).status_code == 405
    opened = client(make_gateway(FakeEngine(), origins=("https://a.example",), key_digests=(digest(KEY),)))
    allowed = opened.options(PATH, headers=SITE | PREFLIGHT)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    assert opened.get("/v1/models", headers=SITE).headers["access-control-allow-origin"] == "https://a.example"
    other = {"origin": "https://b.example"}
    assert opened.options(PATH, headers=other | PREFLIGHT).status_code == 400
    assert "access-control-allow-origin" not in opened.get("/v1/models", headers=other).headers


def test_the_page_and_its_files_come_with_headers_that_keep_it_to_itself():
    api = client(make_gateway(FakeEngine()))
    page = api.get("/")
    files = re.findall(r'(?:src|href)="(page/[^"]+)"', page.text)
    assert {"page/style.css", "page/app.js"} <= set(files)
    for answer in (page, *(api.get(f"/{file}") for file in files)):
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
    assert page.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("path", ["/page/../api.py", "/page/%2e%2e/api.py", "/page/..%2fapi.py", "/page/", "/nothing"])
def test_what_is_not_there_is_a_404_in_the_same_form(path):
    error_of(client(make_gateway(FakeEngine())).get(path), 404)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/models/", 200), ("/v1/classes/", 200), ("/v1/models/%2F", 404), ("/page", 404), ("//", 200)],
)
def test_a_trailing_slash_makes_no_difference_and_no_redirect_to_whatever_host_was_sent(path, status):
    api = client(make_gateway(FakeEngine()))
    answer = api.get(path, headers={"host": "evil.example"}, follow_redirects=False)
    assert answer.status_code == status
    assert "location" not in answer.headers and "evil.example" not in answer.text


OWN = ("localhost", "127.0.0.1", "::1", "images.example.org", "*.tandem.test")
HOSTS = [
    *((host, 200) for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "localhost.")),
    *((host, 200) for host in ("images.example.org", "a.tandem.test:80", "a.b.tandem.test")),
    *((host, 400) for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "tandem.test", "")),
    *((host, 400) for host in ("x.images.example.org", "127.0.0.2", "[::2]:8000", "[::1", "localhost@evil.example")),
]


@pytest.fixture(scope="module")
def named() -> TestClient:
    return client(make_gateway(FakeEngine(), allowed_hosts=OWN))


@pytest.mark.parametrize(("host", "status"), HOSTS)
def test_only_a_server_addressed_by_its_own_name_answers(named, host, status):
    """A page whose name was rebound to this address would get images otherwise."""
    api = named
    for answer in (
        api.get("/v1/models", headers={"host": host}),
        api.post(PATH, json={"prompt": "ant"}, headers={"host": host}),
        api.get("/", headers={"host": host}),
    ):
        assert answer.status_code == status, answer.text
        if status == 400:
            assert error_of(answer, 400)["code"] == "host_not_allowed"
    for probe in ("/healthz", "/readyz"):
        assert api.get(probe, headers={"host": host}).status_code == 200


def test_each_of_two_host_headers_has_to_be_a_name_of_the_server(named):
    answer = named.get("/v1/models", headers=[("host", "localhost"), ("host", "evil.example")])
    error_of(answer, 400)


def test_answers_are_not_to_be_sniffed():
    api = client(make_gateway(FakeEngine(), key_digests=(digest(KEY),)))
    known = {"authorization": f"Bearer {KEY}"}
    answers = [api.get(path) for path in ("/healthz", "/openapi.json", "/nothing", "/v1/models", "/page/app.js")]
    answers += [api.post(PATH, json={"prompt": "ant", "stream": stream}, headers=known) for stream in (True, False)]
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
