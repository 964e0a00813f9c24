"""What runs in Serve's HTTP proxies, behind uvicorn as there: strangers cost clients with a key nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from ray.serve._private import http_util
from ray.serve.config import HTTPOptions
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from tandem_workers.endpoint import proxy
from tandem_workers.endpoint.keys import digest

KEY = "a-key-of-some-length"
PATH = "/v1/images/generations"
PLACES, STRANGERS = 16, 130


class FakeIngress:
    """Answers a request when its body is there. Every request has one of a few places as long; others get 503."""

    taken = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.taken == PLACES:
            await PlainTextResponse("no place", 503)(scope, receive, send)
            return
        self.taken += 1
        try:
            while (await receive()).get("more_body"):
                pass
            await PlainTextResponse("an image")(scope, receive, send)
        finally:
            self.taken -= 1


@asynccontextmanager
async def listening(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """The port of a server as Serve's proxy starts it."""
    monkeypatch.setenv("TANDEM_API_KEY_DIGESTS", digest(KEY))
    monkeypatch.delenv("TANDEM_API_KEYS", raising=False)
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    app: Any = FakeIngress()
    for middleware in [Middleware(http_util.RequestIdMiddleware), *proxy.middlewares()]:
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None, access_log=False))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = server.force_exit = True
    await task


def in_proxy(monkeypatch: pytest.MonkeyPatch, check: Callable[[int], Awaitable[None]]) -> None:
    async def run() -> None:
        async with listening(monkeypatch) as port:
            await asyncio.wait_for(check(port), 30)

    asyncio.run(run())


async def connect(port: int, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await writer.drain()
    return reader, writer


def head(key: str, length: int = 30) -> bytes:
    lines = (f"POST {PATH} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key}", f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


async def headers_of(reader: asyncio.StreamReader) -> list[tuple[str, str]]:
    """Headers of an answer whose status was read."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    return [(name.lower(), value) for name, value in (line.split(": ", 1) for line in lines)]


async def status_of(reader: asyncio.StreamReader) -> int:
    return int((await reader.readline()).split()[1])


@pytest.mark.parametrize(("key", "status"), [("a-wrong-key-of-some-length", 401), (KEY, None)])
def test_bodies_that_never_come_cost_the_others_nothing(key, status, monkeypatch):
    async def check(port: int) -> None:
        strangers = [await connect(port, head(key) + b"{") for _ in range(STRANGERS)]
        if status:  # at once: from the headers
            assert [await status_of(reader) for reader, _ in strangers] == [status] * STRANGERS
        answers = [await connect(port, head(KEY) + b"x" * 30) for _ in range(PLACES)]
        assert [await status_of(reader) for reader, _ in answers] == [200] * PLACES
        for _, writer in (*strangers, *answers):
            writer.close()

    in_proxy(monkeypatch, check)


def test_a_body_that_is_too_long_is_refused_in_the_proxy(monkeypatch):
    async def check(port: int) -> None:
        reader, writer = await connect(port, head(KEY, 1 << 30) + b"x" * (1 << 17))
        assert await status_of(reader) == 413
        writer.close()

    in_proxy(monkeypatch, check)


@pytest.mark.parametrize(
    ("key", "length", "status", "names"),
    [
        ("a-wrong-key-of-some-length", 30, 401, {"www-authenticate"}),
        (KEY, 1 << 17, 413, set()),
        (KEY, 30, 503, {"retry-after"}),
        (KEY, 30, 200, set()),
    ],
)
@pytest.mark.parametrize("sent", ["r1", None, "x" * 500])
def test_every_answer_of_the_proxy_has_one_request_id_and_what_its_status_calls_for(
    key, length, status, names, sent, monkeypatch
):
    monkeypatch.setattr(FakeIngress, "taken", PLACES if status == 503 else 0)

    async def check(port: int) -> None:
        named = head(key, length) if sent is None else head(key, length)[:-2] + f"X-Request-ID: {sent}\r\n\r\n".encode()
        reader, writer = await connect(port, named + b"x" * length)
        assert await status_of(reader) == status
        headers = await headers_of(reader)
        (request_id,) = [value for name, value in headers if name == "x-request-id"]
        assert request_id == sent if sent == "r1" else re.fullmatch(r"[0-9a-f-]{36}", request_id)
        assert {name for name, _ in headers} & {"www-authenticate", "retry-after", "allow"} == names
        writer.close()

    in_proxy(monkeypatch, check)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n", head(KEY) + b"x" * 30 + b"GET /"])
def test_a_connection_that_sends_no_request_is_closed(sent, monkeypatch):
    monkeypatch.setattr(proxy, "HEADERS_TIMEOUT_S", 0.1)

    async def check(port: int) -> None:
        reader, writer = await connect(port, sent)
        if sent.startswith(b"POST"):
            assert await status_of(reader) == 200
            writer.write(b"x")  # bytes that dribble in do not keep it open
        await reader.read()
        assert reader.at_eof()
        writer.close()

    in_proxy(monkeypatch, check)


def test_a_connection_between_two_requests_stays_open(monkeypatch):
    monkeypatch.setattr(proxy, "HEADERS_TIMEOUT_S", 0.1)

    async def check(port: int) -> None:
        reader, writer = await connect(port, head(KEY) + b"x" * 30)
        assert b"an image" in await reader.readuntil(b"an image")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.3)
        writer.write(head(KEY) + b"x" * 30)
        assert await status_of(reader) == 200
        writer.close()

    in_proxy(monkeypatch, check)


def test_serve_takes_what_the_variable_names(monkeypatch):
    """By the function that a proxy calls when it starts. It has seconds for that, so nothing heavy is imported."""
    monkeypatch.setattr(http_util, proxy.HOOK, proxy.HERE)
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    found = http_util.configure_http_middlewares(HTTPOptions()).middlewares
    names = ["ProxyAnswers", "LimitBody", "RequireKey", "NoSniff", "NameRequest"]
    assert [middleware.cls.__name__ for middleware in found] == names
    loaded = uvicorn.Config(FakeIngress(), log_config=None)
    loaded.load()
    assert loaded.http_protocol_class is proxy.TimedProtocol
