"""What a request passes before the API sees it: limits of bodies, keys, names of the server, the count of answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tandem_workers.endpoint.keys import digest
from tandem_workers.endpoint.middleware import AllowHosts, BodyLimit, CountRequests, LimitBody, RequireKey

LIMIT = BodyLimit(100)
HTTP = {"type": "http", "method": "POST", "path": "/", "headers": []}


class FakeApp:
    """Reads its body and answers; remembers what it read and how reading went on."""

    def __init__(self, status: int = 200, fault: BaseException | None = None, route: str | None = None) -> None:
        self.status, self.fault, self.route = status, fault, route
        self.bodies: list[bytes] = []
        self.after: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.route:
            scope["route"] = SimpleNamespace(path=self.route)
        if self.fault:
            raise self.fault
        message = await receive()
        self.bodies.append(message.get("body", b""))
        if scope["type"] == "http":
            self.after.append((await receive())["type"])
            await send({"type": "http.response.start", "status": self.status, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})


def drive(app: Any, messages: Iterator[dict], scope: dict | None = None) -> list[dict]:
    """What the app sends when it receives the messages."""
    sent: list[dict] = []

    async def receive() -> dict:
        return next(messages)

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(app(dict(scope or HTTP), receive, send))
    return sent


def chunks(*parts: bytes) -> Iterator[dict]:
    for number, part in enumerate(parts, 1):
        yield {"type": "http.request", "body": part, "more_body": number < len(parts)}
    yield {"type": "http.disconnect"}


@pytest.mark.parametrize("parts", [(b"",), (b"x" * LIMIT.max_bytes,), (b"x" * 60, b"y" * 40), (b"x",) * 100])
def test_a_body_up_to_the_limit_comes_through_whole_and_the_connection_behind_it(parts):
    app = FakeApp()
    sent = drive(LimitBody(app, LIMIT), chunks(*parts))
    assert sent[0]["status"] == 200
    assert app.bodies == [b"".join(parts)]
    assert app.after == ["http.disconnect"]


@pytest.mark.parametrize("parts", [(b"x" * (LIMIT.max_bytes + 1),), (b"x" * 60, b"y" * 41), (b"x" * 30,) * 1000])
@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
def test_a_longer_body_is_refused_and_not_read_to_its_end(parts, declared):
    headers = [(b"content-length", str(len(b"".join(parts))).encode())] if declared else []
    app, messages = FakeApp(), chunks(*parts)
    sent = drive(LimitBody(app, LIMIT), messages, HTTP | {"headers": headers})
    assert sent[0]["status"] == 413
    error = json.loads(sent[1]["body"])["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "body_too_large")
    assert f"at most {LIMIT.max_bytes} bytes" in error["message"]
    assert app.bodies == []
    assert len(list(messages)) >= len(parts) - 4


def test_a_client_that_goes_away_in_its_body_is_not_answered():
    app = FakeApp()
    half = iter([{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}])
    assert drive(LimitBody(app, LIMIT), half) == []
    assert app.bodies == []


def test_other_traffic_than_http_passes():
    app, counted = FakeApp(), []
    lifespan = iter([{"type": "lifespan.startup", "body": b"x" * 1000}])
    drive(
        CountRequests(LimitBody(app, LIMIT), lambda *seen: counted.append(seen)),
        lifespan,
        {"type": "lifespan"},
    )
    assert app.bodies == [b"x" * 1000]
    assert counted == []


@pytest.mark.parametrize("status", [200, 404, 503])
def test_answers_are_counted_by_route_and_status(status):
    counted = []
    app = CountRequests(FakeApp(status, route="/v1/models/{model_id}"), lambda *seen: counted.append(seen))
    sent = drive(app, chunks(b""))
    assert sent[0]["status"] == status
    assert counted == [("/v1/models/{model_id}", status)]


def test_paths_that_are_none_of_ours_are_counted_as_one():
    """Each path of its own would let a scanner fill the memory of the metrics."""
    counted = []
    for path in ("/admin.php", "/.env"):
        drive(CountRequests(FakeApp(404), lambda *seen: counted.append(seen)), chunks(b""), HTTP | {"path": path})
    assert counted == [("other", 404)] * 2


@pytest.mark.parametrize(
    ("fault", "status"), [(asyncio.CancelledError(), 499), (RuntimeError("a fault of the server"), 500)]
)
def test_a_client_that_left_and_a_fault_of_the_server_are_told_apart(fault, status):
    counted = []
    app = CountRequests(FakeApp(fault=fault, route="/"), lambda *seen: counted.append(seen))
    with pytest.raises(type(fault)):
        drive(app, chunks(b""))
    assert counted == [("/", status)]


def stalled(first: bytes) -> Any:
    """A client that announces a body and sends only its beginning."""
    parts = [{"type": "http.request", "body": first, "more_body": True}]

    async def receive() -> dict:
        return parts.pop() if parts else await asyncio.Event().wait()

    return receive


async def answered(app: Any, receive: Any, scope: dict) -> dict:
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    await app(dict(scope), receive, send)
    return sent[0]


def test_a_body_that_stalls_is_given_up_and_the_oldest_first_if_many_do():
    limit = LimitBody(FakeApp(), BodyLimit(100, 0.05), max_waiting=2)

    async def run() -> list[int]:
        tasks = [asyncio.create_task(answered(limit, stalled(b"x"), HTTP)) for _ in range(4)]
        await asyncio.sleep(0)  # all have begun
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        early = [tasks.index(task) for task in done]
        assert len(limit.waiting) == 2
        assert [(await task)["status"] for task in tasks] == [408] * 4
        return early

    assert set(asyncio.run(run())) <= {0, 1}
    assert limit.waiting == {}


FORM = HTTP | {"path": "/v1/images/edits"}


def test_forms_with_files_have_a_limit_of_their_own_and_one_together():
    files = BodyLimit(1000, 0.05)
    limit = LimitBody(FakeApp(), BodyLimit(100, 0.05), files, max_held=1500)
    for path in (
        "/v1/images/edits",
        "/v1/images/edits/",
        "/v1/images/variations",
        "/openai/deployments/a/images/edits",
    ):
        assert drive(limit, chunks(b"x" * 1000), HTTP | {"path": path})[0]["status"] == 200
        assert drive(limit, chunks(b"x" * 1001), HTTP | {"path": path})[0]["status"] == 413
    assert drive(limit, chunks(b"x" * 101), HTTP | {"path": "/v1/images/generations"})[0]["status"] == 413

    async def run() -> list[int]:
        tasks = [asyncio.create_task(answered(limit, stalled(b"x" * 600), FORM)) for _ in range(3)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        early = [tasks.index(task) for task in done]
        assert sum(limit.waiting.values()) <= 1500
        assert [(await task)["status"] for task in tasks] == [408] * 3
        return early

    assert asyncio.run(run()) == [0]
    assert limit.waiting == {}


KEY = "a-key-of-some-length"


@pytest.mark.parametrize(("path", "root"), [("/v1/models", ""), ("/v1", ""), ("/app/v1/models", "/app"), ("/v1/", "")])
def test_a_key_is_asked_for_from_the_headers_alone(path, root):
    """No part of the body is received: it may never come."""
    app = FakeApp()

    async def receive() -> dict:
        raise AssertionError("the body was awaited")

    scope = HTTP | {"path": path, "root_path": root}
    stack = RequireKey(LimitBody(app, LIMIT), (digest(KEY),))
    assert asyncio.run(answered(stack, receive, scope))["status"] == 401
    assert app.bodies == []
    known = scope | {"headers": [(b"authorization", f"Bearer {KEY}".encode())]}
    assert drive(stack, chunks(b"x"), known)[0]["status"] == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/page/app.js", "/v1x", "/v"])
def test_what_is_no_part_of_the_api_asks_for_no_key(path):
    stack = RequireKey(FakeApp(), (digest(KEY),))
    assert drive(stack, chunks(b""), HTTP | {"path": path})[0]["status"] == 200


@pytest.mark.parametrize(
    ("host", "status"), [("10.0.0.7:8000", 200), ("[fe80::1]:80", 200), ("010.1", 400), ("evil.example", 400)]
)
def test_a_server_for_all_networks_may_be_addressed_in_numbers(host, status):
    """No name server can rebind those."""
    app = AllowHosts(FakeApp(), ("localhost", "<ip>"))
    assert drive(app, chunks(b""), HTTP | {"headers": [(b"host", host.encode())]})[0]["status"] == status
