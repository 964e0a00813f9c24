"""Answers with images: in one piece, or as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tandem_workers.endpoint.gateway import Gateway
from tandem_workers.requests.api_errors import as_api_error
from tandem_workers.requests.request_check import Asked


async def respond(gateway: Gateway, asked: Asked, stream: bool | None) -> Any:
    """Have the images of a checked request made, and answer them."""
    if stream:
        return EventStream(gateway, asked)
    with gateway.admission.admit(asked.request.n, asked.request.picture_pixels):
        return await gateway.answer(asked)


class Unanswered(Exception):
    """A stream that ended with an error event."""


class EventStream(StreamingResponse):
    """Server-sent events of one request. The request is admitted before the response begins, so that a full queue gives
    an HTTP status, not an event."""

    def __init__(self, gateway: Gateway, asked: Asked):
        self.gateway, self.asked = gateway, asked
        self.events, self.failed = self.send(), False
        super().__init__(self.events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = self.asked.request
        with suppress(Unanswered), self.gateway.admission.admit(request.n, request.picture_pixels):
            async with aclosing(self.events):  # also if the client disconnects between two events
                await super().__call__(scope, receive, send)
            if self.failed:
                raise Unanswered  # its images do not count as made

    async def send(self) -> AsyncGenerator[str, None]:
        try:
            async with aclosing(self.gateway.events(self.asked)) as events:
                async for event in events:
                    yield f"event: {event.type}\ndata: {event.model_dump_json(exclude_none=True)}\n\n"
        except Exception as error:
            self.failed = True
            yield f"event: error\ndata: {as_api_error(error).event()}\n\n"
