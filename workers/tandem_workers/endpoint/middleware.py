"""What a request passes before the API sees it: the names of the server, API keys, the size and time of its body.

ASGI middleware without Ray and torch: it runs in the ingress, and in Ray Serve's HTTP proxies (`endpoint.proxy`).
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem_workers.endpoint.keys import is_known
from tandem_workers.requests.api_errors import ApiError, as_api_error, shown
from tandem_workers.requests.edit_schema import MAX_EDIT_BYTES

MAX_BODY_BYTES, BODY_TIMEOUT_S = 64 << 10, 10.0
MAX_WAITING = 1024  # bodies that one process waits for at a time, each of at most the limit of a body
MAX_HELD = 512 << 20  # bytes of them together
FILE_PATHS = ("/images/edits", "/images/edits/stream", "/images/variations")  # ends of paths
GONE = 499  # status in the metrics if the client went away before the answer
WITH_KEY = ("/v1", "/openai")  # paths below which a key is needed
HEALTH = ("/healthz", "/readyz")  # probes address a server by whatever name or number they know
REQUEST_ID, A_REQUEST_ID = "X-Request-ID", re.compile(r"[!-~]{1,128}")
ANY_HOST, ADDRESSES = "*", "<ip>"  # among allowed hosts: every name; every address in numbers


def cors_options(origins: Iterable[str]) -> dict[str, Any]:
    """Options of Starlette's CORSMiddleware for other sites whose pages may call."""
    return {
        "allow_origins": list(origins),
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["*"],
        "expose_headers": ["Retry-After", "X-Request-ID"],
    }


class RequireKey:
    """401 for a request to the API without a known key, from its headers alone: no body is awaited."""

    def __init__(self, app: ASGIApp, digests: tuple[str, ...]):
        self.app, self.digests = app, digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.digests and scope["type"] == "http" and needs_key(scope) and not self.has_key(Headers(scope=scope)):
            message = "Authorization: expected Bearer and a known API key (or that alone as api-key)"
            await ApiError(401, message, code="invalid_api_key").response()(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def has_key(self, headers: Headers) -> bool:
        return is_known(headers.get("authorization"), self.digests, headers.get("api-key"))


def needs_key(scope: Scope) -> bool:
    return any(f"{route_of(scope)}/".startswith(f"{prefix}/") for prefix in WITH_KEY)


def route_of(scope: Scope) -> str:
    """The path as the router sees it: without the prefix at which the application is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and f"{path}/".startswith(f"{root}/") else path


class AllowHosts:
    """400 for a request that addresses the server by a name that is not its own, as pages do whose name was rebound to
    this machine's address (DNS rebinding). Health is told to everybody.

    `allowed`: names without port, `*.example.org` for all below, ADDRESSES, ANY_HOST.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str]):
        self.app, self.allowed = app, frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or route_of(scope) in HEALTH or ANY_HOST in self.allowed:
            await self.app(scope, receive, send)
            return
        hosts = Headers(scope=scope).getlist("host") or [""]
        wrong = [host for host in hosts if not self.knows(name_of(host))]
        if not wrong:
            await self.app(scope, receive, send)
            return
        message = f"Host: expected a name of this server, got {shown(wrong[0])} (tandem serve --allowed-hosts NAME)"
        await ApiError(400, message, code="host_not_allowed").response()(scope, receive, send)

    def knows(self, name: str) -> bool:
        _, _, above = name.partition(".")
        while above and f"*.{above}" not in self.allowed:
            _, _, above = above.partition(".")
        return name in self.allowed or bool(above) or (ADDRESSES in self.allowed and is_address(name))


def name_of(host: str) -> str:
    """The name in a Host header, without port, brackets and final dot."""
    if host.startswith("["):
        name, closed, _ = host[1:].partition("]")
        return name.lower() if closed else ""
    return host.partition(":")[0].rstrip(".").lower()


def is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class BodyLimit:
    """Most bytes of a body, and seconds until all of it has to be there."""

    max_bytes: int = MAX_BODY_BYTES
    timeout_s: float = BODY_TIMEOUT_S


SMALL, WITH_FILES = BodyLimit(), BodyLimit(MAX_EDIT_BYTES, 6 * BODY_TIMEOUT_S)


class LimitBody:
    """413 for a body above its limit, without reading the rest; 408 for one that does not arrive in time, and for the
    one that has been awaited the longest when more than `max_waiting`, or `max_held` bytes of all, are awaited.

    Edits have a limit of their own, because they bring files.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: BodyLimit = SMALL,
        with_files: BodyLimit = WITH_FILES,
        max_waiting: int = MAX_WAITING,
        max_held: int = MAX_HELD,
    ):
        self.app, self.limit, self.with_files = app, limit, with_files
        self.max_waiting, self.max_held = max_waiting, max_held
        self.waiting: dict[asyncio.Timeout, int] = {}  # bytes so far, the oldest first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self.read(receive, self.with_files if brings_files(scope) else self.limit)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is None:
            return  # the client has gone
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        del body  # it may be large: whoever reads it keeps it as long as needed

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, replay, send)

    async def read(self, receive: Receive, limit: BodyLimit) -> bytes | None:
        """The whole body; None if the client went away. Raises ApiError 408 or 413."""
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(limit.timeout_s) as deadline:
                self.wait(deadline, 0)
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > limit.max_bytes:
                        expected = f"body: expected at most {limit.max_bytes} bytes, got more"
                        raise ApiError(413, expected, code="body_too_large")
                    self.wait(deadline, len(body))
        except TimeoutError:
            late = f"body: expected all of it within {limit.timeout_s:g} s, and sooner if many are awaited"
            raise ApiError(408, late, code="body_timeout") from None
        finally:
            self.waiting.pop(deadline, None)
        return bytes(body)

    def wait(self, deadline: asyncio.Timeout, held: int) -> None:
        """Count what a body holds, and give up the oldest ones if all together are too many."""
        if held and deadline not in self.waiting:
            return  # it was given up
        self.waiting[deadline] = held
        while len(self.waiting) > self.max_waiting or sum(self.waiting.values()) > self.max_held:
            oldest = next(iter(self.waiting))
            del self.waiting[oldest]
            oldest.reschedule(0)


def brings_files(scope: Scope) -> bool:
    """Whether a request is for edits or variations, by any of their paths."""
    return needs_key(scope) and route_of(scope).rstrip("/").endswith(FILE_PATHS)


class NoSniff:
    """Every answer is what its Content-Type says, and browsers are not to guess otherwise."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self.app(scope, receive, marked)


class NameRequest:
    """Every answer has X-Request-ID, the name of the request in Ray Serve's log: the one that the request came with, or
    a new one for a request without, and for names that are long or not of visible ASCII characters."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        name = headers.get(REQUEST_ID, "")
        if not A_REQUEST_ID.fullmatch(name):
            name = headers[REQUEST_ID] = str(uuid.uuid4())

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = name  # in place of what Serve's proxy has set
            await send(message)

        await self.app(scope, receive, named)


class AnswerFaults:
    """500 in the API's form for an unexpected error, within the middleware that adds headers: Starlette's own answer is
    made outside of all."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await as_api_error(error).response()(scope, receive, send)


class OneSpelling:
    """`/v1/models/` is answered as `/v1/models`: without a redirect, which would repeat whatever Host was sent."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = scope["path"].removesuffix("/") or "/"
        await self.app(scope, receive, send)


class CountRequests:
    """Calls `count` with the path and status of every answer."""

    def __init__(self, app: ASGIApp, count: Callable[[str, int], None]):
        self.app, self.count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = GONE

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception:  # an outer handler responds
            status = 500 if status == GONE else status
            raise
        finally:
            route = scope.get("route")  # known paths only: arbitrary ones would fill the metrics' memory
            self.count(getattr(route, "path", "other"), status)
