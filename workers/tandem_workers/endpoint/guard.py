"""Protection of the endpoint: API keys, limits of requests in flight and of body size."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem_workers.endpoint.api_errors import ApiError

RATE_WINDOW_S = 30.0
FIRST_GUESS_S = 2.0  # Retry-After while the rate is unknown
LONGEST_S = 60.0
BODY_TIMEOUT_S = 10.0
GONE = 499  # status in the metrics if the client went away before the answer


def digest(key: str) -> str:
    """Hash of an API key, by which the server recognises it without storing it."""
    return hashlib.sha256(key.encode()).hexdigest()


def is_known(authorization: str | None, digests: tuple[str, ...]) -> bool:
    """Whether a header 'Bearer KEY' has one of the keys, checked in constant time."""
    scheme, _, key = (authorization or "").partition(" ")
    found = digest(key.strip())
    matches = [hmac.compare_digest(found, known) for known in digests]  # always all of them, for constant time
    return scheme.lower() == "bearer" and any(matches)


class Admission:
    """Counts requests in flight and their images, at most `max_requests` and `max_images`."""

    def __init__(self, max_requests: int, max_images: int, report: Callable[[int], None] = lambda in_flight: None):
        self.max_requests, self.max_images, self.report = max_requests, max_images, report
        self.requests = self.in_flight = 0
        self.done: deque[tuple[float, int]] = deque()  # (when, images) of the last RATE_WINDOW_S
        self.draining = False

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Context manager: counts the images as in flight. ApiError 429 if too many, 503 while the server drains."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after_s=5)
        if self.requests == self.max_requests or self.in_flight + images > self.max_images:
            most = f"{self.max_requests} requests and {self.max_images} images in flight"
            message = f"expected at most {most}, got {images} more with {self.requests} and {self.in_flight}"
            raise ApiError(429, message, code="queue_full", retry_after_s=self.wait_s(images))
        self.requests += 1
        self.in_flight += images
        self.report(self.in_flight)
        try:
            yield
            self.done.append((time.monotonic(), images))
            self.forget()
        finally:
            self.requests -= 1
            self.in_flight -= images
            self.report(self.in_flight)

    def wait_s(self, images: int) -> float:
        """Seconds that this many images take at the recent rate; after that there is room for them."""
        self.forget()
        made = sum(count for _, count in self.done)
        if not made:
            return FIRST_GUESS_S
        return min(LONGEST_S, images * max(1.0, time.monotonic() - self.done[0][0]) / made)

    def forget(self) -> None:
        """Drop entries older than the window."""
        while self.done and time.monotonic() - self.done[0][0] > RATE_WINDOW_S:
            self.done.popleft()


class LimitBody:
    """ASGI middleware: 413 for a body above `max_bytes`, without reading the rest; 408 for one that does not arrive in
    time."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        until = time.monotonic() + BODY_TIMEOUT_S
        while more:
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except TimeoutError:
                error = ApiError(408, f"body: expected all of it within {BODY_TIMEOUT_S:g} s", code="body_timeout")
                await error.response()(scope, receive, send)
                return
            if message["type"] != "http.request":
                return  # the client has gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                error = ApiError(413, f"body: expected at most {self.max_bytes} bytes, got more", code="body_too_large")
                await error.response()(scope, receive, send)
                return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, replay, send)


class CountRequests:
    """ASGI middleware: calls `count` with the method, path and status of every answer."""

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
