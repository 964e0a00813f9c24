"""Middleware of Ray Serve's HTTP proxy: answers keep the form of the API where the proxy itself would give a line of
text, or none: when an ingress dies, when there is none, when the proxy refuses requests. Knows neither Ray nor torch.

A request whose ingress dies before it has answered is asked once more of another one, as decoding has no side effects.
A stream that is cut ends with an error event.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_KEPT_BYTES = 256 << 10  # of a body that is kept to be sent again; those with large pictures are not
OWN_STATUSES = (404, 408, 429, 500, 503)  # of answers that the proxy makes in plain text
STARTING_S = 30.0  # a proxy that has just started knows no paths for a moment: its 404 is no answer to anything
STARTING = "the HTTP proxy has just started"
LOST = "the process that had the request was lost"
RETRY_AFTER_S = 5


@dataclass
class Exchange:
    """One request: what was received of it, and what has been sent."""

    receive: Receive
    kept: list[Message] = field(default_factory=list)
    kept_bytes: int = 0
    gone: bool = False  # the client
    started: bool = False
    finished: bool = False
    is_stream: bool = False
    own: Message | None = None  # start of an answer that the proxy makes in plain text
    text: bytes = b""

    async def read(self) -> Message:
        """The next message of the client, kept to be read again."""
        message = await self.receive()
        if message["type"] == "http.disconnect":
            self.gone = True
        else:
            self.kept_bytes += len(message.get("body", b""))
            if self.kept_bytes > MAX_KEPT_BYTES:
                self.kept.clear()
            else:
                self.kept.append(message)
        return message

    @property
    def can_repeat(self) -> bool:
        """Whether the request can be sent again as it came."""
        return not (self.gone or self.started or self.own) and self.kept_bytes <= MAX_KEPT_BYTES

    def again(self) -> Receive:
        """Reads what was received from the beginning, then the rest."""
        position = 0

        async def receive() -> Message:
            nonlocal position
            if position < len(self.kept):
                position += 1
                return self.kept[position - 1]
            message = await self.read()
            position = len(self.kept)
            return message

        return receive


class ProxyAnswers:
    """ASGI middleware, see above."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]):
        self.app, self.began_s = app, time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Ray Serve's own addresses
            await self.app(scope, receive, send)
            return
        exchange = Exchange(receive)

        async def watched(message: Message) -> None:
            await self.pass_on(exchange, message, send)

        await self.app(scope, exchange.again(), watched)
        if exchange.can_repeat:
            await self.app(scope, exchange.again(), watched)
        await self.finish(exchange, send)

    async def pass_on(self, exchange: Exchange, message: Message, send: Send) -> None:
        """Send a message, but hold back an answer in plain text, which `finish` replaces."""
        if message["type"] == "http.response.start":
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            exchange.is_stream = kind.startswith(b"text/event-stream")
            if message["status"] in OWN_STATUSES and kind.startswith(b"text/plain"):
                exchange.own = message
                return
            exchange.started = True
        elif message["type"] == "http.response.body":
            if exchange.own is not None and is_own(exchange.own["status"], exchange.text + message.get("body", b"")):
                exchange.text += message.get("body", b"")
                return
            if exchange.own is not None:  # a 404 of an application
                await send(exchange.own)
                exchange.own, exchange.started = None, True
            exchange.finished = not message.get("more_body", False)
        await send(message)

    async def finish(self, exchange: Exchange, send: Send) -> None:
        """End an answer that the ingress has not ended."""
        if exchange.gone or exchange.finished:
            return
        if exchange.own is not None:
            text = exchange.text.decode(errors="replace").strip().strip('"')
            status, code = exchange.own["status"], "server_busy"
            if status == 404:
                has_started = time.monotonic() - self.began_s > STARTING_S
                status, text, code = (404, text, "not_found") if has_started else (503, STARTING, "not_ready")
            await self.refuse(status, text, code, exchange.own.get("headers", ()), send)
        elif not exchange.started:
            await self.refuse(503, LOST, "ingress_lost", (), send)
        elif exchange.is_stream:
            event = json.dumps(error_of(503, f"{LOST}; send it again", "ingress_lost") | {"type": "error"})
            await send({"type": "http.response.body", "body": f"event: error\ndata: {event}\n\n".encode()})
        else:  # the rest of the body is lost: the client has to see that
            raise ConnectionAbortedError(LOST)

    async def refuse(self, status: int, text: str, code: str, headers: Any, send: Send) -> None:
        body = json.dumps(error_of(status, text or "the server is busy", code)).encode()
        kept = [(name, value) for name, value in headers if name.lower() not in (b"content-type", b"content-length")]
        if status in (429, 503) and not any(name.lower() == b"retry-after" for name, _ in kept):
            kept.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        kept += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": kept})
        await send({"type": "http.response.body", "body": body})


def is_own(status: int, text: bytes) -> bool:
    """Whether a plain text is the proxy's own. Applications have 404s of their own; Ray Serve's begins like this."""
    return status != 404 or text.startswith(b"Path '")


def error_of(status: int, message: str, code: str) -> dict[str, Any]:
    """As `api_errors.ApiError` makes it."""
    kind = {429: "rate_limit_error"}.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
