"""The middleware of the proxy, with the proxy's app replaced: whatever dies behind it, answers keep their form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tandem_workers.endpoint.proxy_answers import ProxyAnswers, error_of
from tandem_workers.requests.api_errors import ApiError
from tandem_workers.requests.stream_schema import ErrorEvent

BODY = b'{"prompt": "face"}'
JSON, TEXT, EVENTS = b"application/json", b"text/plain; charset=utf-8", b"text/event-stream; charset=utf-8"
App = Callable[[Any, Any, Any], Awaitable[None]]


class Client:
    """Sends one request, in two pieces, and collects what comes back."""

    def __init__(self, app: App, path: str = "/v1/images/generations", leaves: bool = False):
        half = len(BODY) // 2
        self.messages = [
            {"type": "http.request", "body": BODY[:half], "more_body": True},
            {"type": "http.request", "body": BODY[half:], "more_body": False},
        ]
        if leaves:
            self.messages.append({"type": "http.disconnect"})
        self.sent: list[dict[str, Any]] = []
        scope = {"type": "http", "path": path, "headers": []}
        asyncio.run(ProxyAnswers(app)(scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        if self.messages:
            return self.messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        assert not self.sent[-1].get("more_body")
        return b"".join(message["body"] for message in self.sent[1:])


async def read(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    return body


async def answer(send: Any, status: int, kind: bytes, *pieces: bytes, ends: bool = True) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    for number, piece in enumerate(pieces, 1):
        await send({"type": "http.response.body", "body": piece, "more_body": not ends or number < len(pieces)})


class Losing:
    """Ray Serve's proxy whose ingress dies under the first `lost` requests: nothing is sent."""

    def __init__(self, lost: int):
        self.lost, self.bodies = lost, []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append(await read(receive))
        if len(self.bodies) > self.lost:
            await answer(send, 200, JSON, b"{}")


def test_a_request_whose_ingress_dies_is_asked_again_in_full():
    app = Losing(1)
    client = Client(app)
    assert (client.status, client.body, app.bodies) == (200, b"{}", [BODY, BODY])


def test_a_request_that_is_lost_twice_gets_an_error_of_the_api():
    app = Losing(2)
    client = Client(app)
    assert (client.status, client.headers[b"content-type"], client.headers[b"retry-after"]) == (503, JSON, b"5")
    error = json.loads(client.body)["error"]
    assert (error["code"], error["type"], error["param"]) == ("ingress_lost", "server_error", None)
    assert len(app.bodies) == 2


def test_a_client_that_left_is_not_asked_for():
    calls = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        calls.append(await read(receive))
        assert (await receive())["type"] == "http.disconnect"

    assert Client(app, leaves=True).sent == [] and len(calls) == 1


def test_a_stream_that_is_cut_ends_with_an_event():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read(receive)
        await answer(send, 200, EVENTS, b"event: a\ndata: {}\n\n", ends=False)

    client = Client(app)
    first, last, rest = client.body.decode().split("\n\n")
    assert (client.status, first, rest) == (200, "event: a\ndata: {}", "")
    name, data = last.split("\n")
    event = ErrorEvent.model_validate_json(data.removeprefix("data: "))
    assert (name, event.type, event.error.code) == ("event: error", "error", "ingress_lost")


def test_another_answer_that_is_cut_looks_cut():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 200, JSON, b'{"data": [', ends=False)

    with pytest.raises(ConnectionAbortedError):
        Client(app)


@pytest.mark.parametrize(("status", "seconds"), [(408, None), (429, b"5"), (500, None), (503, b"5")])
def test_refusals_of_the_proxy_say_when_to_ask_again_where_that_helps(status, seconds):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, status, TEXT, b"why")

    client = Client(app)
    assert (client.status, client.headers.get(b"retry-after")) == (status, seconds)


@pytest.mark.parametrize("status", [429, 503])
def test_refusals_of_the_proxy_have_the_form_of_the_api(status):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", TEXT), (b"retry-after", b"7"), (b"content-length", b"8")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"too much", "more_body": False})

    client = Client(app)
    error = json.loads(client.body)["error"]
    assert (client.status, client.headers[b"retry-after"], error["message"]) == (status, b"7", "too much")
    assert client.headers[b"content-length"] == str(len(client.body)).encode()


def test_a_proxy_that_knows_no_paths_yet_says_that_it_has_just_started(monkeypatch):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 404, TEXT, b"Path '/v1/models' not found. Please ping http://.../-/routes")

    young = Client(app)
    error = json.loads(young.body)["error"]
    assert (young.status, young.headers[b"retry-after"], error["code"]) == (503, b"5", "not_ready")
    assert error["message"] == "the HTTP proxy has just started"
    monkeypatch.setattr("tandem_workers.endpoint.proxy_answers.STARTING_S", -1.0)
    old = Client(app)
    assert (old.status, json.loads(old.body)["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(("status", "kind"), [(200, JSON), (200, TEXT), (404, TEXT), (503, JSON), (200, EVENTS)])
def test_other_answers_pass_as_they_are(status, kind):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, status, kind, b"a", b"b")

    client = Client(app)
    assert (client.status, client.headers, client.body) == (status, {b"content-type": kind}, b"ab")
    assert len(client.sent) == 3


def test_ray_serves_own_addresses_keep_their_answers():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 503, TEXT, b"draining")

    assert Client(app, path="/-/healthz").body == b"draining"


@pytest.mark.parametrize("status", [408, 429, 503])
def test_errors_are_those_of_the_api(status):
    assert error_of(status, "why", "code") == ApiError(status, "why", code="code").body()
